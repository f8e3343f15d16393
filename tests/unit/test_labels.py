"""Labels against histories worked by hand: hours since an arbitrary start, `+` up, `-` down, `?` nothing known."""

import numpy as np
import pytest

from models.labels import HOUR_MS, NO_WINDOWS, Timelines, Windows, planned
from urlhealth.vocabulary import HORIZONS_H, PROBABILITIES, Maintenance

START_MS = 1_700_000_000_000
HEALTH = {"+": 1, "-": 0, "?": -1}
UNKNOWN = dict.fromkeys(PROBABILITIES)


def timelines(
    *histories: list[tuple[float, str]], until_h: float | None = 1_000, maintenance: Windows = NO_WINDOWS
) -> Timelines:
    rows = [(target, hour, sign) for target, history in enumerate(histories) for hour, sign in history]
    return Timelines.of(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([START_MS + round(row[1] * HOUR_MS) for row in rows], dtype=np.int64),
        np.array([HEALTH[row[2]] for row in rows], dtype=np.int8),
        targets=len(histories),
        known_for_s=48 * 3600,
        until_ms=None if until_h is None else START_MS + round(until_h * HOUR_MS),
        maintenance=maintenance,
    )


def window(start_h: float, end_h: float, every_h: float | None = None) -> Maintenance:
    start_ms, end_ms = (START_MS + round(hour * HOUR_MS) for hour in (start_h, end_h))
    return Maintenance(start_ms=start_ms, end_ms=end_ms, every_ms=None if every_h is None else round(every_h * HOUR_MS))


def label(lines: Timelines, hour: float, target: int = 0) -> dict[str, float | None]:
    row = lines.labels(np.array([target]), np.array([START_MS + round(hour * HOUR_MS)]))[0]
    return {name: None if np.isnan(value) else value for name, value in zip(PROBABILITIES, row, strict=True)}


def test_steady_up_is_zero_where_known() -> None:
    assert set(label(timelines([(0, "+"), (20, "+"), (40, "+")]), 10).values()) == {0.0}


def test_onset_is_any_failure_in_the_window_and_failing_is_the_state_at_its_end() -> None:
    lines = timelines([(0, "+"), (5, "-"), (5.5, "+"), (23, "+")])
    assert label(lines, 1) == {
        "onset_1h": 0, "onset_6h": 1, "onset_24h": 1, "failing_1h": 0, "failing_6h": 0, "failing_24h": 0,
    }  # fmt: skip
    assert label(lines, 4.25)["failing_1h"] == 1


@pytest.mark.parametrize(("down_at", "seen"), [(10, 0), (10.0001, 1), (11, 1), (11.0001, 0)])
def test_the_window_is_open_at_t_and_closed_at_its_end(down_at: float, seen: int) -> None:
    lines = timelines([(0, "+"), (down_at, "-"), (down_at + 0.00001, "+"), (30, "+")])
    assert label(lines, 10.00005 if down_at == 10 else 10)["onset_1h"] == seen


def test_a_target_that_fails_now_has_onset_one() -> None:
    lines = timelines([(0, "-"), (2.5, "+"), (30, "+")])
    assert label(lines, 2) == {
        "onset_1h": 1, "onset_6h": 1, "onset_24h": 1, "failing_1h": 0, "failing_6h": 0, "failing_24h": 0,
    }  # fmt: skip


def test_a_verdict_at_t_is_the_state_at_t() -> None:
    lines = timelines([(0, "+"), (2, "-"), (2.5, "+"), (30, "+")])
    assert label(lines, 2)["onset_1h"] == 1
    assert label(lines, 2.5)["onset_1h"] == 0


def test_a_state_is_known_for_48_h_and_no_longer() -> None:
    lines = timelines([(0, "+"), (100, "+")])
    assert label(lines, 24)["onset_24h"] == 0
    after = label(lines, 24.5)
    assert (after["onset_6h"], after["onset_24h"], after["failing_24h"]) == (0, None, None)
    assert label(lines, 48)["onset_1h"] is None
    assert label(lines, 48.1) == UNKNOWN
    assert label(lines, 99) == UNKNOWN


def test_a_label_1_needs_only_the_failure_seen() -> None:
    lines = timelines([(0, "+"), (60, "-")])
    assert label(lines, 40) == {
        "onset_1h": 0, "onset_6h": 0, "onset_24h": 1, "failing_1h": 0, "failing_6h": 0, "failing_24h": 1,
    }  # fmt: skip
    assert label(lines, 47) | {"onset_24h": None} == {
        "onset_1h": 0, "onset_6h": None, "onset_24h": None, "failing_1h": 0, "failing_6h": None, "failing_24h": 1,
    }  # fmt: skip
    assert label(lines, 47)["onset_24h"] == 1


def test_verdicts_that_say_nothing_neither_change_nor_prolong_a_state() -> None:
    plain = timelines([(0, "+"), (30, "-")])
    blocked = timelines([(0, "+"), (10, "?"), (30, "-"), (31, "?")])
    for hour in (5, 20, 29, 35, 79):
        assert label(plain, hour) == label(blocked, hour)
    assert label(timelines([(0, "+"), (47, "?")]), 49) == UNKNOWN
    assert label(timelines([(0, "?")]), 1) == UNKNOWN


