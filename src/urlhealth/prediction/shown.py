"""What an owner may see of URLs: their own targets, with the groups that monitors or histories gave them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from urlhealth.crawl.store import CrawlStore
from urlhealth.vocabulary import Clock, Target

#: How long a target that was found is not looked up again. Who has lost one sees nothing of it meanwhile, for its
#: features are erased with it, unless another owner has the same URL.
KEPT_MS: Final = 60_000
#: Targets that are kept at most.
MOST: Final = 200_000

#: In place of a target that is none of the owner's: nothing is known of it.
_NOBODYS: Final = Target(url="http://nobody.invalid/", host="nobody.invalid", group="nobody.invalid")


class ShownTargets:
    """Looks targets up, and keeps those that are there, by URL as it was sent. Many threads may use one."""

    def __init__(self, crawl: CrawlStore, clock: Clock) -> None:
        self._crawl = crawl
        self._clock = clock
        #: By owner; begun anew together, at this time.
        self._kept: dict[str, dict[str, Target]] = {}
        self._since_ms = 0

    def kept(self, urls: Sequence[str], owner: str) -> list[Target] | None:
        """The owner's targets of these URLs, if all of them were found a short while ago; waits for nothing."""
        if not 0 <= self._clock() - self._since_ms < KEPT_MS:
            return None
        kept = self._kept.get(owner, {})
        try:
            return [kept[url] for url in urls]
        except (KeyError, TypeError):  # what is no string is none of these either
            return None

    def look_up(self, urls: Sequence[str], targets: Sequence[Target], owner: str) -> list[Target]:
        """What the owner may know of: their targets, with their groups (a parsed one only knows the domain), and for
        others one of which nothing is known. Features are of the URL, whoever had it probed: those of others' are not
        looked at.

        Args:
            targets: what each of the URLs means.
        """
        groups = self._crawl.groups_of([target.url for target in targets], owner=owner)
        shown = []
        found: dict[str, Target] = {}
        for url, target in zip(urls, targets, strict=True):
            group = groups.get(target.url)
            if group is None:
                target = _NOBODYS
            else:
                if group != target.group:
                    target = replace(target, group=group)
                found[url] = target
            shown.append(target)
        self._keep(found, owner)
        return shown

    def forget(self) -> None:
        """Keep none of those found so far."""
        self._since_ms = 0

    def _keep(self, found: dict[str, Target], owner: str) -> None:
        now_ms = self._clock()
        if not 0 <= now_ms - self._since_ms < KEPT_MS or sum(map(len, self._kept.values())) > MOST:
            self._kept, self._since_ms = {}, now_ms
        self._kept.setdefault(owner, {}).update(found)
