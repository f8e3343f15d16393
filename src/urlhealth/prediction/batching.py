"""Questions that are answered together: those that came while the ones before were answered.

They are answered in the context (as of a trace) of the first of them.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Batcher(Generic[Question, Answer]):
    """Answers any thread's questions in turn, in a thread of its own.

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
        self._waiting: deque[tuple[Question, Future[Answer], Context]] = deque()
        self._thread = ThreadPoolExecutor(1, "predictions")
        self._busy = False

    def ask(self, question: Question) -> "Future[Answer]":
        """Put a question; returns at once."""
        future: Future[Answer] = Future()
        with self._lock:
            self._waiting.append((question, future, copy_context()))
            idle, self._busy = not self._busy, True
        if idle:
            self._thread.submit(self._work)
        return future

    def _work(self) -> None:
        while questions := self._next():
            asked = [question for question, _, _ in questions]
            try:
                answers = questions[0][2].run(self._answer, asked)
            except Exception as error:
                for _, future, _ in questions:
                    future.set_exception(error)
            else:
                for (_, future, _), answer in zip(questions, answers, strict=True):
                    future.set_result(answer)

    def _next(self) -> list[tuple[Question, "Future[Answer]", Context]]:
        """Take the first question, and those after it that fit."""
        taken: list[tuple[Question, Future[Answer], Context]] = []
        asked: list[Question] = []
        with self._lock:
            while self._waiting and (not taken or self._fits(asked, self._waiting[0][0])):
                question, future, context = self._waiting.popleft()
                if future.set_running_or_notify_cancel():  # else nobody waits for it any more
                    taken.append((question, future, context))
                    asked.append(question)
            self._busy = bool(taken)
        return taken


class Gatherer(Generic[Question, Answer]):
    """Answers questions in the thread of the event loop that they come from: for what takes less than handing it over.

    What is asked in one turn of the loop is answered in the next. Each loop has its own questions. A question that has
    no answer leaves the others theirs.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer]],
        *,
        fits: Callable[[Sequence[Question], Question], bool],
    ) -> None:
        """
        Args:
            answer: called with one question or more; where it fails for several, it is called with each alone.
            fits: whether a question may be answered together with those before it.
        """
        self._answer = answer
        self._fits = fits
        self._waiting: WeakKeyDictionary[
            asyncio.AbstractEventLoop, deque[tuple[Question, asyncio.Future[Answer], Context]]
        ] = WeakKeyDictionary()

    async def ask(self, question: Question) -> Answer:
        """The answer; raises what `answer` does."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(loop, deque())
        future: asyncio.Future[Answer] = loop.create_future()
        waiting.append((question, future, copy_context()))
        if len(waiting) == 1:
            loop.call_soon(self._work, loop)
        return await future

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._waiting[loop]
        taken: list[tuple[Question, asyncio.Future[Answer], Context]] = []
        asked: list[Question] = []
        while waiting:
            question, future, context = waiting[0]
            if not future.done():  # else nobody waits for it any more
                if taken and not self._fits(asked, question):
                    break
                taken.append((question, future, context))
                asked.append(question)
            waiting.popleft()
        if waiting:
            loop.call_soon(self._work, loop)
        if taken:
            self._settle(taken)

    def _settle(self, taken: Sequence[tuple[Question, asyncio.Future[Answer], Context]]) -> None:
        try:
            answers = taken[0][2].run(self._answer, [question for question, _, _ in taken])
        except Exception as error:
            if len(taken) == 1:
                taken[0][1].set_exception(error)
            else:  # Whose fault it is, each alone will show.
                for one in taken:
                    self._settle([one])
        else:
            for (_, future, _), answer in zip(taken, answers, strict=True):
                future.set_result(answer)
