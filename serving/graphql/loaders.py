"""What a query reads, gathered: whatever the number of targets in it, each kind of thing is read once."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from anyio import to_thread
from strawberry.dataloader import DataLoader

from urlhealth.errors import UrlHealthError
from urlhealth.platform import Platform
from urlhealth.vocabulary import FeatureVector, Prediction, ProbeResult

Key = TypeVar("Key")


class ProbesKey(NamedTuple):
    """Up to `first` probes of a target."""

    target: str
    first: int


class PredictionKey(NamedTuple):
    """A URL's forecast for a horizon."""

    url: str
    horizon: str
    explain: bool


class Loaders:
    """The loaders of one request over a platform: all that they read is the owner's."""

    def __init__(self, platform: Platform, *, owner: str) -> None:
        self.platform = platform
        self.owner = owner
        self.probes: DataLoader[ProbesKey, list[ProbeResult]] = DataLoader(partial(self._batch, self._probes))
        self.features: DataLoader[str, FeatureVector] = DataLoader(partial(self._batch, self._features))
        self.predictions: DataLoader[PredictionKey, Prediction] = DataLoader(partial(self._batch, self._predictions))

    @staticmethod
    async def _batch(load: Any, keys: list[Any]) -> Sequence[Any]:
        """All keys' values from a thread; an error of ours is that of each key."""
        try:
            found = await to_thread.run_sync(load, keys)
        except UrlHealthError as error:
            return [error] * len(keys)
        return [found[key] for key in keys]

    def _probes(self, keys: Sequence[ProbesKey]) -> dict[ProbesKey, list[ProbeResult]]:
        found: dict[ProbesKey, list[ProbeResult]] = {}
        for first in {key.first for key in keys}:
            some = [key.target for key in keys if key.first == first]
            probes = self.platform.crawl.newest_probes(some, limit=first, owner=self.owner)
            found |= {ProbesKey(target, first): of_it for target, of_it in probes.items()}
        return found

    def _features(self, urls: Sequence[str]) -> dict[str, FeatureVector]:
        return dict(zip(urls, self.platform.predictor.features(urls, owner=self.owner), strict=True))

    def _predictions(self, keys: Sequence[PredictionKey]) -> dict[PredictionKey, Prediction]:
        wanted: dict[tuple[str, bool], list[str]] = defaultdict(list)
        for url, horizon, explain in keys:
            wanted[horizon, explain].append(url)
        found: dict[PredictionKey, Prediction] = {}
        for (horizon, explain), urls in wanted.items():
            predict = self.platform.predictor.predict
            every = predict(urls, horizons=[horizon], explain=explain, owner=self.owner)
            for url, made in zip(urls, every, strict=True):
                found[PredictionKey(url, horizon, explain)] = made
        return found
