"""A challenger scores a share of what is served, for the log alone: its figures can be compared before it serves."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from urlhealth.errors import NotFound, UrlHealthError, one_line
from urlhealth.prediction.champion import Champion
from urlhealth.prediction.log import PredictionLog
from urlhealth.prediction.predictor import Predictor
from urlhealth.prediction.versions import Versions
from urlhealth.vocabulary import MODEL_NAME, Served

log = logging.getLogger(__name__)

CHALLENGER: Final = f"{MODEL_NAME}@challenger"
#: Answers that may wait to be scored again; more are left out.
MAX_WAITING: Final = 100


class Shadow:
    """Takes answers of the champion at once, and scores their URLs later. `offer` may be called from any thread."""

    def __init__(
        self,
        *,
        predictor: Predictor,
        versions: Versions,
        prediction_log: PredictionLog,
        share: float,
        draw: Callable[[], float],
    ) -> None:
        """`share`: of the answers, 0 to 1; `draw`: gives numbers from 0 to 1, evenly."""
        self._predictor = predictor
        self._versions = versions
        self._log = prediction_log
        self._share = share
        self._draw = draw
        self._waiting: deque[Served] = deque(maxlen=MAX_WAITING)
        self._problem: str | None = None

    def offer(self, served: Served) -> None:
        """Take an answer, or leave it; never waits."""
        if served.forecasts and self._draw() < self._share:
            self._waiting.append(served)

    def step(self) -> int:
        """Score and log what waits; returns how many answers that was. Without a challenger it is left out."""
        model = self._challenger()
        done = 0
        while self._waiting:
            served = self._waiting.popleft()
            answer = served.forecasts
            if model is None or model.version == answer.model_version:
                continue
            urls, horizons = (list(dict.fromkeys(asked)) for asked in (answer.sent_urls, answer.horizons))
            forecasts = self._predictor.predict(urls, horizons=horizons, model=model, owner=served.owner)
            self._log.put(replace(served, forecasts=forecasts))
            done += 1
        return done

    def _challenger(self) -> Champion | None:
        try:
            model, problem = self._versions.named(CHALLENGER), None
        except NotFound:
            model, problem = None, None
        except UrlHealthError as error:
            model, problem = None, one_line(error)
        if problem not in (None, self._problem):
            log.error("the challenger is not scored: %s", problem)
        self._problem = problem
        return model
