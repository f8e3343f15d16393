"""What the OpenAPI document allows, and what it does not, generated from it: no answer is a server's fault."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from serving.app import create_app
from tests.support import noise_forecaster
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.settings import Settings


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document of an application with a model and without background work."""
    with Platform(Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri="")) as platform:
        platform.champion.current = Champion(name="url-health", version="1", forecaster=noise_forecaster())
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(platform))


def test_no_request_makes_the_server_fail(described: Any) -> None:
    checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
    asked = []
    for found in described.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=15,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Case) -> None:
            case.call_and_validate(checks=checks)

        ask()
        asked.append(operation.label)
    assert len(asked) > 15
