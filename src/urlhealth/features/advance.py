"""Carried state and a batch of verdicts in; rows of all views and carried state out. Live and in a rebuild alike.

Of each URL is carried: the state up to the time when nothing can change any more (`base`), the verdicts since
(`recent`), and the state with those (`head`). A verdict in order is folded onto the head. A late one makes the fold
start again from the base, and the rows from its instant on are given anew. Of a pool the same is carried, with
transitions for verdicts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.errors import StateMismatch
from urlhealth.features.columns import StateRows, States, StateView, whole_records
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
    known_for_ms, late_ms = round(known_for_s * 1000), round(late_s * 1000)
    keys, owner = _numbered(verdicts.target)
    mark = _mark(URL_STATE, VERDICT, known_for_ms)
    urls = _unpack(carried.get("url", {}), keys, URL_STATE, VERDICT, mark, states=2)
    changed = _advance_urls(urls, verdicts.records(), owner, known_for_ms=known_for_ms, late_ms=late_ms)
    rows = [StateRows(view=URL_STATE, keys=keys[changed.owner], ts_ms=changed.ts_ms, states=changed.states)]
    out = {"url": _pack(keys, changed.carried, mark)}

    for view, pool_of_verdict in ((HOST_STATE, verdicts.host), (GROUP_STATE, verdicts.group)):
        pool_keys, pool = _numbered(pool_of_verdict)
        pool_of_url = np.zeros(len(keys), np.int64)
        pool_of_url[owner] = pool
        mark = _mark(POOL_STATE, TRANSITION, known_for_ms)
        pools = _unpack(carried.get(view.entity, {}), pool_keys, POOL_STATE, TRANSITION, mark, states=2)
        items, item_pool = merged(changed.transitions, pool_of_url[changed.transition_owner])
        # What was taken back and made again as it was changes nothing.
        items, item_pool = _where(items["count"] != 0, items, item_pool)
        pooled = _advance_pools(pools, items, item_pool, known_for_ms=known_for_ms, late_ms=late_ms)
        states = pooled.states.view(view.dtype)
        rows.append(StateRows(view=view, keys=pool_keys[pooled.owner], ts_ms=pooled.ts_ms, states=states))
        out[view.entity] = _pack(pool_keys, pooled.carried, mark)
    return Advanced(rows=tuple(rows), carried=out, late=changed.late)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Carried:
    """What is carried of n entities: their states (base and head), and their recent items, sorted by owner."""

    states: tuple[States, ...]
    recent: Array
    owner: Array


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
    base, head = urls.states
    late = int(np.sum(events["ts_ms"] < base["probed_ms"][owner]))
    # What is of the base's own instant is a duplicate.
    events, owner = _in_order(*_where(events["ts_ms"] > base["probed_ms"][owner], events, owner))

    # URLs with an event that is not after their head start again from the base, with the events since.
    first_new = _first(events["ts_ms"], owner, len(base))
    again = first_new <= head["probed_ms"]
    before, before_owner = _where(again[urls.owner], urls.recent, urls.owner)
    kept, kept_owner = _where(~again[urls.owner], urls.recent, urls.owner)
    start = np.where(again, base, head)
    events, owner = _in_order(np.concatenate((before, events)), np.concatenate((before_owner, owner)))
    after = fold(start, events, owner, known_for_ms=known_for_ms)
    head = head.copy()
    head[owner[_ends(owner)]] = after[_ends(owner)]

    made, made_owner = transitions(start, events, owner)
    unmade, unmade_owner = transitions(base, before, before_owner)
    unmade["count"] = -1

    # Kept events of a URL are older than its new ones, so that a stable sort puts all in order.
    recent, recent_owner = np.concatenate((kept, events)), np.concatenate((kept_owner, owner))
    order = np.argsort(recent_owner, kind="stable")
    recent, recent_owner = recent[order], recent_owner[order]
    settled = _settled(recent["ts_ms"], recent_owner, head["probed_ms"] - late_ms, RECENT_VERDICTS)
    fresh = np.zeros(len(base), bool)
    fresh[recent_owner[settled & (order >= len(kept))]] = True
    base = base.copy()
    # The new base is the state after the newest settled event: it was made just now, or a kept event leads to it.
    newest = np.flatnonzero(settled & fresh[recent_owner])
    newest = newest[_ends(recent_owner[newest])]
    base[recent_owner[newest]] = after[order[newest] - len(kept)]
    old, old_owner = _where(settled & ~fresh[recent_owner], recent, recent_owner)
    base[old_owner[_ends(old_owner)]] = fold(base, old, old_owner, known_for_ms=known_for_ms)[_ends(old_owner)]
    recent, recent_owner = _where(~settled, recent, recent_owner)

    new = events["ts_ms"] >= first_new[owner]
    return _ChangedUrls(
        owner=owner[new],
        ts_ms=events["ts_ms"][new],
        states=_rows(after, new),
        carried=_Carried(states=(base, head), recent=recent, owner=recent_owner),
        transitions=np.concatenate((made, unmade)),
        transition_owner=np.concatenate((made_owner, unmade_owner)),
        late=late,
    )


def _advance_pools(pools: _Carried, items: Array, owner: Array, *, known_for_ms: int, late_ms: int) -> _Changed:
    base, head = (states.copy() for states in pools.states)
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
        items, owner = merged(np.concatenate((before, items)), np.concatenate((before_owner, owner)))
    states, last = accumulate(np.where(again, base, head), items, owner, known_for_ms=known_for_ms)
    state_owner = owner[last]
    head[again] = base[again]
    head[state_owner[_ends(state_owner)]] = states[_ends(state_owner)]
    new = states["known_ms"] >= first_new[state_owner]
    rows, row_owner = _rows(states, new), state_owner[new]
    if len(corrected):
        rows, row_owner = np.concatenate((base[corrected], rows)), np.concatenate((corrected, row_owner))

    counted = items["count"] != 0
    recent = np.concatenate((kept, items[counted]))
    recent_owner = np.concatenate((kept_owner, owner[counted]))
    order = np.argsort(recent_owner, kind="stable")  # what was kept is older than what is new
    recent, recent_owner = recent[order], recent_owner[order]
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
    last = _ends(old_owner[last])
    base[old_owner[_ends(old_owner)]] = after[last]
    base[state_owner[made]] = states[made]
    return _Changed(
        owner=row_owner,
        ts_ms=rows["known_ms"].copy(),
        states=rows,
        carried=_Carried(states=(base, head), recent=recent, owner=recent_owner),
    )


def _numbered(keys: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The distinct keys in the order of their first occurrence, and for each key its number among them."""
    every = keys.tolist()
    numbers = {key: number for number, key in enumerate(dict.fromkeys(every))}
    codes = np.fromiter(map(numbers.__getitem__, every), np.int64, len(every))
    return np.array([*numbers], dtype=object), codes


