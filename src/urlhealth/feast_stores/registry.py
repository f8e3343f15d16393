"""Feast's file registry, written whole under a hidden name and renamed, so that no reader sees half of it.

Imported by Feast, from `registry_store_type` in `feature_store.yaml`. The file ends with a digest of what is before it,
in a field that no reader knows. Feast keeps functions of on-demand views pickled, and a pickle runs whatever somebody
wrote into it: here there may be none, unless the YAML has `pickled_functions: true`.
"""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.FeatureView_pb2 import FeatureView
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.utils import _utc_now
from google.protobuf.message import DecodeError

from urlhealth.errors import ConfigurationError, StoreUnavailable
from urlhealth.feast_stores.paths import REGISTRY_FILE, store_path
from urlhealth.feast_stores.segments import replace_file

_DIGEST_BYTES: Final = 16
#: Key and length of a field of bytes with the number 536,870,911, which is the last that there can be.
_FIELD: Final = bytes.fromhex("faffffff0f") + bytes([_DIGEST_BYTES])
#: Messages that hold functions or objects, pickled.
_PICKLED: Final = frozenset(
    {"UserDefinedFunction", "UserDefinedFunctionV2", "SubstraitTransformationV2", "UserDefinedProfiler"}
)
#: Names of fields that name a class which Feast imports, and the packages that one may be of.
_CLASSES: Final = frozenset({"data_source_class_type", "infra_object_class_type", "class_path"})
_PACKAGES: Final = ("feast.", "urlhealth.feast_stores.")


class AtomicFileRegistryStore(FileRegistryStore):
    """A file registry at `path` of the YAML (relative to the repo), by default in the platform's home folder."""

    def __init__(self, registry_config: Any, repo_path: Path | None) -> None:
        # Not calling the base class, whose only work is to choose the path.
        self._filepath = store_path(registry_config.path, repo_path, REGISTRY_FILE)
        self._may_run_code = getattr(registry_config, "pickled_functions", False) is True

    def get_registry_proto(self) -> Any:
        """The registry as it was written last.

        Raises:
            FileNotFoundError: there is none yet.
            StoreUnavailable: the file is damaged.
        """
        if not self._filepath.exists():
            return super().get_registry_proto()  # raises
        content, registry = self._filepath.read_bytes(), Registry()
        body, end = content[: -len(_FIELD) - _DIGEST_BYTES], content[-len(_FIELD) - _DIGEST_BYTES :]
        try:
            if end.startswith(_FIELD) and end[len(_FIELD) :] != _digest(body):
                raise DecodeError("it was changed after it was written")
            registry.ParseFromString(content)
            registry.DiscardUnknownFields()
            self._check(registry)
        except DecodeError as error:
            raise StoreUnavailable(
                f"Feast's registry {self._filepath} cannot be read: {error}. Move it away: `urlhealth features build` "
                "or `feast apply` makes it anew"
            ) from error
        return registry

    def _write_registry(self, registry_proto: Any) -> None:
        try:
            self._check(registry_proto)
        except DecodeError as error:
            raise ConfigurationError(
                f"Feast's registry {self._filepath} is not written: {error}. If all who can write there may run code "
                "here, set `pickled_functions: true` below `registry` in feature_store.yaml"
            ) from error
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(_utc_now())
        content = registry_proto.SerializeToString()
        content += _FIELD + _digest(content)
        replace_file(self._filepath, lambda temporary: temporary.write_bytes(content))

    def _check(self, registry: Any) -> None:
        if not self._may_run_code:
            _require_data(registry)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _require_data(registry: Any) -> None:
    """Raises `DecodeError` if there is code in a registry, or what Feast would import."""
    for message in _messages(registry):
        kind = message.DESCRIPTOR.name
        if kind in _PICKLED:
            raise DecodeError(f"it has a pickled function in it ({kind}), and pickles are not loaded")
        for field, value in message.ListFields():
            if field.name in _CLASSES and not value.startswith(_PACKAGES):
                raise DecodeError(f"it names the class {value!r}, which is neither Feast's nor ours")


def _messages(message: Any) -> Iterator[Any]:
    """A message and all within it, those of earlier versions of views too."""
    yield message
    if message.DESCRIPTOR.name == "FeatureViewVersionRecord":
        if message.feature_view_type != "feature_view":
            raise DecodeError(
                f"it has an earlier version of a {message.feature_view_type!r}, which may have code in it"
            )
        yield from _messages(FeatureView.FromString(message.feature_view_proto))
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        values = value if field.is_repeated else [value]
        if field.message_type.GetOptions().map_entry:
            values = [each for each in value.values() if hasattr(each, "ListFields")]
        for each in values:
            yield from _messages(each)
