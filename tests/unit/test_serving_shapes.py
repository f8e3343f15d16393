"""Pure parts of serving: the error table, the words of the small crawler, times."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import KINDS, kind_of
from serving.routes.submit import errors_of
from serving.schemas import rfc3339
from urlhealth import errors
from urlhealth.vocabulary import Outcome, ProbeResult


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


@given(st.integers(min_value=0, max_value=253_402_300_799_999))
def test_times_are_exact_to_the_millisecond(ms: int) -> None:
    text = rfc3339(ms)
    assert len(text) == len("2026-01-01T00:00:00.000Z")
    since_1970 = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    assert since_1970.days * 86_400_000 + since_1970.seconds * 1000 + since_1970.microseconds // 1000 == ms
