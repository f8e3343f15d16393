"""Models, segments and registries that were changed are refused, and no pickle is loaded."""

import ast
import io
import json
import os
import pickle
import random
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dill
import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skops.io
from feast import FeatureStore
from feast.protos.feast.core.Registry_pb2 import Registry

from models.registry import EXPERIMENT, promote, tracking
from models.runs import log_model
from tests.support import environment, noise_forecaster, run
from urlhealth.errors import ModelMismatch, StoreUnavailable
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.compaction import Compactor
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.prediction.champion import BUNDLED_FILE, ChampionWatch
from urlhealth.prediction.model_files import read_forecaster
from urlhealth.probing.process import Results
from urlhealth.settings import ROOT, Settings
from urlhealth.vocabulary import Attempt, Outcome

NOON_US = 1_767_268_800_000_000


class Evil:
    """Makes a file when its pickle is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def flipped(content: bytes, seed: int) -> bytes:
    """With one bit another than it was."""
    rng, changed = random.Random(seed), bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


# Segments


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).normal(size=3000)
    for n in range(1, 4):
        at = pa.array(np.arange(3000) + NOON_US + n * 10_000, pa.timestamp("us", "UTC"))
        table = pa.table({"url": [f"u{i % 7}" for i in range(3000)], "at": at, "x": values})
        segments.append(tmp_path, table, timestamp_column="at", segment=f"{n:016}")
    return tmp_path


def test_no_bit_of_a_segment_can_be_another(offline: Path) -> None:
    file = segments.files(offline)[1]
    whole = file.read_bytes()
    for seed in range(300):
        file.write_bytes(flipped(whole, seed))
        with pytest.raises(StoreUnavailable, match=f"{file.name} (was changed|is not a whole)"):
            segments.scan(offline)
    file.write_bytes(whole)
    assert segments.scan(offline).collect().height == 9000


def test_a_segment_that_was_written_anew_with_other_values_is_refused(offline: Path) -> None:
    """By a program that keeps the metadata, as many do."""
    file = segments.files(offline)[0]
    table = pq.read_table(file)
    metadata = pq.read_metadata(file).metadata
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table.set_column(2, "x", pa.array(np.zeros(3000))))
        writer.add_key_value_metadata({key: value for key, value in metadata.items() if key != b"ARROW:schema"})
    with pytest.raises(StoreUnavailable, match="was changed after it was written"):
        segments.scan(offline)


def test_changed_segments_are_neither_merged_nor_rewritten(offline: Path) -> None:
    found = segments.files(offline)
    found[0].write_bytes(flipped(found[0].read_bytes(), 5))
    with pytest.raises(StoreUnavailable, match="was changed"):
        segments.stage_merged(found, sort_by=["at"])
    compactor = Compactor({offline: ("url", "at", "x")})
    compactor.published(found)
    assert compactor.stage(before=f"{9:016}") is None
    with pytest.raises(StoreUnavailable, match="was changed"):
        segments.erase(offline, {"url": "u1"}, timestamp_column="at", until_us=2 * NOON_US)
    assert segments.fault_of(found[0])


def test_a_file_of_another_program_is_read_as_it_is(offline: Path) -> None:
    day = segments.files(offline)[0].parent
    pq.write_table(pq.read_table(segments.files(offline)[0]), day / "theirs.parquet")
    assert segments.scan(offline).collect().height == 12_000


# Feast's registry


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> FeatureStores:
    stores = FeatureStores(Settings(home=tmp_path_factory.mktemp("home")))
    assert stores.apply()
    return stores


@pytest.fixture
def registry(applied: FeatureStores) -> Iterator[Path]:
    file = applied.settings.feast_home / "registry.db"
    whole = file.read_bytes()
    yield file
    file.write_bytes(whole)


def opened(stores: FeatureStores) -> FeatureStore:
    """Feast's own view of it, read anew."""
    return FeatureStores(stores.settings).feast()


def test_no_bit_of_the_registry_can_be_another(applied: FeatureStores, registry: Path) -> None:
    store = opened(applied)
    whole = registry.read_bytes()
    for seed in range(60):
        changed = flipped(whole, seed)
        if changed[-22:-16] != whole[-22:-16]:
            continue  # the mark of the digest, without which it is one of an earlier version
        registry.write_bytes(changed)
        with pytest.raises(StoreUnavailable, match=r"registry\.db cannot be read: .* Move it away"):
            store.refresh_registry()
    registry.write_bytes(whole)
    store.refresh_registry()
    assert store.list_feature_views()


