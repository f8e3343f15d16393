"""`docs/features.md`, made from the catalog: `python -m urlhealth.features.page > docs/features.md`."""

from collections.abc import Iterable

from urlhealth.features.catalog import STATE_VIEWS, VECTOR
from urlhealth.features.fold import DEGRADED_AFTER, DEGRADED_DEVIATIONS, DEGRADED_MS, DEGRADED_TIMES

_HEAD = """# Features

Made from `src/urlhealth/features/` by `python -m urlhealth.features.page > docs/features.md`; do not edit it by hand.

Feast stores the carried *state* of each entity after each verdict, in the views below. `urlhealth.features.vector.at`
makes the *vector* that models see from the states, at any instant.
"""

_DEGRADED = f"""## Degraded

A slow answer is not a failure. A verdict up is *degraded* if it was slow for this URL: with x = ln(`total_ms`), and
m and s the mean and the standard deviation of x over the URL's earlier verdicts up (decayed, 7 d), if

    x - m > max({DEGRADED_DEVIATIONS} s, ln {DEGRADED_TIMES}),   total_ms >= {DEGRADED_MS}

and the earlier verdicts weigh at least {DEGRADED_AFTER}.

m is `latency_log_sum / latency_weight`, and s² is `latency_log_squares / latency_weight - m²`. The slow verdict counts
for the next ones, so that a URL that stays slow is degraded only until that is usual. Models do not see it: their
`log_latency_ratio` is x - m, the newest verdict included in m. `GET /api/v1/url` shows it.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    parts.append(f"## The vector\n\n{len(VECTOR)} features, in the order in which models see them.\n")
    parts.append(_table(("feature", "what it is"), ((f"`{feature.name}`", feature.about) for feature in VECTOR)))
    parts.append(_DEGRADED)
    for view in STATE_VIEWS:
        parts.append(f"## State view `{view.name}`, by `{view.entity}`\n")
        rows = ((f"`{c.name}`", c.dtype if c.length == 1 else f"{c.length} × {c.dtype}", c.about) for c in view.columns)
        parts.append(_table(("column", "type", "what it holds"), rows))
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
