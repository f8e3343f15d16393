"""Questions of many threads, answered by one."""

import threading
from collections.abc import Sequence

import pytest

from urlhealth.prediction.batching import Batcher


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
