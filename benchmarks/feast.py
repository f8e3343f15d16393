"""Feast's stock stores and ours on the same data: 25 float features, as ratios within one run.

Each piece of work runs in a process of its own, imports and set-up apart, so that its peak memory is its own.
`python -m benchmarks feast` runs all; the stock file store alone takes minutes and up to 14 GB.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from feast import Entity, FeatureStore, FeatureView

_FEATURES = [f"f{i:02d}" for i in range(25)]
_ENTITIES = 100_000
_ROWS = 1_000_000
#: Entities of the joined rows, so that each has a history of 100.
_JOINED_ENTITIES = 10_000
_ASKED = 100_000
_START = datetime(2026, 1, 1, tzinfo=UTC)
_SPAN = timedelta(days=10)

_OURS = {
    "offline": "urlhealth.feast_stores.offline.UrlHealthOfflineStore",
    "online": "urlhealth.feast_stores.online.PackedOnlineStore",
    "engine": "urlhealth.feast_stores.engine.ArrowBatchEngine",
}


def main() -> None:
    """Run every piece of work with each store and print the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _make_data(home)
        print(f"join {_ASKED:,} entity rows onto {_ROWS:,} rows, to_df() included")
        joins = {kind: _run(home, "join", kind) for kind in ("ours", "duckdb", "file")}
        for kind in ("file", "duckdb"):
            times, memory = (joins[kind][name] / joins["ours"][name] for name in ("seconds", "peak_mb"))
            print(f"  {kind:8} {_said(joins[kind])}: ours is {times:.0f} times as fast at 1/{memory:.1f} of the memory")
        print(f"  {'ours':8} {_said(joins['ours'])}")
        print(f"  {'ours':8} {_said(_run(home, 'join', 'ours', _ROWS))}, {_ROWS:,} entity rows")

        print(f"materialize {_ENTITIES:,} entities")
        done = {kind: _run(home, "materialize", kind) for kind in ("ours", "sqlite")}
        seconds, size = (done["sqlite"][name] / done["ours"][name] for name in ("seconds", "file_mb"))
        for kind in ("sqlite", "ours"):
            print(f"  {kind:8} {_said(done[kind])}, file {done[kind]['file_mb']:.0f} MB")
        print(f"  ours has {seconds:.0f} times the rows a second and 1/{size:.0f} of the file")
        whole = {kind: _command(home, kind) for kind in ("sqlite", "ours")}
        print(f"  `feast materialize` as a whole: sqlite {whole['sqlite']:.1f} s, ours {whole['ours']:.1f} s", end="")
        print(f": {whole['sqlite'] / whole['ours']:.1f} times as fast")

        print("read online features, p50 in ms of CPU time")
        reads = {kind: _run(home, "read", kind) for kind in ("sqlite", "ours")}
        for what, stock_ms in reads["sqlite"].items():
            ours_ms = reads["ours"][what]
            print(f"  {what:38} sqlite {stock_ms:8.2f}, ours {ours_ms:7.2f}: {stock_ms / ours_ms:.1f} times as fast")
        for what in reads["ours"].keys() - reads["sqlite"].keys():
            stock_ms, ours_ms = reads["sqlite"][f"get_online_features {what.split()[-1]}"], reads["ours"][what]
            print(f"  {what:38} sqlite {stock_ms:8.2f}, ours {ours_ms:7.2f}: {stock_ms / ours_ms:.1f} times as fast")


def _said(result: dict[str, float]) -> str:
    return f"{result['seconds']:7.2f} s, {result['peak_mb']:6.0f} MB"


def _run(home: Path, work: str, kind: str, *arguments: int) -> dict[str, float]:
    command = (sys.executable, "-m", "benchmarks.feast", str(home), work, kind, *map(str, arguments))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _make_data(home: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)

    def write(name: str, entity: np.ndarray[Any, Any], seconds: np.ndarray[Any, Any]) -> None:
        instants = (int(_START.timestamp()) + np.sort(seconds)) * 1_000_000
        pq.write_table(
            pa.table(
                {
                    "entity": entity,
                    "event_timestamp": pa.array(instants).cast(pa.timestamp("us", "UTC")),
                    **{name: rng.normal(size=len(entity)).astype(np.float32) for name in _FEATURES},
                }
            ),
            home / name,
            row_group_size=100_000,
        )

    span_s = int(_SPAN.total_seconds())
    write("rows.parquet", rng.integers(0, _JOINED_ENTITIES, _ROWS), rng.integers(0, span_s, _ROWS))
    write("latest.parquet", rng.permutation(_ENTITIES), rng.integers(0, span_s, _ENTITIES))


