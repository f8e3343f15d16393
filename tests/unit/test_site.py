"""The documentation as a site: it builds without a warning, and its reference has all that the code has."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import typer

from serving.app import create_app
from serving.routes import pages, ui, ui_models, ui_monitors
from tests.support import environment, run
from urlhealth.cli import app
from urlhealth.features.catalog import VECTOR
from urlhealth.settings import ROOT, Settings, variable


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    env = environment(tmp_path_factory.mktemp("home"), NO_MKDOCS_2_WARNING="1")
    done = run("python", "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(folder), env=env)
    assert done.stdout + done.stderr == ""
    return folder


def codes(site: Path, page: str) -> set[str]:
    """What stands as code on a page."""
    html = (site / page).read_text(encoding="utf-8")
    return {unescape(re.sub(r"<[^>]+>", "", found)) for found in re.findall(r"<code>(.*?)</code>", html, re.DOTALL)}


def commands(command: typer.core.TyperCommand, name: str = "urlhealth") -> Iterator[tuple[str, list[str]]]:
    """Every command, with the names of its options."""
    if isinstance(command, typer.core.TyperGroup):
        for below, its in command.commands.items():
            yield from commands(its, f"{name} {below}")
    else:
        yield name, [option for each in command.params for option in each.opts if option.startswith("--")]


def test_every_command_and_option_is_there(site: Path) -> None:
    found = codes(site, "reference/cli.html")
    options = {part for text in found for part in re.findall(r"--[\w-]+", text)}
    all_of_them = list(commands(typer.main.get_command(app)))
    assert len(all_of_them) > 30
    for name, its in all_of_them:
        assert name in found
        assert set(its) <= options, name


def test_every_setting_is_there(site: Path) -> None:
    assert {variable(name) for name in Settings.model_fields} <= codes(site, "reference/settings.html")


def test_every_call_and_every_page_is_there(site: Path) -> None:
    document = create_app().openapi()
    calls = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    routes = [*pages.router.routes, *ui.router.routes, *ui_models.router.routes, *ui_monitors.router.routes]
    shown = {f"{method} {route.path}" for route in routes for method in route.methods}
    assert len(calls) > 50
    assert len(shown) > 15
    assert calls | shown <= codes(site, "reference/rest.html")


def test_every_feature_is_there(site: Path) -> None:
    assert {feature.name for feature in VECTOR} <= codes(site, "features.html")


def test_every_metric_is_there(site: Path) -> None:
    source = (ROOT / "serving" / "metrics.py").read_text(encoding="utf-8")
    named = set(re.findall(r'"(urlhealth_\w+)"', source))
    named |= {f"urlhealth_live_{each}" for each in ("n", "average_precision", "brier")}
    assert len(named) > 25
    assert named <= codes(site, "reference/metrics.html")


def test_names_of_pages_are_links_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert 'href="quickstart.html"' in (site / "index.html").read_text(encoding="utf-8")
    html = "".join(page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    loaded = r'<(?:script|img)[^>]* src="https?:[^"]*|<link[^>]* rel="(?:stylesheet|preload)"[^>]*https?:'
    assert re.findall(loaded, html) == []
