"""Options from JSON and back, and what is said of those that cannot work."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from urlhealth.errors import InvalidRequest
from urlhealth.probing import conditions
from urlhealth.probing.options import parse_options
from urlhealth.vocabulary import DEFAULT_OPTIONS, ProbeOptions

EVERYTHING = {
    "connect_timeout_s": 1,
    "timeout_s": 2.5,
    "max_redirects": 0,
    "max_bytes": 1000,
    "verify_tls": False,
    "method": "GET",
    "headers": {"X-A": "b", "Accept": "*/*"},
    "basic_auth": "me:pass:word",
    "bearer_token": None,
    "proxy": "socks5h://me:pass@proxy.example:1080",
    "ip_family": "ipv6",
    "http_version": "2",
    "expected_statuses": [200, 404],
    "body_contains": "a",
    "body_regex": "(?i)a+b",
    "body_jsonpath": "$.a[?@.b == 'c']",
    "retries": 3,
    "retry_delay_s": 0.5,
    "robots": True,
}


def test_options_are_the_same_after_json() -> None:
    options = parse_options(EVERYTHING)
    assert set(EVERYTHING) == set(asdict(options))
    assert ProbeOptions(**json.loads(json.dumps(asdict(options)))) == options
    assert options.headers == (("X-A", "b"), ("Accept", "*/*"))
    assert parse_options({**EVERYTHING, "headers": [["X-A", "b"], ["Accept", "*/*"]]}) == options
    assert parse_options(asdict(options)) == options


def test_options_of_an_older_version_are_those_with_the_rest_as_by_default() -> None:
    assert ProbeOptions(**{"timeout_s": 3.0}) == parse_options({"timeout_s": 3}) != DEFAULT_OPTIONS
    assert parse_options({}) == DEFAULT_OPTIONS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tiemout_s": 1}, "tiemout_s: there is no such option"),
        ({"timeout_s": 0}, "timeout_s: should be greater than 0"),
        ({"timeout_s": float("nan")}, "timeout_s: should be less than or equal to 300"),
        ({"retries": 11}, "retries: should be less than or equal to 10"),
        ({"method": "POST"}, "method: should be 'GET' or 'HEAD'"),
        ({"expected_statuses": [200, 1]}, "expected_statuses.1: should be greater than or equal to 200"),
        ({"headers": {"a b": "c"}}, "headers: 'a b' is not the name of a header"),
        ({"headers": {"A": "b\r\nC: d"}}, "headers: the value of A holds control characters"),
        ({"headers": {"user-agent": "Mozilla"}}, "headers: user-agent is not the caller's to set"),
        ({"basic_auth": "me"}, "basic_auth: must be written user:password"),
        ({"basic_auth": "a:b", "bearer_token": "c"}, "basic_auth: cannot be used with bearer_token"),
        ({"bearer_token": "a\nb"}, "bearer_token: holds control characters"),
        ({"proxy": "ftp://me:hunter2@a"}, "proxy: must be a URL with a host and one of the schemes http, https"),
        ({"body_regex": "("}, "body_regex: not a regular expression (RE2): missing ): ("),
        ({"body_regex": r"(?=a)"}, "body_regex: not a regular expression (RE2): invalid perl operator: (?="),
        ({"body_regex": "(a?){500}b"}, "body_regex: too large: "),
        ({"body_jsonpath": "$["}, "body_jsonpath: not a JSONPath (RFC 9535): "),
        ({"body_jsonpath": "$..a..b"}, "body_jsonpath: has '..' more than 1 times"),
        ({"body_jsonpath": "$[?match(@.a, '(a+)+b')]"}, "body_jsonpath: not a JSONPath (RFC 9535): function 'match'"),
        ({"body_contains": "\ud800"}, "body_contains: should be a valid string, unable to parse raw data as a unicode"),
        ({"body_contains": "a", "method": "HEAD"}, "body_contains: needs the method GET"),
    ],
)
def test_options_that_cannot_work_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_options(given)
    assert str(raised.value).startswith(f"options.{message}")
    assert "\n" not in str(raised.value)


def test_secrets_are_shown_nowhere() -> None:
    options = parse_options({"basic_auth": "a:hunter2", "proxy": "http://a:hunter2@b", "headers": {"X": "hunter2"}})
    assert "hunter2" not in repr(options)
    for wrong in ({"basic_auth": 5}, {"basic_auth": "hunter2"}, {"proxy": "hunter2"}, {"headers": {"X": "hunter2\0"}}):
        with pytest.raises(InvalidRequest) as raised:
            parse_options(wrong)
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (ProbeOptions(body_regex="(a?){150}a{150}b"), b"a" * (1 << 20)),
        (ProbeOptions(body_jsonpath="$..*"), b"[" * 60_000),
        (ProbeOptions(body_jsonpath="$..z"), b"[" * 1000 + b"]" * 1000),
        (ProbeOptions(body_jsonpath="$..[*,*,*].z"), b"[" + b"[]," * 20_000 + b"[]]"),
        (ProbeOptions(body_jsonpath="$[?@..x[?@ > 3]]"), b"[" + b'{"x":1},' * 8_000 + b"1]"),
    ],
)
@pytest.mark.timeout(10)
def test_neither_pattern_nor_body_can_keep_the_probing_thread(options: ProbeOptions, body: bytes) -> None:
    assert conditions.regex_problem(options.body_regex) is None
    assert conditions.jsonpath_problem(options.body_jsonpath) is None
    assert conditions.unmet(options, body) is not None
