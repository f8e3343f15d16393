"""What several parts of the suite stand on."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.sample_web import SampleWeb, sites

ROOT = Path(__file__).resolve().parents[1]


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
