"""The bill of materials says what is locked, and nothing that we may not ship is in it."""

from benchmarks.sbom import document
from urlhealth.settings import ROOT

LOCK = (ROOT / "requirements.lock").read_text()


def test_every_package_is_locked_with_hashes_and_listed() -> None:
    made = document(LOCK)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.5")
    names = {component["name"] for component in made["components"]}
    assert {"fastapi", "pycurl", "cryptography", "mlflow"} <= names
    assert len(names) == len(made["components"]) > 100
    for component in made["components"]:
        (files,) = component["externalReferences"]
        assert files["hashes"], component["name"]
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"


def test_no_licence_forbids_what_we_do() -> None:
    for component in document(LOCK)["components"]:
        name = component["licenses"][0]["license"]["name"]
        assert not any(word in name for word in ("AGPL", "SSPL", "Commercial", "GPL-3.0-or-later", "GPL-2.0")), (
            component
        )


def test_the_lock_names_no_index() -> None:
    assert "://" not in LOCK
