"""The HTML page of a comparison of two periods: every feature in a table, and those that moved most as histograms."""

from pathlib import Path
from typing import Final

from urlhealth.errors import InvalidRequest
from urlhealth.features.drift import LARGE_PSI, Drift

#: Features that are drawn.
_DRAWN: Final = 12
_COLUMNS: Final = 3

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Drift of features</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } .large td { background: #fff0e0 }
</style></head><body>
<h1>Drift of features</h1>
<p>{{ "{:,}".format(drift.rows_reference) }} vectors before, {{ "{:,}".format(drift.rows_current) }} now.
PSI is the population stability index (below 0.1: no change; above {{ large }}: a large one, marked), KS the largest
distance of the two cumulative distributions.</p>
<img src="drift.png" alt="Histograms of the features that moved most, before and now">
<table><tr><th>feature</th><th>PSI</th><th>KS</th><th>missing before</th><th>missing now</th></tr>
{% for f in drift.features %}
<tr{% if f.psi > large %} class="large"{% endif %}>
<td>{{ f.feature }}</td>
<td>{{ "%.3f"|format(f.psi) }}</td>
<td>{{ "%.3f"|format(f.ks) }}</td>
<td>{{ "%.1f %%"|format(100 * f.missing_reference) }}</td>
<td>{{ "%.1f %%"|format(100 * f.missing_current) }}</td>
</tr>
{% endfor %}</table></body></html>
"""


def write(drift: Drift, folder: Path) -> Path:
    """Write `index.html` and its plot into a folder, which is made if need be; the page's path.

    Raises:
        InvalidRequest: the folder cannot be written.
    """
    from jinja2 import Environment

    text = Environment(autoescape=True).from_string(_PAGE).render(drift=drift, large=LARGE_PSI)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").write_text(text, encoding="utf-8")
        _plot(drift, folder / "drift.png")
    except OSError as error:
        raise InvalidRequest(f"cannot write the report to {folder}: {error}") from error
    return folder / "index.html"


def _plot(drift: Drift, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = drift.features[:_DRAWN]
    lines = -(-len(drawn) // _COLUMNS)
    figure = Figure(figsize=(11, 2.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)  # Without pyplot, so without global state.
    for axes, feature in zip(figure.subplots(lines, _COLUMNS, squeeze=False).flat, drawn, strict=False):
        labels = [*(f"≤ {edge:.3g}" for edge in feature.bin_edges), "more", "none"]
        at = range(len(labels))
        before = (*feature.shares_reference, feature.missing_reference)
        now = (*feature.shares_current, feature.missing_current)
        axes.bar([x - 0.2 for x in at], before, 0.4, label="before")
        axes.bar([x + 0.2 for x in at], now, 0.4, label="now")
        axes.set_title(f"{feature.feature}: PSI {feature.psi:.2f}", fontsize=9)
        axes.set_xticks(list(at), labels, rotation=60, fontsize=6)
        axes.tick_params(axis="y", labelsize=7)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", fontsize=8)
    figure.savefig(file, dpi=110)
