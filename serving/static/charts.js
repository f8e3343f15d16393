// Draws what the element #chart-data holds: forecasts with outages shaded, and the phases of probes, stacked.
const data = JSON.parse(document.getElementById("chart-data").textContent);
const colours = ["#0b5fd0", "#8250df", "#bf8700", "#1a7f37", "#59636e"];
const style = getComputedStyle(document.documentElement);
const ink = style.getPropertyValue("color") || "#666";

const shadeOutages = {
  hooks: {
    drawClear: [(chart) => {
      const { ctx, bbox } = chart;
      ctx.save();
      ctx.fillStyle = "rgba(196, 35, 46, .18)";
      for (const [from, to] of data.outages) {
        const left = Math.max(chart.valToPos(from, "x", true), bbox.left);
        const right = Math.min(chart.valToPos(to, "x", true), bbox.left + bbox.width);
        if (right > left) ctx.fillRect(left, bbox.top, Math.max(right - left, 2), bbox.height);
      }
      ctx.restore();
    }],
  },
};

function draw(place, options, values) {
  const size = () => ({ width: Math.max(place.clientWidth, 280), height: 220 });
  const axis = { stroke: ink, grid: { stroke: "rgba(128,128,128,.2)" }, ticks: { stroke: "rgba(128,128,128,.3)" } };
  const tzDate = (s) => uPlot.tzDate(new Date(s * 1000), "Etc/UTC");  // as in the tables
  const chart = new uPlot({ ...size(), tzDate, plugins: [shadeOutages], ...options,
    axes: [{ ...axis }, { ...axis, ...(options.left || {}) }] }, values, place);
  addEventListener("resize", () => chart.setSize(size()));
}

const risk = document.querySelector("[data-chart=risk]");
if (risk && (data.probes.length || data.risk[0].length)) {
  const times = [...new Set([...data.probes, ...data.risk[0], data.now])].sort((a, b) => a - b);
  const at = (xs, ys) => { const known = new Map(xs.map((x, i) => [x, ys[i]])); return times.map((t) => known.get(t) ?? null); };
  draw(risk, {
    scales: { y: { range: [0, 1.05] } },
    series: [{}, { label: "up", stroke: "#1a7f37", points: { show: true, size: 4 }, paths: () => null },
      { label: "may fail in 24h", stroke: "#c4232e", spanGaps: true, points: { show: true, size: 4 } }],
  }, [times, at(data.probes, data.up), at(data.risk[0], data.risk[1])]);
}

const phases = document.querySelector("[data-chart=phases]");
if (phases && data.probes.length) {
  const names = data.phases.map(([name]) => name.replace("_", " "));
  const values = data.phases.map(([, durations]) => durations);
  const sums = [];
  let below = data.probes.map(() => 0);
  for (const durations of values) {
    below = below.map((sum, i) => sum + (durations[i] ?? 0));
    sums.push(below);
  }
  // The highest sum first: those below are drawn over it.
  const order = names.map((_, i) => i).reverse();
  draw(phases, {
    series: [{}, ...order.map((i) => ({ label: names[i], stroke: colours[i], fill: colours[i] + "99", points: { show: false },
      value: (_, __, ___, at) => (at === null ? "" : (values[i][at] ?? 0).toFixed(1)) }))],
  }, [data.probes, ...order.map((i) => sums[i])]);
}
