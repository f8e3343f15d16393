"""The documentation keeps up with the code."""

import re

import pytest

from urlhealth.settings import ROOT, Settings
from urlhealth.vocabulary import Outcome

DOCS = ROOT / "docs"


def variable(name: str) -> str:
    alias = Settings.model_fields[name].validation_alias
    return str(alias.choices[0]) if hasattr(alias, "choices") else f"URLHEALTH_{name.upper()}"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_in_its_own_words(name: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", (DOCS / "configuration.md").read_text(), re.MULTILINE))
    assert rows[variable(name)] == Settings.model_fields[name].description


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_documented_with_its_health(outcome: Outcome) -> None:
    assert re.search(rf"^\| `{outcome}` \|.*\| {outcome.health} \|", (DOCS / "probing.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", ["walkthrough.md", "architecture.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    text = (DOCS / page).read_text()
    paths = set(re.findall(r"`((?:src|serving|models|feature_repo|tests|docs|demo|notebooks)/[\w./]*)`", text))
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    modules = set(re.findall(r"`((?:probing|crawl|features|feast_stores|prediction)/\w+\.py)`", text))
    assert [path for path in sorted(modules) if not (ROOT / "src/urlhealth" / path).exists()] == []
