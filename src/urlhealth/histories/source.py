"""A history, wherever it is: told by what is there which reader reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from urlhealth.errors import InvalidRequest
from urlhealth.histories import files, kuma, upptime

_READERS: Final = {
    ".parquet": files.read_parquet,
    ".ndjson": files.read_ndjson,
    ".jsonl": files.read_ndjson,
    ".csv": files.read_csv,
}


def batches_of(path: Path) -> Iterator[pl.DataFrame]:
    """The batches of whatever history is there, in the common form.

    Raises:
        InvalidRequest: it is none that is known.
    """
    if path.is_dir():
        if upptime.is_clone(path):
            return upptime.read_clone(path)
        raise InvalidRequest(f"{path} is a folder, and no clone of a repository")
    if not path.exists():
        raise InvalidRequest(f"{path} is not there")
    if kuma.is_kuma(path):
        return kuma.read_kuma(path)
    read = _READERS.get(path.suffix)
    if read is None:
        raise InvalidRequest(
            f"{path} is no history that is known here: a clone of an Upptime repository, Uptime Kuma's database, or a "
            f"file whose name ends with {', '.join(_READERS)}"
        )
    return read(path)