def _rows(states: States, mask: Array) -> States:
    """The records where the mask is true."""
    return states if mask.all() else states.view(whole_records(states.dtype))[mask].view(states.dtype)


def _where(mask: Array, items: Array, owner: Array) -> tuple[Array, Array]:
    return items[mask], owner[mask]


def _in_order(events: Array, owner: Array) -> tuple[Array, Array]:
    """Events sorted by (owner, ts_ms); of those with both equal, the one with the lowest `probe_id`."""
    order = np.lexsort((events["probe_id"], events["ts_ms"], owner))
    events, owner = events[order], owner[order]
    distinct = (np.diff(owner, prepend=-1) != 0) | (np.diff(events["ts_ms"], prepend=-1) != 0)
    return _where(distinct, events, owner)


def _first(ts_ms: Array, owner: Array, n: int) -> npt.NDArray[np.int64]:
    """The first instant of each of n owners; beyond all time for those without."""
    first = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first, owner, ts_ms)
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


def _pack(keys: npt.NDArray[Any], carried: _Carried, mark: bytes) -> dict[str, bytes]:
    """Per key: the mark, the states, the recent items."""
    parts = [np.ascontiguousarray(states) for states in carried.states]
    counts = np.bincount(carried.owner, minlength=len(keys))
    until = np.cumsum(counts).tolist()
    since = [0, *until[:-1]]
    return {
        key: b"".join((mark, *(part[i].tobytes() for part in parts), carried.recent[since[i] : until[i]].tobytes()))
        for i, key in enumerate(keys)
    }


def _unpack(
    packed: Mapping[str, bytes],
    keys: Sequence[str] | npt.NDArray[Any],
    view: StateView,
    item: np.dtype[np.void],
    mark: bytes,
    *,
    states: int,
) -> _Carried:
    """What :func:`_pack` made, and the initial state for new keys; `states` of them per key."""
    new = view.initial(1).tobytes() * states
    size = len(new)
    bodies = []
    for key in keys:
        data = packed.get(key)
        if data is not None and data[:_MARK_BYTES] != mark:
            raise StateMismatch(
                f"the carried feature state of {key!r} was made by other feature columns or another `known_for_s` "
                "than this version has; run `urlhealth features build --rebuild` to make all anew from stored probes"
            )
        bodies.append(new if data is None else data[_MARK_BYTES:])
    fixed = np.frombuffer(b"".join(body[:size] for body in bodies), view.dtype).reshape(-1, states)
    recent = np.frombuffer(b"".join(body[size:] for body in bodies), item)
    counts = np.array([(len(body) - size) // item.itemsize for body in bodies], np.int64)
    return _Carried(
        states=tuple(fixed[:, i] for i in range(states)), recent=recent, owner=np.repeat(np.arange(len(bodies)), counts)
    )
