"""The one place where settings choose the parts, and the parts meet."""

import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import sqlalchemy as sa

from urlhealth.background import Background
from urlhealth.crawl.crawler import Crawler
from urlhealth.crawl.database import open_database
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.retention import Kept
from urlhealth.crawl.served import ServedBatches
from urlhealth.crawl.store import CrawlStore
from urlhealth.crawl.vault import Vault, key_of_file
from urlhealth.errors import (
    ConfigurationError,
    InvalidRequest,
    LeaseLost,
    NotEnoughHistory,
    StoreUnavailable,
    UrlHealthError,
    one_line,
)
from urlhealth.prediction.log import PredictionLog
from urlhealth.probing.guard import guard_of
from urlhealth.probing.process import ProbeProcess
from urlhealth.probing.transfer import TrustedCertificates
from urlhealth.settings import Settings, redacted
from urlhealth.vocabulary import (
    MODEL_NAME,
    Clock,
    Dispatcher,
    Forecasts,
    Served,
    TaskStatus,
    system_clock,
)

if TYPE_CHECKING:
    from urlhealth.alerts.delivery import Delivery, Sender
    from urlhealth.alerts.evaluate import Evaluator
    from urlhealth.alerts.store import AlertStore
    from urlhealth.crawl.carried import CarriedStore
    from urlhealth.crawl.current import CurrentPredictions
    from urlhealth.crawl.keys import KeyStore
    from urlhealth.crawl.overview import Overview
    from urlhealth.crawl.rollups import Rollups
    from urlhealth.feast_stores.consistency import Check as FeatureCheck
    from urlhealth.feast_stores.stores import FeatureStores
    from urlhealth.features.drift import Drift, FeatureDrift
    from urlhealth.pipeline import Pipeline
    from urlhealth.prediction.champion import ChampionWatch
    from urlhealth.prediction.current import Rescorer
    from urlhealth.prediction.drift import Period
    from urlhealth.prediction.predictor import Predictor
    from urlhealth.prediction.quality import LiveQuality
    from urlhealth.prediction.ranks import Ranks
    from urlhealth.prediction.retraining import Retraining
    from urlhealth.prediction.served import ServedLog
    from urlhealth.prediction.served_files import ServedFiles
    from urlhealth.prediction.services import ServiceModels
    from urlhealth.prediction.shadow import Shadow
    from urlhealth.prediction.versions import Versions

log = logging.getLogger(__name__)

