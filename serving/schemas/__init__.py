"""The shapes of requests and replies, a module a resource."""

from serving.schemas.common import MAX_URLS, Listing, Problem, ProblemItem, rfc3339
from serving.schemas.monitors import Monitor, MonitorRequest
from serving.schemas.operations import Check, Live, Ready
from serving.schemas.options import Options
from serving.schemas.predictions import (
    Features,
    FeaturesItem,
    FeaturesRequest,
    Predictions,
    PredictionsItem,
    PredictionsRequest,
)
from serving.schemas.submit import SimpleResult, SimpleTask, SubmitRequest, Submitted
from serving.schemas.tasks import Task, TaskCreated, TaskOptions, TaskRequest, TaskResult

__all__ = [
    "MAX_URLS",
    "Check",
    "Features",
    "FeaturesItem",
    "FeaturesRequest",
    "Listing",
    "Live",
    "Monitor",
    "MonitorRequest",
    "Options",
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
    "rfc3339",
]
