"""Writes what of the client is derived: `models.py` from the platform's OpenAPI document, `sync.py` from `aio.py`.

Run by `make client`; a test holds both files equal to what this makes.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = Path(__file__).parent / "src" / "urlhealth_client"

#: Schemas of replies, which become pydantic models together with those that they refer to.
REPLIES: Final = (
    "CurrentItem", "Features", "Incident", "Monitor", "MonitorAnswers", "Predictions", "ProblemItem", "Ready", "Task",
    "TaskCreated", "TaskResult", "UrlHistory", "UrlState",
)  # fmt: skip
#: Schemas of requests, which become typed dictionaries, so that the platform alone says what it takes.
REQUESTS: Final = ("MonitorPatch", "MonitorRequest", "Options")
_SCALARS: Final[dict[str, str]] = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
}
_HEAD: Final = '''\
"""What the platform takes and replies: made from its OpenAPI document by `generate.py`. Do not edit.

Replies may have fields and words that this version does not know: the first are left out, the second are strings.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal, Required, TypedDict

from pydantic import BaseModel, PlainSerializer

#: An instant, UTC; in JSON as the platform writes it, with milliseconds.
Time = Annotated[
    datetime,
    PlainSerializer(
        lambda at: at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z", when_used="json"
    ),
]
'''

#: From the asynchronous client to the other.
_SYNC: Final = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync(Client|Iterator|BaseTransport)\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclose\b", "close"),
    (r"\baread\b", "read"),
    (r"\baiter_lines\b", "iter_lines"),
    (r"\basyncio\b", "time"),
    (r'^""".*?"""', '"""The client for other programs. Made from `aio.py` by `generate.py`. Do not edit."""'),
)


def models(document: dict[str, Any]) -> str:
    """The source of `models.py`."""
    schemas = document["components"]["schemas"]
    replies = _closure(REPLIES, schemas)
    words = [name for name in replies if "enum" in schemas[name]]
    parts = [_HEAD]
    for name in words:
        literal = ", ".join(map(repr, schemas[name]["enum"]))
        comment = "\n".join(line.strip() for line in _comment(schemas[name]))
        parts.append(f"{comment}\n{name} = Literal[{literal}] | str\n")
    parts += [_model(name, schemas[name]) for name in replies if name not in words]
    parts += [_typed_dict(name, schemas) for name in _closure(REQUESTS, schemas) if "enum" not in schemas[name]]
    return _formatted("\n\n".join(parts))


def sync(source: str) -> str:
    """The source of `sync.py`, of that of `aio.py`."""
    for pattern, replacement in _SYNC:
        source = re.sub(pattern, replacement, source, flags=re.DOTALL)
    return _formatted(source)


def _closure(roots: Any, schemas: dict[str, Any]) -> list[str]:
    """The roots and all that they refer to, each after what it refers to."""
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in found:
            for other in _references(schemas[name]):
                visit(other)
            found[name] = None

    for root in sorted(roots):
        visit(root)
    return list(found)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for part in schema.values():
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _model(name: str, schema: dict[str, Any]) -> str:
    lines = [f"class {name}(BaseModel):", f'    """{schema["description"]}"""', ""]
    required = schema.get("required", ())
    for field, about in schema["properties"].items():
        default = "" if field in required else f" = {about.get('default')!r}"
        if field not in required and "$ref" in about:
            default = ""
        lines += _comment(about)
        lines.append(f"    {field}: {_type(about)}{default}")
    return "\n".join(lines) + "\n"


def _typed_dict(name: str, schemas: dict[str, Any]) -> str:
    schema = schemas[name]
    lines = [f"class {_request_name(name)}(TypedDict, total=False):", f'    """{schema["description"]}"""', ""]
    for field, about in schema["properties"].items():
        kind = _type(about, schemas)
        lines += _comment(about)
        lines.append(f"    {field}: {f'Required[{kind}]' if field in schema.get('required', ()) else kind}")
    return "\n".join(lines) + "\n"


def _comment(about: dict[str, Any]) -> list[str]:
    words = about.get("description", "").split()
    lines: list[str] = []
    for word in words:
        if not lines or len(lines[-1]) + len(word) > 110:
            lines.append("    #:")
        lines[-1] += f" {word}"
    return lines


def _request_name(name: str) -> str:
    return name if name.startswith("Monitor") else f"{name}Dict"


def _type(schema: Any, requests: dict[str, Any] | None = None) -> str:
    """The annotation of a field: of a reply, or, where all schemas are given, of a request."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        if requests is None:
            return name
        return _type(requests[name], requests) if "enum" in requests[name] else _request_name(name)
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(part, requests) for part in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        literal = f"Literal[{', '.join(map(repr, schema.get('enum') or [schema['const']]))}]"
        return literal if requests else f"{literal} | str"
    match str(schema.get("type")):
        case "array":
            return f"list[{_type(schema['items'], requests)}]"
        case "object":
            values = schema.get("additionalProperties")
            return f"dict[str, {_type(values, requests) if isinstance(values, dict) else 'object'}]"
        case "string" if schema.get("format") == "date-time":
            return "datetime | str" if requests else "Time"
        case scalar:
            return _SCALARS.get(scalar, "object")


def _formatted(source: str) -> str:
    for command in (
        ("check", "--select", "I,F401,C416,UP028", "--fix", "--unsafe-fixes", "--quiet"),
        ("format", "--quiet"),
    ):
        command = (sys.executable, "-m", "ruff", *command, "--stdin-filename", str(PACKAGE / "made.py"), "-")
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return source


def made() -> dict[Path, str]:
    """Each derived file, and what it must be."""
    from serving.app import create_app

    return {
        PACKAGE / "models.py": models(create_app().openapi()),
        PACKAGE / "sync.py": sync((PACKAGE / "aio.py").read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
