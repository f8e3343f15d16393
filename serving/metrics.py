"""Prometheus metrics of one application: its requests, and the platform behind it. Nothing here is global.

With several worker processes each has its own request counters, and `/metrics` answers with those of the process that
took the request; what is read from the database is the same in all of them.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from urlhealth.crawl.schedule import LAGS_S, Punctuality
from urlhealth.errors import UrlHealthError
from urlhealth.feast_stores import consistency
from urlhealth.features.drift import Drift
from urlhealth.platform import Platform
from urlhealth.prediction.ages import AGES_S, Ages
from urlhealth.prediction.drift import load
from urlhealth.prediction.quality import LiveQuality
from urlhealth.prediction.stages import BOUNDS_S, STAGES, Stages
from urlhealth.vocabulary import TaskStatus

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The registry of one application."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        """`platform` is asked for at each scrape: the application may open it after it was made."""
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "urlhealth_http_request_duration_seconds",
            "Time from a request's first byte to its answer's last, by route.",
            ["method", "route", "status"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_PlatformCollector(platform))

    def observe(self, scope: Scope, status: int, duration_s: float) -> None:
        """Count one request. Labels come from the route's template, never from the path: their number is bounded."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).observe(duration_s)

    def families(self) -> Iterable[Metric]:
        """All metrics, those without a sample too."""
        return self._registry.collect()

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _PlatformCollector(Collector):
    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._platform = platform

    def describe(self) -> Iterable[Metric]:
        return ()  # So that registering does not collect: there is no platform yet.

    def collect(self) -> Iterator[Metric]:
        platform = self._platform()
        yield _gauge("urlhealth_writer", "1 in the process that holds the lease.", float(platform.lease.held))
        champion = platform.champion.current
        model = GaugeMetricFamily("urlhealth_model_info", "The model that serves here.", labels=["name", "version"])
        if champion is not None:
            model.add_metric([champion.name, champion.version], 1)
        yield model
        yield _gauge(
            "urlhealth_model_problem",
            "1 if the registered champion cannot serve; see the log. The one before goes on serving.",
            float(platform.champion.problem is not None),
        )
        yield CounterMetricFamily(
            "urlhealth_model_load_failures",
            "Times that the registered champion could not be loaded, or the registry not be read.",
            value=platform.champion.failures,
        )
        yield CounterMetricFamily(
            "urlhealth_predictions_dropped",
            "Predictions that were served and could not be logged.",
            value=platform.prediction_log.dropped,
        )
        yield from _stages(platform.predictor.stages)
        yield from _ages(platform.predictor.ages)
        yield from _quality(platform.live_quality)
        yield from _punctuality(platform.crawl.punctuality)
        yield from _drift(load(platform.settings.drift_file))
        yield from _consistency(consistency.load(platform.settings.consistency_file))
        try:
            counts, lag = platform.crawl.counts(), platform.pipeline_lag()
        except UrlHealthError:
            yield _gauge("urlhealth_database_up", "1 if the database answers.", 0)
            return
        yield _gauge("urlhealth_database_up", "1 if the database answers.", 1)
        yield _gauge("urlhealth_targets", "Targets that are known.", counts["targets"])
        yield _gauge("urlhealth_probes", "Probes that are stored.", counts["probes"])
        yield _gauge("urlhealth_monitors", "Monitors.", counts["monitors"])
        tasks = GaugeMetricFamily("urlhealth_tasks", "Tasks by status.", labels=["status"])
        for status in TaskStatus:
            tasks.add_metric([status], counts[f"tasks_{status}"])
        yield tasks
        yield _gauge("urlhealth_pipeline_lag_verdicts", "Stored verdicts that are not in the features yet.", lag)


def _stages(found: Stages) -> Iterator[Metric]:
    family = HistogramMetricFamily(
        "urlhealth_prediction_stage_seconds", "Time that requests by URL spent in each stage.", labels=["stage"]
    )
    for stage in STAGES:
        buckets = [*zip(map(str, BOUNDS_S), accumulate(found.counts[stage]), strict=False)]
        family.add_metric([stage], [*buckets, ("+Inf", sum(found.counts[stage]))], found.sum_s[stage])
    yield family


