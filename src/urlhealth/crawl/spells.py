"""Spells: runs of verdicts that say the same, up or down. Incidents are those that say down.

A spell ends where the next one begins, or `known_for` after its last verdict if nothing was heard for longer than that;
then the next verdict begins another spell, even if it says the same. Verdicts that say neither up nor down are left
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.vocabulary import Outcome

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """n verdicts that say up or down. Every field is an array of shape (n,)."""

    target_id: Ints
    ts_ms: Ints
    up: npt.NDArray[np.bool_]
    #: `Outcome.code`, and the phase that failed (text or None).
    outcome: Ints
    phase: npt.NDArray[Any]
    #: Start of the spell that it continues, where a verdict stands for what came before; otherwise its `ts_ms`.
    start_ms: Ints

    def __len__(self) -> int:
        return len(self.ts_ms)

    def take(self, index: npt.NDArray[Any]) -> "Observed":
        return Observed(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def of(rows: Sequence[Sequence[Any]]) -> "Observed":
        """From rows of target id, instant, outcome's code, phase and spell's start."""
        target_id, ts_ms, outcome, phase, start_ms = zip(*rows, strict=True) if rows else [()] * 5
        codes = np.array(outcome, np.int64)
        phases = np.empty(len(rows), object)
        phases[:] = phase
        return Observed(
            target_id=np.array(target_id, np.int64),
            ts_ms=np.array(ts_ms, np.int64),
            up=codes == Outcome.OK.code,
            outcome=codes,
            phase=phases,
            start_ms=np.array(start_ms, np.int64),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Spells(Observed):
    """n spells: the fields of the first verdict, except `ts_ms`, which is the last one's."""

    end_ms: Ints = field(default_factory=lambda: np.empty(0, np.int64))


def spells(observed: Observed, *, known_for_ms: int) -> Spells:
    """The spells that verdicts make, each target's in the order of time. The verdicts may come in any order."""
    if not len(observed):
        return Spells(**{f.name: getattr(observed, f.name) for f in fields(observed)})
    order = np.lexsort((observed.ts_ms, observed.target_id))
    seen = observed.take(order)
    other = np.diff(seen.target_id, prepend=seen.target_id[0] - 1) != 0
    gap = np.diff(seen.ts_ms, prepend=0) > known_for_ms
    turn = np.diff(seen.up.astype(np.int8), prepend=0) != 0
    first = np.flatnonzero(other | gap | turn)
    last = np.append(first[1:], len(seen)) - 1
    known_until = seen.ts_ms[last] + known_for_ms
    followed = np.append(~other[first[1:]], False)
    following = np.append(seen.ts_ms[first[1:]], 0)
    made = {f.name: getattr(seen, f.name)[first] for f in fields(observed)}
    made["ts_ms"] = seen.ts_ms[last]
    return Spells(**made, end_ms=np.where(followed, np.minimum(known_until, following), known_until))


#: Where a probe failed, if its outcome says so; `answer`: it was complete, and said that something is wrong.
_PHASES: Final = {
    Outcome.DNS: "dns",
    Outcome.CONNECT: "connect",
    Outcome.TLS: "tls",
    Outcome.TOO_LARGE: "body",
    Outcome.HTTP_ERROR: "answer",
    Outcome.CONDITION: "answer",
    Outcome.TOO_MANY_REDIRECTS: "answer",
}


def failed_phase(outcome: Outcome, *, secure: bool, durations: Sequence[float | None]) -> str | None:
    """Where a probe failed; None where it did not, or that is not known.

    Args:
        secure: whether there is a TLS handshake.
        durations: of dns, connect, tls and the first byte; None for those that were not reached.
    """
    if outcome is Outcome.OK or outcome in _PHASES:
        return _PHASES.get(outcome)
    names = ("dns", "connect", "tls", "first_byte")
    reached = [name for name, duration in zip(names, durations, strict=True) if duration is not None]
    if not reached:
        return None
    missing = [n for n in names[names.index(reached[-1]) + 1 :] if secure or n != "tls"]
    return missing[0] if missing else "body"
