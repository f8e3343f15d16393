"""Where a demo keeps everything, and the environment that leads its programs there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Final

from demo.programs import ROOT, DemoFailed
from urlhealth.settings import quiet_third_parties

_MARK: Final = "made-by-make-demo"
#: Variables of Feast and MLflow that would lead the demo to other stores than its own.
_OTHERS: Final = ("FEAST_FS_YAML_FILE_PATH", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


@contextmanager
def own_home() -> Iterator[Path]:
    """An empty folder for this run alone: URLHEALTH_HOME if that is set, otherwise `var/demo`.

    Raises:
        DemoFailed: it holds what no demo made, or a demo is running in it.
    """
    home = Path(os.environ.get("URLHEALTH_HOME") or ROOT / "var" / "demo").expanduser().absolute()
    mark = home / _MARK
    if home.exists() and any(home.iterdir()) and not mark.exists():
        raise DemoFailed(f"{home} is in use: unset URLHEALTH_HOME, or let it name a folder that is new or empty")
    home.mkdir(parents=True, exist_ok=True)
    with mark.open("a") as held:
        try:
            flock(held, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(f"a demo is running in {home}: stop it, or set URLHEALTH_HOME to another folder") from None
        for path in home.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != mark:
                path.unlink()
        yield home


def set_environment(home: Path, ca_file: Path) -> None:
    """Point this process and those that it starts at the demo's own stores, whatever was set before."""
    for name in [*os.environ]:
        if name.startswith("URLHEALTH_") or name in _OTHERS:
            del os.environ[name]
    os.environ["URLHEALTH_HOME"] = str(home)
    os.environ["URLHEALTH_ALLOW_ADDRESSES"] = "127.0.0.0/8,::1/128"
    os.environ["URLHEALTH_CA_FILE"] = str(ca_file)
    quiet_third_parties()
