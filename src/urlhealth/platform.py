"""The one place where settings choose the parts, and the parts meet."""

import logging
import os
import queue
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from urlhealth.crawl.carried import CarriedStore
from urlhealth.crawl.database import open_database
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.runner import CrawlRunner
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import LeaseLost, StoreUnavailable, UrlHealthError
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.catalog import URL_STATE
from urlhealth.pipeline import Pipeline
from urlhealth.prediction.champion import ChampionWatch
from urlhealth.prediction.predictor import Predictor
from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.guard import AddressGuard
from urlhealth.settings import Settings
from urlhealth.vocabulary import MODEL_NAME, Clock, Prediction, system_clock

log = logging.getLogger(__name__)

#: Longest that one turn of the crawl waits for results, and thus the time after which a new task is seen.
_TURN_S = 0.1
#: Time after which a loop that failed tries again.
_RETRY_S = 1.0
#: Requests whose predictions may wait to be logged.
_LOG_QUEUE = 10_000


@dataclass(frozen=True, kw_only=True)
class Check:
    """Whether one part works, for `doctor` and `/health/ready`."""

    name: str
    #: What is in use, or what is wrong.
    detail: str
    ok: bool
    #: What to do, where it is not ok.
    advice: str | None = None
    #: Whether the platform is not ready without it.
    needed: bool = True


