"""Pure parts of serving: the error table, the words of the small crawler, times."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import KINDS, kind_of
from serving.freshness import judged
from serving.routes.submit import errors_of
from serving.schemas import rfc3339
from serving.schemas.common import rfc3339_or_none
from urlhealth import errors
from urlhealth.vocabulary import Forecasts, Freshness, Health, Outcome, ProbeResult


def _subclasses(cls: type) -> set[type]:
    return {cls}.union(*(_subclasses(sub) for sub in cls.__subclasses__()))


def test_every_error_has_a_row_and_no_two_the_same_type() -> None:
    ours = {cls for cls in _subclasses(errors.UrlHealthError) if cls.__module__ == errors.__name__}
    assert set(KINDS) == ours
    assert len({kind.type for kind in KINDS.values()}) == len(KINDS)


def test_an_error_without_a_row_is_its_base() -> None:
    class TooShy(errors.InvalidRequest):
        pass

    assert kind_of(TooShy("no")) == KINDS[errors.InvalidRequest]
    assert kind_of(errors.InvalidUrls({3: "none"})) == KINDS[errors.InvalidUrls]


@pytest.mark.parametrize(
    ("outcome", "status_code", "expected"),
    [
        (Outcome.OK, 200, {}),
        (Outcome.HTTP_ERROR, 404, {"http": 404}),
        (Outcome.HTTP_ERROR, 503, {"http": 503}),
        (Outcome.BLOCKED, 429, {"http": 429}),
        (Outcome.BLOCKED, None, {"http": "ROBOTS"}),
        (Outcome.DNS, None, {"http": "DNS_ERROR"}),
        (Outcome.CONNECT, None, {"http": "CONNECTION_ERROR"}),
        (Outcome.TLS, None, {"http": "SSL_ERROR"}),
        (Outcome.TIMEOUT, None, {"http": "TIMEOUT"}),
        (Outcome.TIMEOUT, 200, {"http": "TIMEOUT"}),
        (Outcome.TOO_MANY_REDIRECTS, 302, {"http": "TOO_MANY_REDIRECTS"}),
        (Outcome.TOO_LARGE, 200, {"http": "TOO_LARGE"}),
        (Outcome.PROTOCOL, None, {"http": "PROTOCOL_ERROR"}),
        (Outcome.CONDITION, 200, {"http": "CONDITION"}),
        (Outcome.SELF, None, {"http": "NO_NETWORK"}),
        (Outcome.REFUSED, None, {"http": "BLOCKED_ADDRESS"}),
    ],
)
def test_words_of_the_small_crawler(outcome: Outcome, status_code: int | None, expected: dict[str, Any]) -> None:
    result = ProbeResult(target="https://a.example/", ts_ms=0, outcome=outcome, status_code=status_code)
    assert errors_of(result) == expected


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_word(outcome: Outcome) -> None:
    errors_of(ProbeResult(target="https://a.example/", ts_ms=0, outcome=outcome))


def forecasts(*ages_s: float | None, horizons: Sequence[str] = ("24h",)) -> Forecasts:
    unknown = np.array([age_s is None for age_s in ages_s])
    return Forecasts(
        sent_urls=[f"https://{i}.example" for i in range(len(ages_s))],
        targets=[f"https://{i}.example/" for i in range(len(ages_s))],
        horizons=horizons,
        status=[Freshness.MISSING if age_s is None else Freshness.FRESH for age_s in ages_s],
        health=[Health.UNKNOWN] * len(ages_s),
        age_s=ages_s,
        observed_ms=[None] * len(ages_s),
        probabilities=np.where(unknown[:, None], np.nan, [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]),
        model="url-health",
        model_version="1",
    )


def test_forecasts_are_predictions_urls_outermost() -> None:
    both = forecasts(7.0, None, horizons=("6h", "24h"))
    assert len(both) == len(list(both)) == 4
    assert [(p.sent_url[8], p.horizon, p.probability, p.probability_at_end, p.age_s) for p in both] == [
        ("0", "6h", 0.5, 0.25, 7.0),
        ("0", "24h", 0.5, 0.25, 7.0),
        ("1", "6h", None, None, None),
        ("1", "24h", None, None, None),
    ]
    assert both[-1] == both[2:][1]
    assert both[0].model_version == "1"


def test_what_is_older_than_allowed_is_stale() -> None:
    sent = forecasts(59.0, 61.0, None)
    assert judged(sent, max_age_s=None, on_stale="value") is sent
    statuses = [Freshness.FRESH, Freshness.STALE, Freshness.MISSING]
    valued = judged(sent, max_age_s=60, on_stale="value")
    assert [(p.status, p.probability) for p in valued] == list(zip(statuses, (0.5, 0.5, None), strict=True))
    nulled = judged(sent, max_age_s=60, on_stale="null")
    assert [(p.status, p.probability, p.probability_at_end) for p in nulled] == [
        (Freshness.FRESH, 0.5, 0.25),
        (Freshness.STALE, None, None),
        (Freshness.MISSING, None, None),
    ]
    assert [p.probability for p in sent] == [0.5, 0.5, None]


def test_old_urls_are_named_by_their_position() -> None:
    with pytest.raises(errors.TooOld) as caught:
        judged(forecasts(1.0, 61.0, None, horizons=("1h", "24h")), max_age_s=60, on_stale="error")
    assert list(caught.value.problems) == [1, 2]
    fresh = forecasts(1.0)
    assert list(judged(fresh, max_age_s=60, on_stale="error")) == list(fresh)


@given(st.integers(min_value=0, max_value=253_402_300_799_999))
def test_times_are_exact_to_the_millisecond(ms: int) -> None:
    text = rfc3339(ms)
    assert len(text) == len("2026-01-01T00:00:00.000Z")
    assert (rfc3339_or_none(ms), rfc3339_or_none(None)) == (text, None)
    since_1970 = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    assert since_1970.days * 86_400_000 + since_1970.seconds * 1000 + since_1970.microseconds // 1000 == ms


def test_early_years_have_four_digits_too() -> None:
    assert rfc3339(-60_672_917_445_500) == "0047-05-09T03:49:14.500Z"