def as_a_view(registry: Registry, body: bytes) -> None:
    view = registry.on_demand_feature_views.add()
    view.spec.name, view.spec.project, view.spec.mode = "evil", "urlhealth", "pandas"
    function = view.spec.feature_transformation.user_defined_function
    function.name, function.body = "evil", body


def as_an_old_view(registry: Registry, body: bytes) -> None:
    view = registry.on_demand_feature_views.add()
    view.spec.name, view.spec.project, view.spec.user_defined_function.body = "evil", "urlhealth", body


def as_a_stream(registry: Registry, body: bytes) -> None:
    view = registry.stream_feature_views.add()
    view.spec.name, view.spec.project, view.spec.user_defined_function.body = "evil", "urlhealth", body


def as_a_transformation_of_a_view(registry: Registry, body: bytes) -> None:
    registry.feature_views[0].spec.feature_transformation.user_defined_function.body = body


def as_an_earlier_version(registry: Registry, body: bytes) -> None:
    inner = Registry()
    as_a_view(inner, body)
    record = registry.feature_view_version_history.records.add()
    record.feature_view_name, record.project_id, record.feature_view_type = (
        "evil",
        "urlhealth",
        "on_demand_feature_view",
    )
    record.feature_view_proto = inner.on_demand_feature_views[0].SerializeToString()


def as_a_profiler(registry: Registry, body: bytes) -> None:
    reference = registry.validation_references.add()
    reference.name, reference.project, reference.ge_profiler.profiler.body = "evil", "urlhealth", body


def as_a_class(registry: Registry, _body: bytes) -> None:
    registry.data_sources[0].data_source_class_type = "antigravity.Evil"


@pytest.mark.parametrize(
    "hide",
    [
        as_a_view,
        as_an_old_view,
        as_a_stream,
        as_a_transformation_of_a_view,
        as_an_earlier_version,
        as_a_profiler,
        as_a_class,
    ],
)
def test_code_in_the_registry_is_refused_with_and_without_a_digest(
    applied: FeatureStores, registry: Path, tmp_path: Path, hide: Callable[[Registry, bytes], None]
) -> None:
    trace = tmp_path / "it was loaded"
    content = Registry.FromString(registry.read_bytes())
    content.DiscardUnknownFields()
    hide(content, dill.dumps(Evil(trace)))
    store = opened(applied)
    registry.write_bytes(content.SerializeToString())
    with pytest.raises(StoreUnavailable, match=r"pickle|earlier version|class 'antigravity\.Evil'"):
        store.refresh_registry()
    with pytest.raises(StoreUnavailable):
        opened(applied).list_all_feature_views()
    assert not trace.exists()


