"""Client of the urlhealth platform: probe URLs, read their health, history and forecasts.

:class:`Client` is for ordinary programs (Flask, Django, Celery, scripts), :class:`AsyncClient` for asynchronous ones.
They have the same methods. Lists that the platform gives in pages or as streams are iterators here, and calls that may
be repeated without harm are, when the connection or the platform fails.
"""

from urlhealth_client.aio import AsyncClient
from urlhealth_client.errors import (
    ApiError,
    Conflict,
    ConnectionFailed,
    Invalid,
    NotFound,
    Refused,
    Unavailable,
    UrlHealthClientError,
)
from urlhealth_client.exchange import Retries, TaskEvent
from urlhealth_client.sync import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Invalid",
    "NotFound",
    "Refused",
    "Retries",
    "TaskEvent",
    "Unavailable",
    "UrlHealthClientError",
]
