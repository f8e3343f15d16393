"""What a replayed policy found, beside equal intervals and somebody who knows the future: figures, page, plots.

Imports matplotlib and Jinja inside functions, for only a report needs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from urlhealth.errors import InvalidRequest
from urlhealth.polling.policy import HOUR_MS
from urlhealth.polling.replay import Floats, Found, Ints, Outages, Probes, Series, budget_of

#: URLs with at least so many outages say something about how evenly a policy treats them.
MANY_OUTAGES: Final = 10

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Replay of {{ policy }} polling</title>
<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left;overflow-wrap:anywhere}img{max-width:100%}</style></head><body>
<h1>Replay of {{ policy }} polling</h1>
<p>{{ urls }} URLs, {{ outages }} outages after the start; budget {{ budget_per_url_hour }} probes per URL and hour.
Delay is the mean over all outages; one that was missed counts its whole length. Uniform is the mean of 20 phases;
the oracle knows when each outage begins.</p>
<table><tr><th></th><th>delay, min</th><th>caught</th><th>probes</th></tr>
{% for row in rows %}<tr><td>{{ row.name }}</td><td>{{ "%.2f"|format(row.delay_min) }}</td>
<td>{{ "%.1f"|format(100 * row.caught) }} %</td><td>{{ row.probes }}</td></tr>{% endfor %}</table>
<p>Budget: {{ "%.0f"|format(granted) }} probes, used {{ "%.2f"|format(100 * used) }} %.</p>
<img src="caught.png" alt="Share of outages caught, by their length">
<img src="delay.png" alt="Distribution of the delay">
<img src="probes.png" alt="Probes by day beside the budget">
<h2>By URL</h2>
<table><tr><th>URL</th><th>outages</th><th>delay, min</th><th>uniform</th><th>caught</th><th>uniform</th>
<th>probes/h</th></tr>
{% for url in by_url %}<tr><td>{{ url.url }}</td><td>{{ url.outages }}</td>
{% if url.outages %}<td>{{ "%.1f"|format(url.delay_min) }}</td><td>{{ "%.1f"|format(url.uniform_delay_min) }}</td>
<td>{{ "%.0f"|format(100 * url.caught) }} %</td><td>{{ "%.0f"|format(100 * url.uniform_caught) }} %</td>
{% else %}<td></td><td></td><td></td><td></td>{% endif %}
<td>{{ "%.2f"|format(url.probes_per_hour) }}</td></tr>{% endfor %}</table></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures over all outages; NaN where there were none."""

    name: str
    delay_min: float
    caught: float
    probes: int


@dataclass(frozen=True, kw_only=True)
class UrlSummary:
    """Figures of one URL."""

    url: str
    outages: int
    delay_min: float
    uniform_delay_min: float
    caught: float
    uniform_caught: float
    probes_per_hour: float


def summary(name: str, found: Found, probes: int) -> Summary:
    """The figures of one way to poll."""
    if not len(found.caught):
        return Summary(name=name, delay_min=float("nan"), caught=float("nan"), probes=probes)
    return Summary(
        name=name, delay_min=60 * float(found.delay_h.mean()), caught=float(found.caught.mean()), probes=probes
    )


def caught_ratios(outages: Outages, found: Found, uniform: Found) -> Floats:
    """For each URL with `MANY_OUTAGES` outages or more: its caught share by uniform's."""
    many = np.bincount(outages.series) >= MANY_OUTAGES
    ratios: Floats = np.bincount(outages.series, found.caught)[many] / np.bincount(outages.series, uniform.caught)[many]
    return ratios


def by_url(
    series: Sequence[Series], outages: Outages, found: Found, uniform: Found, probes: Probes
) -> list[UrlSummary]:
    """Figures by URL, those with most outages first."""
    size = len(series)
    count = np.bincount(outages.series, minlength=size)
    one = np.maximum(count, 1)

    def means(values: Floats) -> Floats:
        return np.bincount(outages.series, values, minlength=size) / one

    delay, caught = means(found.delay_h) * 60, means(found.caught)
    uniform_delay, uniform_caught = means(uniform.delay_h) * 60, means(uniform.caught)
    hours = np.array([(line.end_ms - line.start_ms) / HOUR_MS for line in series])
    rates = np.bincount(probes.series, minlength=size) / hours
    return [
        UrlSummary(
            url=series[i].url,
            outages=int(count[i]),
            delay_min=float(delay[i]),
            uniform_delay_min=float(uniform_delay[i]),
            caught=float(caught[i]),
            uniform_caught=float(uniform_caught[i]),
            probes_per_hour=float(rates[i]),
        )
        for i in np.argsort(-count, kind="stable")
    ]


