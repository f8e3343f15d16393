"""Commands for daily work against a running platform, wherever it is: `--server`, or `URLHEALTH_SERVER`.

They speak to it through the client that other programs use. Exit codes: 0, done; 1, an error; 2, wrong arguments;
3, done, and something is wrong with what was asked for.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from urlhealth.errors import InvalidRequest, UrlHealthError
from urlhealth.printing import Json, print_checks, print_json_lines, print_table

if TYPE_CHECKING:
    from urlhealth_client import Client
    from urlhealth_client.models import CurrentItem, HistoryPoint, Incident, UrlHistory

#: Exit code where something is wrong with what was asked for.
WRONG: Final = 3
_BARS: Final = "▁▂▃▄▅▆▇█"
#: Room in a line for what stands before and after a spark line, and for a bar more at each end of it.
_BESIDE_BARS: Final = 34
_HEALTH_COLOURS: Final = {"up": "green", "down": "red"}

Server = Annotated[str | None, typer.Option(help="Address of the running platform. [default: URLHEALTH_SERVER]")]
Limit = Annotated[int, typer.Option("-n", "--limit", help="Items at most.", min=1)]
Url = Annotated[str, typer.Argument(help="The URL.", metavar="URL")]
Name = Annotated[str | None, typer.Option(help="Of a monitor with a name: that one's.")]
Group = Annotated[str | None, typer.Option(help="Those of this group only.")]
Tag = Annotated[str | None, typer.Option(help="Those whose monitor has this tag only.")]
Horizon = Annotated[str, typer.Option(help="1h, 6h or 24h.")]


def add_to(app: typer.Typer, *, monitors: typer.Typer, history: typer.Typer) -> None:
    """Add the commands to the application and to two of its groups."""
    for command in (status, top, tasks, incidents, report):
        app.command()(command)
    monitors.command("list")(list_monitors)
    history.command("show")(show_history)


def status(server: Server = None, as_json: Json = False) -> None:
    """Say whether a running platform's parts work; exit code 3 if one that is needed does not."""
    with _client(server) as client:
        ready = client.ready()
    if as_json:
        print_json_lines([ready])
    else:
        print_checks(ready.checks)
        Console(soft_wrap=True).print(f"{client.server} is {ready.status}")
    if ready.status != "ready":
        raise typer.Exit(WRONG)


