"""The shapes of requests and replies, a module a resource."""

from serving.schemas.common import MAX_URLS, Listing, Problem, ProblemItem, rfc3339
from serving.schemas.monitors import (
    Changed,
    Maintenance,
    Monitor,
    MonitorAnswer,
    MonitorAnswers,
    MonitorPatch,
    MonitorRequest,
    parse_monitor,
)
from serving.schemas.operations import Check, Live, Ready
from serving.schemas.options import Options
from serving.schemas.polling import Polled, Pool
from serving.schemas.predictions import (
    CurrentItem,
    Features,
    FeaturesItem,
    FeaturesRequest,
    Predictions,
    PredictionsItem,
    PredictionsRequest,
)
from serving.schemas.submit import SimpleResult, SimpleTask, SubmitRequest, Submitted
from serving.schemas.tasks import Task, TaskCreated, TaskOptions, TaskRequest, TaskResult
from serving.schemas.urls import Incident, UrlHistory, UrlState

__all__ = [
    "MAX_URLS",
    "Changed",
    "Check",
    "CurrentItem",
    "Features",
    "FeaturesItem",
    "FeaturesRequest",
    "Incident",
    "Listing",
    "Live",
    "Maintenance",
    "Monitor",
    "MonitorAnswer",
    "MonitorAnswers",
    "MonitorPatch",
    "MonitorRequest",
    "Options",
    "Polled",
    "Pool",
    "Predictions",
    "PredictionsItem",
    "PredictionsRequest",
    "Problem",
    "ProblemItem",
    "Ready",
    "SimpleResult",
    "SimpleTask",
    "SubmitRequest",
    "Submitted",
    "Task",
    "TaskCreated",
    "TaskOptions",
    "TaskRequest",
    "TaskResult",
    "UrlHistory",
    "UrlState",
    "parse_monitor",
    "rfc3339",
]
