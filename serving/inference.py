"""What all inference protocols share: URLs or features in, named columns out. None of them asks the model otherwise."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
from anyio.to_thread import run_sync
from fastapi import Request

from serving.access import CALLER
from serving.schemas import MAX_URLS
from urlhealth.errors import InvalidRequest, NotFound
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.prediction.services import ServiceModel, ServiceModels, as_served
from urlhealth.vocabulary import HORIZONS, MODEL_NAME, PROBABILITIES

Matrix = npt.NDArray[np.float32]
#: URLs as they were sent, or rows of features, (n, len(FEATURES)), NaN where unknown.
Question = list[Any] | Matrix
Read = TypeVar("Read")

FEATURES: Final = names(VECTOR)
_COLUMN: Final = {name: column for column, name in enumerate(FEATURES)}
#: Rows of features that one request may have.
MAX_ROWS: Final = 10_000
#: What is read and scored without a thread: a few milliseconds.
_SHORT_BYTES: Final = 256 << 10
_FEW_ROWS: Final = 256


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's answer for n rows."""

    model: str
    model_version: str
    #: By name, float64 (n,): `PROBABILITIES`, NaN where nothing is known; for URLs also `age_s`. Of a model of your
    #: own: `probability`.
    numbers: Mapping[str, npt.NDArray[np.float64]]
    #: By name, n strings: for URLs and entities `status`.
    texts: Mapping[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.numbers.values())))

    def probabilities(self) -> npt.NDArray[np.float64]:
        """(n, 6), in the order of `PROBABILITIES`."""
        return np.column_stack([self.numbers[name] for name in PROBABILITIES])

    def columns(self) -> dict[str, list[Any]]:
        """Numbers and texts by name."""
        return {name: values.tolist() for name, values in self.numbers.items()} | {**self.texts}

    def records(self) -> list[dict[str, Any]]:
        """A dictionary a row."""
        columns = self.columns()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


async def answered(request: Request, question: Question, model: Champion | None = None) -> Answer:
    """The answer of the champion or another model; what it says of URLs is logged as served.

    What takes a moment only is computed in the event loop: to hand it to a thread would take longer.

    Raises:
        InvalidUrls, InvalidRequest, NoModel.
    """
    platform: Platform = request.app.state.platform
    if isinstance(question, np.ndarray):
        if len(question) <= _FEW_ROWS:
            return of_features(platform, question, model=model)
        return await run_sync(partial(of_features, platform, question, model=model))
    return await _of_urls(request, platform, question, model)


async def read(body: bytes, reader: Callable[[bytes], Read]) -> Read:
    """What a reader makes of a body; a long one is read in a thread."""
    return reader(body) if len(body) <= _SHORT_BYTES else await run_sync(reader, body)


async def _of_urls(request: Request, platform: Platform, urls: Sequence[Any], model: Champion | None) -> Answer:
    _check_count(len(urls), MAX_URLS, "URLs")
    request_id, owner = request.state.request_id, request.scope[CALLER].owner
    forecasts = await platform.predictor.answer(urls, horizons=tuple(HORIZONS), model=model, owner=owner)
    platform.log_predictions(request_id, forecasts, owner=owner)
    return Answer(
        model=forecasts.model,
        model_version=forecasts.model_version,
        numbers={
            **dict(zip(PROBABILITIES, forecasts.probabilities.T, strict=True)),
            "age_s": np.array(forecasts.age_s, dtype=np.float64),
        },
        texts={"status": [status.value for status in forecasts.status]},
    )


async def answered_by_service(request: Request, model: ServiceModel, entities: Mapping[str, list[Any]]) -> Answer:
    """What a model of your own says of entities, by join key; logged as served.

    Raises:
        InvalidRequest, StoreUnavailable.
    """
    count = max(map(len, entities.values()), default=0)
    _check_count(count, MAX_ROWS, "entities")
    platform: Platform = request.app.state.platform
    now_ms = platform.clock()
    if model.is_near and count <= _FEW_ROWS:
        scores = await model.answer(entities, now_ms=now_ms)
    else:
        scores = await run_sync(partial(model.score, entities, now_ms=now_ms))
    platform.log_predictions(
        request.state.request_id, as_served(model, entities, scores), owner=request.scope[CALLER].owner
    )
    return Answer(
        model=model.name,
        model_version=model.version,
        numbers={"probability": scores.probability},
        texts={"status": scores.status},
    )