def _store(home: Path, kind: str, source: str) -> "FeatureStore":
    """A store of one view of 25 features of the source."""
    from feast import FeatureStore, RepoConfig

    folder = home / kind
    folder.mkdir(exist_ok=True)
    ours = kind == "ours"
    config = RepoConfig(
        project="bench",
        registry=str(folder / "registry.db"),
        provider="local",
        offline_store={"type": _OURS["offline"]} if ours else {"type": "duckdb" if kind == "duckdb" else "file"},
        online_store={"type": _OURS["online"] if ours else "sqlite", "path": str(folder / "online.db")},
        batch_engine={"type": _OURS["engine"] if ours else "local"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([*view_of(home / source)])
    return store


def view_of(source: Path) -> "tuple[Entity, FeatureView]":
    """A view of the 25 features of a Parquet file, and its entity."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32

    entity = Entity(name="entity", join_keys=["entity"], value_type=ValueType.INT64)
    return entity, FeatureView(
        name="stats",
        entities=[entity],
        ttl=timedelta(days=3650),
        schema=[Field(name=name, dtype=Float32) for name in _FEATURES],
        source=FileSource(path=str(source), timestamp_field="event_timestamp"),
    )


def _join(home: Path, kind: str, asked: int = _ASKED) -> dict[str, float]:
    return _joined(_store(home, kind, "rows.parquet"), asked)


def join_onto(home: Path, source: str, asked: int) -> dict[str, float]:
    """So many entity rows joined by our stores onto a file or folder: seconds, and MB that it took at most."""
    return _joined(_store(home, "ours", source), asked)


def _joined(store: "FeatureStore", asked: int) -> dict[str, float]:
    import pandas as pd

    rng = np.random.default_rng(1)
    seconds = rng.integers(0, int(_SPAN.total_seconds()), asked)
    rows = pd.DataFrame(
        {
            "entity": rng.integers(0, _JOINED_ENTITIES, asked),
            "event_timestamp": _START + pd.to_timedelta(seconds, unit="s"),
        }
    )

    refs = [f"stats:{name}" for name in _FEATURES]
    store.get_historical_features(rows[:1], refs).to_df()  # what is imported at the first use

    def work() -> None:
        frame = store.get_historical_features(rows, refs).to_df()
        assert frame["f00"].notna().mean() > 0.5

    return _measured(work, runs=3)


def _materialize(home: Path, kind: str) -> dict[str, float]:
    store = _store(home, kind, "latest.parquet")
    result = _measured(lambda: store.materialize(_START, _START + _SPAN))
    return {**result, "file_mb": (home / kind / "online.db").stat().st_size / 1e6}


def _command(home: Path, kind: str) -> float:
    """Seconds that `feast materialize` takes from its start to its end, imports included, into an empty store."""
    repo = home / f"{kind}-command"
    repo.mkdir()
    ours = kind == "ours"
    stores = {
        "offline_store": _OURS["offline"] if ours else "file",
        "batch_engine": _OURS["engine"] if ours else "local",
        "online_store": _OURS["online"] if ours else "sqlite",
    }
    lines = ["project: bench", "provider: local", "registry: registry.db", "entity_key_serialization_version: 3"]
    lines += [f"{name}:\n  type: {kind}" for name, kind in stores.items()]
    (repo / "feature_store.yaml").write_text("\n".join([*lines[:-1], f"{lines[-1]}\n  path: online.db"]))
    (repo / "definitions.py").write_text(
        "from pathlib import Path\n"
        "from benchmarks.feast import view_of\n"
        f"entity, view = view_of(Path({str(home / 'latest.parquet')!r}))\n"
    )
    feast = (str(Path(sys.executable).with_name("feast")), "-c", str(repo))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    span = ((_START - timedelta(days=1)).isoformat(), (_START + _SPAN).isoformat())
    subprocess.run((*feast, "apply"), check=True, stdout=subprocess.DEVNULL, env=environment)
    started = time.perf_counter()
    subprocess.run((*feast, "materialize", *span), check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started


def _read(home: Path, kind: str) -> dict[str, float]:
    store, rng = _store(home, kind, "latest.parquet"), np.random.default_rng(2)
    refs = [f"stats:{name}" for name in _FEATURES]
    result: dict[str, float] = {}
    for n in (1, 10, 100, 1000):
        asked = [[{"entity": int(i)} for i in rng.integers(0, _ENTITIES, n)] for _ in range(max(20, 2000 // n))]
        result[f"get_online_features {n}"] = _p50_ms(lambda rows: store.get_online_features(refs, rows), asked)
        result[f"get_online_features, to_dict() {n}"] = _p50_ms(
            lambda rows: store.get_online_features(refs, rows).to_dict(), asked
        )
        if kind == "ours":
            ids = [[row["entity"] for row in rows] for rows in asked]
            result[f"vectors {n}"] = _p50_ms(_vectors(store), ids)
    return result


def _vectors(store: "FeatureStore") -> Callable[[list[int]], object]:
    """The way past the SDK: keys in, an array of shape (n, 25) out."""
    from feast import FeatureService

    from urlhealth.feast_stores.arrays import ServiceReader

    reader = ServiceReader(store, FeatureService(name="all", features=[store.get_feature_view("stats")]))
    return lambda ids: reader.read({"entity": ids}, now_ms=0)["stats"].matrix()


def _measured(work: Callable[[], None], *, runs: int = 1) -> dict[str, float]:
    """Seconds (of several runs, the median), and by how many MB the process grew at most."""
    before_mb = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before_mb
    return {"seconds": statistics.median(seconds), "peak_mb": peak_mb}


def _p50_ms(read: Callable[[Any], object], asked: list[Any]) -> float:
    """Median CPU time of a read (it waits for nothing, so that other programs do not count)."""
    read(asked[0])
    times = []
    for rows in asked:
        started = time.process_time()
        read(rows)
        times.append(time.process_time() - started)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        work = {"join": _join, "materialize": _materialize, "read": _read}[sys.argv[2]]
        print(json.dumps(work(Path(sys.argv[1]), sys.argv[3], *map(int, sys.argv[4:]))))
