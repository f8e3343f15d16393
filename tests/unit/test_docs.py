"""The documentation keeps up with the code."""

import re

import pytest

from serving.app import create_app
from urlhealth.features.page import page as features_page
from urlhealth.settings import ROOT, Settings, variable
from urlhealth.vocabulary import Outcome

DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_in_its_own_words(name: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", (DOCS / "configuration.md").read_text(), re.MULTILINE))
    assert rows[variable(name)] == Settings.model_fields[name].description


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_documented_with_its_health(outcome: Outcome) -> None:
    assert re.search(rf"^\| `{outcome}` \|.*\| {outcome.health} \|", (DOCS / "probing.md").read_text(), re.MULTILINE)


def test_every_call_that_the_serving_page_names_is_there() -> None:
    text = (DOCS / "serving.md").read_text()
    named = set(re.findall(r"`(GET|POST|DELETE) (/[^`?]*)`", text))
    paths = create_app().openapi()["paths"]
    assert len(named) > 15
    assert [(method, path) for method, path in sorted(named) if method.lower() not in paths.get(path, {})] == []


def test_the_page_of_features_is_made_from_the_code() -> None:
    assert (DOCS / "features.md").read_text() == features_page()


@pytest.mark.parametrize("page", ["walkthrough.md", "architecture.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    text = (DOCS / page).read_text()
    paths = set(re.findall(r"`((?:src|serving|models|feature_repo|tests|docs|demo|notebooks)/[\w./]*)`", text))
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    modules = set(re.findall(r"`((?:probing|crawl|features|feast_stores|prediction)/\w+\.py)`", text))
    assert [path for path in sorted(modules) if not (ROOT / "src/urlhealth" / path).exists()] == []
