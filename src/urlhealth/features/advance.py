"""Carried state and a batch of verdicts in; rows of all views and carried state out. Live and in a rebuild alike.

Of each URL is carried: the state up to the time when nothing can change any more (`base`), the verdicts since
(`recent`), and the state with those (`head`). A verdict in order is folded onto the head. A late one makes the fold
start again from the base, and the rows from its instant on are given anew. Of a pool the same is carried, with
transitions for verdicts.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.errors import StateMismatch
from urlhealth.features.columns import StateRows, States, StateView, joined, put, taken
from urlhealth.features.decay import Array
from urlhealth.features.fold import fold
from urlhealth.features.pools import TRANSITION, accumulate, add_late, merged, transitions
from urlhealth.features.verdicts import VERDICT, Verdicts
from urlhealth.features.views import GROUP_STATE, HOST_STATE, POOL_STATE, URL_STATE

#: Raised when the same columns come to mean something else, so that carried state of old is refused.
MEANING: Final = 2
#: How many verdicts of a URL, and transitions of a pool, are kept to be put in order with late ones.
RECENT_VERDICTS: Final = 64
RECENT_TRANSITIONS: Final = 512

_MARK_BYTES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Advanced:
    """What a batch of verdicts came to."""

    #: New states of the views, by (key, ts_ms); one of an instant that had one already replaces it.
    rows: tuple[StateRows, ...]
    #: What to carry to the next batch, by kind and key.
    carried: dict[str, dict[str, bytes]]
    #: Verdicts that came too late to be put in order. They are in no row, until all is built anew.
    late: int


def advance(
    carried: Mapping[str, Mapping[str, bytes]], verdicts: Verdicts, *, known_for_s: float, late_s: float
) -> Advanced:
    """Fold a batch of verdicts, in any order, into the states of their URLs, hosts and groups.

    Args:
        carried: by kind ("url", "host", "group") and key, what the batch before gave; nothing for new keys.
        verdicts: late and duplicate ones may be among them. Of several of a target at one instant, the one with the
            lowest `probe_id` counts.
        known_for_s: for how long a state is held for known after the verdict that showed it.
        late_s: lateness, against the target's newest verdict, up to which a verdict is put in order.

    Raises:
        StateMismatch: what was carried is of another version of the columns, or of another `known_for_s`.
    """
    states = CarriedStates(carried, known_for_s=known_for_s, late_s=late_s)
    rows, late = states.advance(verdicts)
    return Advanced(rows=rows, carried=states.packed(), late=late)


class CarriedStates:
    """What is carried of URLs, hosts and groups from batch to batch, as arrays: for whoever has many batches of them.

    Not safe to share between threads.
    """

    def __init__(self, carried: Mapping[str, Mapping[str, bytes]], *, known_for_s: float, late_s: float) -> None:
        """As of :func:`advance`."""
        self._known_for_ms, self._late_ms = round(known_for_s * 1000), round(late_s * 1000)
        self._urls = _Entities(carried.get("url", {}), URL_STATE, VERDICT, self._known_for_ms)
        self._pools = {
            view: _Entities(carried.get(view.entity, {}), POOL_STATE, TRANSITION, self._known_for_ms)
            for view in (HOST_STATE, GROUP_STATE)
        }

    def advance(self, verdicts: Verdicts) -> tuple[tuple[StateRows, ...], int]:
        """Fold a batch of verdicts as :func:`advance` does: its `rows` and `late`."""
        spans = {"known_for_ms": self._known_for_ms, "late_ms": self._late_ms}
        some, owner = self._urls.numbered(verdicts.target)
        changed = _advance_urls(self._urls.take(some), verdicts.records(), owner, **spans)
        self._urls.put(some, changed.carried)
        rows = [
            StateRows(
                view=URL_STATE,
                keys=self._urls.keys[some[changed.owner]],
                ts_ms=changed.ts_ms,
                states=changed.states,
            )
        ]
        for (view, pools), pool_of_verdict in zip(self._pools.items(), (verdicts.host, verdicts.group), strict=True):
            some_pools, pool = pools.numbered(pool_of_verdict)
            pool_of_url = np.zeros(len(some), np.int64)
            pool_of_url[owner] = pool
            items, item_pool = merged(changed.transitions, pool_of_url[changed.transition_owner])
            # What was taken back and made again as it was changes nothing.
            items, item_pool = _where(items["count"] != 0, items, item_pool)
            pooled = _advance_pools(pools.take(some_pools), items, item_pool, **spans)
            pools.put(some_pools, pooled.carried)
            keys = pools.keys[some_pools[pooled.owner]]
            rows.append(StateRows(view=view, keys=keys, ts_ms=pooled.ts_ms, states=pooled.states.view(view.dtype)))
        return tuple(rows), changed.late

    def newest(self) -> tuple[StateRows, ...]:
        """The newest state of each entity that has one, by view."""
        heads = [
            (URL_STATE, self._urls, "probed_ms"),
            *((view, pools, "known_ms") for view, pools in self._pools.items()),
        ]
        rows = []
        for view, entities, instant in heads:
            head = entities.head
            has_one = head[instant] > 0
            states = taken(head, has_one).view(view.dtype)
            rows.append(StateRows(view=view, keys=entities.keys[has_one], ts_ms=head[instant][has_one], states=states))
        return tuple(rows)

    def packed(self) -> dict[str, dict[str, bytes]]:
        """All of it as bytes, by kind and key."""
        return {"url": self._urls.packed(), **{view.entity: pools.packed() for view, pools in self._pools.items()}}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Carried:
    """What is carried of n entities: their states (base and head), and their recent items, sorted by owner."""

    base: States
    head: States
    recent: Array
    owner: Array


class _Entities:
    """What is carried of the entities of one kind, which are numbered as they come."""

    def __init__(
        self, packed: Mapping[str, bytes], view: StateView, item: np.dtype[np.void], known_for_ms: int
    ) -> None:
        self._view = view
        self._mark = _mark(view, item, known_for_ms)
        self._carried = _unpack(packed, view, item, self._mark)
        self._numbers = {key: number for number, key in enumerate(packed)}
        #: Strings (object), shape (n,).
        self.keys = np.array([*packed], object)

    @property
    def head(self) -> States:
        """The newest state of each, shape (n,); the initial one of those without any."""
        return self._carried.head

    def numbered(self, keys: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The numbers of the entities that occur among these, ascending, and for each key its place among them."""
        every, numbers = keys.tolist(), self._numbers
        for key in [key for key in dict.fromkeys(every) if key not in numbers]:
            numbers[key] = len(numbers)
        self._add(len(numbers) - len(self.keys))
        number = np.fromiter(map(numbers.__getitem__, every), np.intp, len(every))
        occurs = np.zeros(len(numbers), bool)
        occurs[number] = True
        return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[number]

    def _add(self, count: int) -> None:
        """Initial states of entities that were numbered just now."""
        if count:
            new = self._view.initial(count)
            old = self._carried
            self._carried = replace(old, base=joined(old.base, new), head=joined(old.head, new))
            self.keys = np.array([*self._numbers], object)

    def take(self, some: npt.NDArray[np.intp]) -> _Carried:
        """What is carried of those with these numbers (ascending)."""
        every = self._carried
        if len(some) == len(self.keys):
            return every
        place = np.full(len(self.keys), -1)
        place[some] = np.arange(len(some))
        recent, owner = _where(place[every.owner] >= 0, every.recent, place[every.owner])
        return _Carried(base=taken(every.base, some), head=taken(every.head, some), recent=recent, owner=owner)

    def put(self, some: npt.NDArray[np.intp], carried: _Carried) -> None:
        """Replace what :meth:`take` gave."""
        if len(some) == len(self.keys):
            self._carried = carried
            return
        every = self._carried
        put(every.base, some, carried.base)
        put(every.head, some, carried.head)
        others = np.ones(len(self.keys), bool)
        others[some] = False
        recent, owner = _where(others[every.owner], every.recent, every.owner)
        recent, owner = joined(recent, carried.recent), np.concatenate((owner, some[carried.owner]))
        order = np.argsort(owner, kind="stable")
        self._carried = replace(every, recent=taken(recent, order), owner=owner[order])

    def packed(self) -> dict[str, bytes]:
        """By key: the mark, the states, the recent items."""
        carried = self._carried
        parts = [np.ascontiguousarray(states) for states in (carried.base, carried.head)]
        until = np.cumsum(np.bincount(carried.owner, minlength=len(self.keys))).tolist()
        since = [0, *until[:-1]]
        return {
            key: b"".join(
                (self._mark, *(part[i].tobytes() for part in parts), carried.recent[since[i] : until[i]].tobytes())
            )
            for i, key in enumerate(self.keys)
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Changed:
    """New rows of some entities, and what is carried of them."""

    owner: Array
    ts_ms: npt.NDArray[np.int64]
    states: States
    carried: _Carried


@dataclass(frozen=True, kw_only=True, eq=False)
class _ChangedUrls(_Changed):
    """What pools need to know of it as well: transitions made and taken back, with the URL of each."""

    transitions: Array
    transition_owner: Array
    late: int


def _advance_urls(urls: _Carried, events: Array, owner: Array, *, known_for_ms: int, late_ms: int) -> _ChangedUrls:
    base, head = urls.base, urls.head
    late = int(np.sum(events["ts_ms"] < base["probed_ms"][owner]))
    # What is of the base's own instant is a duplicate.
    events, owner = _in_order(*_where(events["ts_ms"] > base["probed_ms"][owner], events, owner))

    # URLs with an event that is not after their head start again from the base, with the events since.
    first_new = _first(events["ts_ms"], owner, len(base))
    again = first_new <= head["probed_ms"]
    before, before_owner = _where(again[urls.owner], urls.recent, urls.owner)
    kept, kept_owner = _where(~again[urls.owner], urls.recent, urls.owner)
    start = _restarted(head, base, again)
    if len(before):
        events, owner = _in_order(joined(before, events), np.concatenate((before_owner, owner)))
    after = fold(start, events, owner, known_for_ms=known_for_ms)
    ends = _ends(owner)
    head = head.copy()
    put(head, owner[ends], taken(after, ends))

    made, made_owner = transitions(start, events, owner)
    unmade, unmade_owner = transitions(base, before, before_owner)
    unmade["count"] = -1

    # Kept events of a URL are older than its new ones, so that a stable sort puts all in order.
    recent, recent_owner = joined(kept, events), np.concatenate((kept_owner, owner))
    order = np.argsort(recent_owner, kind="stable")
    recent, recent_owner = taken(recent, order), recent_owner[order]
    settled = _settled(recent["ts_ms"], recent_owner, head["probed_ms"] - late_ms, RECENT_VERDICTS)
    fresh = np.zeros(len(base), bool)
    fresh[recent_owner[settled & (order >= len(kept))]] = True
    base = base.copy()
    # The new base is the state after the newest settled event: it was made just now, or a kept event leads to it.
    newest = np.flatnonzero(settled & fresh[recent_owner])
    newest = newest[_ends(recent_owner[newest])]
    put(base, recent_owner[newest], taken(after, order[newest] - len(kept)))
    old, old_owner = _where(settled & ~fresh[recent_owner], recent, recent_owner)
    ends = _ends(old_owner)
    put(base, old_owner[ends], taken(fold(base, old, old_owner, known_for_ms=known_for_ms), ends))
    recent, recent_owner = _where(~settled, recent, recent_owner)

    new = events["ts_ms"] >= first_new[owner]
    return _ChangedUrls(
        owner=owner[new],
        ts_ms=events["ts_ms"][new],
        states=taken(after, new),
        carried=_Carried(base=base, head=head, recent=recent, owner=recent_owner),
        transitions=joined(made, unmade),
        transition_owner=np.concatenate((made_owner, unmade_owner)),
        late=late,
    )


def _advance_pools(pools: _Carried, items: Array, owner: Array, *, known_for_ms: int, late_ms: int) -> _Changed:
    base, head = pools.base.copy(), pools.head
    past = items["ts_ms"] <= base["known_ms"][owner]
    corrected = np.unique(owner[past])
    add_late(base, items[past], owner[past], known_for_ms=known_for_ms)

    # As with URLs: those with an item that is not after their head start again from the base.
    first_new = _first(items["ts_ms"], owner, len(base))
    again = first_new <= head["known_ms"]
    before, before_owner = _where(again[pools.owner], pools.recent, pools.owner)
    kept, kept_owner = _where(~again[pools.owner], pools.recent, pools.owner)
    items, owner = _where(~past, items, owner)
    if len(before):
        items, owner = merged(joined(before, items), np.concatenate((before_owner, owner)))
    head = _restarted(head, base, again)
    states, last = accumulate(head, items, owner, known_for_ms=known_for_ms)
    state_owner = owner[last]
    ends = _ends(state_owner)
    put(head, state_owner[ends], taken(states, ends))
    new = states["known_ms"] >= first_new[state_owner]
    rows, row_owner = taken(states, new), state_owner[new]
    rows, row_owner = joined(taken(base, corrected), rows), np.concatenate((corrected, row_owner))

    counted, counted_owner = _where(items["count"] != 0, items, owner)
    recent, recent_owner = joined(kept, counted), np.concatenate((kept_owner, counted_owner))
    order = np.argsort(recent_owner, kind="stable")  # what was kept is older than what is new
    recent, recent_owner = taken(recent, order), recent_owner[order]
    settled = _settled(recent["ts_ms"], recent_owner, head["known_ms"] - late_ms, RECENT_TRANSITIONS)
    # An instant is settled when the last of its transitions is.
    at = np.flatnonzero((np.diff(recent_owner, append=-1) != 0) | (np.diff(recent["ts_ms"], append=-1) != 0))
    settled = np.repeat(settled[at], np.diff(at, prepend=-1))
    old, old_owner = _where(settled, recent, recent_owner)
    recent, recent_owner = _where(~settled, recent, recent_owner)
    # The new base is the state of the newest settled instant: it was made just now, or kept transitions lead to it.
    settled_ms = np.zeros(len(base), np.int64)
    settled_ms[old_owner[_ends(old_owner)]] = old["ts_ms"][_ends(old_owner)]
    made = np.flatnonzero(states["known_ms"] <= settled_ms[state_owner])
    made = made[_ends(state_owner[made])]
    fresh = np.zeros(len(base), bool)
    fresh[state_owner[made]] = True
    old, old_owner = _where(~fresh[old_owner], old, old_owner)
    after, last = accumulate(base, old, old_owner, known_for_ms=known_for_ms)
    put(base, old_owner[_ends(old_owner)], taken(after, _ends(old_owner[last])))
    put(base, state_owner[made], taken(states, made))
    return _Changed(
        owner=row_owner,
        ts_ms=rows["known_ms"].copy(),
        states=rows,
        carried=_Carried(base=base, head=head, recent=recent, owner=recent_owner),
    )


def _restarted(head: States, base: States, again: Array) -> States:
    """A copy of the heads, with the base instead where that is to be started from again."""
    start = head.copy()
    put(start, again, taken(base, again))
    return start


def _where(mask: Array, items: Array, owner: Array) -> tuple[Array, Array]:
    return taken(items, mask), owner[mask]


def _in_order(events: Array, owner: Array) -> tuple[Array, Array]:
    """Events sorted by (owner, ts_ms); of those with both equal, the one with the lowest `probe_id`."""
    order = np.lexsort((events["probe_id"], events["ts_ms"], owner))
    events, owner = taken(events, order), owner[order]
    distinct = (np.diff(owner, prepend=-1) != 0) | (np.diff(events["ts_ms"], prepend=-1) != 0)
    return _where(distinct, events, owner)


def _first(ts_ms: Array, owner: Array, n: int) -> npt.NDArray[np.int64]:
    """The first instant of each of n owners, entries being sorted; beyond all time for those without."""
    first = np.full(n, np.iinfo(np.int64).max)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    first[owner[starts]] = ts_ms[starts]
    return first


def _ends(owner: Array) -> npt.NDArray[np.intp]:
    """Positions of the last entry of each owner, `owner` being sorted."""
    return np.flatnonzero(np.diff(owner, append=-1) != 0)


def _settled(ts_ms: Array, owner: Array, settled_before_ms: Array, at_most: int) -> npt.NDArray[np.bool_]:
    """Which entries, sorted by (owner, ts_ms), are too old to be kept, or too many (the oldest of each owner)."""
    ends = _ends(owner)
    behind = np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(owner))
    settled: npt.NDArray[np.bool_] = (ts_ms < settled_before_ms[owner]) | (behind >= at_most)
    return settled