async def asked_service(request: Request, model: str, version: str | None = None) -> ServiceModel:
    """The model of your own that a path names: its champion, or a version.

    Raises:
        NotFound: there is no such one.
        ModelMismatch, StoreUnavailable: it cannot be loaded.
    """
    models: ServiceModels = request.app.state.platform.service_models
    loaded = models.loaded(model)
    if loaded is not None and version in (None, loaded.version):
        return loaded
    return await run_sync(models.named, model, version)


def of_features(platform: Platform, matrix: Matrix, *, model: Champion | None = None) -> Answer:
    """The probabilities for rows of features, float32 (n, len(FEATURES)), NaN where unknown.

    Raises:
        InvalidRequest: too few or too many rows, or an infinite value.
        NoModel.
    """
    _check_count(len(matrix), MAX_ROWS, "rows")
    if matrix.shape[1] != len(FEATURES):
        raise InvalidRequest(f"a row has {matrix.shape[1]} features; the model has {len(FEATURES)}")
    infinite = np.argwhere(np.isinf(matrix))
    if len(infinite):
        row, column = infinite[0]
        raise InvalidRequest(f"row {row}: {FEATURES[column]} is infinite, or too large for 32 bits")
    model = model or platform.predictor.champion()
    probabilities = model.forecaster.predict_proba(matrix)
    return Answer(
        model=model.name,
        model_version=model.version,
        numbers=dict(zip(PROBABILITIES, probabilities.T, strict=True)),
        texts={},
    )


def matrix_of_rows(rows: Sequence[Any]) -> Matrix:
    """Rows of features as a matrix; each is an object by name (null or absent: unknown), or a list of all values.

    Raises:
        InvalidRequest: naming the row.
    """
    _check_count(len(rows), MAX_ROWS, "rows")
    if all(isinstance(row, dict) for row in rows):
        for position, row in enumerate(rows):
            if unknown := row.keys() - _COLUMN.keys():
                raise InvalidRequest(f"row {position}: there is no feature {min(unknown)[:80]!r}")
        return _matrix([[row.get(name) for name in FEATURES] for row in rows])
    for position, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(FEATURES):
            raise InvalidRequest(f"row {position} is neither an object of features nor a list of all {len(FEATURES)}")
    return _matrix(rows)


def matrix_of_columns(columns: Mapping[str, Sequence[Any]]) -> Matrix:
    """Columns of features by name as a matrix; those that are absent are unknown.

    Raises:
        InvalidRequest: a name is none of a feature, or the columns differ in length.
    """
    if unknown := columns.keys() - _COLUMN.keys():
        raise InvalidRequest(f"there is no feature {min(unknown)[:80]!r}: see the model's metadata for their names")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise InvalidRequest(f"the features must have the same number of rows, at least one each: {lengths}"[:300])
    (count,) = set(lengths.values())
    _check_count(count, MAX_ROWS, "rows")
    matrix = np.full((count, len(FEATURES)), np.nan, dtype=np.float32)
    for name, values in columns.items():
        matrix[:, _COLUMN[name]] = _matrix([[value] for value in values])[:, 0]
    return matrix


async def asked_model(request: Request, model: str, version: str | None = None) -> Champion:
    """The model that a path names: the champion, or a version.

    Raises:
        NotFound: there is no such one.
        ModelMismatch, StoreUnavailable: it cannot be loaded.
        NoModel.
    """
    if model != MODEL_NAME:
        raise NotFound(f"there is no model {model[:80]!r}: the one that serves is {MODEL_NAME}")
    platform: Platform = request.app.state.platform
    if version is None:
        return platform.predictor.champion()
    return await run_sync(platform.versions.named, f"{MODEL_NAME}/{version}")


def json_object(body: bytes, *, with_nan: bool = False) -> Any:
    """What a JSON body says.

    Args:
        with_nan: take the words NaN and Infinity too, which are not JSON: MLflow's own client sends them.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if with_nan:
            with suppress(ValueError, RecursionError):
                return json.loads(body)
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def _matrix(rows: Sequence[Sequence[Any]]) -> Matrix:
    kinds = set(map(type, chain.from_iterable(rows))) - {float, int, type(None)}
    if kinds:
        raise InvalidRequest(
            f"features are numbers, or null where unknown; there is a {min(k.__name__ for k in kinds)}"
        )
    try:
        with np.errstate(over="ignore"):  # What does not fit is infinite, and found to be so.
            return np.array(rows, dtype=np.float32)
    except OverflowError:
        raise InvalidRequest("a feature is too large for 32 bits") from None


def _check_count(count: int, most: int, what: str) -> None:
    if not 1 <= count <= most:
        raise InvalidRequest(f"{count} {what} were sent; send 1 to {most}")
