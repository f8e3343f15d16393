"""Retraining, on a schedule or after drift: in a process of its own, for it takes the cores and memory that serve."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Final

from urlhealth.crawl.lease import Lease
from urlhealth.features.drift import FeatureDrift
from urlhealth.prediction.champion import has_registry
from urlhealth.settings import Settings, environment
from urlhealth.vocabulary import MODEL_NAME, Clock

log = logging.getLogger(__name__)

#: The command that the child runs.
COMMAND: Final = (sys.executable, "-c", "from urlhealth.cli import main; main()", "retrain")
#: What the child gives way to others by (see nice(2)).
_NICE: Final = 10
_HOUR_MS: Final = 3_600_000
#: Time between two looks at the drift, and the least from a training until drift may ask for another: what is compared
#: with training are the newest 24 hours, and a training that changed no champion does not end the drift.
_LOOK_MS: Final = _HOUR_MS
_REST_MS: Final = 24 * _HOUR_MS
#: Characters of the child's last words that are kept.
_WORDS: Final = 500


class Retraining:
    """Runs `urlhealth retrain` when it is due, while this process is the writer. One thread uses it."""

    def __init__(
        self,
        settings: Settings,
        *,
        lease: Lease,
        clock: Clock,
        drift: Callable[[], FeatureDrift | None],
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        """`drift`: gives the feature that has moved most since training, None while there is no telling."""
        self._settings = settings
        self._lease = lease
        self._clock = clock
        self._drift = drift
        self._command = command
        #: When the newest training was; None until that is looked up.
        self._trained_ms: int | None = None
        self._look_ms = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def step(self) -> None:
        """Start a training that is due, or see what became of it."""
        if not self._lease.held:
            self.stop()
            self._trained_ms = None  # the other writer trains
            return
        if self._child is not None:
            if self._child.poll() is not None:
                self._ended(self._child.returncode)
            return
        if self._trained_ms is None:
            self._trained_ms = self._newest_ms()
        why = self._reason(self._trained_ms)
        if why is not None:
            self._start(why)

    def stop(self) -> None:
        """End the child, if there is one. What it had not registered is lost."""
        child, self._child = self._child, None
        if child is not None:
            child.terminate()
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._forget()

    def _reason(self, trained_ms: int) -> str | None:
        """Why a training is due now; None if it is not."""
        now_ms, every_h, limit = self._clock(), self._settings.retrain_every_h, self._settings.retrain_drift_psi
        if every_h and now_ms >= trained_ms + round(every_h * _HOUR_MS):
            return f"{every_h:g} hours have passed (URLHEALTH_RETRAIN_EVERY_H)"
        if limit and now_ms >= max(trained_ms + _REST_MS, self._look_ms):
            self._look_ms = now_ms + _LOOK_MS
            moved = self._drift()
            if moved is not None and moved.psi > limit:
                return (
                    f"{moved.feature} has drifted since training, with a PSI of {moved.psi:.2f} beyond {limit:g} "
                    "(URLHEALTH_RETRAIN_DRIFT_PSI)"
                )
        return None

    def _start(self, why: str) -> None:
        self._said = TemporaryFile()  # noqa: SIM115 - closed when the child has ended
        self._child = subprocess.Popen(
            [*self._command, "--why", why],
            env=os.environ | environment(self._settings) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )
        with suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, self._child.pid, _NICE)
        log.info("retraining in process %d: %s", self._child.pid, why)

    def _ended(self, code: int) -> None:
        assert self._said is not None
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        said = " ".join(words)[:_WORDS]
        log.log(logging.WARNING if code else logging.INFO, "retraining ended with %d: %s", code, said)
        self._child = None
        self._forget()
        self._trained_ms = self._clock()

    def _forget(self) -> None:
        if self._said is not None:
            self._said.close()
            self._said = None

    def _newest_ms(self) -> int:
        """When the newest version was registered that is not the bundled one, ms since 1970; 0 if there is none."""
        uri = self._settings.resolved_tracking_uri
        if not has_registry(uri):
            return 0
        from mlflow import MlflowClient

        found = MlflowClient(tracking_uri=uri).search_model_versions(f"name='{MODEL_NAME}'")
        made = [int(each.creation_timestamp) for each in found if each.tags.get("origin") != "bundled"]
        return max(made, default=0)
