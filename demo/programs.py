"""The programs that the demo starts: each in a process group of its own, always ended."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]


class DemoFailed(Exception):
    """A step did not do its work; the message says which, and where to look."""


@contextmanager
def program(command: Sequence[str], *, log: Path, stdout: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A program that runs while the block does. What it prints goes to `log`, or its stdout to a pipe."""
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            text=True,
            # Ctrl-C is for the demo, which then ends its programs in order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)
        if process.stdout is not None:
            process.stdout.close()


def run(command: Sequence[str], *, step: str) -> None:
    """Run a program to its end and show what it prints.

    Raises:
        DemoFailed: it exited with another code than 0.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait()
    finally:
        _end(process)
    if code:
        raise DemoFailed(f"{step} failed: `{' '.join(command)}` exited with {code}")


def _end(process: subprocess.Popen[Any]) -> None:
    """Ask the program and its children to stop, and make them."""
    for number, wait_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(wait_s)
            return
        except subprocess.TimeoutExpired:
            continue


def first_line(process: subprocess.Popen[str], *, log: Path) -> str:
    """The first line that a program prints to its pipe.

    Raises:
        DemoFailed: it ended without one.
    """
    stdout: IO[str] | None = process.stdout
    line = stdout.readline() if stdout else ""
    if not line:
        raise DemoFailed(f"{process.args!r} ended at once:\n{tail(log)}")
    return line


def wait_for(
    condition: Callable[[], bool], *, what: str, limit_s: float, process: subprocess.Popen[str], log: Path
) -> None:
    """Return when the condition holds, which needs `process`.

    Raises:
        DemoFailed: the program ended meanwhile, or it took too long.
    """
    deadline = monotonic() + limit_s
    while not condition():
        if process.poll() is not None:
            raise DemoFailed(f"the program ended while {what} was waited for:\n{tail(log)}")
        if monotonic() > deadline:
            raise DemoFailed(f"waited {limit_s:.0f} s in vain for {what}:\n{tail(log)}")
        sleep(0.1)


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:]) or f"(nothing in {log})"


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
