"""Retraining on a schedule: in a process of its own, for it would take the cores and the memory that serve requests."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Final

from urlhealth.crawl.lease import Lease
from urlhealth.prediction.champion import has_registry
from urlhealth.settings import Settings, environment
from urlhealth.vocabulary import MODEL_NAME, Clock

log = logging.getLogger(__name__)

#: The command that the child runs.
COMMAND: Final = (sys.executable, "-c", "from urlhealth.cli import main; main()", "retrain")
#: What the child gives way to others by (see nice(2)).
_NICE: Final = 10
_HOUR_MS: Final = 3_600_000
#: Characters of the child's last words that are kept.
_WORDS: Final = 500


class Retraining:
    """Runs `urlhealth retrain` every so many hours, while this process is the writer. One thread uses it."""

    def __init__(
        self,
        settings: Settings,
        *,
        lease: Lease,
        clock: Clock,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._settings = settings
        self._lease = lease
        self._clock = clock
        self._command = command
        self._every_ms = round(settings.retrain_every_h * _HOUR_MS)
        self._due_ms: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def step(self) -> None:
        """Start a training that is due, or see what became of it."""
        if not self._lease.held:
            self.stop()
            self._due_ms = None  # the other writer trains
            return
        if self._child is not None:
            if self._child.poll() is not None:
                self._ended(self._child.returncode)
            return
        if self._due_ms is None:
            trained_ms = self._newest_ms()
            self._due_ms = self._clock() if trained_ms is None else trained_ms + self._every_ms
        if self._clock() >= self._due_ms:
            self._start(f"{self._settings.retrain_every_h:g} hours have passed (URLHEALTH_RETRAIN_EVERY_H)")

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
        self._due_ms = self._clock() + self._every_ms

    def _forget(self) -> None:
        if self._said is not None:
            self._said.close()
            self._said = None

    def _newest_ms(self) -> int | None:
        """When the newest version was registered that is not the bundled one, ms since 1970; None if there is none."""
        uri = self._settings.resolved_tracking_uri
        if not has_registry(uri):
            return None
        from mlflow import MlflowClient

        found = MlflowClient(tracking_uri=uri).search_model_versions(f"name='{MODEL_NAME}'")
        made = [int(each.creation_timestamp) for each in found if each.tags.get("origin") != "bundled"]
        return max(made, default=None)
