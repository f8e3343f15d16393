"""URLs as people write them in, targets out: parsed as browsers do (WHATWG), http and https only."""

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, Final

import ada_url

from urlhealth.errors import InvalidRequest, InvalidUrls
from urlhealth.vocabulary import Target

#: Longest URL taken, in characters, as sent and as normalised.
MAX_LENGTH: Final = 8192

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
#: "example.com:8080/path" and "localhost:8000" look like a scheme and are none.
_HOST_AND_PORT: Final = re.compile(r"[^/:@]+:\d+(/|\?|#|$)")


def parse_target(url: str, *, group: str | None = None, name: str | None = None) -> Target:
    """The target that a URL means. `group` and `name` are for monitors; without `group` it is the registrable domain.

    Raises:
        InvalidRequest: saying what is wrong with the URL and what to write instead.
    """
    if not isinstance(url, str):
        raise InvalidRequest(f"a URL must be a string, not {type(url).__name__}")
    if len(url) > MAX_LENGTH:
        raise InvalidRequest(f"the URL has {len(url)} characters; {MAX_LENGTH} is the most")
    try:
        href = ada_url.URL(url).href
    except (ValueError, UnicodeEncodeError):
        raise InvalidRequest(_why_not(url)) from None
    scheme, separator, rest = href.partition("://")
    if not separator or scheme not in ("http", "https"):
        raise InvalidRequest(_why_not(url))
    rest = rest.partition("#")[0]
    host = rest[: _end_of_authority(rest)]
    if "@" in host:
        raise InvalidRequest("the URL carries a user name or password: leave out what stands before '@'")
    if len(scheme) + len(rest) + 3 > MAX_LENGTH:
        raise InvalidRequest(f"the URL has more than {MAX_LENGTH} characters once it is percent-encoded")
    return Target(url=f"{scheme}://{rest}", host=host, group=group or registrable_domain(host), name=name)


def parse_targets(urls: Sequence[str]) -> list[Target]:
    """The targets of a list of URLs, in the same order.

    Raises:
        InvalidUrls: naming every position that holds no URL that can be probed.
    """
    targets: list[Target] = []
    problems: dict[int, str] = {}
    for position, url in enumerate(urls):
        try:
            targets.append(parse_target(url))
        except InvalidRequest as error:
            problems[position] = str(error)
    if problems:
        raise InvalidUrls(problems)
    return targets


@lru_cache(maxsize=65_536)
def registrable_domain(host: str) -> str:
    """Who runs a host (`Target.host`), as far as its name tells: `shop.example.co.uk:8080` → `example.co.uk`.

    An address stands for itself. Where no public suffix is known, it is the last two labels.
    """
    if host.startswith("["):
        return host[1 : host.index("]")]
    name = host.partition(":")[0].rstrip(".")
    last = name.rpartition(".")[2]
    if last.isdigit():
        return name
    found: str = _public_suffixes()(name).top_domain_under_public_suffix
    return found or ".".join(name.split(".")[-2:])


@cache
def _public_suffixes() -> Callable[[str], Any]:
    # Imported late: it takes a tenth of a second, and only those who parse URLs need it.
    import tldextract

    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


def _end_of_authority(rest: str) -> int:
    slash = rest.find("/")
    return slash if slash >= 0 else len(rest)


def _why_not(url: str) -> str:
    """What is wrong with a URL that cannot be probed."""
    text = url.strip()
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    if not text:
        return "the URL is empty"
    scheme = _SCHEME.match(text)
    if scheme is None or _HOST_AND_PORT.match(text):
        shown = shown.lstrip("/")
        try:
            ada_url.URL(f"https://{text.lstrip('/')}")
        except (ValueError, UnicodeEncodeError):
            return f"{shown!r} is not a URL"
        return f"{shown!r} has no scheme; did you mean 'https://{shown}'?"
    if scheme[1].lower() not in ("http", "https"):
        return f"scheme {scheme[1].lower()!r} cannot be probed: only http and https can"
    if not text[scheme.end() :].strip("/"):
        return f"{shown!r} has no host"
    return f"{shown!r} is not a valid URL: its host or port cannot be read"