def top(
    server: Server = None,
    horizon: Horizon = "24h",
    group: Group = None,
    tag: Tag = None,
    limit: Limit = 20,
    every_s: Annotated[float, typer.Option("--every", help="Seconds between two looks.", min=0.5)] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once; so it is in a pipe and with --json, too.")] = False,
    fail_above: Annotated[
        float | None, typer.Option(help="With one look: exit code 3 if a probability is above this.", min=0, max=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which URLs are most likely to fail, live."""
    with _client(server) as client:

        def look() -> "list[CurrentItem]":
            return list(islice(client.riskiest(horizon=_horizon(horizon), group=group, tag=tag), limit))

        if not (once or as_json or not sys.stdout.isatty()):
            _watch(look, every_s)
            return
        items = look()
    if as_json:
        print_json_lines(items)
    else:
        print_table(_TOP, map(_top_row, items))
    if fail_above is not None and any((item.probability or 0.0) > fail_above for item in items):
        raise typer.Exit(WRONG)


def tasks(
    server: Server = None,
    status: Annotated[str | None, typer.Option(help="Only those in this status: queued, running, ...")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List tasks, newest first."""
    with _client(server) as client:
        found = list(islice(client.tasks(status=status), limit))
    if as_json:
        print_json_lines(found)
        return
    print_table(
        ("task", "status", "done", "of", "outcomes", "created"),
        (
            (
                task.task_id,
                task.status,
                f"{task.done:,}",
                f"{task.total:,}",
                ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(task.outcomes.items())),
                _instant(task.created_at),
            )
            for task in found
        ),
    )


def list_monitors(server: Server = None, group: Group = None, tag: Tag = None, as_json: Json = False) -> None:
    """List a running platform's monitors, oldest first."""
    with _client(server) as client:
        found = list(client.monitors(group=group, tag=tag))
    if as_json:
        print_json_lines(found)
        return
    print_table(
        ("monitor", "target", "group", "every", "tags", "next"),
        (
            (
                monitor.monitor_id,
                monitor.target,
                monitor.group,
                f"{monitor.interval_s} s",
                ", ".join(monitor.tags),
                "paused" if monitor.paused else _instant(monitor.next_due_at),
            )
            for monitor in found
        ),
    )


def show_history(
    url: Url,
    server: Server = None,
    start: Annotated[
        datetime | None, typer.Option("--from", help="UTC, as 2026-01-01. [default: one day before]")
    ] = None,
    to: Annotated[datetime | None, typer.Option(help="UTC. [default: now]")] = None,
    step: Annotated[str | None, typer.Option(help="As 5m, 1h or 1d. [default: one that fits in a line]")] = None,
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Show how a URL has been: a spark line of its answers, one of its failures. `history URL` is short for it."""
    with _client(server) as client:
        found = client.history(url, start=_utc(start), end=_utc(to), step=step, name=name)
        if as_json:
            print_json_lines([found])
            return
        if step is None and (longer := _step_that_fits(found, Console().width - _BESIDE_BARS)):
            found = client.history(url, start=found.start, end=found.end, step=longer, name=name)
        state = client.url(url, name=name)
    steps = {round(point.start.timestamp()): point for point in found.points}
    first = round(found.start.timestamp()) // found.step_s * found.step_s
    points = [steps.get(at) for at in range(first, round(found.end.timestamp()), found.step_s)]
    answers = [None if point is None else point.p50_ms for point in points]
    failures = [None if point is None else _failing_share(point) for point in points]
    console = Console(soft_wrap=True, highlight=False)
    since = "" if state.since is None else f" since {_instant(state.since)}"
    console.print(Text.assemble(f"{found.target} is ", (state.state, _HEALTH_COLOURS.get(state.state, "")), since))
    console.print(f"{_instant(found.start)} to {_instant(found.end)}, in steps of {found.step_s} s")
    known_ms = [ms for ms in answers if ms is not None]
    known = [share for share in failures if share is not None]
    range_ms = f"{min(known_ms):.0f} to {max(known_ms):.0f} ms" if known_ms else "none"
    console.print(f"answers   {sparkline(answers)}  {range_ms}", markup=False)
    console.print(f"failures  {sparkline(failures, most=1.0)}  {f'at most {max(known):.0%}' if known else 'none'}")


def incidents(
    url: Annotated[str | None, typer.Argument(help="The URL. [default: all, with the incident that lasts]")] = None,
    server: Server = None,
    name: Name = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List a URL's incidents, newest first, or what fails now of all URLs; exit code 3 if an incident lasts."""
    with _client(server) as client:
        of_all = _lasting(client) if url is None else ((None, each) for each in client.incidents(url, name=name))
        found = list(islice(of_all, limit))
    if as_json:
        print_json_lines(
            incident if target is None else {"target": target} | incident.model_dump(mode="json")
            for target, incident in found
        )
    else:
        print_table(
            (*(("target",) if url is None else ()), "start", "end", "lasted", "outcome", "phase"),
            (
                (
                    *(() if target is None else (target,)),
                    _instant(incident.start),
                    "" if incident.end is None else _instant(incident.end),
                    "it lasts" if incident.end is None else str(incident.end - incident.start).partition(".")[0],
                    incident.outcome,
                    incident.phase or "",
                )
                for target, incident in found
            ),
        )
    if any(incident.end is None for _, incident in found):
        raise typer.Exit(WRONG)


def report(
    file: Annotated[
        Path, typer.Argument(help="A URL a line; lines that begin with # are left out; - is standard input.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="HTML file to write. [default: FILE with .html]")
    ] = None,
    server: Server = None,
    horizon: Horizon = "24h",
    as_json: Json = False,
) -> None:
    """Probe a list of links and write an HTML report on them, to send to someone; exit code 3 if a link fails."""
    from urlhealth import link_report

    if out is None and not as_json:
        out = Path("report.html") if str(file) == "-" else file.with_suffix(".html")
    urls = list(dict.fromkeys(_links(file)))
    if not urls:
        raise InvalidRequest(f"{file} has no links: write a URL a line")
    with _client(server) as client, Console(stderr=True).status(f"Probing {len(urls):,} links"):
        results = client.probe(urls)
        forecasts = client.predict(urls, horizons=[_horizon(horizon)], explain=True)
    links = link_report.links(results, forecasts)
    if as_json:
        print_json_lines(links)
    if out is not None:
        try:
            out.write_text(link_report.page(links, source=file.name, horizon=horizon), encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"cannot write {out}: {error.strerror}") from error
        Console(stderr=True, soft_wrap=True).print(f"{link_report.summary(links)}: {out}", markup=False)
    if any(link.outcome != "ok" for link in links):
        raise typer.Exit(WRONG)


def _step_that_fits(history: "UrlHistory", room: int) -> str | None:
    """A multiple of the history's step with which it has no more bars than there is room for; None if it has not."""
    bars = -(-(history.end - history.start).total_seconds() // history.step_s)
    if bars <= room:
        return None
    step_s = history.step_s * round(-(-bars // max(room, 1)))
    unit, length_s = next(each for each in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)) if step_s % each[1] == 0)
    return f"{step_s // length_s}{unit}"


def sparkline(values: Iterable[float | None], *, most: float | None = None) -> str:
    """A bar a value, from 0 to the greatest (or `most`), and a space where there is none."""
    values = list(values)
    top = most or max((value for value in values if value is not None), default=0.0) or 1.0
    return "".join(
        " " if value is None else _BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)] for value in values
    )


_TOP: Final = ("URL", "now", "may fail", "main reason", "seen")


def _top_row(item: "CurrentItem") -> Sequence[str | Text]:
    return (
        item.url,
        Text(item.health, _HEALTH_COLOURS.get(item.health, "")),
        "unknown" if item.probability is None else f"{item.probability:.1%}",
        item.reasons[0].text if item.reasons else "",
        item.status if item.observed_at is None else _instant(item.observed_at),
    )


def _lasting(client: "Client") -> "Iterator[tuple[str | None, Incident]]":
    """Targets that fail now, riskiest first, each with its newest incident."""
    for item in client.riskiest():
        if item.health == "down":
            url, _, name = item.target.partition("#")
            for incident in islice(client.incidents(url, name=name or None), 1):
                yield item.target, incident


def _watch(look: "Callable[[], list[CurrentItem]]", every_s: float) -> None:
    """Show what `look` finds, again and again, until Ctrl-C; while nothing answers, what it found last."""
    from rich.live import Live

    from urlhealth_client import ConnectionFailed

    def table(items: "Iterable[CurrentItem]", fault: str | None = None) -> Table:
        made = Table(*_TOP, expand=True, title=None if fault is None else Text(fault, "red"))
        for item in items:
            made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in _top_row(item)))
        return made

    items = look()
    try:
        with Live(table(items), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                fault = None
                try:
                    items = look()
                except ConnectionFailed as error:
                    fault = f"{error}; this is what was known"
                live.update(table(items, fault), refresh=True)
    except KeyboardInterrupt:
        pass


def _failing_share(point: "HistoryPoint") -> float | None:
    from urlhealth.vocabulary import Health, Outcome

    healths = {outcome.value: outcome.health for outcome in Outcome}
    numbers = dict.fromkeys(Health, 0)
    for outcome, number in point.outcomes.items():
        numbers[healths.get(outcome, Health.UNKNOWN)] += number
    told = numbers[Health.UP] + numbers[Health.DOWN]
    return numbers[Health.DOWN] / told if told else None


def _horizon(text: str) -> Any:
    from urlhealth.vocabulary import HORIZONS

    if text not in HORIZONS:
        raise InvalidRequest(f"horizon {text!r} is none of {', '.join(HORIZONS)}")
    return text


def _links(file: Path) -> Iterator[str]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    return (line for line in lines if line and not line.startswith("#"))


def _instant(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _utc(at: datetime | None) -> datetime | None:
    return None if at is None else at.replace(tzinfo=UTC)


@contextmanager
def _client(server: str | None) -> "Iterator[Client]":
    """A client of the running platform; what it meets is told as an error of ours."""
    from urlhealth.settings import load_settings
    from urlhealth_client import Client, ConnectionFailed, Retries, UrlHealthClientError

    settings = load_settings()
    server = server or settings.server
    try:
        with Client(server, key=settings.server_key or None, retries=Retries(attempts=2, first_delay_s=0.2)) as client:
            yield client
    except ConnectionFailed as error:
        raise UrlHealthError(f"{error}; is `urlhealth serve` running there? --server says where it is") from error
    except UrlHealthClientError as error:
        raise UrlHealthError(str(error)) from error
    except ValueError as error:  # what httpx says of a URL that is none
        raise InvalidRequest(f"--server {server}: {error}") from error
