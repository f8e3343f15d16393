"""What several parts of the suite stand on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from demo.sample_web import SampleWeb, sites

# How busy the machine is decides nothing.
settings.register_profile("urlhealth", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("urlhealth")

ROOT = Path(__file__).resolve().parents[1]
#: What runs only in `.ci/run`, which sets URLHEALTH_REQUIRE_SERVICES: it needs all services.
ONLY_IN_CI = (
    "tests/acceptance/test_browser.py",
    "tests/acceptance/test_scaled_out.py",
    "tests/faults/",
    "tests/integration/test_gateway.py",
    "tests/integration/test_object_storage.py",
    "tests/integration/test_workers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what only continuous integration runs."""
    if os.environ.get("URLHEALTH_REQUIRE_SERVICES") != "1":
        for item in items:
            if item.nodeid.startswith(ONLY_IN_CI):
                item.add_marker(pytest.mark.skip(reason="it runs with URLHEALTH_REQUIRE_SERVICES=1, as in .ci/run"))


@pytest.fixture(scope="session")
def sample_web() -> Iterator[SampleWeb]:
    """The sample web of seed 1, served by a process of its own."""
    command = (sys.executable, "-m", "demo.sample_web", "--seed", "1")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        made = sites(1, anchor_ms=told["anchor_ms"], port=told["port"], tls_port=told["tls_port"])
        assert [site.url for site in made] == [site["url"] for site in told["sites"]]
        yield SampleWeb(seed=1, sites=made, ca_file=Path(told["ca_file"]))
        process.terminate()
