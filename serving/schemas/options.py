"""How to probe, as requests and replies say it."""

from dataclasses import asdict, fields
from typing import Any, Final, Self, get_type_hints

from pydantic import ConfigDict, Field, create_model

from serving.schemas.common import RequestBody
from urlhealth.probing.options import parse_options
from urlhealth.vocabulary import DEFAULT_OPTIONS, ProbeOptions

#: What each option does; its type, limits and default are those of `ProbeOptions`.
_OPTIONS: Final = {
    "connect_timeout_s": "Time for DNS, TCP and TLS together.",
    "timeout_s": "Time for everything.",
    "max_redirects": "Redirects to follow before it is `too_many_redirects`.",
    "max_bytes": "Body bytes to read before it is `too_large`.",
    "verify_tls": "Whether certificates are checked.",
    "method": "`HEAD` asks for no body.",
    "headers": "Header fields to send. Replies show their names only.",
    "basic_auth": "`user:password`. Never sent to another host that a redirect leads to, never shown in a reply.",
    "bearer_token": "As `basic_auth`, for the scheme Bearer.",
    "proxy": "URL of a proxy (http, https, socks5, socks5h); never shown in a reply.",
    "ip_family": "The addresses of a name to use.",
    "http_version": "`auto` offers 1.1 and 2; `2` and `3` must be what the answer comes by.",
    "expected_statuses": "Statuses that are `ok`; empty: all below 400.",
    "body_contains": "A text that the first MiB of the body must have in it, or it is `condition`.",
    "body_regex": "A regular expression (RE2) that must match there.",
    "body_jsonpath": "A JSONPath that must find something there.",
    "retries": "Attempts after a failed one.",
    "retry_delay_s": "Pause before the first of them; each later one is twice as long.",
    "robots": "Whether the site's robots.txt is asked first, and obeyed.",
}
_SECRET: Final = "***"
_SECRETS: Final = tuple(f.name for f in fields(ProbeOptions) if not f.repr)


class _Options(RequestBody):
    """How to probe. A probe whose options differ from the defaults feeds no features."""

    model_config = ConfigDict(allow_inf_nan=False)

    def to_domain(self) -> ProbeOptions:
        """The options as the platform knows them.

        Raises:
            InvalidRequest: naming the option that cannot be used, or not with the others.
        """
        return parse_options(self.model_dump())

    @classmethod
    def of(cls, options: ProbeOptions) -> Self:
        """The options as a reply, without what may be secret."""
        shown = asdict(options)
        shown |= {name: _SECRET for name in _SECRETS if shown[name] is not None}
        return cls.model_validate(shown | {"headers": {name: _SECRET for name, _ in options.headers}})


_DEFINITIONS: Final[dict[str, Any]] = {
    name: (kind, Field(getattr(DEFAULT_OPTIONS, name), description=_OPTIONS[name]))
    for name, kind in get_type_hints(ProbeOptions, include_extras=True).items()
} | {"headers": (dict[str, str], Field({}, max_length=50, description=_OPTIONS["headers"]))}
Options = create_model("Options", __base__=_Options, __doc__=_Options.__doc__, **_DEFINITIONS)
