"""`urlhealth history` as it is typed: import, import again, export."""

import json
from pathlib import Path

import pytest

from tests.support import BIN, environment, run
from urlhealth.platform import Platform
from urlhealth.settings import Settings
from urlhealth.vocabulary import Health


def numbers(table: str) -> list[int]:
    """The cells of a printed table that are numbers."""
    return [int(word) for word in table.split() if word.isdigit()]


@pytest.mark.timeout(120)
def test_a_history_goes_in_and_comes_out(tmp_path: Path) -> None:
    env = environment(tmp_path / "home")
    source, out = tmp_path / "history.ndjson", tmp_path / "out.csv"
    rows = [
        {"url": "https://a.example", "ts": f"2026-01-01T0{hour}:00:00Z", "outcome": outcome}
        for hour, outcome in ((3, "ok"), (1, "ok"), (2, "dns"), (4, "what"))
    ]
    source.write_text("\n".join(map(json.dumps, rows)))
    command = (str(BIN / "urlhealth"), "history")
    first = run(*command, "import", str(source), env=env)
    assert numbers(first.stdout) == [4, 3, 0, 0]
    assert "rows left out: 1, the first is 4: no outcome or status that is known" in first.stderr
    again = run(*command, "import", "--strict", str(source), env=env, check=False)
    assert (again.returncode, numbers(again.stdout)) == (1, [4, 0, 3, 0])
    run(*command, "export", str(out), "--url", "https://a.example", env=env)
    assert len(out.read_text().splitlines()) == 4
    with Platform(Settings(home=tmp_path / "home", mlflow_tracking_uri="")) as platform:
        (incident,) = platform.crawl.url_incidents("https://a.example", limit=9).items
        assert incident.phase == "dns"
        assert platform.crawl.url_state("https://a.example", known_for_s=1e9).health is Health.UP
