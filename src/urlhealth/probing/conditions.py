"""What a body is asked to have in it: a text, a match of a regular expression (RE2), a node (JSONPath).

The patterns are a user's and the body is a server's, and the probing thread waits for both: so they are held to what
takes little time.
"""

from functools import cache, lru_cache
from typing import Any, Final

from urlhealth.vocabulary import ProbeOptions

#: How much of a body a text is looked for in.
BODY_BYTES: Final = 1 << 20
#: The same for regular expressions and JSONPath.
PATTERN_BYTES: Final = 1 << 16
#: Size of a compiled regular expression: RE2 is linear in the body, times this.
_MOST_STEPS: Final = 1_000
#: How often a mark may be in a JSONPath: each visits nodes again that another has visited.
_MOST_MARKS: Final = {"$": 1, "..": 1, "?": 2, "*": 3, ",": 3}


def reads_body(options: ProbeOptions) -> bool:
    """Whether the options ask anything of the body."""
    return not (options.body_contains is None and options.body_regex is None and options.body_jsonpath is None)


def unmet(options: ProbeOptions, body: bytes) -> str | None:
    """The first condition that the body does not meet, in words; None if it meets all."""
    if options.body_contains is not None and options.body_contains.encode() not in body:
        return f"the body does not contain {options.body_contains!r}"
    if options.body_regex is not None and not _regex(options.body_regex).search(body[:PATTERN_BYTES]):
        return f"nothing in the body matches {options.body_regex!r}"
    if options.body_jsonpath is not None:
        return _unmet_jsonpath(options.body_jsonpath, body)
    return None


def regex_problem(pattern: str | None) -> str | None:
    """Why this is no regular expression; None if it is one."""
    if pattern is None:
        return None
    import re2

    try:
        steps = _regex(pattern).programsize
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        words = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return f"not a regular expression (RE2): {words}"
    return f"too large: {steps} steps, {_MOST_STEPS} are the most" if steps > _MOST_STEPS else None


def jsonpath_problem(path: str | None) -> str | None:
    """Why this is no JSONPath that can be asked for; None if it is one."""
    if path is None:
        return None
    from jsonpath import JSONPathError

    for mark, most in _MOST_MARKS.items():
        if path.count(mark) > most:
            return f"has {mark!r} more than {most} times"
    try:
        _jsonpath(path)
    except (JSONPathError, RecursionError) as error:
        return f"not a JSONPath (RFC 9535): {_words(error)}"
    return None


def _words(error: Exception) -> str:
    try:
        return str(error).splitlines()[0]
    except (ValueError, IndexError):  # it has none, or quotes a place behind the end of the path
        return type(error).__name__


def _unmet_jsonpath(path: str, body: bytes) -> str | None:
    import orjson
    from jsonpath import JSONPathError

    try:
        document = orjson.loads(body[:PATTERN_BYTES])
    except orjson.JSONDecodeError:
        return f"the body is not JSON, or longer than {PATTERN_BYTES} bytes"
    try:
        found = next(iter(_jsonpath(path).finditer(document)), None)
    except (JSONPathError, RecursionError):
        found = None
    return None if found is not None else f"nothing in the body is at {path!r}"


# The libraries are imported late: few probes have conditions.


@lru_cache(maxsize=256)
def _regex(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


@lru_cache(maxsize=256)
def _jsonpath(path: str) -> Any:
    return _jsonpath_environment().compile(path)


@cache
def _jsonpath_environment() -> Any:
    from jsonpath import JSONPathEnvironment

    environment = JSONPathEnvironment(strict=True)
    for name in ("match", "search"):
        del environment.function_extensions[name]
    return environment
