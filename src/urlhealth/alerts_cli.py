"""`urlhealth alerts`: keep rules and channels in a file, try channels, and judge rules on a past."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from urlhealth.errors import InvalidRequest
from urlhealth.printing import Json, print_json_lines, print_table

if TYPE_CHECKING:
    from urlhealth.platform import Platform

app: Final = typer.Typer(help="Be told what fails, and what is about to.", no_args_is_help=True)

#: Exit code of a dry run that found something to do; 1 is an error.
WOULD_CHANGE: Final = 2
#: Alerts or messages that a list shows.
_SHOWN: Final = 100

RulesFile = Annotated[
    Path, typer.Option("-f", "--file", help="YAML file with lists `channels` and `rules`, or - for standard input.")
]


@app.command()
def apply(
    file: RulesFile,
    dry_run: Annotated[
        bool, typer.Option(help="Only say what would be done; exit code 2 if that is anything.")
    ] = False,
    prune: Annotated[bool, typer.Option(help="Delete the rules and channels that the file does not have.")] = False,
) -> None:
    """Make the platform's rules and channels what a file says they are. To do it again changes nothing.

    `${NAME}` in the file stands for an environment variable: so secrets stay out of it.
    """
    from urlhealth.alerts.rules import read_file

    wanted = read_file(file)
    with _platform() as platform:
        channels, rules = platform.alerts.apply(wanted, prune=prune, dry_run=dry_run)
    changed, kept = 0, 0
    for kind, new, different, surplus in (
        ("channel", channels.new, channels.changed, channels.surplus),
        ("rule", rules.new, rules.changed, rules.surplus),
    ):
        gone = surplus if prune else []
        for sign, names in (("+", new), ("~", different), ("-", gone)):
            for name in names:
                changed += 1
                typer.echo(f"{sign} {kind} {name}")
        kept += len(surplus) - len(gone)
    typer.echo(f"{changed} {'to be ' if dry_run else ''}changed", err=True)
    if kept:
        typer.echo(f"{kept} are not in {file}, and stay: --prune deletes them", err=True)
    if dry_run and changed:
        raise typer.Exit(WOULD_CHANGE)


@app.command("test")
def try_channels(
    channel: Annotated[list[str] | None, typer.Argument(help="Channels to try. [default: all]")] = None,
) -> None:
    """Send a test message by channels, now; exit code 1 if one cannot be reached."""
    failed = False
    with _platform() as platform:
        known = platform.alerts.channels()
        if not known:
            raise InvalidRequest("there is no channel yet: write one into a file, and `urlhealth alerts apply -f` it")
        wanted = [platform.alerts.channel(name) for name in channel] if channel else known
        for one in wanted:
            problem = platform.alert_sender.try_out(one)
            failed |= problem is not None
            typer.echo(f"{one.name} ({one.shown()}): {problem or 'sent'}")
    if failed:
        raise typer.Exit(1)


@app.command("list")
def list_alerts(
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are not over.")] = False,
    as_json: Json = False,
) -> None:
    """Show the newest alerts."""
    from serving.schemas.alerts import Alert

    with _platform() as platform:
        found = platform.alerts.alerts(limit=_SHOWN, only_open=only_open).items
    if as_json:
        print_json_lines(map(Alert.of, found))
        return
    print_table(
        ("number", "rule", "target", "since", "until", "what"),
        [
            (str(one.number), one.rule, one.target or one.host, _time(one.opened_ms), _time(one.closed_ms), one.text)
            for one in found
        ],
    )


@app.command()
def dead(
    retry: Annotated[list[str] | None, typer.Option(help="Send this one again, by its id. Repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Show the dead letters: messages that could not be sent, and are not tried any more."""
    from serving.schemas.alerts import DeadLetter
    from urlhealth.alerts.store import MessageStatus

    with _platform() as platform:
        for message_id in retry or ():
            platform.alerts.retry(message_id)
        found = platform.alerts.messages(MessageStatus.DEAD, limit=_SHOWN).items
    if as_json:
        print_json_lines(map(DeadLetter.of, found))
        return
    print_table(
        ("id", "made", "rule", "channel", "attempts", "why"),
        [
            (one.message_id, _time(one.created_ms), one.rule, one.channel, str(one.attempts), one.error or "")
            for one in found
        ],
    )


@app.command()
def backtest(
    history: Annotated[Path, typer.Option(help="Parquet file: url, ts, status, code, response_ms, perhaps group.")],
    rules: Annotated[Path, typer.Option(help="YAML file with a list `rules`.")],
    model: Annotated[
        str | None, typer.Option(help="NAME@ALIAS or NAME/VERSION. [default: the champion, or the bundled model]")
    ] = None,
) -> None:
    """Judge rules on a past of your own: how many alerts, how many of them right, and how early?"""
    from models import alerting
    from models.registry import resolve
    from urlhealth.alerts.rules import read_file
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    settings = load_settings()
    wanted = read_file(rules).rules
    if not wanted:
        raise InvalidRequest(f"{rules}: it has no rule")
    judged = alerting.judge(wanted, history, lambda: resolve(settings, model)[0], known_for_s=settings.known_for_s)
    print_table(alerting.HEADS, [one.row() for one in judged])
    for one in judged:
        if one.note:
            typer.echo(f"{one.rule}: {one.note}", err=True)


def _time(ms: int | None) -> str:
    from serving.schemas import rfc3339

    return "" if ms is None else rfc3339(ms)


@contextmanager
def _platform() -> "Iterator[Platform]":
    from urlhealth.platform import Platform
    from urlhealth.settings import load_settings

    with closing(Platform(load_settings())) as platform:
        yield platform.open(check=False)
