"""The newest probes of many targets, over every backend."""

import sqlalchemy as sa

from tests.contract.conftest import HandClock
from urlhealth.crawl.store import CrawlStore
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Outcome, ProbeResult


def test_each_target_has_its_newest_probes_first(engine: sa.Engine, clock: HandClock) -> None:
    store = CrawlStore(engine, clock=clock)
    targets = [parse_target(f"https://{n}.example") for n in range(250)]
    store.import_probes(
        (target, ProbeResult(target=target.key, ts_ms=1_000 * n + m, outcome=Outcome.OK, status_code=200 + m))
        for n, target in enumerate(targets)
        for m in range(4)
    )
    store.import_probes(
        [(targets[0], ProbeResult(target=targets[0].key, ts_ms=99, outcome=Outcome.DNS))], owner="other"
    )
    keys = [target.key for target in targets]
    found = store.newest_probes([*keys, "https://never.example/"], limit=3)
    assert list(found) == [*keys, "https://never.example/"]
    assert found.pop("https://never.example/") == []
    for n, (key, results) in enumerate(found.items()):
        assert [(result.target, result.ts_ms) for result in results] == [(key, 1_000 * n + m) for m in (3, 2, 1)]
        assert [result.status_code for result in results] == [203, 202, 201]
    assert store.newest_probes([], limit=3) == {}
