"""Histories of millions of probes, stored by the column: much faster than a result at a time."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from urlhealth.crawl.database import chunks, order_probe_ids, writing
from urlhealth.crawl.records import LOOKUP_CHUNK, Records, remember
from urlhealth.crawl.schema import probes, targets
from urlhealth.vocabulary import LOCAL_OWNER, Target

if TYPE_CHECKING:
    import polars as pl

#: The same verdict may be there already, as one that a task asked for.
_NEW: Final = "NOT EXISTS (SELECT 1 FROM probes AS p WHERE p.target_id = {0} AND p.ts_ms = {1} AND p.feeds_features{2})"
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
        import polars as pl

        names = [name for name in frame.columns if frame[name].null_count() < len(frame)]
        frame = frame.select(names).sort("target_id", "ts_ms")
        names += ["owner", "feeds_features"]
        frame = frame.with_columns(owner=pl.lit(owner), feeds_features=pl.lit(value=True))
        with writing(self._engine) as connection:
            order_probe_ids(connection)
            add = _copy if connection.dialect.name == "postgresql" else _insert
            return add(connection, names, frame)

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


def _insert(connection: sa.Connection, names: list[str], frame: "pl.DataFrame") -> int:
    place = {name: f"?{number}" for number, name in enumerate(names, 1)}
    new = _NEW.format(place["target_id"], place["ts_ms"], " = 1")
    statement = f"INSERT INTO probes ({', '.join(names)}) SELECT {', '.join(place.values())} WHERE {new}"
    return connection.exec_driver_sql(statement, frame.rows()).rowcount


def _copy(connection: sa.Connection, names: list[str], frame: "pl.DataFrame") -> int:
    columns = ", ".join(names)
    connection.exec_driver_sql(f"CREATE TEMP TABLE added ON COMMIT DROP AS SELECT {columns} FROM probes WITH NO DATA")
    driver: Any = connection.connection.driver_connection
    with driver.cursor().copy(f"COPY added ({columns}) FROM STDIN (FORMAT csv)") as copy:
        copy.write(frame.write_csv(include_header=False))
    new = _NEW.format("added.target_id", "added.ts_ms", "")
    chosen = ", ".join(f"added.{name}" for name in names)
    return connection.exec_driver_sql(
        f"INSERT INTO probes ({columns}) SELECT {chosen} FROM added WHERE {new} ORDER BY target_id, ts_ms"
    ).rowcount
