"""Options as people write them in, `ProbeOptions` out; what cannot work is said before anything is probed."""

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from urlhealth.errors import InvalidRequest
from urlhealth.probing import conditions
from urlhealth.vocabulary import ProbeOptions

_PROXY_SCHEMES: Final = ("http", "https", "socks5", "socks5h")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: What may stand in a header or in credentials: no line breaks, no other control characters.
_LINE: Final = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
#: Headers that are not the caller's: who we are, and what libcurl says about the message and its way.
_OWN_HEADERS: Final = frozenset(
    {"user-agent", "content-length", "transfer-encoding", "connection", "proxy-authorization", "upgrade", "expect"}
)


def parse_options(given: Mapping[str, Any]) -> ProbeOptions:
    """The options that some JSON means. Fields that are not given have their defaults; `headers` may be an object.

    Raises:
        InvalidRequest: naming the field and what is wrong with it, never its value where that may be a secret.
    """
    from pydantic import ValidationError

    unknown = sorted(given.keys() - _names())
    if unknown:
        raise InvalidRequest(f"options.{unknown[0]}: there is no such option")
    headers = given.get("headers")
    if isinstance(headers, Mapping):
        given = {**given, "headers": tuple(headers.items())}
    try:
        options: ProbeOptions = _adapter().validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        words = str(first["msg"]).removeprefix("Input ").removeprefix("Value ")
        raise InvalidRequest(f"options.{place}: {words[:1].lower()}{words[1:]}") from None
    for name, problem in _problems(options):
        if problem:
            raise InvalidRequest(f"options.{name}: {problem}")
    return options


def _problems(options: ProbeOptions) -> list[tuple[str, str | None]]:
    """For each field with rules that its type does not say: what is wrong with it, if anything."""
    asked_of_body = [
        name for name in ("body_contains", "body_regex", "body_jsonpath") if getattr(options, name) is not None
    ]
    return [
        *(("headers", _header_problem(name, value)) for name, value in options.headers),
        ("basic_auth", _basic_auth_problem(options)),
        ("bearer_token", None if _LINE.fullmatch(options.bearer_token or "") else "holds control characters"),
        ("proxy", None if options.proxy is None else _proxy_problem(options.proxy)),
        *((name, "needs the method GET") for name in asked_of_body if options.method == "HEAD"),
        ("body_regex", conditions.regex_problem(options.body_regex)),
        ("body_jsonpath", conditions.jsonpath_problem(options.body_jsonpath)),
    ]


def _header_problem(name: str, value: str) -> str | None:
    if not _HEADER_NAME.fullmatch(name):
        return f"{name[:80]!r} is not the name of a header"
    if name.lower() in _OWN_HEADERS:
        return f"{name} is not the caller's to set"
    return None if _LINE.fullmatch(value) else f"the value of {name} holds control characters"


def _basic_auth_problem(options: ProbeOptions) -> str | None:
    if options.basic_auth is None:
        return None
    if options.bearer_token is not None:
        return "cannot be used with bearer_token"
    if ":" not in options.basic_auth:
        return "must be written user:password"
    return None if _LINE.fullmatch(options.basic_auth) else "holds control characters"


def _proxy_problem(proxy: str) -> str | None:
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in _PROXY_SCHEMES and parts.hostname and parts.port != 0 and _LINE.fullmatch(proxy)
    except ValueError:
        usable = False
    return None if usable else f"must be a URL with a host and one of the schemes {', '.join(_PROXY_SCHEMES)}"


@cache
def _names() -> frozenset[str]:
    return frozenset(option.name for option in fields(ProbeOptions))


@cache
def _adapter() -> Any:
    # Imported late: only those who parse options need it.
    from pydantic import TypeAdapter

    return TypeAdapter(ProbeOptions)
