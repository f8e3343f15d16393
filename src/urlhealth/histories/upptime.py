"""The history in a clone of an Upptime repository: each version of a `history/*.yml` that git has is a row.

Upptime commits a file when a site's status changes, and once a day. What a clone gives can be written to Parquet too:
so a set like the one that the bundled model was trained on can be made again from public repositories.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import polars as pl

from urlhealth.errors import InvalidRequest
from urlhealth.histories.form import INSTANT, instant_ms, of_texts

_BATCH: Final = 20_000
#: Rows older than the repository's first commit, or than their own commit, by more were copied from a template.
_BEFORE_FIRST_MS: Final = 600_000
_BEFORE_COMMIT_MS: Final = 3_600_000
_FIELD: Final = re.compile(r"^(url|status|code|responseTime|lastUpdated):[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_CHANGE: Final = re.compile(r":\d+ \d+ [0-9a-f]+ ([0-9a-f]+) [AM]\t\"?(history/[^/]+)\.ya?ml\"?")
_REMOTE: Final = re.compile(r"[:/]([^/:]+/[^/]+?)(?:\.git)?/?$")

#: Columns of a set of histories.
SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "repo": pl.String(),
    "site_slug": pl.String(),
    "url": pl.String(),
    "ts": INSTANT,
    "status": pl.String(),
    "code": pl.Int32(),
    "response_ms": pl.Int32(),
    "source": pl.String(),
}


@dataclass(frozen=True, slots=True)
class _Version:
    """A version of a site's file."""

    slug: str
    blob: str
    commit_ms: int


def is_clone(path: Path) -> bool:
    """Whether the folder is a repository, with files checked out or without."""
    return (path / ".git").exists() or (path / "objects").is_dir()


def read_clone(path: Path) -> Iterator[pl.DataFrame]:
    """The batches of a clone's history, in the common form, oldest commit first; rows count from 1.

    The group is the repository's owner, where the clone says whence it is.

    Raises:
        InvalidRequest: git cannot read it, or it has no history.
    """
    repo, row = repository(path), 1
    for some in versions(path):
        rows: list[dict[str, Any]] = [{**found, "repo": repo} if repo else dict(found) for found in some]
        yield of_texts(rows, range(row, row + len(rows)))
        row += len(rows)


def write_set(clones: Sequence[Path], out: Path) -> int:
    """Write the histories of clones to one Parquet file, sorted by `url`, `ts` and `repo`; returns how many rows.

    Rows without a URL, instant or status, with a URL that hides a secret (`$`, `***`), and repeated ones are left out.
    """
    parts = [pl.DataFrame(schema=SCHEMA)]
    for clone in clones:
        repo = repository(clone) or clone.resolve().name
        parts += [_set_of(some, repo) for some in versions(clone)]
    key = ["repo", "url", "ts"]
    rows = pl.concat(parts).unique([*key, "site_slug"], keep="first", maintain_order=True).sort(["url", "ts", "repo"])
    changed = (pl.col("status") != pl.col("status").shift()).over("repo", "url", "site_slug").fill_null(value=True)
    rows = rows.with_columns(source=pl.when(changed).then(pl.lit("status-change")).otherwise(pl.lit("response-time")))
    try:
        rows.write_parquet(out)
    except OSError as error:
        raise InvalidRequest(f"{out} cannot be written: {error.strerror}") from error
    return len(rows)


def _set_of(rows: Sequence[dict[str, str]], repo: str) -> pl.DataFrame:
    frame = of_texts(rows, range(len(rows)))
    texts = {name: pl.Series(name, [row.get(name) for row in rows], pl.String) for name in ("status", "site_slug")}
    numbers = {
        name: pl.Series(name, [row.get(name) for row in rows], pl.String).cast(pl.Float64, strict=False).fill_null(0)
        for name in ("code", "response_ms")
    }
    frame = frame.select("url", "ts", **texts, **numbers, repo=pl.lit(repo), source=pl.lit(None, pl.String))
    frame = frame.drop_nulls(["url", "ts"]).filter(pl.col("status").is_in(["up", "down", "degraded"]))
    return frame.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def repository(clone: Path) -> str | None:
    """`owner/name`, where the clone says whence it is."""
    try:
        remote = _git(clone, "remote", "get-url", "origin")
    except InvalidRequest:
        return None
    found = _REMOTE.search(remote.strip())
    return found[1] if found else None


def versions(clone: Path) -> Iterator[list[dict[str, str]]]:
    """What the versions of the files say, in batches: `url`, `status`, `code`, `response_ms`, `ts` and `site_slug`.

    Left out are versions that were copied from a template, and URLs that hide a secret.

    Raises:
        InvalidRequest: git cannot read it, or it has no history.
    """
    found, first_ms = _log(clone)
    if not found:
        raise InvalidRequest(f"{clone} is no Upptime repository: no commit has a file history/*.yml")
    remaining = iter(found)
    command = ["git", "-C", str(clone), "cat-file", "--batch"]
    while some := list(islice(remaining, _BATCH)):
        asked = "".join(f"{version.blob}\n" for version in some).encode()
        done = subprocess.run(command, input=asked, capture_output=True, check=True)
        rows = (_row(version, text, first_ms) for version, text in zip(some, _blobs(done.stdout), strict=True))
        yield [row for row in rows if row is not None]


def _log(clone: Path) -> tuple[list[_Version], int]:
    """Every version of every file, oldest commit first, and the time of the first commit."""
    log = _git(clone, "log", "--all", "--raw", "--no-abbrev", "--no-renames", "-m", "--root", "--format=commit %ct")
    commit_ms, first_ms = 0, 2**62
    seen: dict[tuple[str, str], _Version] = {}
    for line in log.splitlines():
        if line.startswith("commit "):
            commit_ms = int(line[7:]) * 1000
            first_ms = min(first_ms, commit_ms)
        elif change := _CHANGE.fullmatch(line):
            blob, slug = change[1], change[2].removeprefix("history/")
            # Newest first: of several commits with the same version, the oldest one's time stays.
            seen[slug, blob] = _Version(slug, blob, commit_ms)
    return sorted(seen.values(), key=lambda version: version.commit_ms), first_ms


def _blobs(answer: bytes) -> Iterator[str]:
    """The contents in the answer of `git cat-file --batch`."""
    position = 0
    while position < len(answer):
        end = answer.index(b"\n", position)
        header = answer[position:end].split()
        size = int(header[2]) if len(header) == 3 else 0
        yield answer[end + 1 : end + 1 + size].decode("utf-8", "replace")
        position = end + 1 + size + (1 if len(header) == 3 else 0)


def _row(version: _Version, text: str, first_ms: int) -> dict[str, str] | None:
    said = {name: value.strip("\"'") for name, value in _FIELD.findall(text)}
    url, at_ms = said.get("url", ""), instant_ms(said.get("lastUpdated"))
    copied = at_ms is not None and (
        at_ms < first_ms - _BEFORE_FIRST_MS or at_ms < version.commit_ms - _BEFORE_COMMIT_MS
    )
    if copied or "$" in url or "***" in url:
        return None
    return {
        "url": url,
        "ts": said.get("lastUpdated", ""),
        "status": said.get("status", ""),
        "code": said.get("code", ""),
        "response_ms": said.get("responseTime", ""),
        "site_slug": version.slug,
    }


def _git(clone: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, check=True)
    except FileNotFoundError as error:
        raise InvalidRequest("git is not installed: it reads the clone") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["it fails"]
        raise InvalidRequest(f"git cannot read {clone}: {said[0]}") from error
    return done.stdout.decode("utf-8", "replace")
