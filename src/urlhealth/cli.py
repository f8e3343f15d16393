"""The `urlhealth` command. Heavy imports happen inside the commands, so that `--help` answers at once."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from urlhealth import alerts_cli, history_cli, keys_cli, migration_cli, monitors_cli, remote_cli
from urlhealth.errors import ConfigurationError, InvalidRequest, InvalidUrls, UrlHealthError
from urlhealth.printing import (
    Json,
    print_checks,
    print_json_lines,
    print_pools,
    print_results,
    print_table,
    result_json,
    result_line,
    rfc3339,
)

if TYPE_CHECKING:
    from urlhealth.crawl.tasks import Answered
    from urlhealth.platform import Platform
    from urlhealth.vocabulary import CrawlTask

app = typer.Typer(
    help="Probe URLs, keep their features in Feast, predict which fail next.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
features_app = typer.Typer(help="Work on the feature stores.", no_args_is_help=True)
app.add_typer(features_app, name="features")
app.add_typer(monitors_cli.app, name="monitors")
app.add_typer(history_cli.app, name="history")
app.add_typer(alerts_cli.app, name="alerts")
app.add_typer(keys_cli.app, name="keys")
remote_cli.add_to(app, monitors=monitors_cli.app, history=history_cli.app)
models_app = typer.Typer(help="Work on the registered models.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.command("migrate-store")(migration_cli.migrate_store)

#: Time between two looks for results.
_POLL_S = 0.1
#: Characters of the longest bar of an explanation.
_BAR = 24


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
        str | None,
        typer.Option(help="Address to listen on; loopback only, unless there are keys. [default: URLHEALTH_HOST]"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on. [default: URLHEALTH_PORT]", min=0, max=65535)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that answer requests.", min=1)] = 1,
) -> None:
    """Serve the crawl API, features and predictions."""
    import uvicorn

    from serving.logs import configuration
    from serving.protocol import LimitedHttp
    from urlhealth.settings import load_settings, require_loopback

    settings = load_settings()
    host = host or settings.host
    # Without a database there are no keys, and none is made for a server that may not be.
    may_have_keys = settings.database_url or (settings.home / "urlhealth.db").exists()
    if not may_have_keys:
        require_loopback(host)
    with _platform() as platform:
        require_loopback(host, keys=platform.keys.exist())
        # What cannot be opened is said here, once, before any process starts.
    port = settings.port if port is None else port
    _require_free(host, port)
    _allow_files()
    uvicorn.run(
        "serving.app:create_app",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        http=LimitedHttp,
        access_log=False,
        log_config=configuration(as_json=settings.log_json),
        timeout_graceful_shutdown=5,  # Whoever follows a task's events does not hold up the end.
    )


@app.command()
def worker(
    queues: Annotated[
        str | None,
        typer.Option(
            help="Queues to take from, comma-separated, such as monitors,tasks,monitors.eu. [default: all "
            "that name no region]"
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Batches of probes in hand at once.", min=1)] = 16,
) -> None:
    """Probe what a server hands out over the broker (URLHEALTH_BROKER_URL), until it is told to stop."""
    from urlhealth.platform import work
    from urlhealth.settings import load_settings

    raise typer.Exit(work(load_settings(), queues=queues.split(",") if queues else None, concurrency=concurrency))


@app.command()
def crawl(
    urls: Annotated[list[str] | None, typer.Argument(help="URLs to probe once.")] = None,
    in_files: Annotated[
        bool, typer.Option("--in-files", help="The arguments are files: probe the links in them.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="File with a URL a line; - is standard input.")
    ] = None,
    as_json: Json = False,
    insecure: Annotated[bool, typer.Option(help="Do not check certificates. Such probes feed no features.")] = False,
    option: Annotated[
        list[str] | None,
        typer.Option("-o", "--option", help="Any option of a task, as in `-o timeout_s=5 -o method=HEAD`. Repeatable."),
    ] = None,
    exit_zero: Annotated[bool, typer.Option(help="Exit with 0 although a URL failed.")] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="File of links known to fail: exit with 1 only if another one does.")
    ] = None,
    write_baseline: Annotated[
        bool, typer.Option("--write-baseline", help="Write what fails now to that file, and exit with 0.")
    ] = False,
) -> None:
    """Probe URLs once and print what was found; exit code 1 if any failed.

    On a terminal: a progress bar, then a table. In a pipe: a line for each URL as soon as it has its result.
    """
    from urlhealth.probing.options import parse_options
    from urlhealth.probing.urls import UrlLines
    from urlhealth.vocabulary import Outcome

    if write_baseline and baseline is None:
        raise InvalidRequest("say which file to write: --baseline FILE")
    from urlhealth import link_check

    known_failures = None if baseline is None else link_check.Baseline(baseline)
    if known_failures is not None and not write_baseline:
        known_failures.compare({})  # What is wrong with the file is said before anything is probed.
    places = link_check.links_in(urls or ()) if in_files else {}
    if in_files:
        urls = list(places)
        if not urls and file is None:
            return
    options = parse_options(dict(map(_named_value, option or ())) | ({"verify_tls": False} if insecure else {}))
    as_table = sys.stdout.isatty() and not as_json
    line_of = result_json if as_json else result_line
    failed = False
    outcomes: dict[str, str] = {}
    with _lines(file) as lines, _platform(check=False) as platform:
        platform.start(features=False, predict=False)
        before = platform.crawl.last_probe_id()
        from_file = UrlLines(lines)
        try:
            task = platform.crawl.create_task(chain(urls or (), from_file), options=options)
        except InvalidUrls as error:
            position, reason = next(iter(error.problems.items()))
            if file is None or position < len(urls or ()):
                raise
            raise InvalidRequest(f"{file}, line {from_file.line_of(position - len(urls or ()))}: {reason}") from error
        shown: list[Answered] = []
        try:
            for some in _answered(platform, task, after=before, progress=as_table):
                failed |= any(item.outcome != Outcome.OK for item in some)
                if known_failures is not None or in_files:
                    outcomes |= {item.sent_url: str(item.outcome) for item in some}
                if as_table:
                    shown += some
                else:
                    sys.stdout.buffer.writelines(map(line_of, some))
                    sys.stdout.buffer.flush()
            cancelled = platform.crawl.task(task.task_id).status == "cancelled"
        except (KeyboardInterrupt, BrokenPipeError):
            platform.crawl.cancel_task(task.task_id)
            sys.stdout = None  # nobody reads it: nothing is flushed at exit
            raise typer.Exit(130) from None
    if as_table:
        print_results(sorted(shown, key=attrgetter("position")))
    if cancelled:
        raise InvalidRequest(f"the task {task.task_id} was cancelled before all its URLs were probed")
    if known_failures is not None:
        if write_baseline:
            typer.echo(f"{baseline}: {known_failures.write(outcomes)} links that fail", err=True)
            return
        compared = known_failures.compare(outcomes)
        failed, outcomes = bool(compared.new), dict(compared.new)
        typer.echo(compared.summary(), err=True)
    for url, outcome in outcomes.items():
        if outcome != Outcome.OK and (in_files or known_failures is not None):
            typer.echo(f"{places[url]}: {outcome}: {url}" if url in places else f"{outcome}: {url}", err=True)
    if failed and not exit_zero:
        raise typer.Exit(1)


@app.command()
def train(
    seed: Annotated[int, typer.Option(help="Seed of everything random in training.")] = 0,
    promote: Annotated[bool, typer.Option(help="Let the new model serve if it is better beyond noise.")] = True,
    history: Annotated[
        Path | None, typer.Option(help="Parquet file to learn from in place of the stored history; as for backtest.")
    ] = None,
    budget: Annotated[int, typer.Option(help="Candidates tried before the best is trained; 1: no search.", min=1)] = 1,
) -> None:
    """Train on the stored history, log it to MLflow, register it, and promote it if it is better."""
    _train(seed=seed, promote=promote, history=history, budget=budget)


def _train(*, seed: int, promote: bool, history: Path | None = None, **options: Any) -> None:
    """`options`: as of `models.training.train`."""
    from models import training
    from urlhealth.settings import load_settings, quiet_third_parties

    console = Console()

    def report(line: str) -> None:
        console.print(line, soft_wrap=True)

    if history is not None:
        quiet_third_parties()
        training.train_from(load_settings(), history, seed=seed, promote=promote, report=report, **options)
        return
    with _platform() as platform:
        with console.status("Bringing features up to date"):
            platform.build_features()
        training.train(platform, seed=seed, promote=promote, report=report, **options)


@app.command()
def retrain(
    why: Annotated[str, typer.Option(help="What makes it necessary, for the note in MLflow.")] = "it was asked for",
) -> None:
    """Train on the newest history, and let the new model serve if it is better than the champion beyond noise."""
    _train(seed=int(time.time()), promote=True, why=why)


@app.command()
def predict(
    urls: Annotated[list[str], typer.Argument(help="URLs to forecast.")],
    horizon: Annotated[list[str] | None, typer.Option(help="1h, 6h or 24h; may be repeated. [default: 24h]")] = None,
    as_json: Json = False,
) -> None:
    """Say how likely URLs are to fail, and why."""
    from serving.schemas import PredictionsItem

    with _platform() as platform:
        platform.champion.refresh()
        forecasts = platform.predictor.predict(urls, horizons=horizon or ["24h"], explain=True)
    if as_json:
        print_json_lines(map(PredictionsItem.of, forecasts))
        return
    print_table(
        ("URL", "state now", "horizon", "may fail", "main reason", "known from"),
        (
            (
                prediction.sent_url,
                prediction.health,
                prediction.horizon,
                "unknown" if prediction.probability is None else f"{prediction.probability:.1%}",
                prediction.reasons[0].text if prediction.reasons else "",
                prediction.status if prediction.age_s is None else f"{prediction.status}, {prediction.age_s:.0f} s ago",
            )
            for prediction in forecasts
        ),
    )
    Console().print(f"model {forecasts.model} version {forecasts.model_version}", style="dim")


@app.command()
def explain(
    url: Annotated[str, typer.Argument(help="URL to explain the forecast for.")],
    horizon: Annotated[str, typer.Option(help="1h, 6h or 24h.")] = "24h",
    as_json: Json = False,
) -> None:
    """Say what moved the forecast for a URL most, with a bar for each reason."""
    from serving.schemas import PredictionsItem

    with _platform() as platform:
        platform.champion.refresh()
        prediction = platform.predictor.predict([url], horizons=[horizon], explain=True)[0]
    if prediction.probability is None:
        raise InvalidRequest(f"nothing is known of {url} yet: probe it first (`urlhealth crawl {url}`)")
    if as_json:
        print_json_lines([PredictionsItem.of(prediction)])
        return
    console = Console(soft_wrap=True)
    console.print(
        f"{escape(url)}: {prediction.probability:.1%} may fail within {horizon} (now {prediction.health}; "
        f"{prediction.model} version {prediction.model_version})"
    )
    most = max((abs(reason.contribution) for reason in prediction.reasons), default=1.0)
    for reason in prediction.reasons:
        bar = "█" * max(1, round(_BAR * abs(reason.contribution) / most))
        colour = "red" if reason.contribution > 0 else "green"
        console.print(f"[{colour}]{bar:<{_BAR}}[/] {reason.contribution:+.2f}  {escape(reason.text)}")


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """Registered versions, newest first."""
    from datetime import UTC, datetime

    from models import registry
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    with registry.tracking(load_settings()) as client:
        found = registry.versions(client)
    if as_json:
        print_json_lines(
            {
                "version": each.version,
                "aliases": each.aliases,
                "registered_at": rfc3339(each.created_ms),
                "note": each.description,
            }
            for each in found
        )
        return
    print_table(
        ("version", "alias", "registered", "note"),
        (
            (
                each.version,
                ", ".join(each.aliases),
                f"{datetime.fromtimestamp(each.created_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC",
                each.description,
            )
            for each in found
        ),
    )


@models_app.command("compare")
def models_compare(
    first: Annotated[str, typer.Argument(help="NAME@ALIAS or NAME/VERSION.")] = "url-health@challenger",
    second: Annotated[str, typer.Argument(help="What to compare it with.")] = "url-health@champion",
) -> None:
    """Two models beside each other on the newest part of the stored history."""
    from models.training import compare

    console = Console()
    with _platform() as platform:
        with console.status("Bringing features up to date"):
            platform.build_features()
        for line in compare(platform, (first, second)):
            console.print(line, soft_wrap=True)


@models_app.command("promote")
def models_promote(version: Annotated[str, typer.Argument(help="Version that shall serve.")]) -> None:
    """Make a version the champion, whatever the comparison says."""
    from models import registry
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    with registry.tracking(load_settings()) as client:
        registry.promote(client, version)
    Console().print(f"version {version} is the champion")


@models_app.command("rollback")
def models_rollback() -> None:
    """Make the version champion that the present one replaced."""
    from models import registry
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    with registry.tracking(load_settings()) as client:
        version = registry.rollback(client)
    Console().print(f"version {version} is the champion again")


@app.command()
def backtest(
    history: Annotated[Path, typer.Option(help="Parquet file: url, ts, status, code, response_ms, perhaps group.")],
    at: Annotated[Path | None, typer.Option(help="Parquet file of what to forecast, and as of when: url, ts.")] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write the forecasts to.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder to write an HTML report on the model to.")] = None,
    model: Annotated[
        str | None, typer.Option(help="NAME@ALIAS or NAME/VERSION. [default: the champion, or the bundled model]")
    ] = None,
) -> None:
    """Judge a model on a past of your own: forecasts of past instants, each made from what was known then."""
    from models import backtest as backtests
    from models.registry import resolve
    from urlhealth.settings import load_settings, quiet_third_parties

    if (at is None) != (out is None) or (at is None and report is None):
        raise InvalidRequest("say what to make: --at and --out for forecasts, --report for a report")
    quiet_third_parties()
    settings = load_settings()
    forecaster, name = resolve(settings, model)
    console = Console(stderr=True)
    if at is not None and out is not None:
        number = backtests.forecast(forecaster, history, at, out, known_for_s=settings.known_for_s)
        console.print(f"{number:,} instants forecast by {name}: {out}", soft_wrap=True)
    if report is not None:
        page = backtests.report(forecaster, name, history, report, known_for_s=settings.known_for_s)
        console.print(f"report on {name}: {page}", soft_wrap=True)


@app.command()
def polling(
    pool: Annotated[
        int | None, typer.Option(help="Show the monitors of this pool that were probed most, instead of the pools.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Lines to show.", min=1, max=1000)] = 100,
    as_json: Json = False,
) -> None:
    """Show where the budgets of adaptive monitors went, and what that gained over equal intervals."""
    from serving.schemas import Polled, Pool

    with _platform(check=False) as platform:
        if pool is None:
            pools = platform.crawl.pools(limit=limit).items
            if as_json:
                print_json_lines(map(Pool.of, pools))
            else:
                print_pools(pools)
        else:
            polled = platform.crawl.pool_monitors(pool, limit=limit)
            if as_json:
                print_json_lines(map(Polled.of, polled))
            else:
                print_table(
                    ("target", "probes", "interval, s", "weight", "skipped"),
                    (
                        (m.target.key, f"{m.probes:,}", f"{m.interval_s:,}", f"{m.weight:g}", f"{m.skipped:,}")
                        for m in polled
                    ),
                )


@app.command()
def replay(
    history: Annotated[Path, typer.Option(help="Parquet file: url, ts, status, code, response_ms, perhaps group.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write the probes to: url, ts, observed.")],
    policy: Annotated[str, typer.Option(help="uniform or adaptive.")] = "adaptive",
    budget_per_url_hour: Annotated[float, typer.Option(help="Probes per URL and hour, on average.")] = 1.0,
    start: Annotated[
        str, typer.Option(help="An instant (ISO 8601; UTC unless it says else), or half: the middle of each series.")
    ] = "half",
    objective: Annotated[
        str, typer.Option(help="What adaptive intervals are best for: delay, caught or both.")
    ] = "both",
    report: Annotated[Path | None, typer.Option(help="Folder to write an HTML report to.")] = None,
) -> None:
    """Judge a polling policy on a past of your own: which outages would it have caught, and how soon?"""
    from models.tables import read_history
    from urlhealth.polling import command

    result = command.run(
        read_history(history), policy=policy, budget_per_url_hour=budget_per_url_hour, start=start, objective=objective
    )
    result.write_probes(out)
    print_table(("polling", "delay, min", "caught", "probes"), result.rows())
    console = Console(stderr=True)
    console.print(f"{len(result.probes):,} probes: {out}", soft_wrap=True)
    if report is not None:
        console.print(f"report: {result.write_report(report)}", soft_wrap=True)


@features_app.command("build")
def features_build(
    rebuild: Annotated[
        bool, typer.Option(help="Forget all features and fold the whole history anew, late probes included.")
    ] = False,
) -> None:
    """Bring the features up to date with the stored probes."""
    console = Console()
    with _platform() as platform, console.status("Building features"):
        platform.build_features(rebuild=rebuild)
    console.print("features are up to date")


@features_app.command("rebuild")
def features_rebuild() -> None:
    """Fold the whole history anew, late probes included: the same as `build --rebuild`."""
    features_build(rebuild=True)


@features_app.command("check")
def features_check() -> None:
    """Compare the online with the offline store for every entity; exit code 1 if they differ."""
    with _platform() as platform:
        check = platform.check_features()
    print_table(
        ("view", "entities", "different", "online only", "such as"),
        (
            (view.view, str(view.entities), str(view.different), str(view.unknown), ", ".join(view.examples))
            for view in check.views
        ),
    )
    if not check.ok:
        Console().print("run `urlhealth features rebuild` to make both anew from the stored probes")
        raise typer.Exit(1)


@features_app.command("drift")
def features_drift(
    reference: Annotated[
        str, typer.Option(help="Period to compare with: FROM/TO (ISO 8601; UTC unless it says else), or training.")
    ] = "training",
    current: Annotated[str | None, typer.Option(help="Period FROM/TO that is compared. [default: --hours]")] = None,
    hours: Annotated[float, typer.Option(help="Hours until now that are compared.", min=0.01)] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    report: Annotated[Path | None, typer.Option(help="Folder to write an HTML report to.")] = None,
) -> None:
    """How far features have moved: PSI, KS and missing shares of any two periods, or of serving against training."""
    import json

    from urlhealth.prediction import drift, drift_report

    periods = [None if text in (None, "training") else drift.Period.parse(text) for text in (reference, current)]
    with _platform() as platform:
        found = platform.drift(*periods, hours=hours)
    if as_json:
        sys.stdout.write(json.dumps(drift.as_json(found)) + "\n")
    else:
        print_table(
            ("feature", "PSI", "KS", "missing before", "missing now"),
            (
                (f.feature, f"{f.psi:.3f}", f"{f.ks:.3f}", f"{f.missing_reference:.1%}", f"{f.missing_current:.1%}")
                for f in found.features
            ),
        )
    if report is not None:
        Console(stderr=True).print(f"report: {drift_report.write(found, report)}", soft_wrap=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say which stores are in use, and whether each works."""
    from serving.schemas import Ready

    with _platform(check=False) as platform:
        platform.champion.refresh()
        checks = platform.checks()
    if as_json:
        print_json_lines([Ready.of(checks)])
    else:
        print_checks(checks)
    if not all(check.ok for check in checks if check.needed):
        raise typer.Exit(1)


