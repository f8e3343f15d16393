"""Verdicts as columns: what stored probes look like to the feature code."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from urlhealth.vocabulary import Health

#: `Verdicts.health` holds these: 1 up, 0 down, -1 nothing known.
HEALTH_CODES = {Health.UP: 1, Health.DOWN: 0, Health.UNKNOWN: -1}

#: One verdict without its names: every numeric field of `Verdicts`, packed.
VERDICT = np.dtype(
    [
        ("probe_id", "i8"),
        ("ts_ms", "i8"),
        ("health", "i1"),
        ("outcome", "i4"),
        ("status_code", "i4"),
        ("dns_ms", "f4"),
        ("connect_ms", "f4"),
        ("tls_ms", "f4"),
        ("first_byte_ms", "f4"),
        ("total_ms", "f4"),
        ("size_bytes", "i8"),
        ("http_version", "i4"),
        ("redirects", "i4"),
        ("cert_expires_ms", "i8"),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdicts:
    """n verdicts, in the order in which their probes were stored. Every field is an array of shape (n,).

    Only verdicts that feed features are in it: one per probe of a target with its own options.
    """

    #: int64: position of the probe in the store, increasing.
    probe_id: npt.NDArray[np.int64]
    #: Strings (object): keys of the entities `url`, `host` and `group`.
    target: npt.NDArray[Any]
    host: npt.NDArray[Any]
    group: npt.NDArray[Any]
    #: int64: when the probe began, ms since 1970 UTC.
    ts_ms: npt.NDArray[np.int64]
    #: int8: 1 up, 0 down, -1 nothing known.
    health: npt.NDArray[np.int8]
    #: int32: `Outcome.code`.
    outcome: npt.NDArray[np.int32]
    #: int32: HTTP status, 0 without one.
    status_code: npt.NDArray[np.int32]
    #: float32: durations of the phases in ms, NaN where a phase was not reached.
    dns_ms: npt.NDArray[np.float32]
    connect_ms: npt.NDArray[np.float32]
    tls_ms: npt.NDArray[np.float32]
    first_byte_ms: npt.NDArray[np.float32]
    total_ms: npt.NDArray[np.float32]
    #: int64: body bytes read.
    size_bytes: npt.NDArray[np.int64]
    #: int32: HTTP version, 10 times: 11 is 1.1; 0 without one.
    http_version: npt.NDArray[np.int32]
    #: int32: redirects followed.
    redirects: npt.NDArray[np.int32]
    #: int64: when the certificate expires, ms since 1970 UTC, 0 without one.
    cert_expires_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.probe_id)

    def records(self) -> npt.NDArray[np.void]:
        """The numeric fields as records of dtype VERDICT, shape (n,)."""
        records = np.empty(len(self), VERDICT)
        for name in VERDICT.names or ():
            records[name] = getattr(self, name)
        return records

    def take(self, index: npt.NDArray[Any] | slice) -> "Verdicts":
        """The verdicts at `index` (positions, a mask or a slice)."""
        return Verdicts(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence["Verdicts"]) -> "Verdicts":
        """All parts, one after the other; at least one."""
        return Verdicts(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Verdicts)})
