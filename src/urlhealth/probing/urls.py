"""URLs as people write them in, targets out: parsed as browsers do (WHATWG), http and https only."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import ada_url

from urlhealth.errors import InvalidRequest, InvalidUrls
from urlhealth.vocabulary import Target

#: Longest URL taken, in characters, as sent and as normalised: as long as sitemaps allow, and short enough for an index
#: of PostgreSQL, which takes 2,700 bytes a row.
MAX_LENGTH: Final = 2048

#: Most URLs, which are what they become, and need no parser: name with or without a port of four or five digits, path,
#: query. Numbers for hosts, dot segments and internationalised names are left to the parser.
_PLAIN: Final = re.compile(
    r"https?://([a-z0-9.-]*\.)?([a-z][a-z0-9-]*)(:(?:[1-9][0-9]{3}|[1-5][0-9]{4}))?"
    r"/[A-Za-z0-9_.~/-]*(?:\?[A-Za-z0-9_.~/=&%+-]*)?"
)
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
#: What stands before the "@" of an authority, which may be a password.
_USERINFO: Final = re.compile(r"(?:(?<=//)|(?<!\S))[^/?#\s]*@")
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
    if (plain := _PLAIN.fullmatch(url)) and "/." not in url and "xn--" not in url:
        host = "".join(plain.groups(""))
        return Target(url=url, host=host, group=group or registrable_domain(host), name=name)
    if "\0" in url:
        raise InvalidRequest("the URL holds a NUL character, which no URL may")
    try:
        href = ada_url.normalize_url(url)
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


def parse_targets(urls: Sequence[str], *, first: int = 0) -> list[Target]:
    """The targets of a list of URLs, in the same order; `first` is the position of its first one.

    Raises:
        InvalidUrls: naming every position that holds no URL that can be probed.
    """
    targets: list[Target] = []
    problems: dict[int, str] = {}
    for position, url in enumerate(urls, first):
        try:
            targets.append(parse_target(url))
        except InvalidRequest as error:
            problems[position] = str(error)
    if problems:
        raise InvalidUrls(problems)
    return targets


class UrlLines:
    """The URLs of a text, one a line; blank lines, and comments after `#`, are left out."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines
        #: For each line left out: how many URLs stood before it.
        self._left_out: list[int] = []

    def __iter__(self) -> Iterator[str]:
        count = 0
        for line in self._lines:
            url = line.strip()
            if url and not url.startswith("#"):
                yield url
                count += 1
            else:
                self._left_out.append(count)

    def line_of(self, position: int) -> int:
        """The number, from 1, of the line that the URL at this position (from 0) stood in."""
        return position + 1 + bisect_right(self._left_out, position)


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
    labels = name.split(".")
    return ".".join(labels[max(0, len(labels) - _suffix_length(labels) - 1) :])


def _suffix_length(labels: Sequence[str]) -> int:
    """How many of a host name's last labels are a public suffix: the longest rule counts, unless one excepts it."""
    rules = _suffix_rules()
    suffix, length = "", 1
    for count, label in enumerate(reversed(labels), 1):
        if label.startswith("xn--"):
            label = label[4:].encode().decode("punycode", "replace")
        wildcard = f"*.{suffix}"
        suffix = f"{label}.{suffix}" if suffix else label
        if f"!{suffix}" in rules:
            return count - 1
        if suffix in rules or wildcard in rules:
            length = count
    return length


@cache
def _suffix_rules() -> frozenset[str]:
    """The public suffix list (without the private part) that tldextract brings, read without importing it: 0.2 s."""
    package = find_spec("tldextract")
    assert package is not None
    assert package.origin is not None
    text = Path(package.origin).with_name(".tld_set_snapshot").read_text(encoding="utf-8")
    public = text.partition("// ===BEGIN PRIVATE DOMAINS===")[0]
    return frozenset(line for line in public.splitlines() if line and not line.startswith("//"))


def _end_of_authority(rest: str) -> int:
    slash = rest.find("/")
    return slash if slash >= 0 else len(rest)


def _why_not(url: str) -> str:
    """What is wrong with a URL that cannot be probed."""
    text = url.strip()
    shown = _USERINFO.sub("***@", text)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
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
