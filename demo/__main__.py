"""`make demo`: the whole job, end to end, on a sample web, and shown.

Everything is kept in `var/demo`, made anew by each run; where URLHEALTH_HOME is set, that folder is used, if it is
empty or an earlier demo's.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import SystemRandom
from statistics import mean
from time import monotonic, sleep
from typing import Any, Final

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from demo.home import own_home, set_environment
from demo.past import past
from demo.programs import ROOT, DemoFailed, first_line, port_is_free, program, run, wait_for
from demo.sites import Kind, Site, sites
from urlhealth.errors import UrlHealthError
from urlhealth.platform import Platform
from urlhealth.prediction.champion import alias_version
from urlhealth.settings import load_settings
from urlhealth.vocabulary import CHAMPION, ProbeSource

BIN: Final = Path(sys.executable).parent
#: Length of the simulated past, and the time between two of its probes.
PAST_DAYS: Final = 30
PAST_EVERY_S: Final = 900
#: Under what budget the URLs are monitored, and for how long at least until it is shown where it went.
SCHEDULE: Final = {"mode": "adaptive", "budget_per_url_hour": 120, "min_interval_s": 10, "max_interval_s": 120}
POLLED_S: Final = 40.0
#: Kinds that must rank above each steady site.
RISKY: Final = (Kind.FLAPPING, Kind.DYING)


def main() -> None:
    """The command line; exit code 0 only if every step did its work."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="The whole job on a sample web, and shown.")
    parser.add_argument("--seed", type=int, help="what the sample web is like (default: random)")
    parser.add_argument("--port", type=int, default=8000, help="port of the platform (default 8000)")
    parser.add_argument("--exit", action="store_true", help="stop after the table; check the ranking")
    arguments = parser.parse_args()
    seed = SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(soft_wrap=True, width=160)
    try:
        with ExitStack() as stack:
            try:
                Demo(seed=seed, port=arguments.port, console=console, stack=stack).run(stay=not arguments.exit)
            finally:
                # Now the programs are ended, all of them, however often Ctrl-C is pressed.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except KeyboardInterrupt:
        console.print("\nstopped")
    except (DemoFailed, UrlHealthError, httpx.HTTPError, OSError) as error:
        console.print(f"[bold red]the demo failed:[/] {escape(str(error))}")
        sys.exit(1)


