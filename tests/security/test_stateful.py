"""Sequences of calls that follow each other, made from the OpenAPI document, with and without a key: none fails, and
none that shows no key, or another's, sees or changes what there is.
"""

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from serving.access import PUBLIC, scope_needed
from serving.app import create_app
from tests.support import noise_forecaster
from urlhealth.crawl.keys import Scope
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.settings import Settings

CHECKS: Final = [not_a_server_error, content_type_conformance, response_schema_conformance]
FEW: Final = settings(
    max_examples=40,
    stateful_step_count=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
#: Where what a path's parameter names is made: the call, its status, and a body that works. What does not is for
#: `test_openapi`.
MADE: Final[dict[str, tuple[str, str, Callable[[int], Any]]]] = {
    "task_id": ("/api/v1/tasks", "202", lambda n: {"urls": [f"https://a.example/{n}", "https://b.example"]}),
    "monitor_id": ("/api/v1/monitors", "201", lambda n: {"url": f"https://a.example/{n}", "interval_s": 60}),
    "key_id": ("/api/v1/keys", "201", lambda n: {"name": f"key {n}", "scopes": ["read"]}),
}


def linked(document: dict[str, Any], *, keys: bool) -> dict[str, Any]:
    """The document with links from what makes a task, a monitor or a key to all that takes its id."""
    document = copy.deepcopy(document)
    # Nothing is probed here, and so the events of a task would never end.
    without = "/events" if keys else "/events|/keys"
    document["paths"] = {path: item for path, item in document["paths"].items() if not re.search(without, path)}
    for parameter, (path, status, _) in MADE.items():
        if path in document["paths"]:
            document["paths"][path]["post"]["responses"][status]["links"] = {
                operation["operationId"]: {
                    "operationId": operation["operationId"],
                    "parameters": {parameter: f"$response.body#/{parameter}"},
                }
                for other, item in document["paths"].items()
                if f"{{{parameter}}}" in other
                for operation in item.values()
            }
    return document


def machine(app: FastAPI, *, keys: bool) -> Any:
    """schemathesis's state machine. What follows depends on no earlier sequence, although the platform is the same."""
    schema = schemathesis.openapi.from_dict(linked(app.openapi(), keys=keys))
    schema.app = app
    schema.config.phases.stateful.inference.algorithms = []
    numbers = count()

    @schema.hook  # type: ignore[untyped-decorator]
    def map_body(context: Any, body: Any) -> Any:
        works = next((works for path, _, works in MADE.values() if context.operation.label == f"POST {path}"), None)
        return body if works is None else works(next(numbers))

    @schema.hook  # type: ignore[untyped-decorator]
    def map_headers(context: Any, headers: Any) -> Any:  # noqa: ARG001  their names tell schemathesis what is wanted
        return {name: value for name, value in (headers or {}).items() if name.lower() != "idempotency-key"}

    return schema.as_state_machine()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(Settings(home=tmp_path / "home", mlflow_tracking_uri="")) as platform:
        platform.champion.current = Champion(name="url-health", version="1", forecaster=noise_forecaster())
        yield platform


def test_without_keys_no_sequence_makes_the_server_fail(platform: Platform) -> None:
    answered: Counter[tuple[str, int]] = Counter()

    class Calls(machine(create_app(platform), keys=False)):  # type: ignore[misc]
        def validate_response(self, response: Any, case: Case, **_: Any) -> None:
            answered[case.operation.label, response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

    Calls.run(settings=FEW)
    # Sequences, not only first calls: what is made is found, changed and deleted.
    assert answered["GET /api/v1/tasks/{task_id}", 200]
    assert answered["DELETE /api/v1/monitors/{monitor_id}", 204]


def test_with_keys_what_one_owner_makes_is_nobody_elses(platform: Platform) -> None:
    """Each call is sent by nobody first, then by a stranger, then by the owner, whose it then still is."""
    every = [scope for scope in Scope if scope != Scope.ADMIN]
    _, ann = platform.keys.create("ann", scopes=[Scope.ADMIN], owner="ann")
    _, bob = platform.keys.create("bob", scopes=every, owner="bob")
    answered: Counter[tuple[str, int]] = Counter()
    made: set[str] = set()

    class Calls(machine(create_app(platform), keys=True)):  # type: ignore[misc]
        def before_call(self, case: Case) -> None:
            public = scope_needed(case.method, case.formatted_path) is PUBLIC
            case.headers.pop("Authorization", None)
            assert (case.call().status_code == 401) is not public
            reply = case.call(headers={"Authorization": f"Bearer {bob}"})
            assert reply.status_code < 500
            assert not any(identifier in reply.text for identifier in made if identifier not in case.formatted_path)
            if made & set(map(str, case.path_parameters.values())):
                assert reply.status_code in (403, 404, 422), (case.operation.label, reply.text)
                answered["a stranger", reply.status_code] += 1

        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return super().get_call_kwargs(case) | {"headers": {"Authorization": f"Bearer {ann}"}}

        def validate_response(self, response: Any, case: Case, **_: Any) -> None:
            answered[case.operation.label, response.status_code] += 1
            case.validate_response(response, checks=CHECKS)
            for parameter, (path, status, _) in MADE.items():
                if case.operation.label == f"POST {path}" and str(response.status_code) == status:
                    made.add(response.json()[parameter])

    Calls.run(settings=FEW)
    assert answered["a stranger", 404] > 10
    for call in ("GET /api/v1/tasks/{task_id}", "PATCH /api/v1/monitors/{monitor_id}", "GET /api/v1/keys/{key_id}"):
        assert answered[call, 200]
