"""`bentoml build` makes a bento that starts in a folder with none of the source."""

import json
import sys
from pathlib import Path

import httpx

from tests.support import BIN, ROOT, environment, free_port, program, run, wait_until


def test_a_bento_starts_where_none_of_the_source_is(tmp_path: Path) -> None:
    empty, home = tmp_path / "empty", tmp_path / "home"
    empty.mkdir()
    home.mkdir()
    env = environment(home, BENTOML_HOME=str(tmp_path / "bentoml"))
    built = run(str(BIN / "bentoml"), "build", "--output", "tag", env=env, timeout_s=250).stdout
    name, _, version = built.strip().splitlines()[-1].removeprefix("__tag__:").partition(":")
    source = tmp_path / "bentoml" / "bentos" / name / version / "src"

    # This environment has the checkout installed; in front of it comes what the bento has, as where it alone is.
    env |= {"PYTHONPATH": str(source)}
    where = (
        "import json, serving, urlhealth.settings as s; print(json.dumps([serving.__file__, s.__file__, str(s.ROOT)]))"
    )
    for path in json.loads(run(sys.executable, "-c", where, env=env, cwd=empty).stdout):
        assert Path(path).is_relative_to(source)
        assert not Path(path).is_relative_to(ROOT)

    url = f"http://127.0.0.1:{(port := free_port())}"
    with program(
        str(BIN / "bentoml"), "serve", f"{name}:{version}", "--port", str(port),
        env=env, ready_url=f"{url}/health/live", log=home / "bento.log", cwd=empty, timeout_s=150,
    ):  # fmt: skip
        wait_until(lambda: httpx.get(f"{url}/health/ready", timeout=30).is_success, timeout_s=90, what="it to be ready")
        (score,) = httpx.post(f"{url}/score", json={"rows": [{"failing_now": 0}]}, timeout=30).json()
        features = httpx.get(f"{url}/health/ready", timeout=30).json()["checks"]
    assert 0 < score["probabilities"]["onset_24h"] < 1
    assert any(str(source) in check["detail"] for check in features if check["name"] == "features")