_DAY_MS: Final = 86_400_000
#: How far back the figures of what was served go, if nothing else is asked for.
_QUALITY_DAYS: Final = 7
#: Time between two looks whether what is waited for was probed, and requests that may wait for that at once: each keeps
#: a thread.
_PROBED_POLL_S: Final = 0.05
_MAX_WAITS: Final = 16


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

    What only some commands need is imported and made when it is first asked for. Any number of processes may open one
    database. The crawl and the pipeline run in the one that holds the lease; each of the others takes over when the
    holder falls silent.
    """

    def __init__(self, settings: Settings, *, clock: Clock = system_clock) -> None:
        self.settings = settings
        self.clock = clock
        self.worker_id = _new_worker_id()
        self._stop = threading.Event()
        self._background: Background | None = None
        self._crawler: Crawler | None = None
        self._database: sa.Engine | None = None
        self._waits = threading.BoundedSemaphore(_MAX_WAITS)
        #: How good the last days' predictions were, in the process that holds the lease; None where nobody looked yet.
        self.live_quality: LiveQuality | None = None

    def open(self, *, check: bool = True) -> Self:
        """Open the stores; no background work.

        Args:
            check: touch each store that the others do not need, too; without it, `checks()` can say which one fails.

        Raises:
            StoreUnavailable: saying which store, why, and what to do.
            ConfigurationError: settings name what cannot be used.
        """
        settings = self.settings
        TrustedCertificates(settings.ca_file).close()
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"the folder {settings.home} cannot be used ({error.strerror}): set URLHEALTH_HOME to one that can be"
            ) from error
        self._database = open_database(settings.resolved_database_url)
        self.crawl = CrawlStore(self._database, clock=self.clock, vault=Vault(self._secret_keys))
        self.lease = Lease(self._database, holder=self.worker_id, ttl_s=settings.lease_s, clock=self.clock)
        self.served_batches = ServedBatches(self._database, clock=self.clock)
        self.prediction_log = PredictionLog(self.served_batches)
        if check:
            try:
                self.features.check()
                self.champion.check()
            except UrlHealthError:
                self.close()
                raise
        return self

    @cached_property
    def carried(self) -> "CarriedStore":
        from urlhealth.crawl.carried import CarriedStore

        assert self._database is not None
        return CarriedStore(self._database)

    @cached_property
    def features(self) -> "FeatureStores":
        from urlhealth.feast_stores.stores import FeatureStores

        return FeatureStores(self.settings)

    @cached_property
    def champion(self) -> "ChampionWatch":
        from urlhealth.prediction.champion import ChampionWatch

        return ChampionWatch(self.settings)

    @cached_property
    def service_models(self) -> "ServiceModels":
        from urlhealth.prediction.services import ServiceModels

        return ServiceModels(self.settings, feast=self.features.feast)

    @cached_property
    def predictor(self) -> "Predictor":
        from urlhealth.prediction.predictor import Predictor

        return Predictor(
            crawl=self.crawl,
            features=self.features,
            champion=self.champion,
            clock=self.clock,
            known_for_s=self.settings.known_for_s,
        )

    @cached_property
    def ranks(self) -> "Ranks":
        from urlhealth.prediction.ranks import SAMPLE, Ranks

        return Ranks(
            predictor=self.predictor,
            sample=lambda owner: self.overview.some_targets(limit=SAMPLE, owner=owner),
            clock=self.clock,
        )

    @cached_property
    def versions(self) -> "Versions":
        from urlhealth.prediction.versions import Versions

        return Versions(self.settings, self.champion)

    @cached_property
    def shadow(self) -> "Shadow":
        from urlhealth.prediction.shadow import Shadow

        return Shadow(
            predictor=self.predictor,
            versions=self.versions,
            prediction_log=self.prediction_log,
            share=self.settings.shadow_share,
            draw=random.random,
        )

    @cached_property
    def retraining(self) -> "Retraining":
        from urlhealth.prediction.retraining import Retraining

        return Retraining(self.settings, lease=self.lease, clock=self.clock, drift=self.drift_of_learnt)

    @cached_property
    def keys(self) -> "KeyStore":
        from urlhealth.crawl.keys import KeyStore

        assert self._database is not None
        return KeyStore(self._database, clock=self.clock)

    @cached_property
    def current(self) -> "CurrentPredictions":
        from urlhealth.crawl.current import CurrentPredictions

        assert self._database is not None
        return CurrentPredictions(self._database, clock=self.clock)

    @cached_property
    def rescorer(self) -> "Rescorer":
        from urlhealth.prediction.current import Rescorer

        return Rescorer(
            current=self.current,
            predictor=self.predictor,
            champion=self.champion,
            position=self.carried.position,
            lease=self.lease,
            clock=self.clock,
            rescore_s=self.settings.rescore_s,
        )

    @cached_property
    def pipeline(self) -> "Pipeline":
        from urlhealth.pipeline import Pipeline

        return Pipeline(
            probes=self.crawl,
            carried=self.carried,
            features=self.features,
            lease=self.lease,
            clock=self.clock,
            known_for_s=self.settings.known_for_s,
            late_s=self.settings.late_s,
        )

    @cached_property
    def rollups(self) -> "Rollups":
        from urlhealth.crawl.rollups import Rollups

        assert self._database is not None
        return Rollups(self._database, known_for_s=self.settings.known_for_s)

    def probe_now(self, urls: Sequence[str], *, wait_s: float, owner: str) -> None:
        """Probe URLs, whoever does the crawl, and return when the features know, or after `wait_s`.

        Where many wait already, nothing is probed.

        Raises:
            InvalidUrls: naming the positions.
        """
        if not self._waits.acquire(blocking=False):
            return
        try:
            deadline_s = time.monotonic() + wait_s
            task_id = self.crawl.create_task(urls, owner=owner).task_id
            last: int | None = None
            while time.monotonic() < deadline_s and not self._stop.wait(_PROBED_POLL_S):
                if last is None and self.crawl.task(task_id, owner=owner).status is TaskStatus.DONE:
                    last = self.crawl.last_probe_id()
                if last is not None and (self.carried.position() >= last or not self.pipeline_lag()):
                    return
        finally:
            self._waits.release()

    @cached_property
    def served(self) -> "ServedLog":
        from urlhealth.prediction.served import ServedLog

        return ServedLog(self.served_batches, self._served_folder)

    @cached_property
    def served_files(self) -> "ServedFiles":
        from urlhealth.prediction.served_files import ServedFiles

        return ServedFiles(self.served_batches, self._served_folder, lease=self.lease)

    @property
    def _served_folder(self) -> Path:
        from urlhealth.prediction.served_files import DATASET

        return self.features.offline_folder / DATASET

    def quality(self, *, from_ms: int | None = None, to_ms: int | None = None, owner: str) -> "LiveQuality":
        """How good the predictions were that were served in [from, to); by default in the last seven days.

        Raises:
            StoreUnavailable.
        """
        from urlhealth.prediction.quality import live_quality

        to_ms = self.clock() if to_ms is None else to_ms
        from_ms = to_ms - _QUALITY_DAYS * _DAY_MS if from_ms is None else from_ms
        return live_quality(self.served, from_ms=from_ms, to_ms=to_ms, owner=owner)

    @cached_property
    def overview(self) -> "Overview":
        from urlhealth.crawl.overview import Overview

        assert self._database is not None
        return Overview(self._database, clock=self.clock, vault=Vault(self._secret_keys))

    @cached_property
    def alerts(self) -> "AlertStore":
        from urlhealth.alerts.store import AlertStore

        assert self._database is not None
        return AlertStore(self._database, clock=self.clock, vault=Vault(self._secret_keys))

    @cached_property
    def alert_sender(self) -> "Sender":
        from urlhealth.alerts.delivery import Sender

        return Sender(self.settings, clock=self.clock)

    @cached_property
    def alert_delivery(self) -> "Delivery":
        from urlhealth.alerts.delivery import Delivery

        return Delivery(self.alerts, self.alert_sender, lease=self.lease)

    @cached_property
    def alert_evaluator(self) -> "Evaluator":
        from urlhealth.alerts.evaluate import Evaluator, Lag

        assert self._database is not None
        lag = Lag(self._database, clock=self.clock)
        return Evaluator(
            self._database,
            self.alerts,
            lease=self.lease,
            clock=self.clock,
            known_for_s=self.settings.known_for_s,
            slow_from=self._slow_from,
            lag_s=lambda: lag.seconds(self.carried.position()),
        )

    def start(self, *, features: bool = True, predict: bool = True) -> None:
        """Start the background work: the crawl under the lease and, if wanted, what follows on it.

        Args:
            features: run the pipeline. Without it, whoever runs it next finds what was probed.
            predict: watch the champion, and log what is predicted; with `features`, keep all forecasts up to date too.
        """
        self._crawler = Crawler(self.crawl, self.lease, self._make_engine)
        self._background = Background(self, self._crawler, self._stop)
        self.lease.acquire()
        self._background.start(features=features, predict=predict)

    def close(self) -> None:
        """Stop the background work, give the lease back, close the stores. May be called twice."""
        self._stop.set()
        if self._background is not None:
            self._background.join()
            self._background = None
        crawler, database = self._crawler, self._database
        self._crawler = self._database = None
        with ExitStack() as steps:  # last in, first out: each is done, whatever happens to the others
            if database is not None:
                steps.callback(database.dispose)
                steps.callback(self.lease.release)
                steps.callback(self.prediction_log.write)
            if crawler is not None:
                steps.callback(crawler.close)
            if "retraining" in vars(self):
                steps.callback(self.retraining.stop)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def build_features(self, *, rebuild: bool = False) -> None:
        """Return when every stored verdict is in the features, whoever does the work: this process or the writer.

        Args:
            rebuild: forget all features first, and fold the whole history anew, late probes included.
        """
        if rebuild:
            self.pipeline.request_rebuild()
        while not self.pipeline.is_current():
            with self.lease.kept() as mine, suppress(LeaseLost):
                while mine and self.pipeline.step():
                    pass
            if not mine:
                self._stop.wait(self.settings.pipeline_poll_s)
        self.features.apply()

    def drift(
        self, reference: "Period | None" = None, current: "Period | None" = None, *, hours: float = 24
    ) -> "Drift":
        """What became of the features from one period to another; the newest comparison with training is kept.

        Args:
            reference: by default all time until the champion was trained.
            current: by default the last hours.

        Raises:
            InvalidRequest: no reference is given, and the champion was not trained here.
            NotEnoughHistory: there are no features of a period.
        """
        from urlhealth.prediction import drift

        now_ms = self.clock()
        found = drift.between(
            self.crawl,
            self.features,
            reference or drift.training_period(self.settings.resolved_tracking_uri),
            current or drift.Period(since_ms=now_ms - round(hours * 3_600_000), until_ms=now_ms),
            known_for_s=self.settings.known_for_s,
            rng=np.random.default_rng(0),
        )
        if reference is None:
            drift.save(found, self.settings.drift_file)
        return found

    def drift_of_learnt(self) -> "FeatureDrift | None":
        """Of the features that the champion has learnt from, the one that moved most since it was trained.

        None while there is no telling: the champion was not trained here, or nothing was probed of late. What it has
        not learnt from is left out, for some of it moves with time alone, as the weekend does.
        """
        champion = self.champion.current
        try:
            found = self.drift()
        except (InvalidRequest, NotEnoughHistory):
            return None
        learnt = set() if champion is None else champion.forecaster.learnt
        return next((feature for feature in found.features if feature.feature in learnt), None)

    def check_features(self) -> "FeatureCheck":
        """Compare the online with the offline store for every entity; the newest comparison is kept.

        Raises:
            StoreUnavailable: a store cannot be read.
        """
        from urlhealth.feast_stores import consistency

        checked_ms = self.clock()
        check = consistency.Check(checked_ms=checked_ms, views=tuple(self.features.consistency()))
        consistency.save(check, self.settings.consistency_file)
        return check

    def roll_up(self) -> None:
        """Return when every stored verdict is in the roll-ups, unless another process is the writer and does it."""
        with self.lease.kept() as mine, suppress(LeaseLost):
            while mine and self.rollups.step(lease=self.lease):
                pass

    def erase_url(self, url: str, *, name: str | None = None, owner: str) -> None:
        """Erase all that is known of a URL. Rows of the offline store go with the writer's next step.

        Raises:
            InvalidRequest: the URL is none, or a task with it is just being received.
            NotFound: the owner has no such target.
        """
        self.prediction_log.write()
        erased = self.crawl.erase_url(url, lease=self.lease, name=name, owner=owner)
        self.predictor.forget_targets()
        log.warning("erased a URL: %s", ", ".join(f"{count} {what}" for what, count in erased.items()))
        for erasure in self.crawl.pending_erasures():
            self.features.erase(erasure.kind, erasure.key, until_ms=erasure.until_ms, offline=False)
        if self._background is None:
            with self.lease.kept() as mine:
                if mine:
                    self.carry_out_erasures()

    def carry_out_erasures(self) -> None:
        """Erase what is left of URLs in the stores; for the writer, in the thread that publishes features."""
        for erasure in self.crawl.pending_erasures():
            rows = self.features.erase(erasure.kind, erasure.key, until_ms=erasure.until_ms)
            logged = 0
            if erasure.kind == "url":
                logged = self.served_files.erase(erasure.key, until_ms=erasure.until_ms)
            self.crawl.finish_erasure(erasure)
            log.warning("erased the features of a %s: %d rows, %d predictions", erasure.kind, rows, logged)

    def pipeline_lag(self) -> int:
        """How many stored verdicts are not in the features yet."""
        return self.crawl.count_verdicts_after(self.carried.position())

    def log_predictions(self, request_id: str, forecasts: Forecasts, *, owner: str) -> None:
        """Queue what was served for the log, and for the challenger's turn at it; never waits."""
        served = Served(request_id=request_id, owner=owner, ts_ms=self.clock(), forecasts=forecasts)
        self.prediction_log.put(served)
        if self.settings.shadow_share and forecasts.model == MODEL_NAME:
            self.shadow.offer(served)

    def checks(self) -> list[Check]:
        """Whether each part works, in the order in which they depend on each other."""
        return [
            self._check("database", self._describe_database, "see URLHEALTH_DATABASE_URL and URLHEALTH_HOME"),
            *self._engine_check(),
            self._check("pipeline", self._describe_pipeline, "run `urlhealth serve`, or `urlhealth features build`"),
            self._check(
                "features",
                self._describe_features,
                "see FEAST_FS_YAML_FILE_PATH, URLHEALTH_ONLINE_STORE and URLHEALTH_HOME",
            ),
            self._model_check(),
        ]

    @staticmethod
    def _check(name: str, describe: Callable[[], str], advice: str) -> Check:
        try:
            return Check(name=name, detail=describe(), ok=True)
        except Exception as error:  # whatever is wrong with a part, the others are still told
            return Check(name=name, detail=one_line(error), ok=False, advice=advice)

    def _engine_check(self) -> list[Check]:
        """Of the probing engine, where it was started."""
        if self._crawler is None:
            return []
        if self._crawler.failed:
            words = "it has failed, and is not replaced yet"
            return [Check(name="engine", detail=words, ok=False, advice="see the log of this process")]
        if self.settings.broker_url:
            url = sa.make_url(self.settings.broker_url).render_as_string(hide_password=True)
            return [Check(name="engine", detail=f"workers on {url}", ok=True)]
        return [Check(name="engine", detail=f"up to {self.settings.probe_concurrency} probes at once", ok=True)]

    def _describe_database(self) -> str:
        counts = self.crawl.counts()
        url = sa.make_url(self.settings.resolved_database_url).render_as_string(hide_password=True)
        return f"{url}: {counts['targets']} targets, {counts['probes']} probes"

    def _describe_pipeline(self) -> str:
        return f"{self.pipeline_lag()} verdicts behind; this process is {'' if self.lease.held else 'not '}the writer"

    def _describe_features(self) -> str:
        from urlhealth.features.catalog import URL_STATE

        self.features.check()
        self.features.read(URL_STATE, ["https://urlhealth.invalid/"])
        return f"{self.settings.feast_yaml}: {self.features.places}"

    def _model_check(self) -> Check:
        champion, problem = self.champion.current, self.champion.problem
        uri = redacted(self.settings.resolved_tracking_uri)
        if champion is not None:
            detail = f"{champion.name} version {champion.version}, {uri}"
            return Check(name="model", ok=True, detail=f"{detail}; {problem}" if problem else detail)
        # Without a model the crawl API works: what is not ready is a model that exists and is not loaded.
        if problem:
            return Check(name="model", ok=False, detail=problem, advice="see MLFLOW_TRACKING_URI and URLHEALTH_HOME")
        if not self.champion.looked:
            return Check(name="model", ok=False, detail=f"{uri} was not looked at yet", advice="wait a moment")
        detail = f"no {MODEL_NAME} in {uri}"
        return Check(name="model", ok=False, detail=detail, advice="run `urlhealth train`", needed=False)

    def _secret_keys(self) -> tuple[str, ...]:
        return self.settings.secret_key or (key_of_file(self.settings.secret_key_file),)

    def _make_engine(self) -> Dispatcher:
        settings = self.settings
        if settings.broker_url:
            try:
                from urlhealth.probing.broker import make_app
                from urlhealth.probing.queue import CeleryDispatcher
            except ImportError as error:
                raise _no_celery(error) from error
            return CeleryDispatcher(
                make_app(settings.broker_url, prefix=settings.broker_prefix),
                prefix=settings.broker_prefix,
                worker_id=self.worker_id,
                concurrency=settings.probe_concurrency,
                clock=self.clock,
            )
        return ProbeProcess(
            user_agent=settings.user_agent,
            concurrency=settings.probe_concurrency,
            concurrency_per_host=settings.probe_concurrency_per_host,
            rate_per_host=settings.probe_rate_per_host,
            guard=guard_of(settings),
            worker_id=self.worker_id,
            ca_file=settings.ca_file,
            canary=settings.canary,
        )

    def kept(self) -> Kept:
        """From when on probes, roll-ups and incidents are kept, by the settings."""
        settings, now_ms = self.settings, self.clock()
        days = (settings.keep_probes_days, settings.keep_hours_days, settings.keep_days_days)
        probes_ms, hours_ms, days_ms = (now_ms - number * _DAY_MS if number else 0 for number in days)
        return Kept(probes_ms=probes_ms, hours_ms=hours_ms, days_ms=days_ms)

    def _slow_from(self, keys: Sequence[str]) -> Sequence[float]:
        """For targets, the least time of a probe (ms) that is slow for their own past."""
        from urlhealth.features.catalog import URL_STATE
        from urlhealth.features.fold import slow_from_ms

        found: list[float] = slow_from_ms(self.features.read(URL_STATE, list(keys)).states).tolist()
        return found


