"""Questions of many threads, answered by one; and those of an event loop, answered by it."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from urlhealth.prediction.batching import Batcher, Gatherer


class Doubling:
    """Answers numbers once it is let to; negative ones it cannot."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.go_on.wait(10)
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]


def test_what_comes_meanwhile_is_answered_together_if_it_fits() -> None:
    doubling = Doubling()
    batcher = Batcher(doubling, fits=lambda asked, number: sum(asked) + number <= 10)
    first = batcher.ask(1)
    assert doubling.begun.wait(10)
    others = [batcher.ask(number) for number in (2, 3, 20, 4, -1, 5)]
    assert batcher.ask(6).cancel()
    doubling.go_on.set()
    assert first.result(10) == 2
    assert [future.result(10) for future in others[:3]] == [4, 6, 40]
    for future in others[3:]:
        with pytest.raises(ValueError, match="negative"):
            future.result(10)
    assert batcher.ask(7).result(10) == 14
    assert doubling.batches == [[1], [2, 3], [20], [4, -1, 5], [7]]


def test_what_an_event_loop_asks_in_one_turn_is_answered_in_the_next_together_if_it_fits_and_can_be() -> None:
    batches: list[list[int]] = []

    def doubling(numbers: Sequence[int]) -> list[int]:
        batches.append(list(numbers))
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]

    gatherer = Gatherer(doubling, fits=lambda asked, number: sum(asked) + number <= 10)

    async def ask_all() -> list[int | BaseException]:
        asked = [asyncio.ensure_future(gatherer.ask(number)) for number in (2, 3, 6, 4, 20, 4, -1, 5)]
        await asyncio.sleep(0)
        asked[2].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    for _ in range(2):  # each in a loop of its own
        batches.clear()
        answers = asyncio.run(ask_all())
        assert batches == [[2, 3, 4], [20], [4, -1, 5], [4], [-1], [5]]
        assert [answer if isinstance(answer, int) else type(answer) for answer in answers] == [
            *(4, 6, asyncio.CancelledError, 8, 40),
            *(8, ValueError, 10),
        ]
