"""`urlhealth migrate-store`: from the embedded stores to those that the settings name."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from urlhealth.printing import Json, print_json_lines, print_table


def migrate_store(
    source: Annotated[
        Path | None, typer.Option("--from", help="Home folder of the embedded stores. [default: URLHEALTH_HOME]")
    ] = None,
    replace_features: Annotated[
        bool, typer.Option("--replace-features", help="Replace other features that the new stores have already.")
    ] = False,
    artifacts: Annotated[
        str | None, typer.Option(help="Where to copy models and plots to, such as s3://BUCKET/PATH. [default: nowhere]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Move all that the embedded stores hold to those that the settings name now, and compare the counts.

    What the settings leave in the home folder stays there. No server may run meanwhile.
    """
    from urlhealth.migration import embedded, migrate
    from urlhealth.settings import load_settings, quiet_third_parties

    quiet_third_parties()
    target = load_settings()
    moved = migrate(
        embedded(source or target.home, target), target, replace_features=replace_features, artifacts=artifacts
    )
    if as_json:
        print_json_lines(map(asdict, list(moved)))
        return
    print_table(
        ("part", "name", "rows before", "rows now"),
        [(each.part, each.name, f"{each.source_rows:,}", f"{each.target_rows:,}") for each in moved],
    )
