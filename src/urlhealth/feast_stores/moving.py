"""The features of one platform's stores into another's: what is newest, and all that was."""

import filecmp
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from urlhealth.errors import InvalidRequest, StoreUnavailable
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.rows import OnlineRows, Row, string_keys
from urlhealth.feast_stores.stores import DRAFT, FeatureStores
from urlhealth.features.catalog import STATE_VIEWS
from urlhealth.features.columns import StateView

#: Gives the keys of the entities of a kind, some at a time.
Keys = Callable[[str], Iterator[Sequence[str]]]


def move_online(
    source: FeatureStores, target: FeatureStores, keys: Keys, *, replace: bool
) -> list[tuple[str, int, int]]:
    """Copy the newest states, all of them or none; of each view: its name, and how many are there, and here.

    Args:
        keys: of the entities that have states.
        replace: what the target holds, unless it is the same, is replaced.

    Raises:
        InvalidRequest: the target holds other states.
        StoreUnavailable: a store cannot be used, or the source has states of other entities too.
    """
    drafts: dict[str, str] = {}
    draft = f"{DRAFT}{uuid.uuid4().hex}"
    counts = []
    to = target.online(STATE_VIEWS[0])[0]
    try:
        for view in STATE_VIEWS:
            (rows, table), (_, its_table) = source.online(view), target.online(view)
            there = rows.count(table)
            if to.count(its_table):
                if _same(view, rows, table, to, its_table, keys):
                    counts.append((view.name, there, to.count(its_table)))
                    continue
                if not replace:
                    raise _occupied(view.name, to.place)
            drafts[its_table] = f"{draft}.{its_table}"
            layout = Layout.of(view)
            for some in _packed(view, rows, table, keys):
                to.write(drafts[its_table], layout, some)
            counts.append((view.name, there, to.count(drafts[its_table])))
        for name, there, here in counts:
            if there != here:
                raise StoreUnavailable(
                    f"online store {source.online(STATE_VIEWS[0])[0].place}: {name} has {there} states, and {here} "
                    "that the pipeline knows of. Run `urlhealth features rebuild` on it, and try again"
                )
        to.replace(drafts)
    finally:
        to.drop(drafts.values())
    return counts


def _packed(view: StateView, rows: OnlineRows, table: str, keys: Keys) -> Iterator[list[Row]]:
    layout = Layout.of(view)
    for some in keys(view.entity):
        entities = string_keys(view.entity, some)
        found = [(key, row) for key, row in zip(entities, rows.read(table, entities), strict=True) if row is not None]
        if found:
            layout.heads([row for _, row in found])  # raises if they are of another schema
            yield found


def _same(view: StateView, rows: OnlineRows, table: str, others: OnlineRows, other: str, keys: Keys) -> bool:
    return rows.count(table) == others.count(other) and all(
        others.read(other, [key for key, _ in some]) == [row for _, row in some]
        for some in _packed(view, rows, table, keys)
    )


def move_offline(source: Path, target: Path, *, replace: bool) -> Iterator[tuple[str, int, int]]:
    """Copy the datasets, each whole or not at all; of each: its name, and how many rows are there, and here.

    Args:
        source, target: folders of datasets, as of `FeatureStores.offline_folder`.
        replace: what the target holds, unless it is the same, is replaced.

    Raises:
        InvalidRequest: the target holds other files.
        StoreUnavailable: a file is damaged, or the target cannot be written.
    """
    names = sorted(folder.name for folder in source.glob("[!.]*") if folder.is_dir())
    for name in names:
        if not replace and segments.files(target / name) and not _same_files(source / name, target / name):
            raise _occupied(name, str(target))
    draft = target / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        for name in names:
            if not _same_files(source / name, target / name):
                for file in segments.files(source / name):
                    _copy(file, draft / file.relative_to(source))
                segments.replace(target / name, draft / name)
            yield name, _rows(source / name), _rows(target / name)
    except OSError as error:
        raise StoreUnavailable(f"offline store {target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(file: Path, to: Path) -> None:
    # With its time: the newest file's schema is the dataset's.
    segments.replace_file(to, lambda temporary: shutil.copy2(file, temporary))


def _same_files(folder: Path, other: Path) -> bool:
    ours, theirs = segments.files(folder), segments.files(other)
    return [file.relative_to(folder) for file in ours] == [file.relative_to(other) for file in theirs] and all(
        filecmp.cmp(one, another, shallow=False) for one, another in zip(ours, theirs, strict=True)
    )


def _rows(folder: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(file).num_rows for file in segments.files(folder))


def _occupied(name: str, place: str) -> InvalidRequest:
    return InvalidRequest(
        f"{place} has {name} already, and other rows of it than what is to be moved. If they are of a move that was "
        "broken off, or of nobody, give --replace-features; otherwise set another place"
    )
