"""Few files instead of many: the numbered segments of a day are merged while others read and append.

A merged file is named after the first and the last segment in it, and stands for all between them
(`segments.in_force`). So the rename that publishes it replaces them all, and a crash before or after leaves nothing to
mend. What it stands for is deleted only after a while, when whoever has listed it has read it.

Only the writer merges, and it publishes a merged file like any segment, where it is certain to be the writer.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores import segments

#: Small files that a day may have before they are merged.
FILES: Final = 64
#: Size of a merged file, at most: bounds the time that a merge takes. Files of half that are left alone.
MERGED_BYTES: Final = 16_000_000
#: Rows of a merged file, at most: bounds the memory. Those of URLs seen for the first time pack to a fiftieth.
MERGED_ROWS: Final = 10_000
#: Files merged at once, at most.
FILES_AT_ONCE: Final = 512
#: How long files stay that a merged one stands for: longer than a reader takes from listing files to opening the last.
GRACE_S: Final = 300.0

_log = logging.getLogger(__name__)


class Compactor:
    """Looks after datasets for the thread that publishes their segments.

    A day is looked at when something was published in it, when a later day begins (then all its files are merged), and
    once at the start.
    """

    def __init__(
        self,
        datasets: Mapping[Path, Sequence[str]],
        *,
        files: int = FILES,
        merged_bytes: int = MERGED_BYTES,
        merged_rows: int = MERGED_ROWS,
        grace_s: float = GRACE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`datasets`: folder → columns that merged files are sorted by."""
        self._datasets = datasets
        self._files = files
        self._merged_bytes = merged_bytes
        self._merged_rows = merged_rows
        self._grace_s = grace_s
        self._monotonic = monotonic
        self._newest: dict[Path, Path] = {}
        #: Day → whether to merge all of its files.
        self._to_look_at: dict[Path, bool] = {}
        #: Replaced file → when to delete it, the soonest first.
        self._removals_s: dict[Path, float] = {}
        self._started = False

    def published(self, files: Iterable[Path]) -> None:
        """Take note of files that were published, segments and merged ones."""
        for day in {file.parent for file in files}:
            newest = self._newest.setdefault(day.parent, day)
            if day.name > newest.name:
                self._newest[day.parent] = day
                self._to_look_at[newest] = True
            self._to_look_at.setdefault(day, False)

    def stage(self, *, before: str) -> segments.Staged | None:
        """Delete what was replaced long enough ago, and stage the next merge, if one is due.

        What fails is logged and tried again when the day is looked at again; its files stay as they are.

        Args:
            before: name of a segment. Those from it on may be written again, and are not merged.
        """
        if not self._started:
            self._started = True
            for folder in self._datasets:
                for day in sorted(folder.glob("day=*")):
                    self.published([day / "any"])
        self._remove()
        while self._to_look_at:
            day, everything = self._to_look_at.popitem()
            try:
                chunk = self._chunk(day, before, everything)
                if chunk:
                    if everything:
                        self._to_look_at[day] = True
                    return segments.stage_merged(chunk, sort_by=self._datasets[day.parent])
            except FileNotFoundError:
                continue  # a rebuild replaced the dataset
            except (OSError, ValueError, StoreUnavailable) as error:  # Arrow's are the first two
                _log.warning("offline store: segments of %s are not merged: %s", day, error)
                self._to_look_at.pop(day, None)
        return None

    def _remove(self) -> None:
        now_s = self._monotonic()
        for file in [file for file, removal_s in self._removals_s.items() if removal_s <= now_s]:
            file.unlink(missing_ok=True)
            del self._removals_s[file]

    def _chunk(self, day: Path, before: str, everything: bool) -> list[Path]:
        """The next files to merge: some that follow each other and together make one file; none if none are due."""
        names = [path.name for path in day.iterdir() if path.suffix == ".parquet"]
        live = segments.in_force(names)
        for name in set(names).difference(live):
            self._removals_s.setdefault(day / name, self._monotonic() + self._grace_s)
        files = [
            (day / name, self._size(day / name))
            for name in sorted(live)
            if (span := segments.span_of(name)) and span[1] < before
        ]
        if not everything:
            files = self._newest_small(files)
        chunk: list[Path] = []
        chunk_bytes = 0
        for file, size in files:
            if chunk and (chunk_bytes + size > self._merged_bytes or len(chunk) == FILES_AT_ONCE):
                if len(chunk) > 1:
                    break
                chunk, chunk_bytes = [], 0
            chunk.append(file)
            chunk_bytes += size
        return chunk if len(chunk) > 1 else []

    def _size(self, file: Path) -> int:
        """The bytes of a file, or what its rows count as, if that is more."""
        return max(file.stat().st_size, segments.row_count(file) * self._merged_bytes // self._merged_rows)

    def _newest_small(self, files: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
        """The newest small files if they are too many, and those before that are not larger than all after them.

        So a row is only merged again when its file at least doubles by that.
        """
        large = [i for i, (_, size) in enumerate(files) if size > self._merged_bytes // 2]
        small = files[large[-1] + 1 :] if large else files
        if len(small) <= self._files:
            return []
        start = len(small) - self._files
        while start and small[start - 1][1] <= sum(size for _, size in small[start:]):
            start -= 1
        return small[start:]
