"""Real programs for the tests: started on free loopback ports, waited for by condition, always ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import polars as pl
import pytest

from urlhealth.feast_stores import segments
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.platform import Platform
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.prediction.served_files import DATASET
from urlhealth.vocabulary import PROBABILITIES, Forecasts, Prediction

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, **extra: str) -> dict[str, str]:
    """This environment with a platform home of its own, and with loopback allowed."""
    # Without bytecode, each start of feast takes seconds longer.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE" and not k.startswith("URLHEALTH_")}
    return {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "URLHEALTH_HOME": str(home),
        "URLHEALTH_ALLOW_ADDRESSES": "127.0.0.0/8,::1/128",
        "BENTOML_DO_NOT_TRACK": "True",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **extra,
    }


def run(
    *command: str, env: Mapping[str, str], cwd: Path = ROOT, timeout_s: float = 180, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; a failure shows what it printed."""
    done = subprocess.run(command, env=env, cwd=cwd, timeout=timeout_s, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@contextmanager
def program(
    *command: str, env: Mapping[str, str], ready_url: str, log: Path, cwd: Path = ROOT, timeout_s: float = 90
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a process group of its own, up to when `ready_url` answers; ended (with its children) at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_until(lambda: answers(ready_url, process, log), timeout_s=timeout_s, what=f"{ready_url} to answer")
        yield process
    finally:
        end(process)


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether the URL answers below 500; fails at once if the process has ended."""
    if process.poll() is not None:
        raise AssertionError(f"the program ended with {process.returncode}:\n{log.read_text()[-4000:]}")
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.TransportError:
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process group to stop, and make it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """`kill -9`, for the process and its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def wait_until(condition: Callable[[], Any], *, timeout_s: float, what: str) -> Any:
    """Poll until the condition is truthy, and return its value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")


def unavailable(reason: str) -> NoReturn:
    """What a test needs is not here: a failure where the environment demands it, otherwise a skip."""
    if os.environ.get("URLHEALTH_REQUIRE_SERVICES") == "1":
        pytest.fail(f"URLHEALTH_REQUIRE_SERVICES=1, but {reason}")
    pytest.skip(reason)


def noise_forecaster(seed: int = 0) -> HealthForecaster:
    """A real model, fitted to noise: for tests in which only its shape matters, or that all ways say the same."""
    rng = np.random.default_rng(seed)
    features = names(VECTOR)
    X = rng.normal(size=(400, len(features)))
    X[:, features.index("failing_now")] = rng.integers(0, 2, size=400)
    Y = rng.integers(0, 2, size=(400, len(PROBABILITIES))).astype(float)
    return HealthForecaster(state_feature="failing_now", boosted=False).fit(X, Y, feature_names=features)


class Api:
    """A running platform, spoken to over HTTP. Close it, or use it as a context manager."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30)

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def submit(self, urls: Sequence[str]) -> str:
        """Submit a task; its id."""
        reply = self.http.post("/api/v1/tasks", json={"urls": list(urls)})
        assert reply.status_code == 202, reply.text
        return str(reply.json()["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/api/v1/tasks/{task_id}").raise_for_status().json())

    def wait_done(self, task_id: str, *, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until the task is done; its last state."""

        def done() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["status"] == "done" else None

        return dict(wait_until(done, timeout_s=timeout_s, what=f"task {task_id}"))

    def results(self, task_id: str) -> list[dict[str, Any]]:
        """All results of a task, page after page."""
        items: list[dict[str, Any]] = []
        cursor = None
        while True:
            params = {"limit": "500"} | ({"cursor": cursor} if cursor else {})
            page = self.http.get(f"/api/v1/tasks/{task_id}/results", params=params).raise_for_status().json()
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items

    def features(self, urls: Sequence[str]) -> list[dict[str, Any]]:
        return list(self.http.post("/api/v1/features", json={"urls": list(urls)}).raise_for_status().json()["items"])

    def predict(self, urls: Sequence[str], **extra: Any) -> list[dict[str, Any]]:
        body = {"urls": list(urls), **extra}
        return list(self.http.post("/api/v1/predictions", json=body).raise_for_status().json()["items"])


@contextmanager
def platform_process(home: Path, *arguments: str, **extra: str) -> Iterator[tuple[Api, subprocess.Popen[bytes]]]:
    """`urlhealth serve` on a free port."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    home.mkdir(parents=True, exist_ok=True)
    with program(
        str(BIN / "urlhealth"), "serve", "--port", str(port), *arguments,
        env=environment(home, **extra), ready_url=f"{url}/health/live", log=home / "serve.log",
    ) as process, Api(url) as api:  # fmt: skip
        yield api, process


def first_json_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The first line that the process prints, parsed."""
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def served_by(platform: Platform) -> pl.DataFrame:
    """All that was served, as the files have it once what waits was written and moved."""
    platform.prediction_log.write()
    with platform.lease.kept() as mine:
        assert mine
        while platform.served_files.step():
            pass
    found = segments.files(platform.features.offline_folder / DATASET)
    return pl.read_parquet(found, hive_partitioning=False).sort("__log_timestamp", maintain_order=True)


def forecasts_of(predictions: Sequence[Prediction]) -> Forecasts:
    """Predictions of some URLs, each for the same horizons, by column as the platform has them."""
    horizons = list(dict.fromkeys(prediction.horizon for prediction in predictions))
    firsts = predictions[:: len(horizons)]
    probabilities = np.full((len(firsts), len(PROBABILITIES)), np.nan)
    for i, prediction in enumerate(predictions):
        for kind, p in (("onset", prediction.probability), ("failing", prediction.probability_at_end)):
            if p is not None:
                probabilities[i // len(horizons), PROBABILITIES.index(f"{kind}_{prediction.horizon}")] = p
    made = Forecasts(
        sent_urls=[first.sent_url for first in firsts],
        targets=[first.target for first in firsts],
        horizons=horizons,
        status=[first.status for first in firsts],
        health=[first.health for first in firsts],
        age_s=[first.age_s for first in firsts],
        observed_ms=[first.observed_ms for first in firsts],
        probabilities=probabilities,
        model=firsts[0].model,
        model_version=firsts[0].model_version,
    )
    assert list(made) == list(predictions)
    return made
