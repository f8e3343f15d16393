"""What strangers, files and other programs send is read or refused with an error of ours, whatever it is."""

import gzip
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from graphql import GraphQLError, GraphQLSyntaxError, parse
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serving import exports, intake, tensors
from serving.app import create_app
from serving.graphql.limits import check
from tests.support import noise_forecaster
from urlhealth.alerts.rules import read_file, rule_of
from urlhealth.errors import InvalidRequest, ModelMismatch, StoreUnavailable, Unauthenticated
from urlhealth.feast_stores.packed import Layout
from urlhealth.features.catalog import STATE_VIEWS
from urlhealth.histories.source import batches_of
from urlhealth.link_check import Baseline, links_in
from urlhealth.monitors_cli import _read
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.prediction.model_files import load_forecaster
from urlhealth.probing.broker import Batch, Report, heard
from urlhealth.probing.conditions import jsonpath_problem, regex_problem, unmet
from urlhealth.settings import Settings
from urlhealth.vocabulary import ProbeOptions

few = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
TEXT: Final = st.text(max_size=30) | st.text("{}[]\",:0123456789.eE-+\\u \n\r\t#&*!|>%@`'$()abtruefalsn", max_size=80)
SCALAR: Final = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUE: Final = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
BYTES: Final = st.binary(max_size=200) | TEXT.map(lambda text: text.encode(errors="replace"))


def near(*templates: Any) -> st.SearchStrategy[Any]:
    """Values like the templates, in which some part, of any depth, is something else, or missing."""

    def changed(value: Any) -> st.SearchStrategy[Any]:
        others = [st.just(value), VALUE]
        if isinstance(value, dict) and value:
            others.append(
                st.fixed_dictionaries({}, optional={key: changed(part) for key, part in value.items()}).flatmap(
                    lambda made: (
                        st.just(made) | st.dictionaries(st.text(max_size=6), VALUE, max_size=1).map(made.__or__)
                    )
                )
            )
        elif isinstance(value, list) and value:
            others.append(st.tuples(*map(changed, value)).map(list))
        return st.one_of(others)

    return st.one_of([changed(template) for template in templates])


# HTTP

URL: Final = "https://a.example"
OPTIONS: Final = {"headers": {"A": "b"}, "timeout_s": 3, "body_regex": "a+", "expected_statuses": [[200, 299]]}
MONITOR: Final = {
    "url": URL,
    "interval_s": 60,
    "tags": ["a"],
    "options": OPTIONS,
    "maintenance": [{"start": "2026-01-01T00:00:00Z", "duration_s": 60}],
}
RULES: Final = {
    "channels": [{"name": "a", "url": "https://hooks.example", "secret": "x" * 16}],
    "rules": [
        {
            "name": "down",
            "kind": "state",
            "channels": ["a"],
            "quiet_hours": {"start": "22:00", "end": "06:00", "timezone": "Europe/Berlin"},
            "maintenance": [{"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z", "every": "week"}],
        }
    ],
}
INFER: Final = {
    "inputs": [{"name": "url", "shape": [1], "datatype": "BYTES", "data": [URL]}],
    "outputs": [{"name": "onset_1h", "parameters": {"binary_data": True}}],
}
QUERY: Final = {
    "query": "query q($n: Int, $u: [String!]!) { tasks(first: $n) { taskId } targets(urls: $u) { url } }",
    "variables": {"n": 3, "u": [URL]},
    "operationName": "q",
}
BODIES: Final[dict[tuple[str, str], Any]] = {
    ("POST", "/api/v1/tasks"): {"urls": [URL], "options": OPTIONS},
    ("POST", "/submit"): {"urls": [URL]},
    ("POST", "/api/v1/monitors"): MONITOR,
    ("PATCH", "/api/v1/monitors?tag=a"): {"paused": True, "interval_s": 60},
    ("POST", "/api/v1/predictions"): {"urls": [URL], "horizons": ["24h"], "explain": True},
    ("POST", "/api/v1/features"): {"urls": [URL]},
    ("POST", "/api/v1/score"): {"rows": [{"failing_now": 1.0}]},
    ("POST", "/v1/models/url-health:predict"): {"instances": [URL], "signature_name": "serving_default"},
    ("POST", "/v2/models/url-health/infer"): INFER,
    ("POST", "/invocations"): {"dataframe_split": {"columns": ["url"], "data": [[URL]]}, "params": {}},
    ("POST", "/invocations?x"): {"dataframe_records": [{"url": URL}]},
    ("POST", "/graphql"): QUERY,
    ("PUT", "/api/v1/alerts/rules"): RULES,
    ("POST", "/api/v1/alerts/test"): {"channel": "none"},
}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with Platform(Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri="")) as platform:
        platform.champion.current = Champion(name="url-health", version="1", forecaster=noise_forecaster())
        with TestClient(create_app(platform), raise_server_exceptions=False) as client:
            yield client


