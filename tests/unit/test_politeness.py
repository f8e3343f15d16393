"""When a host may be asked, told by a clock of the test's own."""

from typing import Any

import pytest

from urlhealth.probing.politeness import LONGEST_PAUSE_S, Politeness, Turn

GO, WAIT, GIVE_UP = Turn.GO, Turn.WAIT, Turn.GIVE_UP


def polite(**limits: Any) -> Politeness[str]:
    return Politeness(**{"concurrency_per_host": 2, **limits})


def forgotten(hosts: Politeness[str]) -> bool:
    return not (hosts._busy or hosts._held or hosts._paces)


def test_a_host_has_so_many_at_once_and_the_next_in_the_order_in_which_they_came() -> None:
    hosts = polite()
    assert [hosts.begin("a", item, 0.0) for item in "1234"] == [GO, GO, WAIT, WAIT]
    assert hosts.begin("b", "5", 0.0) is GO
    assert hosts.end("a", 1.0) == ["3"]
    assert hosts.begin("a", "3", 1.0) is GO
    assert hosts.end("a", 1.0) == ["4"]
    assert hosts.begin("a", "4", 1.0) is GO
    assert [hosts.end("a", 2.0), hosts.end("a", 2.0), hosts.end("b", 2.0)] == [(), (), ()]
    assert hosts.next_due_s is None
    assert forgotten(hosts)


def test_a_rate_spreads_what_is_begun() -> None:
    hosts = polite(rate_per_host=2)
    assert [hosts.begin("a", item, 0.0) for item in "123"] == [GO, WAIT, WAIT]
    assert hosts.end("a", 0.1) == ()
    assert hosts.next_due_s == 0.5
    assert hosts.due(0.4) == []
    assert hosts.due(0.5) == ["2"]
    assert hosts.begin("a", "2", 0.5) is GO
    assert hosts.end("a", 0.6) == ()
    assert hosts.due(1.0) == ["3"]
    assert hosts.begin("a", "3", 1.0) is GO
    assert hosts.end("a", 1.1) == ()
    assert hosts.due(1.5) == []
    assert forgotten(hosts)


def test_a_refusal_makes_all_wait_and_one_go_first() -> None:
    hosts = polite()
    assert hosts.begin("a", "1", 0.0) is GO
    assert hosts.refused("a", 10.0, 0.0) == []
    assert hosts.end("a", 0.0) == ()
    assert [hosts.begin("a", item, 1.0) for item in "234"] == [WAIT, WAIT, WAIT]
    assert hosts.begin("b", "5", 1.0) is GO
    assert hosts.due(9.9) == []
    assert hosts.due(10.0) == ["2"]
    assert hosts.begin("a", "2", 10.0) is GO
    hosts.welcomed("a")
    assert hosts.end("a", 10.5) == ["3", "4"]


@pytest.mark.parametrize(("retry_after_s", "pauses"), [(0.0, [1, 2, 4, 8, 16, 32, 60, 60]), (86_400.0, [60, 60])])
def test_pauses_double_and_have_an_end(retry_after_s: float, pauses: list[float]) -> None:
    hosts = polite()
    now_s = 0.0
    assert hosts.begin("a", "1", now_s) is GO
    for pause_s in pauses:
        hosts.refused("a", retry_after_s, now_s)
        assert hosts.end("a", now_s) == ()
        assert hosts.begin("a", "1", now_s) is WAIT
        assert hosts.next_due_s == now_s + pause_s
        now_s += pause_s
        assert hosts.due(now_s) == ["1"]
        assert hosts.begin("a", "1", now_s) is GO


def test_a_host_that_refuses_for_too_long_is_asked_by_one_at_a_time_and_the_others_are_given_up() -> None:
    hosts = polite()
    hosts.begin("a", "1", 0.0)
    hosts.refused("a", LONGEST_PAUSE_S, 0.0)
    hosts.end("a", 0.0)
    assert [hosts.begin("a", item, 1.0) for item in "234"] == [WAIT, WAIT, WAIT]
    assert hosts.due(60.0) == ["2"]
    assert hosts.begin("a", "2", 60.0) is GO
    assert hosts.refused("a", LONGEST_PAUSE_S, 61.0) == ["4"]
    assert hosts.end("a", 61.0) == ()
    assert hosts.begin("a", "5", 62.0) is GIVE_UP
    assert hosts.due(121.0) == ["3"]
    assert hosts.begin("a", "3", 121.0) is GO
    hosts.welcomed("a")
    assert hosts.end("a", 122.0) == ()
    assert forgotten(hosts)


def test_what_is_released_takes_its_turn_anew() -> None:
    hosts = polite(concurrency_per_host=1)
    assert [hosts.begin("a", item, 0.0) for item in "123"] == [GO, WAIT, WAIT]
    assert hosts.end("a", 1.0) == ["2"]  # which is dropped before it begins
    assert hosts.release(1.0) == ["3"]
    assert hosts.begin("a", "3", 1.0) is GO
    assert hosts.end("a", 2.0) == ()
    assert forgotten(hosts)
