"""What was seen, judged afterwards: a complete answer by its status, several attempts of a probe by each other."""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from http import HTTPStatus
from typing import Final

from urlhealth.vocabulary import BLOCKED_STATUSES, Attempt, Health, Outcome, ProbeResult

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
#: What would be the same a moment later.
_LASTING: Final = frozenset({Outcome.TOO_LARGE, Outcome.TOO_MANY_REDIRECTS})
#: A client's faults are lasting, except this one: 408 Request Timeout.
_PASSING_STATUSES: Final = frozenset({408})
_ATTEMPT_FIELDS: Final = tuple(field.name for field in fields(Attempt))


def judge_status(status: int | None, expected: Collection[int] = ()) -> tuple[Outcome, str | None]:
    """The outcome of a complete answer, and what is wrong with it in words. Without `expected`: all below 400."""
    if status is None or status < 200:
        return Outcome.PROTOCOL, f"the answer ended with HTTP status {status}"
    if status in expected:
        return Outcome.OK, None
    if status < 400:
        return (Outcome.CONDITION, f"HTTP status {status} was not expected") if expected else (Outcome.OK, None)
    phrase = _PHRASES.get(status, "")
    return Outcome.BLOCKED if status in BLOCKED_STATUSES else Outcome.HTTP_ERROR, f"HTTP {status} {phrase}".rstrip()


def may_pass(result: ProbeResult) -> bool:
    """Whether another attempt could find something else."""
    if result.outcome is Outcome.HTTP_ERROR:
        return (result.status_code or 0) >= 500 or result.status_code in _PASSING_STATUSES
    return result.outcome.health is Health.DOWN and result.outcome not in _LASTING


def judge_attempts(attempts: Sequence[ProbeResult]) -> ProbeResult:
    """The verdict of a probe: the last attempt that says up or down, otherwise the last; with all of them kept.

    An attempt that says nothing about the target (we were blocked, our network was out) does not undo one that did.
    """
    if len(attempts) == 1:
        return attempts[0]
    telling = [attempt for attempt in attempts if attempt.outcome.health is not Health.UNKNOWN]
    kept = tuple(Attempt(**{name: getattr(attempt, name) for name in _ATTEMPT_FIELDS}) for attempt in attempts)
    return replace((telling or attempts)[-1], attempts=kept)
