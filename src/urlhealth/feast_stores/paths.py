"""Where the embedded Feast stores are: where the YAML says, relative to the repo, or else in the home folder."""

from pathlib import Path
from typing import Final

from urlhealth.settings import Settings, load_settings

REGISTRY_FILE: Final = "registry.db"
ONLINE_FILE: Final = "online.db"
OFFLINE_FOLDER: Final = "offline"


def store_path(path: str | None, repo: Path | None, default: str, settings: Settings | None = None) -> Path:
    """`path` of a store's configuration, or `default` in Feast's folder of the home folder; absolute."""
    if path:
        return (repo or Path()).absolute() / path
    return (settings or load_settings()).feast_home / default
