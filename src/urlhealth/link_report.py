"""A page about a list of links, in one HTML file without anything from elsewhere, to send to someone."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

if TYPE_CHECKING:
    from urlhealth_client.models import PredictionsItem, TaskResult


class Link(BaseModel):
    """What is known of one link now."""

    url: str
    outcome: str
    status_code: int | None
    total_ms: float | None
    final_url: str | None
    error: str | None
    probed_at: datetime | None
    #: Of being seen failing within the horizon; None where unknown.
    probability: float | None
    reason: str | None


def links(results: "Iterable[TaskResult]", forecasts: "Iterable[PredictionsItem]") -> list[Link]:
    """The links of a task with their forecasts, worst first: failing ones, then by probability."""
    found = [
        Link(
            url=result.url,
            outcome=result.outcome or "unknown",
            status_code=result.status_code,
            total_ms=result.total_ms,
            final_url=result.final_url,
            error=result.error,
            probed_at=result.timestamp,
            probability=forecast.probability,
            reason=forecast.reasons[0].text if forecast.reasons else None,
        )
        for result, forecast in zip(results, forecasts, strict=True)
    ]
    return sorted(found, key=lambda link: (link.outcome == "ok", -(link.probability or 0.0), link.url))


def summary(found: Sequence[Link]) -> str:
    """The links in a line."""
    failing = sum(link.outcome != "ok" for link in found)
    return f"{len(found):,} links, {failing:,} not fine"


def page(found: Sequence[Link], *, source: str, horizon: str) -> str:
    """The page as HTML. `source`: where the list is from."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    newest = max((link.probed_at for link in found if link.probed_at is not None), default=None)
    return template.render(links=found, summary=summary(found), source=source, horizon=horizon, newest=newest)


_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Links of {{ source }}: {{ summary }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c1e21 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td:first-child { overflow-wrap: anywhere }
.number { text-align: right; white-space: nowrap }
.bad { color: #b3261e; font-weight: 600 }
.good { color: #1b6e3c }
small { color: #5f6368 }
</style>
<h1>Links of {{ source }}</h1>
<p>{{ summary }}.{% if newest %} Probed up to {{ newest.strftime("%Y-%m-%d %H:%M") }} UTC.{% endif %}</p>
<table>
<thead><tr><th>link<th>found<th class="number">ms<th class="number">may fail in {{ horizon }}<th>why</tr></thead>
<tbody>
{% for link in links %}
<tr>
<td>{{ link.url }}{% if link.final_url %}<br><small>leads to {{ link.final_url }}</small>{% endif %}</td>
<td class="{{ 'good' if link.outcome == 'ok' else 'bad' }}">{{ link.outcome }}
{% if link.status_code %}({{ link.status_code }}){% endif %}
{% if link.error %}<br><small>{{ link.error }}</small>{% endif %}</td>
<td class="number">{% if link.total_ms is not none %}{{ "%.0f" | format(link.total_ms) }}{% endif %}</td>
<td class="number">{% if link.probability is not none %}{{ "%.1f" | format(100 * link.probability) }} %{% endif %}</td>
<td>{{ link.reason or "" }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</html>
"""
