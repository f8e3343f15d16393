"""Work in processes apart: interpreters of our own, which get nothing of the caller's program and never run it.

What `multiprocessing` spawns imports the caller's `__main__` again, so that a script would have to guard its body.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Child:
    """A process that calls functions for one thread at a time. It gives way to others; it does not outlive this one."""

    def __init__(self) -> None:
        """Raises OSError if there can be no process."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError:
                ours.close()
                raise
        self._connection = Connection(ours.detach())

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns there. It is named by its module, and all that is passed is pickled.

        Raises:
            RuntimeError: the process has ended.
            BaseException: what the function raised.
        """
        try:
            self._connection.send((function, arguments))
            result, error = self._connection.recv()
        except (OSError, EOFError) as lost:
            raise RuntimeError(f"the process that was to call {function.__name__} has ended") from lost
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process, whatever it does; a call under way raises RuntimeError."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(descriptor: int) -> None:
    """The child: calls what it is sent, until the other end of the socket pair is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C goes to both, and is the parent's to answer
    os.nice(5)
    connection = Connection(descriptor)
    calls: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_take, args=(connection, calls), daemon=True).start()
    while True:
        call = calls.get()
        result = error = None
        try:
            function, arguments = pickle.loads(call)
            result = function(*arguments)
        except BaseException as raised:
            raised.add_note("".join(traceback.format_exception(raised)))
            error = raised
        connection.send((result, error))


def _take(connection: Connection, calls: SimpleQueue[bytes]) -> None:
    with suppress(OSError, EOFError):
        while True:
            calls.put(connection.recv_bytes())
    os._exit(0)  # whoever asked is not there any more
