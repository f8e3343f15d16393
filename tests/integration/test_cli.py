"""The `urlhealth` command as its callers meet it: what it prints, and each error in one line."""

import io
import json
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rich.console import Console

from serving.schemas import PredictionsItem
from urlhealth import cli, printing
from urlhealth.errors import ModelMismatch
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.champion import Champion, ChampionWatch
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.vocabulary import PROBABILITIES

LONG_URL = f"https://a.example/{'long/' * 60}[end]"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("URLHEALTH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def command(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `urlhealth` with arguments, in this process; a server that starts is a failure."""
    assert not home.exists()
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: pytest.fail("a server was started"))

    def run(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["urlhealth", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
        return Done(int(done.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A champion, fitted to noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, len(VECTOR)))
    X[:, names(VECTOR).index("failing_now")] = 0
    Y = rng.integers(0, 2, size=(60, len(PROBABILITIES))).astype(float)
    model = HealthForecaster(state_feature="failing_now", boosted=False).fit(X, Y, feature_names=names(VECTOR))

    def refresh(watch: ChampionWatch) -> bool:
        watch.current = Champion(name="url-health", version="1", forecaster=model)
        return True

    monkeypatch.setattr(ChampionWatch, "refresh", refresh)


def assert_one_line(done: Done, words: str) -> None:
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("store", ["mlflow/mlflow.db", "feast/online.db", "urlhealth.db"])
def test_no_server_starts_on_a_damaged_store(command: Command, home: Path, store: str, workers: str) -> None:
    (home / store).parent.mkdir(parents=True)
    (home / store).write_bytes(b"no database" * 1000)
    assert_one_line(command("serve", "--workers", workers), store)


def test_no_server_starts_without_the_certificates_that_are_named(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("URLHEALTH_CA_FILE", str(home / "ca.pem"))
    assert_one_line(command("serve", "--workers", "2"), "ca.pem")


def test_beyond_loopback_nothing_is_served_or_made(command: Command, home: Path) -> None:
    assert_one_line(command("serve", "--host", "0.0.0.0"), "no authentication")
    assert not home.exists()


def test_settings_and_ports_that_cannot_be_are_said(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("serve", "--port", "70000").code == 2
    monkeypatch.setenv("URLHEALTH_PORT", "http")
    assert_one_line(command("serve"), "URLHEALTH_PORT=http: this is no whole number")


def test_a_model_that_cannot_be_loaded_is_said_once(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "mlflow").mkdir(parents=True)
    with closing(sqlite3.connect(home / "mlflow" / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE registered_model_aliases (name, alias, version)")
        connection.execute("INSERT INTO registered_model_aliases VALUES ('url-health', 'champion', 3)")

    def fail(*_: str) -> None:
        raise ModelMismatch("other features")

    monkeypatch.setattr("urlhealth.prediction.champion.load_version", fail)
    assert_one_line(command("predict", "https://a.example"), "url-health version 3 cannot serve: other features")
    assert not caplog.records


def test_a_port_that_is_taken_is_said(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_one_line(command("serve", "--port", port), f"cannot listen on 127.0.0.1, port {port}: Address already")


@pytest.mark.usefixtures("_model")
def test_predictions_are_printed_uncut_and_in_the_shape_of_the_api(command: Command) -> None:
    assert LONG_URL in command("predict", LONG_URL).out
    lines = command("predict", "--json", "--horizon", "1h", "--horizon", "24h", LONG_URL).out.splitlines()
    items = [PredictionsItem.model_validate_json(line) for line in lines]
    assert [(item.url, item.horizon) for item in items] == [(LONG_URL, "1h"), (LONG_URL, "24h")]
    assert json.loads(lines[0]).keys() == PredictionsItem.model_fields.keys()


def test_doctor_names_the_store_that_is_damaged(command: Command, home: Path) -> None:
    (home / "feast").mkdir(parents=True)
    (home / "feast" / "online.db").write_bytes(b"no database" * 1000)
    done = command("doctor")
    assert (done.code, done.err) == (1, "")
    works = {row.split("│")[1].strip(): row.split("│")[2].strip() for row in done.out.splitlines() if "│" in row}
    assert (works["database"], works["pipeline"], works["features"]) == ("yes", "yes", "no")
    done = command("doctor", "--json")
    said = json.loads(done.out)
    assert (done.code, said["status"]) == (1, "not ready")
    assert {check["name"] for check in said["checks"] if not check["ok"]} >= {"features"}


def test_a_table_on_a_narrow_terminal_is_folded_and_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(printing, "Console", lambda: Console(file=screen, width=40, force_terminal=True))
    printing.print_table(("URL", "state"), [(LONG_URL, "up")])
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines[3:-1])) <= 40
    assert "".join(line.split("│")[1].strip() for line in lines if "│" in line) == LONG_URL
