"""What can go wrong in a call.

UrlHealthClientError
 ├ ConnectionFailed       nothing answers, or the connection broke
 └ ApiError               the platform answered with an error
    ├ Refused             401, 403: it does not serve this caller
    ├ NotFound            404: no such thing
    ├ Conflict            409: there is one already, or what is known is too old
    ├ Invalid             other 4xx: the request cannot be carried out as it was written
    └ Unavailable         429, 5xx: not now
"""

from collections.abc import Sequence

from urlhealth_client.models import ProblemItem


class UrlHealthClientError(Exception):
    """Base of all errors of this package."""


class ConnectionFailed(UrlHealthClientError):
    """Nothing answers at the platform's address, or the connection broke."""


class ApiError(UrlHealthClientError):
    """The platform answered with an error (RFC 9457).

    `status` is the HTTP status, `type` tells kinds of errors apart, `detail` says what to do, `errors` are the faults
    one by one where there are several.
    """

    def __init__(self, status: int, type: str, detail: str, errors: Sequence[ProblemItem] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.type = type
        self.detail = detail
        self.errors = list(errors)


class Refused(ApiError):
    """The platform does not serve this caller, or not with this key."""


class NotFound(ApiError):
    """There is no such thing, or it is not the caller's."""


class Conflict(ApiError):
    """There is one already, or what is known is too old."""


class Invalid(ApiError):
    """The request cannot be carried out as it was written."""


class Unavailable(ApiError):
    """The platform cannot do it now: try again later."""


def error_class(status: int) -> type[ApiError]:
    """The class for an HTTP status from 400 on."""
    match status:
        case 401 | 403:
            return Refused
        case 404:
            return NotFound
        case 409:
            return Conflict
        case 429:
            return Unavailable
    return Invalid if status < 500 else Unavailable
