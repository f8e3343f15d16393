"""Targets that are kept, so that most requests need no database."""

from collections.abc import Sequence
from typing import cast

import pytest

from urlhealth.crawl.store import CrawlStore
from urlhealth.prediction import shown
from urlhealth.prediction.shown import KEPT_MS, ShownTargets
from urlhealth.probing.urls import parse_targets

URLS = ["https://a.example", "https://b.example/x"]


class Clock:
    """One that is set by hand."""

    now_ms = 1_767_225_600_000

    def __call__(self) -> int:
        return self.now_ms


class Groups:
    """The one question that is asked of the crawl store: `ann` has both targets, and others have none."""

    group = "shops"

    def groups_of(self, urls: Sequence[str], *, owner: str) -> dict[str, str]:
        return dict.fromkeys(urls, self.group) if owner == "ann" else {}


def test_what_was_found_is_kept_for_its_owner_for_a_while() -> None:
    groups, clock = Groups(), Clock()
    targets = ShownTargets(cast(CrawlStore, groups), clock)
    assert targets.kept(URLS, "ann") is None
    found = targets.look_up(URLS, parse_targets(URLS), "ann")
    assert [(target.url, target.group) for target in found] == [
        ("https://a.example/", "shops"),
        ("https://b.example/x", "shops"),
    ]
    assert targets.kept(URLS, "ann") == found
    assert targets.kept(URLS[:1], "ann") == found[:1]
    assert targets.kept([*URLS, "https://c.example"], "ann") is None
    assert targets.kept(cast(list[str], [["no string"]]), "ann") is None
    assert targets.kept(URLS, "bob") is None

    nobodys = targets.look_up(URLS, parse_targets(URLS), "bob")
    assert {target.host for target in nobodys} == {"nobody.invalid"}
    assert targets.kept(URLS, "bob") is None, "what is not there may come at any time"

    clock.now_ms += KEPT_MS
    assert targets.kept(URLS, "ann") is None
    groups.group = "others"
    assert [target.group for target in targets.look_up(URLS, parse_targets(URLS), "ann")] == ["others", "others"]
    targets.forget()
    assert targets.kept(URLS, "ann") is None
    targets.look_up(URLS, parse_targets(URLS), "ann")
    clock.now_ms -= 1
    assert targets.kept(URLS, "ann") is None, "a clock that goes back ends it"


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "MOST", 1)
    targets = ShownTargets(cast(CrawlStore, Groups()), Clock())
    targets.look_up(URLS, parse_targets(URLS), "ann")
    assert targets.kept(URLS, "ann")
    more = ["https://c.example"]
    targets.look_up(more, parse_targets(more), "ann")
    assert targets.kept(more, "ann")
    assert targets.kept(URLS, "ann") is None
