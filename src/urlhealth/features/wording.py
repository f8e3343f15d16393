"""Values of features in words."""

import math

from urlhealth.features.columns import Feature


def formatted(feature: Feature, value: float) -> str:
    match feature.form:
        case "state":
            return "failing" if value >= 0.5 else "up"
        case "share":
            return _percent(value)
        case "log_share":
            return _percent(math.exp(value))
        case "hours":
            return duration(value)
        case "log_hours":
            return duration(math.expm1(value))
        case "log_short_hours":
            return duration(max(math.exp(value) - 0.1, 0))
        case "log_rate":
            return duration(math.exp(-value))
        case "log_ms":
            return f"{math.expm1(value):,.0f} ms"
        case "log_count":
            return f"{math.expm1(value):,.0f}"
        case "log_ratio":
            return f"{math.exp(value):.1f} times"
        case "days":
            return _counted(value, "day")
        case "number":
            return f"{value:g}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share == 0 or share >= 0.01 else f"{share:.1%}"


def duration(hours: float) -> str:
    """A duration in words, in the unit that suits it: "40 seconds", "3.2 hours", "12 days"."""
    for unit, in_hours, upto in (("second", 1 / 3600, 1 / 60), ("minute", 1 / 60, 1.0), ("hour", 1.0, 48.0)):
        if hours < upto:
            return _counted(hours / in_hours, unit)
    return _counted(hours / 24, "day")


def _counted(amount: float, unit: str) -> str:
    text = f"{amount:.1f}".removesuffix(".0") if amount < 10 else f"{amount:,.0f}"
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"
