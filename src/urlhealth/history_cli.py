"""`urlhealth history`: histories into the store, and out of it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from urlhealth.printing import print_table


class _OrUrl(TyperGroup):
    """Takes `history URL` for `history show URL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and any("://" in argument for argument in args):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_OrUrl, help="Show, import and export what URLs have been like.", no_args_is_help=True)


@app.command("import")
def import_(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Files (.parquet, .ndjson, .csv), clones of Upptime repositories, Uptime Kuma's database (kuma.db)."
        ),
    ],
    strict: Annotated[bool, typer.Option(help="Exit with 1 if a row was left out.")] = False,
) -> None:
    """Store histories. Rows that cannot be stored are left out, and the reasons told; importing again adds nothing."""
    from urlhealth.histories.importing import Importer
    from urlhealth.histories.source import batches_of
    from urlhealth.platform import Platform
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    console = Console(stderr=True, soft_wrap=True)
    results = {}
    with Platform(load_settings()) as platform:
        for source in sources:
            importer = Importer(platform.crawl, clock=platform.clock, oldest_ms=platform.kept().probes_ms)
            with console.status(f"Importing {source}"):
                results[source] = importer.run(batches_of(source))
        if any(result.late for result in results.values()):
            platform.pipeline.request_rebuild()
        with console.status("Rolling up"):
            platform.roll_up()
    numbers = [(result.rows, result.stored, result.known, result.late) for result in results.values()]
    print_table(
        ("history", "rows", "stored", "there already", "late"),
        [(str(source), *(f"{n:,}" for n in row)) for source, row in zip(results, numbers, strict=True)],
    )
    for source, result in results.items():
        for reason, (count, first) in sorted(result.left_out.items(), key=lambda item: -item[1][0]):
            console.print(f"{source}: rows left out: {count:,}, the first is {first}: {reason}", markup=False)
    if any(late for *_, late in numbers):
        console.print("some rows are older than what features knew: the writer makes all features anew")
    if strict and any(result.left_out for result in results.values()):
        raise typer.Exit(1)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="File to write: .parquet, .ndjson or .csv.")],
    url: Annotated[list[str] | None, typer.Option(help="Only this URL's. Repeatable.")] = None,
) -> None:
    """Write the stored verdicts to a file that `import` reads."""
    from urlhealth.histories import files
    from urlhealth.platform import Platform
    from urlhealth.probing.urls import parse_targets
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    targets = None if url is None else parse_targets(url)
    with Platform(load_settings()) as platform:
        rows = files.write(platform.crawl.export_verdicts(targets), out)
    Console(stderr=True, soft_wrap=True).print(f"{rows:,} verdicts: {out}")


@app.command()
def upptime(
    clones: Annotated[list[Path], typer.Argument(help="Clones of Upptime repositories, with all their commits.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
) -> None:
    """Write the histories of Upptime repositories to one file, for `import`, `backtest` and `replay`."""
    from urlhealth.histories.upptime import write_set

    rows = write_set(clones, out)
    Console(stderr=True, soft_wrap=True).print(f"{rows:,} rows of {len(clones)} repositories: {out}")