def _mark(view: StateView, item: np.dtype[np.void], known_for_ms: int) -> bytes:
    """What bytes begin with that were made by the same columns, with the same meaning and setting."""
    text = repr((MEANING, view.dtype.descr, item.descr, known_for_ms))
    return hashlib.blake2b(text.encode(), digest_size=_MARK_BYTES).digest()


def _unpack(packed: Mapping[str, bytes], view: StateView, item: np.dtype[np.void], mark: bytes) -> _Carried:
    """What :meth:`_Entities.packed` made."""
    for key, data in packed.items():
        if data[:_MARK_BYTES] != mark:
            raise StateMismatch(
                f"the carried feature state of {key!r} was made by other feature columns or another `known_for_s` "
                "than this version has; run `urlhealth features build --rebuild` to make all anew from stored probes"
            )
    until = _MARK_BYTES + 2 * view.dtype.itemsize
    states = np.frombuffer(b"".join(data[_MARK_BYTES:until] for data in packed.values()), view.dtype).reshape(-1, 2)
    recent = np.frombuffer(b"".join(data[until:] for data in packed.values()), item)
    counts = np.array([(len(data) - until) // item.itemsize for data in packed.values()], np.int64)
    owner = np.repeat(np.arange(len(packed)), counts)
    return _Carried(base=states[:, 0].copy(), head=states[:, 1].copy(), recent=recent, owner=owner)