def work(settings: Settings, *, queues: Sequence[str] | None, concurrency: int) -> int:
    """Probe what comes over the broker, with the settings of this process, until a signal; returns the exit code.

    Args:
        queues: see `probing.worker.run_worker`; None: all that name no region.
        concurrency: batches in hand at once.

    Raises:
        ConfigurationError: there is no broker, or settings name what cannot be used.
    """
    if not settings.broker_url:
        raise ConfigurationError("a worker needs a broker: set URLHEALTH_BROKER_URL to that of the server")
    try:
        from urlhealth.probing.broker import make_app
        from urlhealth.probing.engine import ProbeEngine
        from urlhealth.probing.worker import ALL_QUEUES, run_worker
    except ImportError as error:
        raise _no_celery(error) from error
    engine = ProbeEngine(
        user_agent=settings.user_agent,
        concurrency=settings.probe_concurrency,
        concurrency_per_host=settings.probe_concurrency_per_host,
        rate_per_host=settings.probe_rate_per_host,
        guard=guard_of(settings),
        worker_id=_new_worker_id(),
        ca_file=settings.ca_file,
        canary=settings.canary,
    )
    app = make_app(settings.broker_url, prefix=settings.broker_prefix)
    return run_worker(app, engine, prefix=settings.broker_prefix, queues=queues or ALL_QUEUES, concurrency=concurrency)


def _no_celery(error: ImportError) -> ConfigurationError:
    return ConfigurationError(f"a broker needs Celery ({error}): install urlhealth[scale]")


def _new_worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
