"""Predictions over HTTP: ours, the usual chain of `feast serve` and `mlflow models serve`, and others, in one run.

Every server has one worker and is asked over 4 keep-alive connections from this process, which shares its cores.
Ours is `urlhealth serve`, its log on. Asked for a model of 25 float features, it does what the chain does: it looks
them up as they are stored, and gives one probability. With the bundled model it looks states up, makes vectors of them
for now, and gives six probabilities; the chain's figures are the same then.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from benchmarks.load import Call, Connection, Load, load, post
from benchmarks.web import free_port

ROOT: Final = Path(__file__).resolve().parents[1]
BENCH: Final = ROOT / "var" / "bench"
PEERS: Final = Path(__file__).with_name("peers")
BIN: Final = Path(sys.executable).parent
FEATURES: Final = [f"f{i:02d}" for i in range(25)]
#: Different requests of a kind that are made beforehand and sent in turn.
REQUESTS: Final = 64
#: Around a swap, the time that is looked at apart.
SWAP_WINDOW_S: Final = 1.0
#: Name of the model of 25 float features.
OWN: Final = "bench"
_START_S: Final = 120.0
_PREDICT: Final = "/api/v1/predictions"
_INFER: Final = "/v2/models/url-health/infer"


def main(arguments: Sequence[str] = ()) -> None:
    """All of it, on new data."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--entities", type=int, default=10_000, metavar="N", help="URLs that are known [10000]")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="length of each measurement [3]")
    options = parser.parse_args(list(arguments))
    BENCH.mkdir(parents=True, exist_ok=True)
    print(f"{options.entities:,} URLs, {options.seconds:g} s each, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=BENCH) as name:
        bench = Bench(Path(name), entities=options.entities, seconds=options.seconds)
        bench.ours()
        bench.chain()
        bench.bento()
        bench.log_on_and_off()
        bench.swap_and_shadow()
    print(f"load {os.getloadavg()[0]:.1f}")


class Bench:
    """One run: the data in a folder, and what was measured so far."""

    def __init__(self, folder: Path, *, entities: int, seconds: float) -> None:
        self._home = folder / "home"
        self._folder = folder
        self._entities = entities
        self._seconds = seconds
        self._rng = np.random.default_rng(0)
        self._ours: dict[str, Load] = {}
        _fill(self._home, entities)
        self._version = _register(self._home)
        _own(self._home, entities)

    def ours(self) -> None:
        """`urlhealth serve`: start, memory, and each kind of request."""
        port = free_port()
        started = time.perf_counter()
        with self._serve(port) as process:
            print(f"urlhealth serve is ready after {time.perf_counter() - started:.1f} s")
            self._wait_until_scored()
            for urls in (1, 100):
                self._measure(f"{urls} URLs, one horizon", self._by_url(port, urls), process.pid)
            most = self._ours["1 URLs, one horizon"].per_second
            half = load(self._by_url(port, 1, horizons=3), seconds=self._seconds, rate=most / 2)
            for urls in (1, 100, 1000):
                self._measure(f"{urls} URLs, all horizons", self._by_url(port, urls, horizons=3), process.pid)
            print(f"  1 URL, all horizons, {most / 2:.0f} a second: {half}")
            one = load(self._by_url(port, 1000, horizons=3), seconds=self._seconds, connections=1)
            print(f"  1000 URLs, all horizons, one connection: {one}")
            self._measure("V2 JSON, 100 rows", self._v2(port), process.pid)
            print(
                f"  memory of the worker {_memory_mb(process.pid):.0f} MB, at most {_memory_mb(process.pid, 'HWM'):.0f}"
            )
            # Last, for the first of them imports Feast.
            for entities in (1, 100):
                self._measure(f"{entities} entities, 25 features", self._by_entity(port, entities), process.pid)
            print(f"  and with a model of one's own {_memory_mb(process.pid):.0f} MB")

    def log_on_and_off(self) -> None:
        """The same server with and without its log, in turn; each on its own data, so that it does all other work."""
        home = shutil.copytree(self._home, self._folder / "home-off")
        ports = {"on": free_port(), "off": free_port()}
        unlogged = (sys.executable, str(PEERS / "unlogged.py"), str(ports["off"]))
        unlogged_server = self._program(unlogged, ports["off"], "/health/ready", URLHEALTH_HOME=str(home))
        with self._serve(ports["on"]) as on_server, unlogged_server as off_server:
            pids = {"on": on_server.pid, "off": off_server.pid}
            for urls in (1, 100):
                loads: dict[str, list[Load]] = {"on": [], "off": []}
                for _ in range(3):
                    for kind, port in ports.items():
                        measured = load(self._by_url(port, urls), seconds=self._seconds, pids=[pids[kind]])
                        loads[kind].append(measured)
                on, off = (float(np.median([each.per_second for each in loads[kind]])) for kind in ("on", "off"))
                print(f"log on, {urls} URLs: {on:.0f} requests/s, off {off:.0f}: {100 * (1 - on / off):+.1f} % fewer")
                on, off = (float(np.median([each.cpu_ms for each in loads[kind]])) for kind in ("on", "off"))
                print(f"  CPU of a request {on:.2f} ms, off {off:.2f}: {100 * (on / off - 1):+.1f} %")

    def swap_and_shadow(self) -> None:
        """A promotion, and a challenger beside the champion, under load at half the rate."""
        rate = self._ours["100 URLs, all horizons"].per_second / 2
        port = free_port()
        with self._serve(port, URLHEALTH_CHAMPION_POLL_S="0.5"):
            ask = self._by_url(port, 100, horizons=3)
            calm = load(ask, seconds=2 * self._seconds, rate=rate)
            done: list[float] = []
            swap = threading.Thread(target=lambda: done.append(_promoted(self._home, self._version, port)))
            swap.start()
            during = load(ask, seconds=max(15.0, 3 * self._seconds), rate=rate)
            swap.join()
            apart = during.without(done[0] - SWAP_WINDOW_S / 2, done[0] + SWAP_WINDOW_S / 2)
            print(f"100 URLs at {rate:.0f} a second: {calm}")
            print(f"  with a swap of the model, without 1 s around it: {apart}")
            print(f"  p99 {100 * (apart.ms(0.99) / calm.ms(0.99) - 1):+.0f} %; within it at most {during.ms(1):.0f} ms")
        with self._serve(port, URLHEALTH_SHADOW_SHARE="0.1"):
            shadow = load(self._by_url(port, 100, horizons=3), seconds=2 * self._seconds, rate=rate)
            print(f"  with a shadow at 10 %: {shadow}; p99 {100 * (shadow.ms(0.99) / calm.ms(0.99) - 1):+.0f} %")

    def bento(self) -> None:
        """The same application inside BentoML."""
        port = free_port()
        command = (str(BIN / "bentoml"), "serve", "--port", str(port))
        with self._program(command, port, "/health/ready"):
            for urls in (1, 100):
                mounted = load(self._by_url(port, urls), seconds=self._seconds)
                share = mounted.per_second / self._ours[f"{urls} URLs, one horizon"].per_second
                print(f"in BentoML, {urls} URLs: {mounted}; {share:.2f} of the rate")

    def chain(self) -> None:
        """`feast serve`, then `mlflow models serve`; and a bare route that gets the rows in its request."""
        model = _fit(self._folder)
        feast_port, mlflow_port, bare_port = free_port(), free_port(), free_port()
        repo = _feast_repo(self._folder, self._entities)
        feast = (str(BIN / "feast"), "-c", str(repo), "serve", "-h", "127.0.0.1", "-p", str(feast_port))
        feast += ("--workers", "1", "--no-access-log")
        mlflow = (str(BIN / "mlflow"), "models", "serve", "-m", str(model), "-h", "127.0.0.1", "-p", str(mlflow_port))
        mlflow += ("--env-manager", "local", "--workers", "1")
        bare = (sys.executable, str(PEERS / "bare_scoring.py"), str(self._folder / "model.joblib"), str(bare_port))
        with ExitStack() as servers:
            feast_pid = servers.enter_context(self._program(feast, feast_port, "/health")).pid
            mlflow_pid = servers.enter_context(self._program(mlflow, mlflow_port, "/ping")).pid
            bare_pid = servers.enter_context(self._program(bare, bare_port, "/docs")).pid
            for urls in (1, 100):
                chained = load(
                    self._chained(feast_port, mlflow_port, urls), seconds=self._seconds, pids=(feast_pid, mlflow_pid)
                )
                print(f"chain, {urls} URLs: {chained}")
                self._compare(f"{urls} entities, 25 features", chained)
                for horizons in ("one horizon", "all horizons"):
                    self._compare(f"{urls} URLs, {horizons}", chained)
            rows = self._rng.normal(size=(100, len(FEATURES))).astype(np.float32).tolist()
            asked = _sending(bare_port, [post("/score", {"rows": rows})])
            routed = load(asked, seconds=self._seconds, pids=[bare_pid])
            print(f"bare FastAPI and scikit-learn, 100 rows in the request: {routed}")
            self._compare("100 entities, 25 features", routed)
            self._compare("100 URLs, one horizon", routed)
            split = {"dataframe_split": {"columns": FEATURES, "data": rows}}
            asked = _sending(mlflow_port, [post("/invocations", split)])
            scored = load(asked, seconds=self._seconds, pids=[mlflow_pid])
            print(f"mlflow models serve, 100 rows: {scored}")
            self._compare("V2 JSON, 100 rows", scored)

    def _wait_until_scored(self) -> None:
        """The server's first round over all targets is done: it comes every few minutes, and not just at these."""
        wanted = 3 * self._entities
        with closing(sqlite3.connect(f"file:{self._home / 'urlhealth.db'}?mode=ro", uri=True)) as connection:
            deadline = time.monotonic() + _START_S
            while connection.execute("SELECT count(*) FROM current_predictions").fetchone() < (wanted,):
                if time.monotonic() > deadline:
                    sys.exit("not all targets were scored")
                time.sleep(0.5)

    def _measure(self, name: str, make: Callable[[], Call], pid: int) -> None:
        self._ours[name] = load(make, seconds=self._seconds, pids=[pid])
        print(f"  {name}: {self._ours[name]}", flush=True)

    def _compare(self, ours: str, other: Load) -> None:
        rate, cpu = self._ours[ours].per_second / other.per_second, other.cpu_ms / self._ours[ours].cpu_ms
        print(f"  ours, {ours}: {rate:.1f} times as many a second, at 1/{cpu:.1f} of the CPU time", flush=True)

    def _by_url(self, port: int, urls: int, *, horizons: int = 1) -> Callable[[], Call]:
        asked = ["1h", "6h", "24h"][:horizons]
        requests = [
            post(_PREDICT, {"urls": [_url(int(i)) for i in numbers], "horizons": asked})
            for numbers in self._rng.integers(0, self._entities, (REQUESTS, urls))
        ]
        return _sending(port, requests)

    def _by_entity(self, port: int, entities: int) -> Callable[[], Call]:
        requests = [
            post(
                f"/v2/models/{OWN}/infer",
                {"inputs": [{"name": "entity", "shape": [entities], "datatype": "INT64", "data": numbers.tolist()}]},
            )
            for numbers in self._rng.integers(0, self._entities, (REQUESTS, entities))
        ]
        return _sending(port, requests)

    def _v2(self, port: int) -> Callable[[], Call]:
        from urlhealth.features.catalog import VECTOR

        data = self._rng.normal(size=(100, len(VECTOR))).astype(np.float32)
        tensor = {"name": "features", "shape": data.shape, "datatype": "FP32", "data": data.ravel().tolist()}
        return _sending(port, [post(_INFER, {"inputs": [tensor]})])

    def _chained(self, feast_port: int, mlflow_port: int, urls: int) -> Callable[[], Call]:
        refs = [f"stats:{name}" for name in FEATURES]
        lookups = [
            post("/get-online-features", {"features": refs, "entities": {"entity": numbers.tolist()}})
            for numbers in self._rng.integers(0, self._entities, (REQUESTS, urls))
        ]

        def make() -> Call:
            feast, mlflow = Connection(feast_port), Connection(mlflow_port)

            def ask(k: int) -> None:
                found = json.loads(feast.ask(lookups[k % REQUESTS]))
                columns = dict(zip(found["metadata"]["feature_names"], found["results"], strict=True))
                rows = list(zip(*(columns[name]["values"] for name in FEATURES), strict=True))
                mlflow.ask(post("/invocations", {"dataframe_split": {"columns": FEATURES, "data": rows}}))

            return ask

        return make

    @contextmanager
    def _serve(self, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        command = (str(BIN / "urlhealth"), "serve", "--port", str(port))
        with self._program(command, port, "/health/ready", **environment) as process:
            yield process

    @contextmanager
    def _program(self, command: Sequence[str], port: int, ready: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """A program, from when it answers at `ready` to the end of the block."""
        environment = {**os.environ, **_environment(self._home), "PATH": f"{BIN}:{os.environ['PATH']}", **more}
        log = self._folder / f"{Path(command[0]).name}-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
            )
        try:
            deadline = time.monotonic() + _START_S
            while not _answers(f"http://127.0.0.1:{port}{ready}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{command[0]} does not serve:\n{log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield process
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def _url(number: int) -> str:
    return f"https://site-{number}.example/"


def _sending(port: int, requests: Sequence[bytes]) -> Callable[[], Call]:
    """Each connection sends the requests in turn."""

    def make() -> Call:
        connection = Connection(port)

        def ask(k: int) -> None:
            connection.ask(requests[k % len(requests)])

        return ask

    return make


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def _memory_mb(pid: int, which: str = "RSS") -> float:
    """Memory of a process: now, or (`HWM`) at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"Vm{which}:")[2].split()[0]) / 1e3


def _environment(home: Path) -> dict[str, str]:
    return {
        "URLHEALTH_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "FEAST_USAGE": "False",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _fill(home: Path, entities: int) -> None:
    """Three probes of each URL in the last hours, and the features that come of them."""
    from urlhealth.platform import Platform
    from urlhealth.probing.urls import parse_targets
    from urlhealth.settings import Settings
    from urlhealth.vocabulary import Outcome, ProbeResult, system_clock

    now_ms = system_clock()
    targets = parse_targets([_url(number) for number in range(entities)])
    with Platform(Settings(home=home, mlflow_tracking_uri="")) as platform:
        for hours in (3, 2, 1):
            platform.crawl.import_probes(
                (target, ProbeResult(target=target.key, ts_ms=now_ms - hours * 3_600_000 + i % 1000, outcome=outcome))
                for i, target in enumerate(targets)
                for outcome in [Outcome.TIMEOUT if i % 50 == hours else Outcome.OK]
            )
        platform.build_features()


def _register(home: Path) -> str:
    """The bundled model as champion, and once more as challenger; the latter's version."""
    import mlflow

    from models.registry import CHALLENGER, EXPERIMENT, tracking
    from models.runs import log_model
    from urlhealth.prediction.champion import load_bundled
    from urlhealth.settings import Settings
    from urlhealth.vocabulary import MODEL_NAME

    with tracking(Settings(home=home, mlflow_tracking_uri="")) as client:
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run():
            version = log_model(load_bundled(), None, {})
        client.set_registered_model_alias(MODEL_NAME, CHALLENGER, version)
    return version


def _promoted(home: Path, version: str, port: int) -> float:
    """Promote a version as users do; when the server was first seen to answer with it, by `time.perf_counter`."""
    command = (str(BIN / "urlhealth"), "models", "promote", version)
    subprocess.run(command, env={**os.environ, **_environment(home)}, stdout=subprocess.DEVNULL, check=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while client.get("/v2/models/url-health").json()["versions"] != [version]:
            time.sleep(0.05)
    return time.perf_counter()


def _fit(folder: Path) -> Path:
    """A binary HGB on 25 float features, for MLflow and for joblib; the folder of the MLflow model."""
    import joblib
    import mlflow.sklearn

    joblib.dump(_classifier(named=False), folder / "model.joblib")
    mlflow.sklearn.save_model(
        _classifier(),
        folder / "model",
        serialization_format="cloudpickle",
        pyfunc_predict_fn="predict_proba",
        pip_requirements=["scikit-learn"],
    )
    return folder / "model"


def _classifier(*, named: bool = True) -> Any:
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(1)
    X = rng.normal(size=(20_000, len(FEATURES))).astype(np.float32)
    y = (X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(size=len(X)) > 1).astype(int)
    rows = pd.DataFrame(X, columns=FEATURES) if named else X
    return HistGradientBoostingClassifier(random_state=0).fit(rows, y)


def _own(home: Path, entities: int) -> None:
    """The same model and the same entities in ours: a feature service, its rows online, the model registered for it."""
    import mlflow

    from models.registry import EXPERIMENT, tracking
    from urlhealth.platform import Platform
    from urlhealth.prediction.services import SERVICE_TAG
    from urlhealth.settings import Settings
    from urlhealth.vocabulary import CHAMPION

    settings = Settings(home=home, mlflow_tracking_uri="")
    with Platform(settings) as platform:
        store = platform.features.feast()
        definitions: dict[str, Any] = {}
        exec(_DEFINITIONS, definitions)
        view = definitions["stats"]
        store.apply([definitions["entity"], view, definitions["service"]])
        store.write_to_online_store("stats", _rows(entities))
    with tracking(settings) as client:
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run():
            trees = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
            mlflow.sklearn.log_model(
                _classifier(),
                name="model",
                serialization_format="skops",
                skops_trusted_types=[trees],
                registered_model_name=OWN,
                pip_requirements=["scikit-learn"],
            )
        client.set_registered_model_tag(OWN, SERVICE_TAG, "bench")
        client.set_registered_model_alias(OWN, CHAMPION, "1")


def _rows(entities: int) -> Any:
    import pandas as pd

    rng, now = np.random.default_rng(2), datetime.now(UTC)
    columns: dict[str, Any] = {name: rng.normal(size=entities).astype(np.float32) for name in FEATURES}
    return pd.DataFrame({"entity": np.arange(entities), "event_timestamp": now - timedelta(hours=1), **columns})


_DEFINITIONS: Final = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32

entity = Entity(name="entity", join_keys=["entity"], value_type=ValueType.INT64)
stats = FeatureView(
    name="stats", entities=[entity], ttl=timedelta(days=365),
    schema=[Field(name=f"f{i:02d}", dtype=Float32) for i in range(25)],
    source=FileSource(path="rows.parquet", timestamp_field="event_timestamp"),
)
service = FeatureService(name="bench", features=[stats])
"""


def _feast_repo(folder: Path, entities: int) -> Path:
    """A repository of Feast's stock stores, with every entity in its SQLite online store."""
    repo = folder / "repo"
    repo.mkdir()
    store = {"project": "bench", "registry": "registry.db", "provider": "local", "entity_key_serialization_version": 3}
    store |= {"offline_store": {"type": "file"}, "online_store": {"type": "sqlite", "path": "online.db"}}
    (repo / "feature_store.yaml").write_text(json.dumps(store))
    (repo / "definitions.py").write_text(_DEFINITIONS)
    _rows(entities).to_parquet(repo / "rows.parquet")
    for command in (["apply"], ["materialize", "2020-01-01T00:00:00", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"]):
        subprocess.run(
            [str(BIN / "feast"), "-c", str(repo), *command],
            env={**os.environ, "FEAST_USAGE": "False"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return repo


if __name__ == "__main__":
    main(sys.argv[1:])