def _allow_files() -> None:
    """Let this process have many files open, if it may: the usual 1,024 are soon taken by connections that are idle."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if resource.RLIM_INFINITY != soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _require_free(host: str, port: int) -> None:
    import socket

    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}, port {port}: {error.strerror}; end what listens there, or give another --port"
        ) from error


@contextmanager
def _platform(*, check: bool = True) -> Iterator["Platform"]:
    from urlhealth.platform import Platform
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    with closing(Platform(load_settings())) as platform:
        yield platform.open(check=check)


@contextmanager
def _lines(file: Path | None) -> Iterator[Iterable[str]]:
    """The lines of a file, of standard input for `-`, none without a file."""
    if file is None:
        yield ()
        return
    try:
        with sys.stdin if str(file) == "-" else file.open(encoding="utf-8") as lines:
            yield lines
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}") from error


def _named_value(text: str) -> tuple[str, Any]:
    """`timeout_s=5`, as name and value; what is no JSON is text."""
    import orjson

    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"option {text!r} is not of the form name=value")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _answered(platform: "Platform", task: "CrawlTask", *, after: int, progress: bool) -> Iterator[list["Answered"]]:
    """The task's results as they come, whichever process probes; `after` is the last probe before the task."""
    with _progress_bar(task.total) if progress else nullcontext(lambda _: None) as show:
        while True:
            task = platform.crawl.task(task.task_id)
            while some := platform.crawl.answered(task.task_id, after=after):
                yield some
                after = some[-1].probe_id
            show(task.done)
            if task.finished_ms is not None:
                return
            time.sleep(_POLL_S)


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("probing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("probing", total=total)
        yield lambda done: progress.update(bar, completed=done)
