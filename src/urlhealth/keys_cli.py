"""`urlhealth keys`: who may call the server, and what they may do."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from urlhealth.printing import Json, print_json_lines, print_table

if TYPE_CHECKING:
    from urlhealth.crawl.keys import KeyStore

app: Final = typer.Typer(help="API keys. With the first one each call needs one.", no_args_is_help=True)

_KeyId = Annotated[str, typer.Argument(help="Id of the key, as `urlhealth keys list` shows it.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for; only for you to read.")],
    scope: Annotated[list[str], typer.Option(help="read, crawl, predict or admin; may be repeated.")],
    owner: Annotated[str, typer.Option(help="Whose tasks, monitors and targets it sees.")] = "local",
    expires_in_days: Annotated[
        float | None, typer.Option(help="Days for which it is good. [default: for ever]", min=0)
    ] = None,
    urls_per_day: Annotated[int | None, typer.Option(help="URLs of tasks a day (UTC).", min=0)] = None,
    running_tasks: Annotated[int | None, typer.Option(help="Tasks of its owner under way at once.", min=0)] = None,
    monitors: Annotated[int | None, typer.Option(help="Monitors of its owner.", min=0)] = None,
    requests_per_s: Annotated[
        float | None, typer.Option(help="Requests a second, in each process that answers.", min=0.01)
    ] = None,
) -> None:
    """Make a key and print its secret, which is not shown again."""
    from urlhealth.crawl.keys import Quotas, scopes_of

    with _keys() as (keys, now_ms):
        expires_ms = None if expires_in_days is None else now_ms + round(expires_in_days * 86_400_000)
        quotas = Quotas(
            urls_per_day=urls_per_day, running_tasks=running_tasks, monitors=monitors, requests_per_s=requests_per_s
        )
        key, secret = keys.create(name, scopes=scopes_of(scope), owner=owner, expires_ms=expires_ms, quotas=quotas)
    typer.echo(f"key {key.key_id}; it is not shown again:", err=True)
    typer.echo(secret)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All keys, without their secrets."""
    from serving.schemas.keys import Key

    with _keys() as (keys, now_ms):
        found = keys.keys()
    if as_json:
        print_json_lines(map(Key.of, found))
        return

    def state(expires_ms: int | None, revoked_ms: int | None) -> str:
        if revoked_ms is not None:
            return "revoked"
        return "expired" if expires_ms is not None and expires_ms <= now_ms else "good"

    print_table(
        ("key", "name", "owner", "scopes", "state", "expires", "last used"),
        (
            (
                key.key_id,
                key.name,
                key.owner,
                ", ".join(key.scopes),
                state(key.expires_ms, key.revoked_ms),
                _when(key.expires_ms),
                _when(key.used_ms),
            )
            for key in found
        ),
    )


@app.command()
def rotate(
    key_id: _KeyId, grace_s: Annotated[float, typer.Option(help="Seconds for which the old secret is taken.")] = 0.0
) -> None:
    """Give a key another secret, and print it."""
    with _keys() as (keys, _):
        secret = keys.rotate(key_id, grace_s=grace_s)
    typer.echo(secret)


@app.command()
def revoke(key_id: _KeyId) -> None:
    """Refuse a key from now on."""
    with _keys() as (keys, _):
        keys.revoke(key_id)
    typer.echo(f"key {key_id} is revoked")


def _when(ts_ms: int | None) -> str:
    return "never" if ts_ms is None else f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


@contextmanager
def _keys() -> Iterator[tuple["KeyStore", int]]:
    from urlhealth.platform import Platform
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    with closing(Platform(load_settings())) as platform:
        opened = platform.open(check=False)
        yield opened.keys, opened.clock()
