"""`make screenshots`: the pages of the demo's platform, photographed for the README and the documentation."""

import shutil
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.parse import quote

import httpx

from demo.programs import ROOT, program

IMAGES: Final = ROOT / "docs" / "images"
PORT: Final = 8765
SEED: Final = 1
#: The demo takes two minutes or three.
_LIMIT_S: Final = 900
#: Colours of a picture: text and lines need no more, and it is a fifth as large.
_COLOURS: Final = 96


def main() -> None:
    """Run the demo, photograph its pages, end it."""
    log = IMAGES / "demo.log"
    IMAGES.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-u", "-m", "demo", "--seed", str(SEED), "--port", str(PORT))
    with program(command, log=log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        started_s = monotonic()
        for line in process.stdout:
            if "serving until" in line:
                break
            if monotonic() - started_s > _LIMIT_S:
                sys.exit("the demo takes too long")
        else:
            sys.exit(f"the demo has failed: see {log}")
        photograph(f"http://127.0.0.1:{PORT}")
    log.unlink()


def photograph(address: str) -> None:
    """The pages as a visitor sees them, first screens only."""
    from playwright.sync_api import sync_playwright

    items = (
        httpx.get(f"{address}/api/v1/predictions", params={"limit": 100}, timeout=60).raise_for_status().json()["items"]
    )
    flapping = next(item["url"] for item in items if "flapping" in item["url"] and item["health"] == "up")
    httpx.post(f"{address}/api/v1/predictions", json={"urls": [item["url"] for item in items]}, timeout=60)
    shots = {
        "overview": ("/?now=up", 1_180, 760),
        "url": (f"/ui/url?url={quote(flapping, safe='')}", 1_180, 1_250),
        "models": ("/ui/models", 1_180, 640),
        "monitors": ("/ui/monitors", 1_180, 640),
    }
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        for name, (path, width, height) in shots.items():
            page: Any = browser.new_page(viewport={"width": width, "height": height})
            page.goto(address + path)
            page.wait_for_load_state("networkidle")
            page.screenshot(path=IMAGES / f"{name}.png")
            shrink(IMAGES / f"{name}.png")
        browser.close()


def shrink(file: Path) -> None:
    """Few colours, and packed as well as can be."""
    from PIL import Image

    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


if __name__ == "__main__":
    main()