def write_report(
    folder: Path,
    *,
    policy: str,
    budget_per_url_hour: float,
    series: Sequence[Series],
    outages: Outages,
    probes: Probes,
    found: Found,
    uniform: Found,
    oracle: Found,
) -> Path:
    """Write `index.html` and its plots into a folder, which is made if need be; the page's path.

    Raises:
        InvalidRequest: the folder cannot be written.
    """
    from jinja2 import Environment

    granted = budget_of(series, budget_per_url_hour)
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        policy=policy,
        urls=len(series),
        outages=len(outages.series),
        budget_per_url_hour=f"{budget_per_url_hour:g}",
        rows=[
            summary(policy, found, len(probes)),
            summary("uniform", uniform, round(granted)),
            summary("oracle", oracle, int(oracle.caught.sum())),
        ],
        granted=granted,
        used=len(probes) / granted,
        by_url=by_url(series, outages, found, uniform, probes),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").write_text(text, encoding="utf-8")
        _plot(folder, policy, outages, {policy: found, "uniform": uniform, "oracle": oracle})
        _plot_probes(folder, series, probes, budget_per_url_hour)
    except OSError as error:
        raise InvalidRequest(f"cannot write the report to {folder}: {error}") from error
    return folder / "index.html"


def _plot(folder: Path, policy: str, outages: Outages, found: dict[str, Found]) -> None:
    from matplotlib.figure import Figure

    minutes = outages.length_h * 60
    edges = np.array([0, 5, 10, 20, 40, 60, 120, 360, 1440, np.inf])
    bins = np.digitize(minutes, edges[1:-1])
    count = np.bincount(bins, minlength=len(edges) - 1)
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, one in found.items():
        shares = np.bincount(bins, one.caught, minlength=len(count)) / np.maximum(count, 1)
        axes.plot(np.where(count, 100 * shares, np.nan), marker="o", label=name)
    axes.set_xticks(range(len(count)), [f"{low:g}+\n({n})" for low, n in zip(edges[:-1], count, strict=True)])
    axes.set(xlabel="length of the outage in minutes (how many)", ylabel="caught, %", title=f"Outages caught, {policy}")
    axes.legend()
    figure.savefig(folder / "caught.png", dpi=110)

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, one in found.items():
        axes.plot(np.sort(one.delay_h * 60), np.arange(1, len(minutes) + 1) / max(len(minutes), 1), label=name)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(
        xlabel="delay in minutes", ylabel="share of outages", title="Delay until detection, or whole length if missed"
    )
    axes.legend()
    figure.savefig(folder / "delay.png", dpi=110)


def _plot_probes(folder: Path, series: Sequence[Series], probes: Probes, budget_per_url_hour: float) -> None:
    from matplotlib.figure import Figure

    day_ms = 24 * HOUR_MS
    first = min(one.start_ms for one in series) // day_ms
    last = max(one.end_ms for one in series) // day_ms
    days: Ints = np.arange(first, last + 1)
    used = np.bincount(probes.ts_ms // day_ms - first, minlength=len(days))
    granted = np.zeros(len(days))
    for one in series:
        inside = np.minimum(one.end_ms, (days + 1) * day_ms) - np.maximum(one.start_ms, days * day_ms)
        granted += budget_per_url_hour * np.maximum(inside, 0) / HOUR_MS
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    instants = days.astype("datetime64[D]")
    axes.plot(instants, used, label="used", linewidth=0.8)
    axes.plot(instants, granted, label="budget", linewidth=0.8)
    axes.set(ylabel="probes a day", title="Probes and budget")
    axes.legend()
    figure.savefig(folder / "probes.png", dpi=110)