class Demo:
    """One run of the demo: its steps in order, and what they share."""

    def __init__(self, *, seed: int, port: int, console: Console, stack: ExitStack) -> None:
        self.seed = seed
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.console = console
        self.stack = stack
        self.started_s = monotonic()
        if not port_is_free(port):
            raise DemoFailed(
                f"port {port} on 127.0.0.1 is taken: stop what listens there, "
                f"or choose another with `{sys.executable} -m demo --port N`"
            )
        self.home = stack.enter_context(own_home())
        self.logs = self.home / "logs"
        self.logs.mkdir()
        self.log = self.logs / "platform.log"
        self.http = stack.enter_context(httpx.Client(base_url=self.url, timeout=60, trust_env=False))

    def run(self, *, stay: bool) -> None:
        """All steps. With `stay`, the platform is served until Ctrl-C after them.

        Raises:
            DemoFailed: a step did not do its work.
        """
        self.step("1", f"a sample web, seed [bold]{self.seed}[/] (again: make demo SEED={self.seed})")
        made, ca_file = self.start_sample_web()
        self.console.print(f"  {len(made)} URLs on loopback, such as {made[0].url} and {made[-1].url}")

        self.step("2", f"the platform on {self.url}, everything in {self.home}")
        set_environment(self.home, ca_file)
        self.start_platform()

        self.step("3", f"a simulated past of {PAST_DAYS} days for those URLs, from the same behaviours")
        platform = self.stack.enter_context(Platform(load_settings()))
        self.load_past(platform, made)

        self.step("4", "crawling the URLs, through POST /api/v1/tasks")
        self.crawl(made)

        self.step("5", "features → Feast, and what the bundled model forecasts, which never saw these URLs")
        self.build_features(platform)
        self.wait_for(lambda: self.model() is not None, what="predictions with the bundled model", limit_s=60)
        before = self.show_predictions(made)
        self.monitor(made)

        self.step("6", "training → MLflow → promotion, if it is better than the bundled model beyond noise")
        run([str(BIN / "urlhealth"), "train"], step="training")
        # While it trained, the bundled model served as version 1 of the new registry.
        champion = alias_version(platform.settings.resolved_tracking_uri, CHAMPION)
        self.wait_for(lambda: self.model() == champion, what="predictions with the champion", limit_s=60)
        risks = self.show_predictions(made, before)
        problem = misranked(risks, made)
        if problem:
            raise DemoFailed(problem)
        self.console.print("  checked: each flapping and each dying URL ranks above each steady one")

        self.step("7", "polling: the monitors share a budget, which goes where outages are likely")
        problem = misspent(self.show_polling(made))
        if problem:
            raise DemoFailed(problem)
        self.console.print("  checked: a flapping URL was probed more often than a steady one")
        if stay:
            self.step("8", "where to look")
            self.show_places()
            self.console.print("\nserving until Ctrl-C")
            self.server.wait()
            raise DemoFailed(f"the platform ended by itself: see {self.log}")

    def step(self, number: str, what: str) -> None:
        self.console.print(f"\n[bold cyan]{number}.[/] {what} [dim]({monotonic() - self.started_s:.0f} s)[/]")

    def start_sample_web(self) -> tuple[list[Site], Path]:
        """Serve the sample web; its sites, and the certificate to trust."""
        log = self.logs / "sample_web.log"
        command = (sys.executable, "-m", "demo.sample_web", "--seed", str(self.seed))
        process = self.stack.enter_context(program(command, log=log, stdout=subprocess.PIPE))
        told = json.loads(first_line(process, log=log))
        made = sites(self.seed, anchor_ms=told["anchor_ms"], port=told["port"], tls_port=told["tls_port"])
        return made, Path(told["ca_file"])

    def start_platform(self) -> None:
        """Serve the platform, and wait until it answers."""
        command = (str(BIN / "urlhealth"), "serve", "--port", str(self.port))
        self.server = self.stack.enter_context(program(command, log=self.log))
        self.wait_for(self.lives, what=f"{self.url}/health/live", limit_s=60)

    def lives(self) -> bool:
        try:
            return self.http.get("/health/live").is_success
        except httpx.TransportError:
            return False

    def load_past(self, platform: Platform, made: Sequence[Site]) -> None:
        """Import what probing the sites would have found until now."""
        total = len(made) * PAST_DAYS * 86_400 // PAST_EVERY_S
        with self.progress("simulated probes", total) as show:

            def counted() -> Iterator[Any]:
                history = past(made, until_ms=made[0].anchor_ms, days=PAST_DAYS, every_s=PAST_EVERY_S)
                for number, item in enumerate(history):
                    if number % 1_000 == 0:
                        show(number)
                    yield item

            stored = platform.crawl.import_probes(counted(), source=ProbeSource.SIMULATED)
            show(stored)
        if stored != total:
            raise DemoFailed(f"{stored} probes were imported, {total} were expected")
        self.console.print(f"  {stored:,} simulated probes stored")

    def crawl(self, made: Sequence[Site]) -> None:
        """Submit the URLs as a task, and wait until it is done."""
        task_id = self.post("/api/v1/tasks", {"urls": [site.url for site in made]})["task_id"]
        with self.progress("URLs crawled", len(made)) as show:
            task: dict[str, Any] = {}

            def done() -> bool:
                task.update(self.http.get(f"/api/v1/tasks/{task_id}").raise_for_status().json())
                show(task["done"])
                return bool(task["status"] == "done")

            self.wait_for(done, what=f"task {task_id} to be done", limit_s=120)
        found = ", ".join(f"{count} {outcome}" for outcome, count in sorted(task["outcomes"].items()))
        self.console.print(f"  task {task_id}: {task['done']} of {task['total']} URLs: {found}")
        if task["done"] != len(made):
            raise DemoFailed(f"task {task_id} is done with {task['done']} of {len(made)} URLs")

    def build_features(self, platform: Platform) -> None:
        """Wait until the platform has folded what is stored into features, and into incidents."""
        backlog = platform.pipeline_lag()
        with self.progress("verdicts folded into features", backlog) as show:

            def caught_up() -> bool:
                incidents_lag = platform.crawl.count_verdicts_after(platform.rollups.position())
                lag = max(platform.pipeline_lag(), incidents_lag)
                show(max(backlog - lag, 0))
                # New probes arrive all the time.
                return lag < 1_000

            self.wait_for(caught_up, what="the features", limit_s=180)

    def monitor(self, made: Sequence[Site]) -> None:
        """Monitor the URLs from now on, under one budget."""
        self.post("/api/v1/monitors", [{"url": site.url, "schedule": SCHEDULE} for site in made])
        self.monitored_s = monotonic()
        least_s, most_s = SCHEDULE["min_interval_s"], SCHEDULE["max_interval_s"]
        self.console.print(
            f"  monitored from now on, {SCHEDULE['budget_per_url_hour']} times an hour each on average; the platform "
            f"chooses when, every {least_s} to {most_s} s (so often to be seen here)"
        )

    def show_polling(self, made: Sequence[Site]) -> dict[Kind, float]:
        """Print how often the URLs of each kind were probed; gives the mean by kind."""
        wait_s = max(0.0, POLLED_S - (monotonic() - self.monitored_s))
        if wait_s:
            self.console.print(f"  letting it poll for {wait_s:.0f} s more")
            sleep(wait_s)
        (pool,) = self.get("/api/v1/polling")["items"]
        monitors = self.get(f"/api/v1/polling/{pool['pool_id']}/monitors?limit={len(made)}")["items"]
        by_url = {monitor["url"]: monitor for monitor in monitors}
        probes, intervals_s = (
            {
                kind: [by_url[site.url][name] for site in made if site.kind is kind]
                for kind in dict.fromkeys(site.kind for site in made)
            }
            for name in ("probes", "interval_s")
        )
        means = {kind: mean(counts) for kind, counts in probes.items()}
        table = Table(
            "behaviour",
            Column("URLs", justify="right"),
            Column("probes a URL", justify="right"),
            Column("planned now, every", justify="right"),
            caption=f"{sum(map(sum, probes.values()))} probes in {monotonic() - self.monitored_s:.0f} s; "
            "equal intervals would give each URL the same",
        )
        for kind, count in sorted(means.items(), key=lambda item: -item[1]):
            table.add_row(kind, str(len(probes[kind])), f"{count:.1f}", f"{mean(intervals_s[kind]):.0f} s")
        self.console.print(table)
        return means

    def model(self) -> str | None:
        """The version that predicts now; None if none does yet."""
        reply = self.http.post("/api/v1/predictions", json={"urls": ["https://example.com/"], "horizons": ["24h"]})
        return str(reply.json()["items"][0]["model_version"]) if reply.is_success else None

    def show_predictions(self, made: Sequence[Site], before: Mapping[str, float] | None = None) -> dict[str, float]:
        """Print the forecast for each URL, riskiest first, beside those `before`; gives the probabilities by URL."""
        body = {"urls": [site.url for site in made], "horizons": ["24h"], "explain": True}
        items = self.post("/api/v1/predictions", body)["items"]
        unknown = [item["url"] for item in items if item["probability"] is None]
        if unknown:
            raise DemoFailed(f"no prediction for {len(unknown)} URLs, such as {unknown[0]}")
        items.sort(key=lambda item: -item["probability"])
        table = Table(
            Column("URL", no_wrap=True),
            "state now",
            *([Column("bundled model", justify="right")] if before else []),
            Column("fails within 24 h", justify="right"),
            "main reason",
            caption=f"{items[0]['model']} version {items[0]['model_version']}; the past was simulated",
        )
        colours = {"up": "green", "down": "red"}
        for item in items:
            reasons = item["reasons"]
            table.add_row(
                item["url"],
                f"[{colours.get(item['health'], 'yellow')}]{item['health']}",
                *([f"{before[item['url']]:.1%}"] if before else []),
                f"{item['probability']:.1%}",
                escape(reasons[0]["text"]) if reasons else "",
            )
        self.console.print(table)
        return {item["url"]: item["probability"] for item in items}

    def show_places(self) -> None:
        python = f"URLHEALTH_HOME={self.home} {BIN}"
        places = {
            "URLs by risk": f"{self.url}/",
            "Swagger UI": f"{self.url}/docs",
            "MLflow UI": f"{BIN}/mlflow ui --backend-store-uri sqlite:///{self.home}/mlflow/mlflow.db --port 5000",
            "Feast UI": f"{python}/feast -c {ROOT}/feature_repo ui --host 127.0.0.1 --port 8888",
            "the budget": f"{python}/urlhealth polling",
            "one forecast": f"{python}/urlhealth predict URL",
            "logs": str(self.logs),
        }
        table = Table(show_header=False, box=None, padding=(0, 2))
        for what, where in places.items():
            table.add_row(what, where)
        self.console.print(table)

    def wait_for(self, condition: Callable[[], bool], *, what: str, limit_s: float) -> None:
        wait_for(condition, what=what, limit_s=limit_s, process=self.server, log=self.log)

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        reply = self.http.post(path, json=body)
        if not reply.is_success:
            raise DemoFailed(f"POST {path} answered {reply.status_code}: {reply.text[:500]}")
        return reply.json()

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar on a terminal; elsewhere nothing. The block is given a function that takes how many are done."""
        columns = (TextColumn(f"  {what}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            bar = bars.add_task(what, total=total)
            yield lambda done: bars.update(bar, completed=done)


def misranked(risks: Mapping[str, float], made: Sequence[Site]) -> str | None:
    """What is wrong with the order of the probabilities by URL; None if each risky site is above each steady one."""
    risky = min((site for site in made if site.kind in RISKY), key=lambda site: risks[site.url])
    steady = max((site for site in made if site.kind is Kind.STEADY), key=lambda site: risks[site.url])
    if risks[risky.url] > risks[steady.url]:
        return None
    return (
        f"{steady.url} ({risks[steady.url]:.2%}), which is steady, does not rank below {risky.url} "
        f"({risks[risky.url]:.2%}), which is {risky.kind}"
    )


def misspent(probes: Mapping[Kind, float]) -> str | None:
    """What is wrong with the mean probes by kind; None if a flapping URL had more than a steady one."""
    flapping, steady = probes[Kind.FLAPPING], probes[Kind.STEADY]
    if flapping > steady:
        return None
    return f"a flapping URL was probed {flapping:.1f} times, not more often than a steady one ({steady:.1f} times)"


if __name__ == "__main__":
    main()
