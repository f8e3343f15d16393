"""One thread that answers questions; those that came while it was busy are answered together."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Batcher(Generic[Question, Answer]):
    """Answers any thread's questions in turn.

    Several at once cost hardly more than one, where what takes time is the number of calls and not the number of rows;
    and nobody waits for others who came later.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer]],
        *,
        fits: Callable[[Sequence[Question], Question], bool],
    ) -> None:
        """
        Args:
            answer: called with one question or more, in the thread; what it raises is raised to all of them.
            fits: whether a question may be answered together with those before it.
        """
        self._answer = answer
        self._fits = fits
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Question, Future[Answer]]] = deque()
        self._thread = ThreadPoolExecutor(1, "predictions")
        self._busy = False

    def ask(self, question: Question) -> "Future[Answer]":
        """Put a question; returns at once."""
        future: Future[Answer] = Future()
        with self._lock:
            self._waiting.append((question, future))
            idle, self._busy = not self._busy, True
        if idle:
            self._thread.submit(self._work)
        return future

    def _work(self) -> None:
        while questions := self._next():
            asked = [question for question, _ in questions]
            try:
                answers = self._answer(asked)
            except Exception as error:
                for _, future in questions:
                    future.set_exception(error)
            else:
                for (_, future), answer in zip(questions, answers, strict=True):
                    future.set_result(answer)

    def _next(self) -> list[tuple[Question, "Future[Answer]"]]:
        """Take the first question, and those after it that fit."""
        taken: list[tuple[Question, Future[Answer]]] = []
        asked: list[Question] = []
        with self._lock:
            while self._waiting and (not taken or self._fits(asked, self._waiting[0][0])):
                question, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():  # else nobody waits for it any more
                    taken.append((question, future))
                    asked.append(question)
            self._busy = bool(taken)
        return taken
