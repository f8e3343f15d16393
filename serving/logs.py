"""The server's log: lines for people, or JSON with the id of the request that they belong to."""

import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from starlette.types import Scope
from uvicorn.config import LOGGING_CONFIG

#: The request that is answered in this context; worker threads inherit it.
REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

_requests: Final = logging.getLogger("urlhealth.requests")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and where there are: `request_id`, `error`, and
    what a record has as `fields`.
    """

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            said["request_id"] = request_id
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return orjson.dumps(said | getattr(record, "fields", {}), default=str).decode()


def request(scope: Scope, status: int, duration_s: float) -> None:
    """Log one request; only a JSON log has lines for them."""
    if _requests.isEnabledFor(logging.INFO):
        fields = {"method": scope["method"], "path": scope["path"], "status": status, "duration_s": duration_s}
        _requests.info("answered", extra={"fields": fields})


def configuration(*, as_json: bool) -> dict[str, Any]:
    """What `logging.config.dictConfig` takes, for uvicorn in each of its processes."""
    if not as_json:
        return {**LOGGING_CONFIG, "loggers": {**LOGGING_CONFIG["loggers"], "urlhealth.requests": {"level": "WARNING"}}}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "serving.logs.JsonFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"urlhealth": {"level": "INFO"}, "uvicorn": {"level": "INFO"}},
    }