class Platform:
    """All parts, wired. `open()` makes them usable; `start()` also does the work that needs no request.

    Any number of processes may open one database. The crawl and the pipeline run in the one that holds the lease; each
    of the others takes over when the holder falls silent.
    """

    def __init__(self, settings: Settings, *, clock: Clock = system_clock) -> None:
        self.settings = settings
        self.clock = clock
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._dispatcher: ProbeEngine | None = None
        self._engine: sa.Engine | None = None
        self._prediction_log: queue.Queue[tuple[str, Sequence[Prediction], str]] = queue.Queue(_LOG_QUEUE)

    def open(self) -> Self:
        """Open the stores; no background work.

        Raises:
            StoreUnavailable: saying which store, why, and what to do.
        """
        settings = self.settings
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"the folder {settings.home} cannot be used ({error.strerror}): set URLHEALTH_HOME to one that can be"
            ) from error
        self._engine = open_database(settings.resolved_database_url)
        self.crawl = CrawlStore(self._engine, clock=self.clock)
        self.lease = Lease(self._engine, holder=self.worker_id, ttl_s=settings.lease_s, clock=self.clock)
        self.carried = CarriedStore(self._engine)
        self.features = FeatureStores(settings)
        self.champion = ChampionWatch(settings)
        self.predictor = Predictor(
            crawl=self.crawl,
            features=self.features,
            champion=self.champion,
            clock=self.clock,
            known_for_s=settings.known_for_s,
        )
        self.pipeline = Pipeline(
            probes=self.crawl,
            carried=self.carried,
            features=self.features,
            lease=self.lease,
            clock=self.clock,
            known_for_s=settings.known_for_s,
            late_s=settings.late_s,
        )
        return self

    def start(self, *, predict: bool = True) -> None:
        """Start the background work: lease, crawl and pipeline, and (`predict`) the watch on the champion."""
        settings = self.settings
        self._dispatcher = ProbeEngine(
            user_agent=settings.user_agent,
            concurrency=settings.probe_concurrency,
            concurrency_per_host=settings.probe_concurrency_per_host,
            guard=AddressGuard(settings.allow_addresses),
            clock=self.clock,
            worker_id=self.worker_id,
            ca_file=settings.ca_file,
        )
        runner = CrawlRunner(self.crawl, self.lease, self._dispatcher)
        self.lease.acquire()
        self._loop("lease", self._renew, settings.lease_s / 4)
        self._loop("crawl", lambda: runner.step(_TURN_S), 0.0)
        self._loop("pipeline", self._fold, settings.pipeline_poll_s)
        self._loop("prediction-log", self._write_predictions, _TURN_S)
        if predict:
            self._loop("champion", self.champion.refresh, settings.champion_poll_s)

    def close(self) -> None:
        """Stop the background work, give the lease back, close the stores. May be called twice."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=15)
        self._threads.clear()
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None
        if self._engine is not None:
            self._write_predictions()
            self.lease.release()
            self._engine.dispose()
            self._engine = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def build_features(self) -> None:
        """Return when every stored verdict is in the features, whoever does the work: this process or the writer."""
        while self.pipeline_lag():
            if self.lease.acquire():
                while self.pipeline.step():
                    self.lease.acquire()
            else:
                self._stop.wait(self.settings.pipeline_poll_s)
        self.features.apply()

    def pipeline_lag(self) -> int:
        """How many stored verdicts are not in the features yet."""
        return self.crawl.count_verdicts_after(self.carried.position())

    def log_predictions(self, request_id: str, predictions: Sequence[Prediction], *, owner: str) -> None:
        """Queue what was served for the log; never waits. What finds the queue full is counted and dropped."""
        try:
            self._prediction_log.put_nowait((request_id, predictions, owner))
        except queue.Full:
            log.warning("prediction log is full: request %s is not logged", request_id)

    def checks(self) -> list[Check]:
        """Whether each part works, in the order in which they depend on each other."""
        return [
            self._check("database", self._describe_database, "see URLHEALTH_DATABASE_URL and URLHEALTH_HOME"),
            self._check("pipeline", self._describe_pipeline, "run `urlhealth serve`, or `urlhealth features build`"),
            self._check("features", self._describe_features, "see FEAST_FS_YAML_FILE_PATH and URLHEALTH_HOME"),
            self._model_check(),
        ]

    @staticmethod
    def _check(name: str, describe: Callable[[], str], advice: str) -> Check:
        try:
            return Check(name=name, detail=describe(), ok=True)
        except (UrlHealthError, sa.exc.SQLAlchemyError, OSError) as error:
            return Check(name=name, detail=str(error).splitlines()[0], ok=False, advice=advice)

    def _describe_database(self) -> str:
        counts = self.crawl.counts()
        url = sa.make_url(self.settings.resolved_database_url).render_as_string(hide_password=True)
        return f"{url}: {counts['targets']} targets, {counts['probes']} probes"

    def _describe_pipeline(self) -> str:
        return f"{self.pipeline_lag()} verdicts behind; this process is {'' if self.lease.held else 'not '}the writer"

    def _describe_features(self) -> str:
        self.features.read(URL_STATE, ["https://urlhealth.invalid/"])
        return f"{self.settings.feast_yaml}, stores in {self.settings.feast_home}"

    def _model_check(self) -> Check:
        champion = self.champion.current
        uri = self.settings.resolved_tracking_uri
        if champion is not None:
            return Check(name="model", ok=True, detail=f"{champion.name} version {champion.version}, {uri}")
        # Without a model the crawl API works: what is not ready is a model that exists and is not loaded yet.
        detail = f"no {MODEL_NAME} in {uri}" if self.champion.looked else f"{uri} was not looked at yet"
        return Check(
            name="model", ok=False, detail=detail, advice="run `urlhealth train`", needed=not self.champion.looked
        )

    def _renew(self) -> None:
        self.lease.acquire()

    def _fold(self) -> None:
        if not self.lease.held:
            return
        self.features.apply()
        while not self._stop.is_set() and self.pipeline.step():
            pass

    def _write_predictions(self) -> None:
        while True:
            try:
                request_id, predictions, owner = self._prediction_log.get_nowait()
            except queue.Empty:
                return
            self.crawl.log_predictions(request_id, predictions, owner=owner)

    def _loop(self, name: str, turn: Callable[[], object], pause_s: float) -> None:
        """Call `turn` again and again in a thread of its own; a failure is logged and tried again."""

        def run() -> None:
            while not self._stop.is_set():
                wait_s = pause_s
                try:
                    turn()
                except LeaseLost as error:
                    log.warning("%s: %s", name, error)
                except Exception:
                    log.exception("%s failed; trying again in %g s", name, _RETRY_S)
                    wait_s = max(pause_s, _RETRY_S)
                self._stop.wait(wait_s)

        thread = threading.Thread(target=run, name=f"urlhealth-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)
