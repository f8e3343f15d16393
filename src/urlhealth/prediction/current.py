"""Keeps the forecast of every target up to date: after its probe, at each new model, and every few minutes."""

from collections.abc import Callable, Sequence
from typing import Final

from urlhealth.crawl.current import CurrentPredictions, StoredTarget
from urlhealth.crawl.lease import Lease
from urlhealth.prediction.champion import Champion, ChampionWatch
from urlhealth.prediction.predictor import Predictor
from urlhealth.vocabulary import HORIZONS, Clock

#: Targets scored at once: so few that other threads wait only milliseconds for each array, and the database's other
#: writers hardly longer.
BATCH: Final = 250


class Rescorer:
    """Scores what is due, batch by batch. Only the process that holds the lease may step.

    It keeps its place in memory: who takes over begins by scoring all targets.
    """

    def __init__(
        self,
        *,
        current: CurrentPredictions,
        predictor: Predictor,
        champion: ChampionWatch,
        position: Callable[[], int],
        lease: Lease,
        clock: Clock,
        rescore_s: float,
    ) -> None:
        """`position`: says the id of the last probe that is in the features; `rescore_s`: time between two rounds."""
        self._current = current
        self._predictor = predictor
        self._champion = champion
        self._position = position
        self._lease = lease
        self._clock = clock
        self._rescore_ms = round(rescore_s * 1000)
        self._seen: int | None = None
        self._round_ms = 0
        self._round_model: Champion | None = None
        #: Id of the last target that this round has scored; None between rounds.
        self._scored: int | None = None

    def step(self) -> int:
        """Score some of the targets that were probed since, and the round's next; returns how many, 0 for none due.

        Raises:
            LeaseLost: another process is the writer; nothing was written.
            StoreUnavailable.
        """
        champion = self._champion.current
        if champion is None:
            return 0
        folded = self._position()
        if self._seen is None:
            self._seen = folded
        if champion is not self._round_model or not 0 <= self._clock() - self._round_ms < self._rescore_ms:
            self._scored, self._round_ms, self._round_model = 0, self._clock(), champion
        probed, seen = self._current.probed(after=self._seen, until=folded, limit=BATCH)
        self._score(probed, champion)
        self._seen = seen
        if self._scored is None:
            return len(probed)
        following = self._current.targets_after(self._scored, limit=BATCH)
        self._score(following, champion)
        self._scored = following[-1].target_id if len(following) == BATCH else None
        return len(probed) + len(following)

    def _score(self, stored: Sequence[StoredTarget], model: Champion) -> None:
        if stored:
            scored_ms = self._clock()
            predictions = self._predictor.predict_targets(
                [item.target for item in stored], horizons=tuple(HORIZONS), model=model, explain=True
            )
            self._current.save(stored, predictions, scored_ms=scored_ms, lease=self._lease)
