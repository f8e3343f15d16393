"""`docs/feast-contract.md` names every public method of Feast's contract, and only tests that are there."""

import re
from pathlib import Path
from typing import Any

import pytest
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob
from feast.infra.online_stores.online_store import OnlineStore

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "feast-contract.md").read_text()


@pytest.mark.parametrize("contract", [OfflineStore, RetrievalJob, OnlineStore, ComputeEngine])
def test_every_public_method_is_named(contract: type[Any]) -> None:
    methods = [name for name in vars(contract) if re.fullmatch("[a-z][a-z_0-9]*", name)]
    assert methods
    assert [name for name in methods if f"`{name}`" not in PAGE] == []


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(?:(\w+)/)?(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 30
    for folder, file, test in named:
        assert f"def {test}(" in (TESTS / (folder or "contract") / file).read_text()