@pytest.mark.parametrize("call", BODIES, ids=lambda call: " ".join(call))
def test_bodies(http: TestClient, call: tuple[str, str]) -> None:
    method, path = call
    seen = set()

    @few
    @given(near(BODIES[call]))
    @example(BODIES[call])
    def ask(body: Any) -> None:
        content = json.dumps(body).encode()
        reply = http.request(method, path, content=content, headers={"content-type": "application/json"})
        assert reply.status_code < 500, reply.text
        seen.add(reply.status_code // 100)

    ask()
    assert 2 in seen or path == "/api/v1/alerts/test"


@few
@given(
    BYTES,
    st.sampled_from(["application/json", "application/x-ndjson", "text/plain", "text/csv", "a/b", ""]),
    st.booleans(),
)
def test_bodies_that_are_none(http: TestClient, body: bytes, kind: str, packed: bool) -> None:
    headers = {"content-type": kind} | ({"content-encoding": "gzip"} if packed else {})
    for path in (
        "/api/v1/tasks",
        "/api/v1/monitors",
        "/invocations",
        "/v2/models/url-health/infer",
        "/graphql",
        "/login",
    ):
        reply = http.post(path, content=body, headers=headers, follow_redirects=False)
        assert reply.status_code < 500, (path, reply.text)


@few
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "url",
                "urls",
                "from",
                "to",
                "step",
                "limit",
                "cursor",
                "tag",
                "status",
                "format",
                "open",
                "query",
                "sort",
                "horizon",
            ]
        ),
        TEXT,
        max_size=4,
    )
)
def test_query_strings(http: TestClient, params: dict[str, str]) -> None:
    with suppress(UnicodeEncodeError):
        for path in (
            "/api/v1/url",
            "/api/v1/url/history",
            "/api/v1/url/incidents",
            "/api/v1/tasks",
            "/api/v1/monitors",
            "/api/v1/predictions",
            "/",
            "/ui/url",
            "/ui/monitors",
            "/api/v1/alerts",
        ):
            reply = http.get(path, params=params)
            assert reply.status_code < 500, (path, reply.text)


@few
@given(
    st.sampled_from(
        [
            "x-request-id",
            "accept",
            "last-event-id",
            "idempotency-key",
            "authorization",
            "cookie",
            "x-api-key",
            "host",
            "origin",
            "content-encoding",
            "inference-header-content-length",
        ]
    ),
    BYTES,
)
def test_headers(http: TestClient, name: str, value: bytes) -> None:
    value = value.translate(None, b"\r\n\0")
    for path, body in (("/api/v1/tasks", {"urls": [URL]}), ("/v2/models/url-health/infer", INFER)):
        reply = http.post(path, json=body, headers={name: value})
        assert reply.status_code < 500, (path, reply.text)


@few
@given(BYTES, st.one_of(st.none(), st.integers(-5, 300).map(str), TEXT))
def test_binary_tensors(behind: bytes, header_length: str | None) -> None:
    head = json.dumps(
        {
            "inputs": [
                {"name": "url", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(behind)}}
            ]
        }
    ).encode()
    for length in (header_length, str(len(head))):
        with suppress(InvalidRequest):
            assert tensors.read_request(head + behind, length)


@few
@given(st.lists(BYTES, max_size=4))
def test_streams_of_lines(pieces: list[bytes]) -> None:
    for read in (intake.text_urls, lambda given_: intake.ndjson_task(given_)[1], intake.unpacked):
        for given_ in (pieces, [gzip.compress(b"".join(pieces))[:60]]):
            with suppress(InvalidRequest, RequestValidationError, HTTPException):
                list(read(given_))


@few
@given(TEXT)
def test_accept(text: str) -> None:
    assert exports.preferred(text) in ("json", "ndjson", "csv")


@few
@given(
    st.text('{}()[]!:@$#" abq1,.|=&...on fragment', max_size=60), st.dictionaries(st.text("nuab", max_size=1), VALUE)
)
@example("query q($u: [String!]!) { targets(urls: $u) { url } }", {"u": 5})
@example("{ tasks(first: 99999999999999999999999) { taskId } }", {})
@example("{ ...a } fragment a on Q { ...b } fragment b on Q { ...a }", {})
def test_queries(text: str, variables: dict[str, Any]) -> None:
    with suppress(GraphQLError, GraphQLSyntaxError):
        check(parse(text, max_tokens=2000), variables, None)


@few
@given(TEXT)
def test_secrets_that_are_shown(http: TestClient, text: str) -> None:
    keys = http.app.state.platform.keys  # type: ignore[attr-defined]
    for look in (keys.caller, keys.session_caller):
        for secret in (text, f"uh_{text}", f"uh_000000000000_{text}"):
            with pytest.raises(Unauthenticated):
                look(secret)


# What servers answer


@few
@given(
    st.text(max_size=20) | st.text("$.*[]?@(),'\"ab01:!=<>&|~", max_size=25),
    BYTES | VALUE.map(lambda v: json.dumps(v).encode()),
)
def test_conditions(pattern: str, body: bytes) -> None:
    options = {"body_contains": pattern}
    if regex_problem(pattern) is None:
        options["body_regex"] = pattern
    if jsonpath_problem(pattern) is None:
        options["body_jsonpath"] = pattern
    with suppress(UnicodeEncodeError):  # a lone surrogate: JSON over REST has none by then
        for name, value in options.items():
            said = unmet(ProbeOptions(**{name: value}), body)  # type: ignore[arg-type]
            assert said is None or isinstance(said, str)


