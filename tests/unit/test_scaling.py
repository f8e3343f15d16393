"""The arithmetic of `docs/scaling.md`."""

import re

import pytest

from urlhealth.settings import ROOT

TEXT = (ROOT / "docs" / "scaling.md").read_text()
INPUTS = {name: float(value) for name, value in re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", TEXT, re.MULTILINE)}
OUTPUTS = re.findall(r"^\| `(\w+)` \| ([\w .+*/()]+) \| ([\d,.]+) \|", TEXT, re.MULTILINE)


def test_there_is_something_to_count() -> None:
    assert len(INPUTS) == 20
    assert len(OUTPUTS) == 15


def test_each_input_is_used() -> None:
    used = {name for _, formula, _ in OUTPUTS for name in re.findall(r"[a-z_]+", formula)}
    assert set(INPUTS) <= used


@pytest.mark.parametrize("name", [name for name, _, _ in OUTPUTS])
def test_each_figure_follows_from_those_above_it(name: str) -> None:
    known = dict(INPUTS)
    for its_name, formula, shown in OUTPUTS:
        known[its_name] = eval(formula, {"__builtins__": {}}, known)
        if its_name == name:
            decimals = len(shown.partition(".")[2])
            assert f"{known[name]:,.{decimals}f}" == shown
