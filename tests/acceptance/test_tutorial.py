"""`docs/tutorial-feature.md`, word for word, on a copy of the sources: from a patch to a served forecast."""

import json
import re
import shutil
import time
from pathlib import Path

import httpx

from tests.support import BIN, ROOT, environment, free_port, program, run

PAGE = (ROOT / "docs" / "tutorial-feature.md").read_text(encoding="utf-8")
HOUR_MS = 3_600_000
SITES = {"fine": 10_000, "flaky": 20_000, "poor": 30_000, "other": 40_000}


def history(file: Path) -> None:
    """Hourly verdicts of a week until now; all but one site are down some hours of each day."""
    now_ms = round(time.time() * 1000)
    with file.open("w") as out:
        for hour in range(7 * 24, 0, -1):
            for i, (name, size) in enumerate(SITES.items()):
                down = (hour * (i + 1)) % 11 < i
                row = {
                    "url": f"https://{name}.example.com/",
                    "ts": now_ms - hour * HOUR_MS + 60_000 * i,
                    "outcome": "http_error" if down else "ok",
                    "status_code": 503 if down else 200,
                    "total_ms": 80.0,
                    "size_bytes": size,
                }
                out.write(json.dumps(row) + "\n")


def test_a_feature_is_added_rebuilt_trained_promoted_and_served(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for folder in ("src", "models", "serving", "feature_repo"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    env = environment(tmp_path / "home", PYTHONPATH=f"{copy / 'src'}:{copy}")
    history(tmp_path / "past.ndjson")
    run("urlhealth", "history", "import", str(tmp_path / "past.ndjson"), env=env, cwd=copy)

    (patch,) = re.findall(r"^```diff\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (copy / "feature.patch").write_text(patch)
    run("git", "apply", "feature.patch", env={**env, "GIT_CEILING_DIRECTORIES": str(tmp_path)}, cwd=copy)

    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert commands[-1] == "urlhealth serve"
    [*before, predict, serve] = commands
    refused = run(*predict.split(), env=env, cwd=copy, check=False)
    assert refused.returncode
    assert "train anew with `urlhealth train`" in " ".join((refused.stdout + refused.stderr).split())
    for command in before:
        run(*command.split(), env=env, cwd=copy)
    assert "fine.example.com" in run(*predict.split(), env=env, cwd=copy).stdout

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with program(
        str(BIN / serve.split()[0]),
        *serve.split()[1:],
        "--port",
        str(port),
        env=env,
        cwd=copy,
        ready_url=f"{url}/health/ready",
        log=tmp_path / "log",
    ):
        asked = {"urls": ["https://flaky.example.com/"]}
        (features,) = httpx.post(f"{url}/api/v1/features", json=asked, timeout=60).json()["items"]
        assert round(features["features"]["log_size_bytes"], 3) == 9.904  # ln(20,001)
        (forecast,) = httpx.post(f"{url}/api/v1/predictions", json=asked, timeout=60).json()["items"]
        assert (forecast["model_version"], forecast["status"]) == ("1", "fresh")
        assert 0 < forecast["probability"] < 1
