"""Everything that can go wrong by name. No HTTP status here: `serving/errors.py` has one table for that.

    UrlHealthError
    ├── InvalidRequest      what was asked for cannot be done as it was written
    │   ├── InvalidUrls     some URLs of a list are none; names their positions
    │   │   └── TooOld      what is known of some is older than the request allows
    │   ├── Duplicate       its target has a monitor already; names it
    │   └── InvalidCursor
    ├── Unauthenticated     a call without an API key, where one is needed
    ├── Forbidden           an API key that may not do that
    ├── QuotaExceeded       an API key has done as much as it may
    ├── KeyReused           an idempotency key came again with another request
    ├── NotFound            no such task, monitor or model
    ├── NoModel             there is no model that can be used to predict
    ├── NotEnoughHistory    too little is stored to train on
    ├── ModelMismatch       a registered model does not fit this version's features
    ├── StateMismatch       carried feature state was made by another version or setting
    ├── StoreUnavailable    a store cannot be opened, read or written
    ├── LeaseLost           another process has become the writer
    └── ConfigurationError  settings that cannot work

Each message says what is wrong, where, and what to do about it.
"""

from collections.abc import Mapping


class UrlHealthError(Exception):
    """Base of all errors that the platform raises on purpose."""


class InvalidRequest(UrlHealthError):
    """What was asked for cannot be done as it was written."""


class InvalidUrls(InvalidRequest):
    """Some URLs of a list are not URLs that can be probed."""

    def __init__(self, problems: Mapping[int, str]) -> None:
        """`problems`: for each position in the list, from 0, what is wrong with it."""
        self.problems = dict(problems)
        position, reason = next(iter(self.problems.items()))
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"urls[{position}]: {reason}{more}")


class TooOld(InvalidUrls):
    """What is known of some URLs is older than the request allows, or nothing is."""


class Duplicate(InvalidRequest):
    """A target that is to be monitored has a monitor already."""

    def __init__(self, target: str, monitor_id: str) -> None:
        self.monitor_id = monitor_id
        super().__init__(
            f"{target} has the monitor {monitor_id} already: change that one, or give the new one a name of its own"
        )


class InvalidCursor(InvalidRequest):
    """A cursor that this list did not give out."""


class KeyReused(UrlHealthError):
    """An idempotency key came again with another request."""


class Unauthenticated(UrlHealthError):
    """A call without an API key, where one is needed."""


class Forbidden(UrlHealthError):
    """An API key that may not do what was asked for."""


class QuotaExceeded(UrlHealthError):
    """An API key has done as much as it may."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """`retry_after_s`: time after which it may be allowed again."""
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NotFound(UrlHealthError):
    """No such task, monitor or model."""


class NoModel(UrlHealthError):
    """There is no model that can be used to predict."""


class NotEnoughHistory(UrlHealthError):
    """Too little is stored to train a model on."""


class ModelMismatch(UrlHealthError):
    """A registered model does not fit the feature list of this version."""


class StateMismatch(UrlHealthError):
    """Carried feature state does not fit the columns or settings of this version."""


class StoreUnavailable(UrlHealthError):
    """A store cannot be opened, read or written."""


class LeaseLost(UrlHealthError):
    """Another process has become the writer; what this one wanted to write was not written."""


class ConfigurationError(UrlHealthError):
    """Settings that cannot work."""


def one_line(error: object) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
