"""Feast's file registry, written whole under a hidden name and renamed, so that no reader sees half of it.

Imported by Feast, from `registry_store_type` in `feature_store.yaml`.
"""

import uuid
from pathlib import Path
from typing import Any

from feast.infra.registry.file import FileRegistryStore
from feast.utils import _utc_now
from google.protobuf.message import DecodeError

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores.paths import REGISTRY_FILE, store_path
from urlhealth.feast_stores.segments import replace_file


class AtomicFileRegistryStore(FileRegistryStore):
    """A file registry at `path` of the YAML (relative to the repo), by default in the platform's home folder."""

    def __init__(self, registry_config: Any, repo_path: Path | None) -> None:
        # Not calling the base class, whose only work is to choose the path.
        self._filepath = store_path(registry_config.path, repo_path, REGISTRY_FILE)

    def get_registry_proto(self) -> Any:
        """The registry as it was written last.

        Raises:
            FileNotFoundError: there is none yet.
            StoreUnavailable: the file is damaged.
        """
        try:
            return super().get_registry_proto()
        except DecodeError as error:
            raise StoreUnavailable(
                f"Feast's registry {self._filepath} cannot be read: {error}. Move it away: `urlhealth features build` "
                "or `feast apply` makes it anew"
            ) from error

    def _write_registry(self, registry_proto: Any) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(_utc_now())
        content = registry_proto.SerializeToString()
        replace_file(self._filepath, lambda temporary: temporary.write_bytes(content))
