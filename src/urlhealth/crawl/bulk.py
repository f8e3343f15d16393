"""Histories of millions of probes, stored by the column: much faster than a result at a time."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from urlhealth.crawl.database import chunks, order_probe_ids, run, writing
from urlhealth.crawl.records import LOOKUP_CHUNK, Records, remember
from urlhealth.crawl.schema import probes, targets
from urlhealth.vocabulary import LOCAL_OWNER, Target

if TYPE_CHECKING:
    import polars as pl

#: Rows read at once.
_EXPORT_CHUNK: Final = 50_000
_EXPORTED: Final = {
    "url": targets.c.key,
    "name": targets.c.name,
    "group": targets.c.group,
    "ts": probes.c.ts_ms,
    **{
        name: probes.c[name]
        for name in (
            "outcome",
            "status_code",
            "dns_ms",
            "connect_ms",
            "tls_ms",
            "first_byte_ms",
            "total_ms",
            "size_bytes",
            "redirects",
            "final_url",
            "address",
            "http_version",
        )
    },
    "cert_expires": probes.c.cert_expires_ms,
    "error": probes.c.error,
    "source": probes.c.source,
    "attempts": probes.c.attempts,
}


class Series(NamedTuple):
    """A target that probes are added to."""

    target_id: int
    #: Its newest verdict, ms since 1970 UTC; 0 without one.
    newest_ms: int


class Bulk(Records):
    """Appends columns of verdicts. Any process may."""

    def open_series(
        self, wanted: Collection[tuple[Target, bool]], *, simulated: bool, owner: str = LOCAL_OWNER
    ) -> dict[str, Series]:
        """The series of targets, by key; those not known yet are added.

        Args:
            wanted: each with whether its group was given, and is to replace the one that is known.
            simulated: whether the targets have probes that were simulated.
        """
        with writing(self._engine) as connection:
            ids = remember(connection, owner, [target for target, _ in wanted], now_ms=self._clock())
            groups = [{"i": ids[target.key], "g": target.group} for target, given in wanted if given]
            if groups:
                update = sa.update(targets).where(targets.c.id == sa.bindparam("i")).values(group=sa.bindparam("g"))
                connection.execute(update, groups)
            if simulated:
                for some in chunks(list(ids.values()), LOOKUP_CHUNK):
                    connection.execute(sa.update(targets).where(targets.c.id.in_(some)).values(simulated=True))
            newest: dict[int, int] = {}
            for some in chunks(list(ids.values()), LOOKUP_CHUNK):
                values = ", ".join(f"({target_id:d})" for target_id in some)
                query = (
                    "SELECT w.column1, (SELECT max(ts_ms) FROM probes WHERE target_id = w.column1) "
                    f"FROM (VALUES {values}) AS w"
                )
                newest |= dict(connection.exec_driver_sql(query).all())
        return {key: Series(target_id, newest[target_id] or 0) for key, target_id in ids.items()}

    def add_verdicts(self, frame: "pl.DataFrame", *, owner: str = LOCAL_OWNER) -> int:
        """Store verdicts, except those that are there already; returns how many were not.

        Args:
            frame: columns of `probes`; no target twice at one instant.
        """
        frame = frame.select(name for name in frame.columns if frame[name].null_count() < len(frame))
        with writing(self._engine) as connection:
            order_probe_ids(connection)
            new = frame.join(_asked_for(connection, frame), on=["target_id", "ts_ms"], how="anti")
            if new.is_empty():
                return 0
            add = _copy if connection.dialect.name == "postgresql" else _insert
            return add(connection, new.sort("target_id", "ts_ms"), owner)

    def export_verdicts(
        self, wanted: Sequence[Target] | None = None, *, owner: str = LOCAL_OWNER
    ) -> "Iterator[pl.DataFrame]":
        """Every verdict, or those on some targets, in batches, as they were stored; columns as in files of ours."""
        import polars as pl

        query = sa.select(*_EXPORTED.values()).join(targets, targets.c.id == probes.c.target_id)
        query = query.where(probes.c.feeds_features, probes.c.owner == owner)
        if wanted is not None:
            query = query.where(targets.c.key.in_([target.key for target in wanted]), targets.c.owner == owner)
        instant = pl.Datetime("ms", "UTC")
        with self._engine.connect().execution_options(stream_results=True) as connection:
            for rows in connection.execute(query.order_by(probes.c.id)).partitions(_EXPORT_CHUNK):
                frame = pl.DataFrame(rows, schema=list(_EXPORTED), orient="row", infer_schema_length=None)
                yield frame.with_columns(
                    url=pl.when(pl.col("name").is_null())
                    .then("url")
                    .otherwise(pl.col("url").str.strip_suffix(pl.concat_str(pl.lit("#"), pl.col("name")))),
                    ts=pl.col("ts").cast(instant),
                    cert_expires=pl.col("cert_expires").cast(pl.Int64).cast(instant),
                )


def _asked_for(connection: sa.Connection, frame: "pl.DataFrame") -> "pl.DataFrame":
    """Target and instant of verdicts that tasks asked for, in the time of each target's rows: no index finds those."""
    import polars as pl

    spans = frame.group_by("target_id").agg(pl.col("ts_ms").min().alias("first"), pl.col("ts_ms").max().alias("last"))
    rows: list[Any] = []
    for some in chunks(spans.rows(), LOOKUP_CHUNK):
        values = ", ".join(f"({target_id:d}, {first:d}, {last:d})" for target_id, first, last in some)
        rows += connection.exec_driver_sql(
            f"SELECT p.target_id, p.ts_ms FROM (VALUES {values}) AS w CROSS JOIN probes AS p "
            "WHERE p.feeds_features AND coalesce(p.task_number, 0) <> 0 "
            "AND p.target_id = w.column1 AND p.ts_ms BETWEEN w.column2 AND w.column3"
        ).all()
    return pl.DataFrame(rows, schema={"target_id": pl.Int64, "ts_ms": pl.Int64}, orient="row")


def _insert(connection: sa.Connection, frame: "pl.DataFrame", owner: str) -> int:
    # What is the same in each row is written once: to bind it takes a third of the time.
    same = {name: frame.item(0, name) for name in frame.columns if frame[name].n_unique() == 1}
    constants = {name: _literal(value) for name, value in (same | {"owner": owner, "feeds_features": 1}).items()}
    varying = [name for name in frame.columns if name not in same] or ["ts_ms"]
    constants = {name: value for name, value in constants.items() if name not in varying}
    marks = [*constants.values(), *("?" * len(varying))]
    return run(
        connection,
        f"INSERT INTO probes ({', '.join((*constants, *varying))}) VALUES ({', '.join(marks)}) ON CONFLICT DO NOTHING",
        frame.select(varying).rows(),
    )


def _literal(value: str | float) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def _copy(connection: sa.Connection, frame: "pl.DataFrame", owner: str) -> int:
    columns = ", ".join(frame.columns)
    connection.exec_driver_sql(f"CREATE TEMP TABLE added ON COMMIT DROP AS SELECT {columns} FROM probes WITH NO DATA")
    driver: Any = connection.connection.driver_connection
    with driver.cursor().copy(f"COPY added ({columns}) FROM STDIN (FORMAT csv)") as copy:
        copy.write(frame.write_csv(include_header=False))
    return connection.execute(
        sa.text(
            f"INSERT INTO probes (owner, feeds_features, {columns}) SELECT :owner, true, {columns} FROM added "
            "ORDER BY target_id, ts_ms ON CONFLICT DO NOTHING"
        ),
        {"owner": owner},
    ).rowcount