def _ages(found: Ages) -> Iterator[Metric]:
    yield HistogramMetricFamily(
        "urlhealth_feature_age_seconds",
        "Time since the newest probe of each URL whose features a request read.",
        buckets=[*zip(map(str, AGES_S), accumulate(found.counts), strict=False), ("+Inf", sum(found.counts))],
        sum_value=found.sum_s,
    )
    reads = CounterMetricFamily("urlhealth_feature_reads", "URLs whose features a request read.", labels=["status"])
    for status, count in found.reads.items():
        reads.add_metric([status], count)
    yield reads


def _consistency(found: consistency.Check | None) -> Iterator[Metric]:
    """The newest comparison of the online with the offline store, by `urlhealth features check`."""
    checked = GaugeMetricFamily("urlhealth_feature_check_timestamp_seconds", "When the stores were last compared.")
    entities = GaugeMetricFamily(
        "urlhealth_feature_entities", "Entities that the offline store knows.", labels=["view"]
    )
    wrong = GaugeMetricFamily(
        "urlhealth_feature_inconsistent",
        "Entities with another state online than offline, or none (different), or with one online only (unknown).",
        labels=["view", "kind"],
    )
    if found is not None:
        checked.add_metric([], found.checked_ms / 1000)
    for view in found.views if found is not None else ():
        entities.add_metric([view.view], view.entities)
        wrong.add_metric([view.view, "different"], view.different)
        wrong.add_metric([view.view, "unknown"], view.unknown)
    yield from (checked, entities, wrong)


def _quality(found: LiveQuality | None) -> Iterator[Metric]:
    """The last days' figures, by version and horizon; of the process that holds the lease."""
    for name, about in {
        "n": "Predictions of the last days whose outcome is known (of a sample, if they are many).",
        "average_precision": "Average precision of the last days' predictions.",
        "brier": "Brier score of the last days' predictions.",
    }.items():
        gauge = GaugeMetricFamily(f"urlhealth_live_{name}", about, labels=["version", "horizon"])
        for figures in found.figures if found is not None else ():
            value = getattr(figures, name)
            if value is not None:
                gauge.add_metric([figures.model_version, figures.horizon], value)
        yield gauge


def _punctuality(found: Punctuality) -> Iterator[Metric]:
    buckets = [*zip(map(str, LAGS_S), accumulate(found.counts), strict=False), ("+Inf", sum(found.counts))]
    yield HistogramMetricFamily(
        "urlhealth_monitor_lag_seconds",
        "Time from when a monitor was due until its probe began, in the process that holds the lease.",
        buckets=buckets,
        sum_value=found.sum_s,
    )
    yield CounterMetricFamily(
        "urlhealth_monitor_slots_skipped",
        "Slots in which a monitor was not probed, because nobody could in time.",
        value=found.skipped,
    )


def _drift(found: Drift | None) -> Iterator[Metric]:
    """The newest comparison of serving with training, by `urlhealth features drift` or a retraining."""
    psi = GaugeMetricFamily("urlhealth_feature_psi", "Population stability index since training.", labels=["feature"])
    ks = GaugeMetricFamily("urlhealth_feature_ks", "Kolmogorov-Smirnov distance since training.", labels=["feature"])
    missing = GaugeMetricFamily(
        "urlhealth_feature_missing_share", "Share of vectors without the feature.", labels=["feature", "period"]
    )
    for feature in found.features if found is not None else ():
        psi.add_metric([feature.feature], feature.psi)
        ks.add_metric([feature.feature], feature.ks)
        missing.add_metric([feature.feature, "training"], feature.missing_reference)
        missing.add_metric([feature.feature, "serving"], feature.missing_current)
    yield from (psi, ks, missing)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