def test_before_the_first_verdict_nothing_is_known() -> None:
    assert label(timelines([(5, "+"), (30, "+")]), 4.9) == UNKNOWN


def test_nothing_is_known_after_the_end_of_the_records() -> None:
    lines = timelines([(0, "+"), (10, "+")], until_h=None)
    at_9 = label(lines, 9)
    assert (at_9["onset_1h"], at_9["onset_6h"], at_9["failing_1h"], at_9["failing_6h"]) == (0, None, 0, None)
    assert label(lines, 10.1) == UNKNOWN
    assert label(timelines([(0, "+"), (10, "+"), (12, "-")], until_h=11), 9)["onset_6h"] is None


def test_targets_do_not_touch_each_other() -> None:
    lines = timelines([(0, "+"), (30, "+")], [], [(29, "-"), (30, "-")], [(1, "+"), (30, "+")])
    assert label(lines, 29.5, target=0)["onset_24h"] == 0
    assert label(lines, 29.5, target=1) == UNKNOWN
    assert label(lines, 28, target=2) == UNKNOWN
    assert label(lines, 29.5, target=2)["onset_1h"] == 1
    assert label(lines, 0.5, target=3) == UNKNOWN


def test_late_verdicts_are_put_in_order() -> None:
    assert label(timelines([(30, "+"), (5, "-"), (0, "+"), (6, "+")]), 1)["onset_6h"] == 1


def test_of_several_verdicts_at_one_time_the_first_counts() -> None:
    assert label(timelines([(0, "+"), (5, "-"), (5, "+"), (30, "+")]), 1)["failing_6h"] == 1
    assert label(timelines([(0, "+"), (5, "+"), (5, "-"), (30, "+")]), 1)["onset_6h"] == 0


def test_no_history_has_no_labels() -> None:
    assert label(timelines([]), 1) == UNKNOWN


def test_history_outside_the_window_does_not_alter_labels() -> None:
    """What comes after t+H, and how the state before t came about, leaves labels as they are."""
    rng = np.random.default_rng(7)
    hours = np.sort(rng.uniform(0, 300, 400))
    history = [(hour, "+-?"[rng.choice(3, p=[0.7, 0.2, 0.1])]) for hour in hours]
    whole = timelines(history)
    for t in rng.uniform(10, 250, 40):
        for horizon_h in HORIZONS_H:
            cut = [(hour, sign) for hour, sign in history if hour <= t + horizon_h]
            others = [(hour, "-") for hour in rng.uniform(t + horizon_h + 0.001, 400, 20)]
            for column in (f"onset_{horizon_h}h", f"failing_{horizon_h}h"):
                assert label(timelines(cut), t)[column] == label(whole, t)[column]
                assert label(timelines(cut + others), t)[column] == label(whole, t)[column]
            held = [(hour, sign) for hour, sign in history if hour > t]
            now = whole.failing(np.array([0]), np.array([START_MS + round(t * HOUR_MS)]))[0]
            if not np.isnan(now):
                only_now = [(t, "-" if now else "+"), *held]
                assert label(timelines(only_now), t)[f"onset_{horizon_h}h"] == label(whole, t)[f"onset_{horizon_h}h"]


PLANNED = [(0, "+"), (5, "-"), (5.5, "-"), (7, "+"), (40, "+")]


def test_failures_under_planned_maintenance_are_none() -> None:
    lines = timelines(PLANNED, PLANNED, maintenance={0: [window(4.5, 6.5)]})
    assert set(label(lines, 1).values()) == {0.0}
    assert label(lines, 1, target=1)["onset_6h"] == 1
    # Under maintenance at the end, or at the instant, nothing is known.
    assert (label(lines, 4)["failing_1h"], label(lines, 4)["onset_1h"]) == (None, 0)
    assert label(lines, 5.2) == UNKNOWN
    assert label(lines, 4.5) == UNKNOWN
    assert set(label(lines, 6.5).values()) == {0.0}
    assert label(timelines(PLANNED, maintenance={0: [window(4.5, 5.2)]}), 4)["onset_6h"] == 1


def test_a_daily_window_hides_each_day_of_it_and_leaves_the_other_labels() -> None:
    history = [(float(hour), "-" if hour % 24 == 3 else "+") for hour in range(200)]
    lines = timelines(history, maintenance={0: [window(3, 4, every_h=24)]})
    assert set(label(lines, 100).values()) == {0.0}
    assert label(lines, 98)["failing_1h"] is None
    assert label(timelines(history), 98)["failing_1h"] == 1


def test_windows_cover_the_instants_that_they_say_they_cover() -> None:
    rng = np.random.default_rng(0)
    target, ts_ms = rng.integers(0, 4, 500), START_MS + rng.integers(-50, 300, 500) * HOUR_MS // 2
    windows = {2: [window(3, 4), window(10, 12, every_h=24)], 0: [window(0, 1, every_h=5)]}
    expected = [
        any(each.covers(int(at)) for each in windows.get(int(who), [])) for who, at in zip(target, ts_ms, strict=True)
    ]
    np.testing.assert_array_equal(planned(windows, target, ts_ms), expected)
    assert 0 < np.sum(expected) < 500
