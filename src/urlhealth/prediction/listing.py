"""The registered versions for a page, and what is done with them there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from urlhealth.errors import NotFound, UrlHealthError
from urlhealth.prediction.champion import has_registry, unavailable
from urlhealth.prediction.promotion import Version, promote, rollback, versions
from urlhealth.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """A registered version, with what its run holds."""

    version: Version
    #: As `models/runs.py` names them: `onset_24h/brier` is the model's, `its_flips/onset_24h/brier` a plain rule's.
    metrics: dict[str, float]
    #: The run's page in MLflow, if it is known where its pages are.
    run_page: str | None


def registered(settings: Settings, *, limit: int) -> list[Registered]:
    """The newest versions, newest first.

    Raises:
        StoreUnavailable: they cannot be read.
    """
    if not has_registry(settings.resolved_tracking_uri):
        return []
    with _client(settings) as client:
        return [_with_run(client, version, settings.mlflow_pages) for version in versions(client)[:limit]]


def change_champion(settings: Settings, *, to: str | None) -> str:
    """Make a version the champion, or (None) the one that the champion replaced; returns which.

    Raises:
        NotFound: there is no such version.
        StoreUnavailable: the registry cannot be used.
    """
    if not has_registry(settings.resolved_tracking_uri):
        raise NotFound("no version is registered yet: `urlhealth train` makes one")
    with _client(settings) as client:
        if to is None:
            return rollback(client)
        promote(client, to)
        return to


@contextmanager
def _client(settings: Settings) -> "Iterator[MlflowClient]":
    from mlflow import MlflowClient

    try:
        # The registry is by default where the runs are; what another part of the process has set is not asked.
        uri = settings.resolved_tracking_uri
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except UrlHealthError:
        raise
    except Exception as error:  # MLflow lets through whatever its back ends raise.
        raise unavailable(settings.resolved_tracking_uri, error) from error


def _with_run(client: "MlflowClient", version: Version, pages: str) -> Registered:
    if version.run_id is None:
        return Registered(version=version, metrics={}, run_page=None)
    run = client.get_run(version.run_id)
    page = f"{pages}/#/experiments/{run.info.experiment_id}/runs/{version.run_id}" if pages else None
    return Registered(version=version, metrics=dict(run.data.metrics), run_page=page)