# Files


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


ROW: Final = {
    "url": URL,
    "ts": "2026-01-01T00:00:00Z",
    "outcome": "ok",
    "status_code": 200,
    "attempts": [{"outcome": "ok"}],
    "total_ms": 3.5,
    "size_bytes": 3,
}
FILES: Final[list[tuple[str, Callable[[Path], Any], st.SearchStrategy[bytes]]]] = [
    ("alerts.yaml", read_file, near(RULES).map(dumped)),
    ("monitors.yaml", _read, near({"monitors": [MONITOR]}).map(dumped)),
    ("a.ndjson", batches_of, st.lists(near(ROW), min_size=1, max_size=3).map(lambda r: b"\n".join(map(dumped, r)))),
    ("a.csv", batches_of, TEXT.map(lambda t: b"url,ts,outcome,status_code\n" + t.encode(errors="replace"))),
    ("a.parquet", batches_of, BYTES),
    ("a.md", lambda file: links_in([str(file)]), BYTES.map(lambda b: b"http://a(" + b)),
    ("known.txt", lambda file: Baseline(file).compare({URL: "dns"}), BYTES),
]


@pytest.mark.parametrize(("name", "read", "near_ones"), FILES, ids=[name for name, *_ in FILES])
def test_files(tmp_path: Path, name: str, read: Callable[[Path], Any], near_ones: st.SearchStrategy[bytes]) -> None:
    file = tmp_path / name

    @few
    @given(near_ones | BYTES)
    def look(content: bytes) -> None:
        file.write_bytes(content)
        with suppress(InvalidRequest):
            found = read(file)
            if isinstance(found, Iterator):
                list(found)

    look()


@few
@given(near({"name": "a", "kind": "state", "channels": ["a"], "probes": 2, "of": 3}))
def test_rules(given_: Any) -> None:
    with suppress(InvalidRequest):
        rule_of(given_)


CELL: Final = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9)


@few
@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=3), st.lists(st.tuples(CELL, CELL, CELL, CELL, CELL), max_size=3))
@example([("1) OR (1=1", URL, "a")], [(1, "2026-01-01", 1, "200 - OK", 3.5)])
@example([(1, URL, "a")], [(1, b"\xff", 0, 7, "x"), (1, 5, 1, None, None), (1, "2026-01-01", 0, "x", 3.0)])
def test_another_programs_database(
    tmp_path_factory: pytest.TempPathFactory, monitors: Iterable[tuple[Any, ...]], beats: Iterable[tuple[Any, ...]]
) -> None:
    """Columns of SQLite may hold anything."""
    file = tmp_path_factory.getbasetemp() / "kuma.db"
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("CREATE TABLE monitor (id, url, name, type)")
        database.execute("CREATE TABLE heartbeat (id INTEGER PRIMARY KEY, monitor_id, time, status, msg, ping)")
        database.executemany("INSERT INTO monitor VALUES (?, ?, ?, 'http')", monitors)
        database.executemany(
            "INSERT INTO heartbeat (monitor_id, time, status, msg, ping) VALUES (?, ?, ?, ?, ?)", beats
        )
    with suppress(InvalidRequest):
        list(batches_of(file))


@few
@given(
    near({"flavors": {"sklearn": {"serialization_format": "skops", "pickled_model": "../../model.skops"}}}).map(dumped)
    | BYTES
)
def test_folders_of_models(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "model"
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_bytes(content)
    with pytest.raises((ModelMismatch, FileNotFoundError)):
        load_forecaster(folder)


# What other processes write


@few
@given(st.lists(BYTES | st.binary(min_size=300, max_size=3000), min_size=1, max_size=3), st.booleans())
def test_packed_rows(rows: list[bytes], same_schema: bool) -> None:
    """Of the online store. Those that begin as ours do are short, or have tails that end elsewhere."""
    for view in STATE_VIEWS:
        layout = Layout.of(view)
        if same_schema:
            empty = np.zeros(1, layout.dtype)
            empty["schema"] = layout.fingerprint
            rows = [empty.tobytes() + row for row in rows]
        with suppress(StoreUnavailable):
            layout.heads(rows)
        with suppress(StoreUnavailable):
            layout.unpack(rows, [column.name for column in view.columns])


@few
@given(near(["b", "q", [{}], [[1, URL, "a.example", None, 0, None, None]]]), near(["w", 3, ["b"], [[1, "ok"]]]))
def test_messages_of_workers(batch: Any, report: Any) -> None:
    with suppress(ValueError, TypeError):
        Batch.decode(json.dumps(batch), [1])
    with suppress(ValueError, TypeError):
        for number, *values in Report.decode(json.dumps(report).encode()).results:
            assert number is not None
            with suppress(ValueError, TypeError, KeyError):
                heard("a", values)
