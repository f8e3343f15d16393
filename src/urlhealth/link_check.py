"""`urlhealth crawl` as a link checker: the links in files, and the failures that are known already."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from urlhealth.errors import InvalidRequest

_LINK: Final = re.compile(r"""https?://[^\s<>"'`\\|\[\]{}]+""")
_HEAD: Final = "# Links that are known to fail; `urlhealth crawl --baseline FILE --write-baseline` writes this file.\n"


def links_in(paths: Iterable[str]) -> dict[str, str]:
    """The http and https links in text files (Markdown, HTML, ...), each with the first place, `path:line`.

    The same page is probed once: what comes after `#` is left out.

    Raises:
        InvalidRequest: a file cannot be read.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"cannot read {path}: {error}") from error
        for number, line in enumerate(text.splitlines(), 1):
            for match in _LINK.finditer(line):
                found.setdefault(_trimmed(match[0].replace("&amp;", "&")), f"{path}:{number}")
    return found


def _trimmed(link: str) -> str:
    """Without its fragment, and without what belongs to the sentence around it."""
    link = link.partition("#")[0]
    while True:
        shorter = link.rstrip(".,;:!?*_~")
        if shorter.endswith(")") and shorter.count(")") > shorter.count("("):
            shorter = shorter[:-1]
        if shorter == link:
            return link
        link = shorter


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The failures of a run beside those that were known, as outcome by URL."""

    new: Mapping[str, str]
    known: Mapping[str, str]
    #: URLs that were known to fail, and are fine now.
    fine_again: frozenset[str]

    def summary(self) -> str:
        """In a line."""
        return f"{len(self.new)} new failures, {len(self.known)} known, {len(self.fine_again)} fine again"


class Baseline:
    """A file of links that are known to fail, for git: an outcome and a URL a line, in order.

    A link that fails in another way than before is no new failure: it is the URL that counts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def compare(self, outcomes: Mapping[str, str]) -> Compared:
        """A run's outcomes by URL beside the file.

        Raises:
            InvalidRequest: the file cannot be read, or is none.
        """
        before = self._read()
        failing = {url: outcome for url, outcome in outcomes.items() if outcome != "ok"}
        return Compared(
            new={url: outcome for url, outcome in failing.items() if url not in before},
            known={url: outcome for url, outcome in failing.items() if url in before},
            fine_again=frozenset(url for url in before if outcomes.get(url) == "ok"),
        )

    def write(self, outcomes: Mapping[str, str]) -> int:
        """Make the file what a run found; what it did not probe stays. Returns how many links the file has.

        Raises:
            InvalidRequest: it cannot be read or written.
        """
        known = (self._read() if self._path.exists() else {}) | dict(outcomes)
        failing = sorted((url, outcome) for url, outcome in known.items() if outcome != "ok")
        try:
            text = "".join(f"{outcome} {url}\n" for url, outcome in failing)
            self._path.write_text(_HEAD + text, encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"cannot write {self._path}: {error.strerror}") from error
        return len(failing)

    def _read(self) -> dict[str, str]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"cannot read {self._path}: {error}; --write-baseline makes it") from error
        known = {}
        for number, line in enumerate(lines, 1):
            outcome, space, url = line.partition(" ")
            if line.startswith("#") or not line:
                continue
            if not space:
                raise InvalidRequest(f"{self._path}, line {number}: it must be an outcome and a URL")
            known[url] = outcome
        return known
