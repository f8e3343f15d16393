"""The `urlhealth` command. Heavy imports happen inside the commands, so that `--help` answers at once."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from urlhealth.errors import ConfigurationError, InvalidRequest, UrlHealthError

if TYPE_CHECKING:
    from urlhealth.platform import Platform
    from urlhealth.vocabulary import CrawlTask, TaskResult

app = typer.Typer(
    help="Probe URLs, keep their features in Feast, predict which fail next.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
features_app = typer.Typer(help="Work on the feature stores.", no_args_is_help=True)
app.add_typer(features_app, name="features")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of a table.")]


def main() -> None:
    """Entry point: runs the command; an error of ours is one line on stderr and exit code 1."""
    try:
        app()
    except UrlHealthError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; loopback only. [default: URLHEALTH_HOST]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [default: URLHEALTH_PORT]")] = None,
    workers: Annotated[int, typer.Option(help="Processes that answer requests.", min=1)] = 1,
) -> None:
    """Serve the crawl API, features and predictions."""
    import uvicorn

    with _platform() as platform:  # A store that cannot be opened is said here, once, before any process starts.
        host = host or platform.settings.host
        port = platform.settings.port if port is None else port
    _require_loopback(host)
    uvicorn.run("serving.app:create_app", factory=True, host=host, port=port, workers=workers, access_log=False)


@app.command()
def crawl(
    urls: Annotated[list[str] | None, typer.Argument(help="URLs to probe once.")] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="File with a URL a line; - is standard input.")
    ] = None,
    as_json: Json = False,
    insecure: Annotated[bool, typer.Option(help="Do not check certificates. Such probes feed no features.")] = False,
    exit_zero: Annotated[bool, typer.Option(help="Exit with 0 although a URL failed.")] = False,
) -> None:
    """Probe URLs once and print what was found; exit code 1 if any failed."""
    from urlhealth.vocabulary import Health, ProbeOptions

    wanted = [*(urls or []), *(_lines(file) if file else [])]
    if not wanted:
        raise InvalidRequest("no URLs: name some, or give a file with -f")
    failed = False
    with _platform() as platform:
        task = platform.crawl.create_task(wanted, options=ProbeOptions(verify_tls=not insecure))
        platform.start(predict=False)
        _wait_for(platform, task)
        results = list(_results(platform, task.task_id))
    failed = any(item.result is not None and item.result.outcome.health is not Health.UP for item in results)
    if as_json:
        _print_ndjson(_result_row(item) for item in results)
    else:
        _print_results(results)
    if failed and not exit_zero:
        raise typer.Exit(1)


@app.command()
def train(
    seed: Annotated[int, typer.Option(help="Seed of everything random in training.")] = 0,
    promote: Annotated[bool, typer.Option(help="Let the new model serve if it is better.")] = True,
) -> None:
    """Train on the stored history, log it to MLflow, register it, and promote it if it is better."""
    from models.training import train as train_model

    console = Console()
    with _platform() as platform:
        with console.status("Bringing features up to date"):
            platform.build_features()
        train_model(platform, seed=seed, promote=promote, report=lambda line: console.print(line, soft_wrap=True))


@app.command()
def predict(
    urls: Annotated[list[str], typer.Argument(help="URLs to forecast.")],
    horizon: Annotated[list[str] | None, typer.Option(help="1h, 6h or 24h; may be repeated. [default: 24h]")] = None,
    as_json: Json = False,
) -> None:
    """Say how likely URLs are to fail, and why."""
    from dataclasses import asdict

    with _platform() as platform:
        platform.champion.refresh()
        predictions = platform.predictor.predict(urls, horizons=horizon or ["24h"], explain=True)
    if as_json:
        _print_ndjson(asdict(prediction) for prediction in predictions)
        return
    from rich.table import Table

    table = Table("URL", "state now", "horizon", "may fail", "main reason", "known from")
    for prediction in predictions:
        table.add_row(
            escape(prediction.sent_url),
            prediction.health,
            prediction.horizon,
            "unknown" if prediction.probability is None else f"{prediction.probability:.1%}",
            prediction.reasons[0].text if prediction.reasons else "",
            prediction.status if prediction.age_s is None else f"{prediction.status}, {prediction.age_s:.0f} s ago",
        )
    console = Console()
    console.print(table)
    console.print(f"model {predictions[0].model} version {predictions[0].model_version}", style="dim")


@features_app.command("build")
def features_build(
    rebuild: Annotated[
        bool, typer.Option(help="Forget all features and fold the whole history anew, late probes included.")
    ] = False,
) -> None:
    """Bring the features up to date with the stored probes."""
    console = Console()
    with _platform() as platform, console.status("Building features"):
        if rebuild:
            if not platform.lease.acquire():
                raise ConfigurationError("another process is the writer: stop `urlhealth serve` before a rebuild")
            console.print(f"{platform.pipeline.rebuild()} verdicts folded anew")
        platform.build_features()
    console.print("features are up to date")


@app.command()
def doctor() -> None:
    """Say which stores are in use, and whether each works."""
    from rich.table import Table

    with _platform() as platform:
        platform.champion.refresh()
        checks = platform.checks()
    table = Table("part", "works", "in use", "what to do")
    for check in checks:
        table.add_row(check.name, "[green]yes" if check.ok else "[red]no", escape(check.detail), check.advice or "")
    Console().print(table)
    if not all(check.ok for check in checks if check.needed):
        raise typer.Exit(1)


@contextmanager
def _platform() -> Iterator["Platform"]:
    from urlhealth.platform import Platform
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    with Platform(load_settings()) as platform:
        yield platform


def _require_loopback(host: str) -> None:
    import ipaddress

    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigurationError(
            f"will not listen on {host}: there is no authentication yet, so only loopback (127.0.0.1, ::1) is served"
        )


def _lines(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _wait_for(platform: "Platform", task: "CrawlTask") -> None:
    """Show progress (on a terminal) until the task is done, whichever process does it."""
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from urlhealth.vocabulary import TaskStatus

    console = Console(stderr=True)
    columns = (TextColumn("probing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("probing", total=task.total)
        while task.status not in (TaskStatus.DONE, TaskStatus.CANCELLED):
            time.sleep(0.05)
            task = platform.crawl.task(task.task_id)
            progress.update(bar, completed=task.done)


def _results(platform: "Platform", task_id: str) -> Iterator["TaskResult"]:
    cursor = None
    while True:
        page = platform.crawl.task_results(task_id, limit=1_000, cursor=cursor)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None:
            return


def _result_row(item: "TaskResult") -> dict[str, Any]:
    from dataclasses import asdict

    return {"url": item.sent_url, **(asdict(item.result) if item.result else {})}


def _print_ndjson(rows: Any) -> None:
    import orjson

    for row in rows:
        sys.stdout.buffer.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _print_results(results: list["TaskResult"]) -> None:
    from rich.table import Table

    table = Table("URL", "outcome", "status", "ms", "what was wrong")
    for item in results:
        result = item.result
        if result is None:
            continue
        table.add_row(
            escape(item.sent_url),
            result.outcome,
            "" if result.status_code is None else str(result.status_code),
            "" if result.total_ms is None else f"{result.total_ms:.0f}",
            escape(result.error or ""),
        )
    Console().print(table)
