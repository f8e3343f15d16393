"""Which registered version serves: what versions there are, promotion, and the way back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from urlhealth.errors import NotFound
from urlhealth.prediction.champion import champion_version
from urlhealth.vocabulary import CHAMPION, MODEL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Alias of the newest model that did not become champion.
CHALLENGER: Final = "challenger"
#: Tag of a champion: the version that it replaced.
REPLACED: Final = "replaced"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One registered version."""

    version: str
    aliases: tuple[str, ...]
    created_ms: int
    #: What was said when it was registered: why it was promoted, or why not.
    description: str
    run_id: str | None
    #: The version that it replaced as champion.
    replaced: str | None


def versions(client: "MlflowClient") -> list[Version]:
    """All versions, newest first."""
    found = client.search_model_versions(f"name='{MODEL_NAME}'")
    aliases = client.get_registered_model(MODEL_NAME).aliases if found else {}
    made = [
        Version(
            version=str(each.version),
            aliases=tuple(alias for alias, version in sorted(aliases.items()) if str(version) == str(each.version)),
            created_ms=each.creation_timestamp,
            description=each.description or "",
            run_id=each.run_id or None,
            replaced=each.tags.get(REPLACED),
        )
        for each in found
    ]
    return sorted(made, key=lambda each: -int(each.version))


def promote(client: "MlflowClient", version: str) -> None:
    """Make a version the champion. It is no challenger any more; which one it replaced is noted for `rollback`.

    Raises:
        NotFound: there is no such version.
    """
    if version not in {each.version for each in versions(client)}:
        raise NotFound(f"{MODEL_NAME} has no version {version}: see `urlhealth models list`")
    aliases = client.get_registered_model(MODEL_NAME).aliases
    if CHAMPION in aliases and str(aliases[CHAMPION]) != version:
        client.set_model_version_tag(MODEL_NAME, version, REPLACED, str(aliases[CHAMPION]))
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
    if str(aliases.get(CHALLENGER)) == version:
        client.delete_registered_model_alias(MODEL_NAME, CHALLENGER)


def rollback(client: "MlflowClient") -> str:
    """Make the version champion that the present one replaced; returns it. The replaced one is the challenger.

    Raises:
        NotFound: the present champion replaced none.
    """
    present = champion_version(client.tracking_uri)
    before = None if present is None else present.tags.get(REPLACED)
    if present is None or before is None:
        raise NotFound("there is nothing to go back to: the champion replaced no other version")
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, before)
    client.set_registered_model_alias(MODEL_NAME, CHALLENGER, str(present.version))
    return str(before)
