"""Where the time of a prediction goes."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Literal, get_args

Stage = Literal["parse", "state", "vector", "model", "encode"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
#: Opens a span of a trace, by name.
Span = Callable[[str], AbstractContextManager[Any]]
#: Upper bounds of the buckets.
BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Stages:
    """Durations by stage, of requests. Many threads may use one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: What each stage is a span of, if there are traces.
        self.span: Span | None = None
        #: By stage, how many durations were up to each of `BOUNDS_S`, and above; and their sum.
        self.counts = {stage: [0] * (len(BOUNDS_S) + 1) for stage in STAGES}
        self.sum_s = dict.fromkeys(STAGES, 0.0)

    def add(self, stage: Stage, duration_s: float) -> None:
        """Count a duration."""
        place = bisect_left(BOUNDS_S, duration_s)
        with self._lock:
            self.counts[stage][place] += 1
            self.sum_s[stage] += duration_s

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count how long the block takes."""
        started_s = time.perf_counter()
        with nullcontext() if self.span is None else self.span(stage):
            yield
        self.add(stage, time.perf_counter() - started_s)