# Models


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """Settings of a platform with a champion that was trained there, and that one's file."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri="")
    with tracking(settings) as client:
        before = set(settings.mlflow_artifacts.rglob("*.skops"))
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run():
            promote(client, log_model(noise_forecaster(), None, {}))
    (file,) = set(settings.mlflow_artifacts.rglob("*.skops")) - before
    return settings, file


def test_another_model_in_the_place_of_one_that_was_registered_is_refused(registered: tuple[Settings, Path]) -> None:
    settings, file = registered
    watch = ChampionWatch(settings)
    assert watch.refresh(), watch.problem
    whole = file.read_bytes()
    for changed in (BUNDLED_FILE.read_bytes(), flipped(whole, 1), whole[:-10], b""):
        file.write_bytes(changed)
        other = ChampionWatch(settings)
        assert not other.refresh()
        assert "is not what was registered" in str(other.problem)
    file.write_bytes(whole)
    assert ChampionWatch(settings).refresh()


def test_types_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    """An archive that is whole, and names a function to call."""
    file, trace = tmp_path / "model.skops", tmp_path / "it was loaded"
    with zipfile.ZipFile(BUNDLED_FILE) as before, zipfile.ZipFile(file, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name == "schema.json":
                schema = json.loads(content)
                schema["__module__"], schema["__class__"] = "os", "system"
                content = json.dumps(schema).encode()
            after.writestr(name, content)
    with pytest.raises(ModelMismatch, match="cannot be loaded"):
        read_forecaster(file)
    skops.io.dump(Evil(trace), tmp_path / "evil.skops")
    with pytest.raises(ModelMismatch, match="cannot be loaded"):
        read_forecaster(tmp_path / "evil.skops")
    (tmp_path / "plain.skops").write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(ModelMismatch, match="cannot be loaded"):
        read_forecaster(tmp_path / "plain.skops")
    assert not trace.exists()


# Pickles

#: Modules that load what can run code.
LOADERS = {"cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
#: From the processes that it has started itself, and from nowhere else.
OUR_OWN = {"src/urlhealth/children.py", "src/urlhealth/probing/process.py"}


def test_no_code_of_ours_loads_pickles_but_those_of_our_own_processes() -> None:
    found = set()
    for folder in ("src", "serving", "models", "feature_repo"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Import(names=names):
                        risky = bool({name.name.partition(".")[0] for name in names} & LOADERS)
                    case ast.ImportFrom(module=str(module)):
                        risky = module.partition(".")[0] in LOADERS
                    case ast.keyword(arg="allow_pickle", value=ast.Constant(value=value)):
                        risky = bool(value)
                    case ast.Attribute(attr="read_pickle" | "unsafe_load" | "full_load" | "UnsafeLoader"):
                        risky = True
                    case ast.Call(func=ast.Name(id="eval" | "exec")):
                        risky = True
                    case _:
                        risky = False
                if risky:
                    found.add(str(file.relative_to(ROOT)))
    assert found == OUR_OWN


def test_the_process_that_reads_what_strangers_send_can_make_us_load_results_only(tmp_path: Path) -> None:
    sent = (3, [(1, (Outcome.OK, (Attempt(ts_ms=1, outcome=Outcome.DNS),), "text", 3.5, None))])
    assert Results(io.BytesIO(pickle.dumps(sent, pickle.HIGHEST_PROTOCOL))).load() == sent
    for evil in (Evil(tmp_path / "it was loaded"), os.system, eval):
        with pytest.raises(pickle.UnpicklingError, match="is of no result"):
            Results(io.BytesIO(pickle.dumps((3, [evil]), pickle.HIGHEST_PROTOCOL))).load()
    assert not (tmp_path / "it was loaded").exists()


#: Every way of loading something, in a process that ends where a pickle asks for a class or a function.
LOADS = """
import os, sys

def hook(event, arguments):
    if event == "pickle.find_class":
        print(event, arguments, flush=True)
        os._exit(3)

from pathlib import Path
from models.registry import tracking
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.catalog import URL_STATE
from urlhealth.platform import Platform
from urlhealth.prediction.champion import ChampionWatch, load_bundled
from urlhealth.probing.urls import parse_target
from urlhealth.settings import load_settings
from urlhealth.vocabulary import Outcome, ProbeResult

import pickle
import feast, serving.bento
import dask.dataframe  # makes and loads pickles of its own functions when it is imported, as Feast does

settings = load_settings()
sys.addaudithook(hook)
load_bundled()
watch = ChampionWatch(settings)
assert watch.refresh(), watch.problem
url = "https://a.example/"
with Platform(settings) as platform:
    platform.champion.refresh()
    result = ProbeResult(target=url, ts_ms=platform.clock() - 60_000, outcome=Outcome.OK)
    platform.crawl.import_probes([(parse_target(url), result)])
    platform.build_features()
    assert platform.predictor.champion()
stores = FeatureStores(settings)
stores.apply()
store = stores.feast()
reply = store.get_online_features([f"url_state:{URL_STATE.columns[0].name}"], [{"url": url}]).to_dict()
assert stores.lives(0, 2**42)[0] == [url]
print("all was loaded", flush=True)
pickle.loads(pickle.dumps(Path()))
"""


def test_nothing_that_is_loaded_is_a_pickle(registered: tuple[Settings, Path]) -> None:
    done = run(sys.executable, "-c", LOADS, env=environment(registered[0].home), check=False)
    assert done.stdout.startswith("all was loaded\npickle.find_class"), done.stdout + done.stderr
    assert done.returncode == 3  # for the one at the end, by which is seen that one would have been
