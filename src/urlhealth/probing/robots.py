"""What robots.txt files say, each kept for a while (RFC 9309)."""

import logging
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from urlhealth.vocabulary import Outcome, ProbeResult, Target

_log = logging.getLogger(__name__)

#: Bytes of a robots.txt that are read; the RFC asks for 500 KiB at least.
MOST_BYTES: Final = 512 * 1024
_KEPT_S: Final = 3600.0
#: For a file that could not be read.
_RETRIED_S: Final = 60.0
_MOST_SITES: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Rules:
    until_s: float
    #: None: everything is allowed.
    parser: Any = None
    #: Where robots.txt could not be read: what becomes of the site's probes, and why.
    instead: tuple[Outcome, str] | None = None


class RobotsFiles:
    """The robots.txt files of sites, as far as they are known. Times are seconds of any one clock."""

    def __init__(self, user_agent: str) -> None:
        """`user_agent`: ours, whose product name (what stands before the slash) is looked for in the files."""
        self._name = user_agent.partition("/")[0].strip()
        # A file can name thousands of others, each with all the rules.
        self._others = re.compile(
            rf"^([ \t]*user[- ]?agent[ \t:]+)(?!\*|{re.escape(self._name)})\S.*$", re.IGNORECASE | re.MULTILINE
        )
        self._sites: OrderedDict[str, _Rules] = OrderedDict()

    def knows(self, url: str, now_s: float) -> bool:
        """Whether the robots.txt for this URL is known."""
        rules = self._sites.get(_site(url))
        return rules is not None and now_s < rules.until_s

    def learn(self, result: ProbeResult, body: bytes, now_s: float) -> None:
        """What came of probing a `robots_target`."""
        status = result.status_code
        if status is None:
            rules = _Rules(now_s + _RETRIED_S, instead=(result.outcome, f"robots.txt: {result.error}"))
        elif status >= 500 or status == 429:
            rules = _Rules(now_s + _RETRIED_S, instead=(Outcome.BLOCKED, f"robots.txt cannot be read: HTTP {status}"))
        elif 200 <= status < 300:
            rules = _Rules(now_s + _KEPT_S, parser=self._parse(body))
        else:
            rules = _Rules(now_s + _KEPT_S)
        self._sites[_site(result.target)] = rules
        if len(self._sites) > _MOST_SITES:
            self._sites.popitem(last=False)

    def refusal(self, url: str) -> tuple[Outcome, str] | None:
        """What becomes of a probe of this URL without asking, and why; None if it may be asked."""
        rules = self._sites[_site(url)]
        if rules.parser is None:
            return rules.instead
        allowed = rules.parser.can_fetch(url, self._name)
        return None if allowed else (Outcome.BLOCKED, "robots.txt does not allow it")

    def _parse(self, body: bytes) -> Any:
        from protego import Protego

        try:
            return Protego.parse(self._others.sub(r"\1-", body.decode(errors="replace")))
        except Exception:
            # A server may send what nobody thought of; a file that says nothing allows everything.
            _log.exception("a robots.txt cannot be read")
            return None


def robots_target(target: Target) -> Target:
    """Where the robots.txt for a target is."""
    return Target(url=f"{_site(target.url)}/robots.txt", host=target.host, group=target.group)


def _site(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
