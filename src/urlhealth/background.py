"""The work that goes on beside requests: each kind in a thread of its own, again and again."""

import ctypes
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from urlhealth.crawl.crawler import Crawler
from urlhealth.crawl.lease import RENEWALS
from urlhealth.crawl.retention import Kept
from urlhealth.errors import LeaseLost
from urlhealth.vocabulary import LOCAL_OWNER

if TYPE_CHECKING:
    from urlhealth.platform import Platform

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Longest that one turn of the crawl waits for results, and thus the time after which a new task is seen.
_TURN_S: Final = 0.1
#: Time between two looks for probes that are not in the roll-ups: what a URL's state shows does not wait for them.
_ROLL_UP_S: Final = 2.0
#: Time between two batches of what was served: what a killed process loses. And that until they are moved to the files.
_LOG_S: Final = 0.5
_MOVE_SERVED_S: Final = 5.0
#: Pause after a batch of forecasts, as a share of the time that it took: requests and probes come first.
_RESCORE_PAUSE: Final = 0.5
#: The same after a step of anything that follows on probes, while a task wants more of them than can be made.
_PROBES_FIRST_PAUSE: Final = 3.0
#: Time between two looks for what to alert on, and for messages to send.
_ALERT_S: Final = 1.0
#: Time between two looks for what is older than it is kept for.
_RETENTION_S: Final = 600.0
#: Time between two looks at how good what was served has been.
_QUALITY_S: Final = 300.0
#: Time between two looks whether a retraining is due, or over.
_RETRAIN_LOOK_S: Final = 5.0
#: Time after which a loop that failed tries again; and that which each has to end.
_RETRY_S: Final = 1.0
_END_S: Final = 15.0
#: Longest time that a busy thread keeps the interpreter from the others: a request changes threads several times.
_SWITCH_S: Final = 0.0005
#: glibc's number for the most heaps (malloc.h), and how many we want. By default there are 8 for each core.
_M_ARENA_MAX: Final = -8
_HEAPS: Final = 2


