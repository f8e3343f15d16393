"""What is installed of `requirements.lock`, as a CycloneDX 1.5 document and as a list of licences."""

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_LOCKED = re.compile(
    r"^([A-Za-z0-9._-]+(?:\[[^\]]*\])?==\S+)((?: ;[^\\\n]*)?)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)", re.MULTILINE
)


def locked(lock: str) -> Iterator[tuple[Requirement, list[str]]]:
    """The packages that a lock file is for here, with the SHA-256 of each file that may be installed."""
    for match in _LOCKED.finditer(lock):
        requirement = Requirement(match[1] + match[2])
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement, re.findall(r"sha256:([0-9a-f]{64})", match[3])


def licence(metadata: Any) -> str:
    """What a package says of its licence: an expression, else classifiers, else the first line of its text."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    said = [each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier", []) if each.startswith("License ::")]
    text = (metadata.get("License") or "").strip().partition("\n")[0]
    return ", ".join(said) or text[:80] or "not said"


def components(lock: str) -> list[dict[str, Any]]:
    """The components of the document, by name.

    Raises:
        SystemExit: another version is installed than is locked.
    """
    found = []
    for requirement, hashes in locked(lock):
        version = str(requirement.specifier).removeprefix("==")
        distribution = importlib.metadata.distribution(requirement.name)
        if distribution.version != version:
            raise SystemExit(f"{requirement.name} {distribution.version} is installed, {version} is locked: make setup")
        name = canonicalize_name(requirement.name)
        purl = f"pkg:pypi/{name}@{version}"
        found.append(
            {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
                "licenses": [{"license": {"name": licence(distribution.metadata)}}],
                # Of the wheels and archives, of which one is installed.
                "externalReferences": [
                    {
                        "type": "distribution",
                        "url": purl,
                        "hashes": [{"alg": "SHA-256", "content": each} for each in hashes],
                    }
                ],
            }
        )
    return sorted(found, key=lambda component: str(component["name"]))


def document(lock: str) -> dict[str, Any]:
    """The CycloneDX document. It says no time, so that the same lock gives the same file."""
    version = importlib.metadata.version("urlhealth")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "urlhealth", "version": version}},
        "components": components(lock),
    }


def main(lock: str, sbom: str, licences: str) -> None:
    """Read the lock file; write the two others."""
    made = document(Path(lock).read_text())
    Path(sbom).write_text(json.dumps(made, indent=1) + "\n")
    lines = (f"{c['name']} {c['version']}: {c['licenses'][0]['license']['name']}" for c in made["components"])
    Path(licences).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
