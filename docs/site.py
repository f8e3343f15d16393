"""What `mkdocs build` adds to the pages in this folder: the reference, made from the code, and links between pages."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fastapi import FastAPI
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from serving.access import scope_needed
from serving.app import create_app
from serving.metrics import Metrics
from serving.routes import pages, ui, ui_models, ui_monitors
from urlhealth.platform import Platform
from urlhealth.settings import Settings, variable

_MADE: Final = "Made from the code when this site is built.\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference."""
    app = create_app()
    made = {"cli": cli(), "settings": settings(), "rest": rest(app), "metrics": metrics()}
    for name, text in made.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: object) -> str:
    """Make links of the names of pages, which stand in the texts as `docs/NAME.md`."""

    def link(found: re.Match[str]) -> str:
        target = files.get_file_from_path(found[1])
        if target is None or target == page.file:
            return found[0]
        depth = page.file.src_uri.count("/")
        return f"[{found[1].removesuffix('.md')}]({'../' * depth}{found[1]})"

    # Not in blocks of code.
    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"`docs/([\w/-]+\.md)`", link, part) for part in parts[::2]]
    return "".join(parts)


def cli() -> str:
    """Every command, its arguments and options, as Typer writes them down."""
    write = [
        sys.executable,
        "-m",
        "typer",
        "urlhealth.cli",
        "utils",
        "docs",
        "--name",
        "urlhealth",
        "--title",
        "Commands",
    ]
    return subprocess.run(write, capture_output=True, text=True, check=True).stdout


def settings() -> str:
    """Every setting, with its type and limits."""
    rows = []
    for name, field in Settings.model_fields.items():
        limits = [str(each) for each in field.metadata if type(each).__name__ in ("Ge", "Gt", "Le", "Lt", "MinLen")]
        default = field.get_default()
        shown = "" if default in ("", (), None) or isinstance(default, Path) else f"`{default}`"
        kind = re.sub(r"\w+\.", "", str(getattr(field.annotation, "__name__", field.annotation)))
        rows.append((f"`{variable(name)}`", f"{kind} {' '.join(limits)}".strip(), shown, field.description or ""))
    about = "All are environment variables; `docs/configuration.md` says whose settings count.\n"
    return "\n".join(["# Settings", _MADE, about, _table(("variable", "type", "default", "meaning"), rows)])


def rest(app: FastAPI) -> str:
    """Every call of the OpenAPI document by tag, and every page."""
    document = app.openapi()
    parts = ["# Calls", _MADE, "`/docs` of a running platform tries them out; `docs/serving.md` explains them.\n"]
    for tag in document["tags"]:
        parts.append(f"## {tag['name']}\n\n{tag['description']}\n")
        for path, methods in document["paths"].items():
            for method, call in methods.items():
                if tag["name"] in call.get("tags", ()):
                    parts.extend(_call(method.upper(), path, call))
    rows = (
        (f"`{method} {route.path}`", _scope(method, route.path), _inline(route.endpoint.__doc__))
        for router in (pages.router, ui.router, ui_models.router, ui_monitors.router)
        for route in router.routes
        for method in sorted(route.methods)
    )
    parts += ["## Pages\n", _table(("call", "scope", "what it is"), rows)]
    return "\n".join(parts)


def _call(method: str, path: str, call: dict[str, Any]) -> Iterator[str]:
    yield f"### `{method} {path}`\n\n{call.get('summary', '')}. Scope: {_scope(method, path)}.\n"
    yield f"{inspect.cleandoc(call.get('description', ''))}\n"
    rows = [
        (f"`{each['name']}`", each["in"], "yes" if each.get("required") else "", _inline(each.get("description")))
        for each in call.get("parameters", ())
    ]
    for media, body in call.get("requestBody", {}).get("content", {}).items():
        rows.append((f"`{media}`", "body", "yes", _inline(call["requestBody"].get("description")) or _kind(body)))
    if rows:
        yield _table(("parameter", "in", "required", "what it is"), rows)
    replies = ((f"{status}", _inline(reply.get("description"))) for status, reply in call["responses"].items())
    yield _table(("status", "answer"), replies)


def _kind(body: dict[str, Any]) -> str:
    return str(body.get("schema", {}).get("$ref", "")).rpartition("/")[2]


def _scope(method: str, path: str) -> str:
    return str(scope_needed(method, re.sub(r"\{\w+\}", "x", path)) or "none")


def metrics() -> str:
    """Every metric of `/metrics`."""
    with TemporaryDirectory() as home, closing(Platform(Settings(home=Path(home), mlflow_tracking_uri=""))) as platform:
        platform.open(check=False)
        rows = [(f"`{each.name}`", each.type, each.documentation) for each in Metrics(lambda: platform).families()]
    about = "Names as Prometheus has them: counters end in `_total`, histograms in `_bucket`, `_count` and `_sum`.\n"
    return "\n".join(["# Metrics", _MADE, about, _table(("metric", "type", "what it is"), sorted(rows))])


def _inline(text: str | None) -> str:
    """On one line, as a table has it."""
    return re.sub(r"\s+", " ", (text or "").strip()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
