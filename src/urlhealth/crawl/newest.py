"""The newest probes of many targets at once."""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.database import chunks
from urlhealth.crawl.records import RESULT_COLUMNS, Records, result_of
from urlhealth.crawl.schema import probes, targets
from urlhealth.vocabulary import LOCAL_OWNER, ProbeResult

#: Targets in one query: each is a part of it that reads no more than its own newest rows. (SQLite takes 500 parts.)
_AT_ONCE: Final = 200


class NewestProbes(Records):
    """Reads the newest probes of targets."""

    def newest_probes(
        self, keys: Sequence[str], *, limit: int, owner: str = LOCAL_OWNER
    ) -> dict[str, list[ProbeResult]]:
        """Up to `limit` probes of each target, newest first, by the target's key; none of one that is not known."""
        found: dict[str, list[ProbeResult]] = {key: [] for key in keys}
        with self._engine.connect() as connection:
            for some in chunks(list(found), _AT_ONCE):
                query = sa.select(targets.c.id, targets.c.key).where(targets.c.owner == owner, targets.c.key.in_(some))
                parts = [
                    sa.select(
                        sa.select(sa.literal(row.key).label("key"), *RESULT_COLUMNS)
                        .where(probes.c.target_id == row.id)
                        .order_by(probes.c.ts_ms.desc())
                        .limit(limit)
                        .subquery()
                    )
                    for row in connection.execute(query)
                ]
                for row in connection.execute(sa.union_all(*parts)) if parts else ():
                    found[row.key].append(result_of(row))
        for results in found.values():
            results.sort(key=lambda result: -result.ts_ms)
        return found
