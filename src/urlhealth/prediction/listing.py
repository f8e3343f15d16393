"""The registered versions, for a page."""

from dataclasses import dataclass

from urlhealth.errors import one_line
from urlhealth.prediction.champion import has_registry
from urlhealth.settings import Settings
from urlhealth.vocabulary import MODEL_NAME


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """One registered version."""

    version: str
    aliases: tuple[str, ...]
    created_ms: int
    #: What was said when it was registered: why it was promoted, or why not.
    description: str
    run_id: str | None
    #: Of its run.
    metrics: dict[str, float]


def registered(settings: Settings, *, limit: int) -> tuple[list[Registered], str | None]:
    """The newest versions, newest first; and why they cannot be read, where that is so."""
    uri = settings.resolved_tracking_uri
    if not has_registry(uri):
        return [], None
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.search_model_versions(f"name='{MODEL_NAME}'")
        aliases = client.get_registered_model(MODEL_NAME).aliases if found else {}
        newest = sorted(found, key=lambda each: -int(each.version))[:limit]
        return [
            Registered(
                version=str(each.version),
                aliases=tuple(alias for alias, version in sorted(aliases.items()) if str(version) == str(each.version)),
                created_ms=each.creation_timestamp,
                description=each.description or "",
                run_id=each.run_id or None,
                metrics=dict(client.get_run(each.run_id).data.metrics) if each.run_id else {},
            )
            for each in newest
        ], None
    except Exception as error:  # MLflow lets through whatever its back ends raise.
        return [], one_line(error)
