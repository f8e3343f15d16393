"""Carried state and vectors against the definitions, whatever order and batches the verdicts come in."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from tests.unit import features_reference
from tests.unit.strategies import LATE_S, START_MS, TARGETS, Probe, arrivals, batches, histories, verdicts
from urlhealth.errors import StateMismatch
from urlhealth.features import vector
from urlhealth.features.advance import RECENT_VERDICTS, Advanced, CarriedStates, advance
from urlhealth.features.catalog import GROUP_STATE, HOST_STATE, STATE_VIEWS, URL_STATE, VECTOR, describe
from urlhealth.features.columns import StateView, names
from urlhealth.features.decay import DAY_MS, HALF_LIVES_H, HOUR_MS, decay
from urlhealth.features.pools import decayed_cumsum
from urlhealth.features.views import POOL_DAYS

KNOWN_FOR_S = 172_800.0

Table = dict[tuple[str, str], dict[int, np.ndarray]]


def run(parts: list[list[Probe]]) -> tuple[Table, list[Advanced]]:
    """Advance batch by batch; the states by (view, key) and instant as a store would have them at the end."""
    carried: dict[str, dict[str, bytes]] = {"url": {}, "host": {}, "group": {}}
    table: Table = {}
    steps = []
    for part in parts:
        advanced = advance(carried, verdicts(part), known_for_s=KNOWN_FOR_S, late_s=LATE_S)
        for kind, states in advanced.carried.items():
            carried[kind] |= states
        for rows in advanced.rows:
            assert len(set(zip(rows.keys, rows.ts_ms, strict=True))) == len(rows)
            for key, ts_ms, state in zip(rows.keys, rows.ts_ms, rows.states, strict=True):
                table.setdefault((rows.view.name, key), {})[int(ts_ms)] = state
        steps.append(advanced)
    return table, steps


def state_at(table: Table, view: StateView, key: str, t: int) -> np.ndarray:
    """The newest state not after t, shape (1,): what a point-in-time join gives."""
    rows = table.get((view.name, key), {})
    past = [ts_ms for ts_ms in rows if ts_ms <= t]
    return rows[max(past)].reshape(1) if past else view.initial(1)


def vector_at(table: Table, target: tuple[str, str, str], t: int) -> np.ndarray:
    states = {view.name: state_at(table, view, key, t) for view, key in zip(STATE_VIEWS, target, strict=True)}
    return vector.at(states, np.array([t]), known_for_s=KNOWN_FOR_S)[0]


def assert_same(one: Table, other: Table) -> None:
    """Integers equal, decayed sums up to rounding."""
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].keys() == other[key].keys(), key
        for ts_ms in one[key]:
            for column in one[key][ts_ms].dtype.names or ():
                a, b = one[key][ts_ms][column], other[key][ts_ms][column]
                if np.issubdtype(a.dtype, np.integer):
                    np.testing.assert_array_equal(a, b, err_msg=f"{key} {ts_ms} {column}")
                else:
                    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=f"{key} {ts_ms} {column}")


@settings(deadline=None, max_examples=60)
@given(data=st.data(), probes=histories())
def test_vector_equals_the_definitions_on_the_history_cut_at_t(data: st.DataObject, probes: list[Probe]) -> None:
    table, _ = run(data.draw(batches(probes)))
    for _ in range(4 if probes else 0):
        seen = probes[data.draw(st.integers(0, len(probes) - 1))]
        t = seen.ts_ms + data.draw(st.sampled_from([0, 1, 90_000, HOUR_MS, 7 * HOUR_MS, 40 * HOUR_MS, 60 * HOUR_MS]))
        for target in TARGETS:
            if any(p.target == target[0] and p.ts_ms <= t for p in probes):
                expected = features_reference.vector(probes, target[0], t, int(KNOWN_FOR_S * 1000))
                values = vector_at(table, target, t)
                for i, feature in enumerate(VECTOR):
                    np.testing.assert_allclose(
                        values[i], expected[feature.name], rtol=2e-5, atol=2e-5, err_msg=f"{feature.name} at {t}"
                    )


@settings(deadline=None, max_examples=60)
@given(data=st.data(), probes=histories())
def test_live_equals_rebuilt_whatever_comes_late_or_twice(data: st.DataObject, probes: list[Probe]) -> None:
    live, steps = run(data.draw(arrivals(probes)))
    rebuilt, _ = run([probes] if probes else [])
    assert_same(live, rebuilt)
    assert sum(step.late for step in steps) == 0


@settings(deadline=None, max_examples=40)
@given(data=st.data(), probes=histories())
def test_states_kept_from_batch_to_batch_equal_those_carried_as_bytes(data: st.DataObject, probes: list[Probe]) -> None:
    """As a rebuild folds, and as live micro-batches do: row by row, bit for bit."""
    parts = data.draw(arrivals(probes))
    table, steps = run(parts)
    kept = CarriedStates({}, known_for_s=KNOWN_FOR_S, late_s=LATE_S)
    carried: dict[str, dict[str, bytes]] = {"url": {}, "host": {}, "group": {}}
    for part, step in zip(parts, steps, strict=True):
        rows, late = kept.advance(verdicts(part))
        assert late == step.late
        for one, other in zip(rows, step.rows, strict=True):
            assert (one.keys.tolist(), one.ts_ms.tolist()) == (other.keys.tolist(), other.ts_ms.tolist())
            assert one.states.tobytes() == other.states.tobytes()
        for kind, states in step.carried.items():
            carried[kind] |= states
    assert kept.packed() == carried
    for newest in kept.newest():
        assert set(newest.keys) == {key for view, key in table if view == newest.view.name}
        for key, ts_ms, state in zip(newest.keys, newest.ts_ms, newest.states, strict=True):
            rows_of_key = table[newest.view.name, key]
            assert ts_ms == max(rows_of_key)
            assert state.tobytes() == rows_of_key[ts_ms].tobytes()


@settings(deadline=None, max_examples=20)
@given(data=st.data(), probes=histories())
def test_nothing_later_than_a_state_is_in_it(data: st.DataObject, probes: list[Probe]) -> None:
    t = data.draw(st.sampled_from([p.ts_ms for p in probes])) if probes else START_MS
    whole, _ = run([probes] if probes else [])
    cut = [p for p in probes if p.ts_ms <= t]
    past = {key: {ts: state for ts, state in rows.items() if ts <= t} for key, rows in whole.items()}
    assert_same({key: rows for key, rows in past.items() if rows}, run([cut] if cut else [])[0])


def steady(n: int, *, step_s: int = 5, health: int = 1) -> list[Probe]:
    url, host, group = TARGETS[0]
    return [
        Probe(probe_id=i + 1, target=url, host=host, group=group, ts_ms=START_MS + i * step_s * 1000, health=health)
        for i in range(n)
    ]


def test_a_verdict_later_than_late_s_is_counted_and_left_out() -> None:
    probes = steady(40, step_s=60)
    late = replace(probes[5], probe_id=900, ts_ms=probes[5].ts_ms + 1, health=0)
    table, steps = run([probes, [late]])
    assert steps[1].late == 1
    assert [len(rows) for rows in steps[1].rows] == [0, 0, 0]
    assert_same(table, run([probes])[0])
    # A rebuild brings it in.
    rebuilt, _ = run([sorted([*probes, late], key=lambda p: p.ts_ms)])
    assert rebuilt["url_state", late.target][probes[-1].ts_ms]["onsets"][-1] == 1


def test_what_is_kept_of_many_verdicts_is_bounded_and_still_takes_late_ones() -> None:
    probes = steady(119)
    late = replace(probes[100], probe_id=900, ts_ms=probes[100].ts_ms + 1, health=0)
    too_late = replace(late, probe_id=901, ts_ms=probes[20].ts_ms + 1)
    table, steps = run([probes[:50], probes[50:], [late, too_late]])
    assert steps[2].late == 1
    assert_same(table, run([sorted([*probes, late], key=lambda p: p.ts_ms)])[0])
    state, verdict = URL_STATE.dtype.itemsize, 69
    assert len(steps[2].carried["url"][late.target]) == 8 + 2 * state + RECENT_VERDICTS * verdict


def test_a_state_is_known_for_48_hours_and_a_change_after_that_is_no_onset() -> None:
    first, second = steady(2, step_s=60 * 3600)
    table, _ = run([[first, replace(second, health=0)]])
    state = table["url_state", first.target][second.ts_ms]
    assert state["up_hours"][-1] == pytest.approx(48)
    assert state["onsets"][-1] == 0
    assert state["since_ms"] == second.ts_ms
    at = {name: vector_at(table, TARGETS[0], first.ts_ms + h * HOUR_MS) for name, h in (("in", 48), ("after", 49))}
    now = names(VECTOR).index("failing_now")
    assert at["in"][now] == 0
    assert np.isnan(at["after"][now])


def test_a_verdict_that_says_nothing_moves_only_the_last_verdict() -> None:
    first, second = steady(2, step_s=3600)
    table, _ = run([[first], [replace(second, health=-1, status_code=403, http_version=20)]])
    before, after = (table["url_state", first.target][p.ts_ms] for p in (first, second))
    changed = {
        name for name in URL_STATE.dtype.names or () if not np.array_equal(before[name], after[name], equal_nan=True)
    }
    assert changed == {"probed_ms", "outcome", "status_code", "http_version"}
    assert list(table["host_state", first.host]) == [first.ts_ms]


def test_a_pool_takes_back_what_a_duplicate_with_a_lower_id_contradicts() -> None:
    first, second = steady(2, step_s=60)
    table, _ = run([[first], [replace(second, health=0, probe_id=7)], [replace(second, health=-1, probe_id=6)]])
    rows = table["group_state", first.group]
    assert rows[second.ts_ms]["group_onsets"][-1] == 0
    assert rows[second.ts_ms]["group_urls"][0] == 1
    assert rows[second.ts_ms]["group_urls_failing"][0] == 0


@pytest.mark.parametrize("size", [37, 1000, 5000])
@pytest.mark.parametrize("step_ms", [97_000, 800], ids=["days", "more than is kept"])
@pytest.mark.parametrize("order", ["ts_ms", "target"])
def test_pools_are_the_sums_of_their_urls(size: int, step_ms: int, order: str) -> None:
    rng = np.random.default_rng(4)
    probes = [
        Probe(
            probe_id=i,
            target=f"https://h{u % 3}.example/{u}",
            host=f"h{u % 3}.example",
            group="one",
            ts_ms=START_MS + i // 4 * step_ms * 4,
            health=int(rng.random() > 0.3),
        )
        # Four URLs at each instant.
        for i, u in enumerate(4 * rng.integers(0, 5, 3000) + np.arange(3000) % 4)
    ]
    # By target: one URL after the other, so that most transitions are long past for their pool.
    probes = sorted(probes, key=lambda p: (getattr(p, order), p.ts_ms))
    table, _ = run([probes[i : i + size] for i in range(0, len(probes), size)])
    urls = {key: rows for (view, key), rows in table.items() if view == "url_state"}
    for view, prefix in (("host_state", "h1.example"), ("group_state", "one")):
        entity = view.removesuffix("_state")
        ts_ms = max(table[view, prefix])
        pool = table[view, prefix][ts_ms]
        members = [rows[max(rows)] for key, rows in urls.items() if prefix == "one" or f"//{prefix}/" in key]
        ages = np.array([(ts_ms - m["known_ms"]) / HOUR_MS for m in members])
        for name in ("onsets", "up_hours", "failing_hours"):
            total = (np.stack([m[name] for m in members]) * decay(ages)).sum(axis=0)
            np.testing.assert_allclose(pool[f"{entity}_{name}"], total, rtol=1e-9)
        days = [ts_ms // DAY_MS - m["known_ms"] // DAY_MS for m in members]
        failing = [day for day, m in zip(days, members, strict=True) if m["failing"]]
        assert pool[f"{entity}_urls"].tolist() == [days.count(k) for k in range(POOL_DAYS)]
        assert pool[f"{entity}_urls_failing"].tolist() == [failing.count(k) for k in range(POOL_DAYS)]


def test_a_verdict_long_past_for_its_pool_is_counted_on_its_own_day() -> None:
    """One URL is filed until today, then the other, last seen two days ago, which a third verdict moves on."""
    today = steady(1)[0]
    others = [
        replace(today, target=TARGETS[1][0], probe_id=10 + k, ts_ms=today.ts_ms - back * DAY_MS, health=0)
        for k, back in enumerate((3, 2))
    ]
    table, _ = run([[today], others])
    pool = table["group_state", today.group][today.ts_ms]
    assert pool["group_urls"].tolist() == [1, 0, 1]
    assert pool["group_urls_failing"].tolist() == [0, 0, 1]


def test_onsets_are_counted_once_for_each_hour_and_each_day() -> None:
    """Onsets at 10:05, 10:20 and 12:10 on one Thursday, and at 10:10 on the next."""
    day = START_MS // DAY_MS * DAY_MS
    url, host, group = TARGETS[0]
    minutes = [(0, 1), (605, 0), (610, 1), (620, 0), (625, 1), (730, 0), (735, 1)]
    minutes += [(1440 * d, 1) for d in range(1, 8)] + [(7 * 1440 + 610, 0)]
    table, _ = run(
        [
            [
                Probe(probe_id=i, target=url, host=host, group=group, ts_ms=day + minute * 60_000, health=health)
                for i, (minute, health) in enumerate(minutes)
            ]
        ]
    )
    state = table["url_state", url][day + (7 * 1440 + 610) * 60_000]
    assert state["onset_hours"].tolist() == [1 << 10, *[0] * 6, 1 << 10 | 1 << 12, *[0] * 23]
    minutes_ago = (state["recent_onset_ms"][:5] - state["known_ms"]) / 60_000
    assert minutes_ago[:4].tolist() == [0, 120 - 7 * 1440, 10 - 7 * 1440, -5 - 7 * 1440]
    assert state["recent_onset_ms"][4:].tolist() == [0] * 12
    thursday = 3
    assert state["weekday_onsets"][thursday] == pytest.approx(1 + 2 ** -((7 * 24 + 5 / 60) / 2160))
    assert state["weekday_onsets"].sum() == state["weekday_onsets"][thursday]


def test_decayed_running_sums_hold_over_many_blocks_and_runs() -> None:
    rng = np.random.default_rng(0)
    values, left = rng.random((5000, 2, 3)), rng.random((5000, 3)) ** 0.1
    first = np.zeros(5000, bool)
    first[[0, 1, 40, 3000]] = True
    expected = values.copy()
    for i in range(5000):
        if not first[i]:
            expected[i] += expected[i - 1] * left[i]
    decayed_cumsum(values, left, first)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_state_of_another_version_or_setting_is_refused() -> None:
    probes = steady(2)
    carried = advance({}, verdicts(probes[:1]), known_for_s=KNOWN_FOR_S, late_s=LATE_S).carried
    with pytest.raises(StateMismatch, match="urlhealth features build"):
        advance(carried, verdicts(probes[1:]), known_for_s=3600, late_s=LATE_S)


def test_an_empty_batch_changes_nothing() -> None:
    advanced = advance({}, verdicts([]), known_for_s=KNOWN_FOR_S, late_s=LATE_S)
    assert [len(rows) for rows in advanced.rows] == [0, 0, 0]
    assert advanced.carried == {"url": {}, "host": {}, "group": {}}


@pytest.mark.parametrize("view", STATE_VIEWS, ids=lambda view: view.name)
def test_states_survive_arrow_with_and_without_nulls(view: StateView) -> None:
    rng = np.random.default_rng(1)
    states = view.initial(7)
    for column in view.columns:
        shape = states[column.name].shape
        states[column.name] = rng.integers(0, 9, shape) + (0.5 if column.dtype.startswith("float") else 0)
    table = pa.table({f"x__{name}": array for name, array in view.to_arrow(states).items()})
    np.testing.assert_array_equal(view.from_arrow(table, prefix="x__"), states)
    with_nulls = table.take(pa.array([0, None, 3, None, 6]))
    restored = view.from_arrow(pa.concat_tables([with_nulls, table.slice(1, 2)]), prefix="x__")
    np.testing.assert_array_equal(restored[[0, 2, 4, 5, 6]], states[[0, 3, 6, 1, 2]])
    assert restored[[1, 3]].tobytes() == view.initial(2).tobytes()


def test_the_three_views_share_no_column_name() -> None:
    columns = [name for view in (URL_STATE, HOST_STATE, GROUP_STATE) for name in names(view.columns)]
    assert len(columns) == len(set(columns))


def test_of_a_url_never_probed_only_priors_and_the_calendar_are_known() -> None:
    states = {view.name: view.initial(1) for view in STATE_VIEWS}
    values = dict(zip(names(VECTOR), vector.at(states, np.array([START_MS]), known_for_s=KNOWN_FOR_S)[0], strict=True))
    assert np.isnan(values["failing_now"])
    assert np.isnan(values["log_probe_age_hours"])
    assert values["log_onset_rate_30m"] == pytest.approx(np.log(vector.TYPICAL_ONSETS_PER_H))


@pytest.mark.parametrize(
    ("feature", "value", "sentence"),
    [
        ("failing_now", 1, "it is failing now"),
        ("failing_log_hours", np.log1p(3.2), "failing now, for 3.2 hours"),
        ("failing_log_hours", 0, "not failing now"),
        ("log_flips_7d", np.log1p(7), "changed between up and failing 7 times in the last 7 days"),
        (
            "log_clock_6h_4d",
            np.log(0.4),
            "an outage began in the coming 6 hours of the day on 40% of the last few days",
        ),
        ("log_onset_rate_7d", -np.log(72), "an outage every 3 days of up-time, over about the last week"),
        ("log_total_ms", np.log1p(1234), "answered in 1,234 ms"),
        ("cert_days_left", 1, "its certificate has 1 day left"),
        ("log_probe_age_hours", np.log1p(1 / 60), "last probed 1 minute ago"),
        ("cert_days_left", np.nan, "not known: cert days left"),
    ],
)
def test_a_value_reads_as_a_sentence(feature: str, value: float, sentence: str) -> None:
    assert describe(names(VECTOR).index(feature), value) == sentence


def test_every_feature_has_a_sentence_for_every_value() -> None:
    for i, feature in enumerate(VECTOR):
        assert feature.about.endswith(".")
        for value in (-0.5, 0.0, 1.0, 5.5, np.nan):
            assert "{" not in describe(i, value) != ""


def test_half_lives_end_with_the_one_that_never_fades() -> None:
    assert np.isinf(HALF_LIVES_H[-1])
    assert decay(np.array([1e6]))[0, -1] == 1


@pytest.mark.parametrize(
    ("usual_ms", "slow_ms", "before", "degraded"),
    [
        ((300, 320), 700, 12, 1),
        ((300, 320), 600, 12, 0),  # not twice the usual time
        ((50, 55), 180, 12, 0),  # not slow for anybody
        ((100, 1000), 2500, 12, 0),  # within its own spread
        ((300, 320), 700, 9, 0),  # too little is known
    ],
)
def test_degraded_is_slow_for_the_url_itself(
    usual_ms: tuple[int, int], slow_ms: int, before: int, degraded: int
) -> None:
    url, host, group = TARGETS[0]
    times = [usual_ms[k % 2] for k in range(before)] + [slow_ms, usual_ms[0]]
    past = [
        Probe(probe_id=k, target=url, host=host, group=group, ts_ms=START_MS + k * 60_000, health=1, total_ms=ms)
        for k, ms in enumerate(times)
    ]
    table, _ = run([past])
    states = [state_at(table, URL_STATE, url, probe.ts_ms)[0] for probe in past]
    assert [int(state["degraded"]) for state in states] == [*[0] * before, degraded, 0]
    assert states[-1]["degraded_checks"] == degraded