class Background:
    """The loops of one platform. All but its own crawl's are idle in a process that does not hold the lease."""

    def __init__(self, platform: "Platform", crawler: Crawler, stop: threading.Event) -> None:
        """`stop`: ends all loops when it is set."""
        self._platform = platform
        self._crawler = crawler
        self._stop = stop
        self._threads: list[threading.Thread] = []

    def start(self, *, features: bool, predict: bool) -> None:
        """Start what `Platform.start` says."""
        _share_heaps()
        sys.setswitchinterval(_SWITCH_S)
        platform, settings = self._platform, self._platform.settings
        self._loop("lease", self._renew, settings.lease_s / RENEWALS)
        self._loop("crawl", lambda: self._crawler.step(_TURN_S), 0.0)
        if features:
            import pyarrow as pa

            # Its own would keep what a batch has left free, beside what our heaps do.
            pa.set_memory_pool(pa.system_memory_pool())
            self._loop("pipeline", self._fold, settings.pipeline_poll_s)
            self._loop("served-files", self._move_served, _MOVE_SERVED_S)
            self._loop("rollups", self._roll_up, _ROLL_UP_S)
            self._loop("retention", self._drop_old, _RETENTION_S)
            self._loop("alerts", self._alert, _ALERT_S)
            self._loop("alert-delivery", self._deliver, _ALERT_S)
        if predict:
            self._loop("champion", self._follow_champion, settings.champion_poll_s)
            self._loop("prediction-log", platform.prediction_log.write, _LOG_S)
            if settings.shadow_share:
                self._loop("shadow", platform.shadow.step, _TURN_S)
        if features and predict and (settings.retrain_every_h or settings.retrain_drift_psi):
            self._loop("retraining", platform.retraining.step, _RETRAIN_LOOK_S)
        if features and predict:
            self._loop("quality", self._judge, _QUALITY_S)
            self._loop("current", self._rescore, settings.pipeline_poll_s)

    def join(self) -> None:
        """Return when the loops have ended, which `stop` has told to; or after a while."""
        for thread in self._threads:
            thread.join(timeout=_END_S)
        self._threads.clear()

    @property
    def _mine(self) -> bool:
        """Whether the writer's work is this process's, and goes on."""
        return self._platform.lease.held and not self._stop.is_set()

    def _renew(self) -> None:
        if not self._crawler.failed:
            self._platform.lease.acquire()

    def _follow_champion(self) -> None:
        champion = self._platform.champion
        before = champion.problem
        champion.refresh()
        self._platform.service_models.refresh()
        if champion.problem not in (None, before):
            log.error("%s", champion.problem)

    def _fold(self) -> None:
        platform = self._platform
        if not platform.lease.held:
            return
        platform.features.apply_apart()
        while not self._stop.is_set() and self._after_probes(platform.pipeline.step):
            _trim_heaps()
        # In the thread that publishes features.
        platform.carry_out_erasures()

    def _move_served(self) -> None:
        from urlhealth.prediction.served_files import ROWS

        platform = self._platform
        while self._mine and self._after_probes(platform.served_files.step) >= ROWS:
            pass
        if platform.lease.held:
            platform.served_files.drop_old(before_ms=platform.kept().probes_ms)

    def _roll_up(self) -> None:
        platform = self._platform
        while self._mine and self._after_probes(lambda: platform.rollups.step(lease=platform.lease)):
            pass

    def _drop_old(self) -> None:
        platform, kept = self._platform, self._platform.kept()
        if platform.lease.held:
            platform.alerts.drop_old(lease=platform.lease)
        if platform.lease.held and kept != Kept():
            dropped = platform.crawl.drop_old(kept, lease=platform.lease)
            log.info("too old: %s", ", ".join(f"{count} {what}" for what, count in dropped.items()))

    def _alert(self) -> None:
        platform = self._platform
        while self._mine:
            looked = self._after_probes(platform.alert_evaluator.step)
            platform.alerts.make_messages(lease=platform.lease)
            if not looked:
                return

    def _deliver(self) -> None:
        while self._mine and self._platform.alert_delivery.step():
            pass

    def _judge(self) -> None:
        platform = self._platform
        platform.live_quality = platform.quality(owner=LOCAL_OWNER) if platform.lease.held else None

    def _rescore(self) -> None:
        while self._mine and self._after_probes(self._platform.rescorer.step, pause=_RESCORE_PAUSE):
            pass

    def _after_probes(self, step: Callable[[], T], *, pause: float = 0.0) -> T:
        """One step of what follows on the probes, and a pause after it: longer while probing is as busy as it can be.

        Args:
            pause: its least length, as a share of the step's.
        """
        started_s = time.perf_counter()
        done = step()
        if self._crawler.behind:
            pause = _PROBES_FIRST_PAUSE
        self._stop.wait(pause * (time.perf_counter() - started_s))
        return done

    def _loop(self, name: str, turn: Callable[[], object], pause_s: float) -> None:
        """Call `turn` again and again in a thread of its own; a failure is logged and tried again."""

        def run() -> None:
            settled = False
            while not self._stop.is_set():
                wait_s = pause_s
                try:
                    turn()
                    if not settled:
                        # What the first turn imported stays. To walk it again and again would hold up requests for
                        # 80 ms each time.
                        gc.freeze()
                        settled = True
                except LeaseLost as error:
                    log.warning("%s: %s", name, error)
                except Exception:
                    log.exception("%s failed; trying again in %g s", name, _RETRY_S)
                    wait_s = max(pause_s, _RETRY_S)
                self._stop.wait(wait_s)

        thread = threading.Thread(target=run, name=f"urlhealth-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)


def _share_heaps() -> None:
    """Let threads share heaps: with one each, what their batches have left free there is not used by the others."""
    with suppress(OSError, AttributeError):  # the C library is another one
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)


def _trim_heaps() -> None:
    """Give free memory back to the system, wherever it lies in the heaps: a batch leaves a hundred megabytes."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
