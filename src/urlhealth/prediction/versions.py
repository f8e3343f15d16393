"""The versions beside the champion that requests ask for: loaded when they are, and few of them kept."""

import re
import threading
from collections import OrderedDict
from typing import Final

from urlhealth.errors import ModelMismatch, NotFound
from urlhealth.prediction.champion import BUNDLED, Champion, ChampionWatch, alias_version, has_registry, load
from urlhealth.settings import Settings
from urlhealth.vocabulary import CHAMPION, MODEL_NAME

#: Versions kept in memory at most.
KEPT: Final = 4

_SPELT: Final = re.compile(
    rf"(?:{MODEL_NAME}[@]|@)(?P<alias>[\w.-]{{1,80}})|(?:{MODEL_NAME}/)?(?P<version>[1-9]\d{{0,8}}|{BUNDLED})"
)


class Versions:
    """Finds models by name. Many threads may use one; each version is loaded by one thread, for which others wait."""

    def __init__(self, settings: Settings, champion: ChampionWatch) -> None:
        self._uri = settings.resolved_tracking_uri
        self._champion = champion
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Champion] = OrderedDict()
        #: Why versions do not fit this platform, and never will.
        self._refused: dict[str, str] = {}

    def named(self, name: str) -> Champion:
        """The model called `url-health`, `url-health@ALIAS`, `url-health/VERSION` or just VERSION.

        Raises:
            NotFound: there is no such model.
            ModelMismatch, StoreUnavailable: it cannot be loaded.
            NoModel: there is no champion to serve under its own alias.
        """
        if name in (MODEL_NAME, f"{MODEL_NAME}@{CHAMPION}"):
            return self._champion.serving()
        spelt = _SPELT.fullmatch(name)
        if spelt is None:
            raise NotFound(
                f"there is no model {name[:80]!r}: write {MODEL_NAME}@ALIAS, {MODEL_NAME}/VERSION or VERSION"
            )
        version = spelt["version"] or alias_version(self._uri, spelt["alias"])
        if version is None:
            raise NotFound(f"no version of {MODEL_NAME} is called {spelt['alias']}: see `urlhealth models list`")
        return self.version(version)

    def version(self, version: str) -> Champion:
        """One version; raises as :meth:`named` does."""
        champion = self._champion.current
        if champion is not None and champion.version == version:
            return champion
        with self._lock:
            if version in self._refused:
                raise ModelMismatch(self._refused[version])
            model = self._kept.get(version) or self._load(version)
            self._kept[version] = model
            self._kept.move_to_end(version)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return model

    def _load(self, version: str) -> Champion:
        if version != BUNDLED and not has_registry(self._uri):
            raise NotFound(f"there is no version {version} of {MODEL_NAME}: none is registered yet")
        try:
            return load(self._uri, version)
        except ModelMismatch as error:
            self._refused[version] = words = f"{MODEL_NAME} version {version} cannot serve: {error}"
            raise ModelMismatch(words) from error
