"""Whatever a server does has an outcome, and does the engine no harm."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.misbehaving import MISBEHAVIOURS, OK, say, serving, write_trusted
from tests.probes import QUICK, probe, probe_all, running_engine
from tests.support import ROOT, wait_until
from urlhealth.probing.engine import ProbeEngine
from urlhealth.vocabulary import Outcome


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbeEngine]:
    with running_engine(ca_file=write_trusted(tmp_path_factory.mktemp("ca") / "ca.pem")) as engine:
        yield engine


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_whatever_a_server_does_has_an_outcome_and_words(engine: ProbeEngine, name: str) -> None:
    expected = MISBEHAVIOURS[name]
    with serving(expected.behave) as port:
        result = probe(engine, f"{expected.scheme}://127.0.0.1:{port}/")
    assert (result.outcome, result.status_code) == (expected.outcome, expected.status), result
    assert expected.words.lower() in (result.error or "").lower()
    assert (result.error is None) == (expected.outcome is Outcome.OK)
    assert result.size_bytes <= QUICK.max_bytes + 65_536


def test_the_documentation_shows_the_table() -> None:
    text = (ROOT / "docs/probing.md").read_text().partition("## Misbehaving servers")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| (.+?) \| `(\w+)` \|$", text, re.MULTILINE)
    assert shown == [(name, expected.outcome.value) for name, expected in MISBEHAVIOURS.items()]


def test_all_of_them_at_once_leave_the_engine_as_it_was(engine: ProbeEngine) -> None:
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with ExitStack() as stack:
        ports = {name: stack.enter_context(serving(expected.behave)) for name, expected in MISBEHAVIOURS.items()}
        urls = [f"{MISBEHAVIOURS[name].scheme}://127.0.0.1:{port}/" for name, port in ports.items()]
        good = f"http://127.0.0.1:{stack.enter_context(serving(say(OK)))}/"
        before = open_descriptors()
        for _ in range(3):
            probe_all(engine, urls, replace(QUICK, verify_tls=False))
        wait_until(lambda: open_descriptors() <= before, timeout_s=10, what="all descriptors to be closed")
        assert probe(engine, good).outcome is Outcome.OK
    assert len(engine._idle) <= 64
    assert not engine._active
    assert engine._unfinished == 0
