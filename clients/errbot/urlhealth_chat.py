"""A plugin for Errbot: `!health`, `!risky`, `!crawl` and `!subscribe`, against a running platform.

Replies are Markdown. What they say of sites are words of the platform's and normalised URLs, never what a site said.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import RLock
from typing import Annotated, Any, Final, NamedTuple

from errbot import BotPlugin, CommandError, Message, arg_botcmd
from pydantic import BaseModel, ConfigDict, Field

from urlhealth_client import Client, Retries, UrlHealthClientError
from urlhealth_client.aio import Horizon
from urlhealth_client.models import CurrentItem, Reason, UrlState

#: URLs that one message names at most.
_MOST: Final = 10
#: As with alerts on risk: it is over when the probability is below this part of the threshold.
_OVER: Final = 0.8
_KEPT: Final = "subscriptions"


class ChatSettings(BaseModel):
    """`URLHEALTH` in the bot's `config.py`."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    #: Address of the platform.
    server: str = "http://127.0.0.1:8000"
    #: API key with the scopes `read`, `predict` and `crawl`, if the platform asks for one.
    key: str | None = None
    #: Time between two looks for what is subscribed to.
    poll_s: Annotated[float, Field(ge=0.1)] = 30.0
    #: Forecasts are for this time from now.
    horizon: Horizon = "24h"
    #: A URL that is up is told of when it is likelier than this to fail.
    above: Annotated[float, Field(gt=0, le=1)] = 0.5


class Place(NamedTuple):
    """A room, or a person, as it is written down."""

    is_room: bool
    name: str


class Seen(NamedTuple):
    """What was last seen of a target."""

    health: str
    risky: bool


_NOTHING: Final = Seen("unknown", False)
#: By place and tag, what was last seen of each target.
Subscriptions = dict[tuple[Place, str], dict[str, Seen]]


class UrlHealth(BotPlugin):
    """Which URLs fail, and which will next."""

    def activate(self) -> None:
        """Begin to look for what is subscribed to; raises `ValidationError` where the settings are wrong."""
        self._settings = ChatSettings.model_validate(getattr(self.bot_config, "URLHEALTH", {}))
        self._client = Client(self._settings.server, key=self._settings.key, timeout_s=10, retries=Retries(attempts=1))
        #: Commands and looks run in threads of their own.
        self._lock = RLock()
        super().activate()
        self.start_poller(self._settings.poll_s, self._look)

    def deactivate(self) -> None:
        """End it. Subscriptions stay."""
        with self._lock:
            super().deactivate()
            self._client.close()

    @arg_botcmd("url")
    def health(self, _: Message, url: str) -> str:
        """Say how a URL is, and how likely it is to fail."""
        with _told():
            state = self._client.url(url)
            (item,) = self._client.predict([url], horizons=[self._settings.horizon], explain=True)
        lines = [_state(state)]
        if (share := state.uptime.get("24h")) is not None:
            lines.append(f"up {share:.2%} of the last 24 h")
        if item.probability is not None:
            lines.append(_risk(item.probability, item.horizon, item.reasons))
        return _lines(*lines)

    @arg_botcmd("tag", nargs="?")
    def risky(self, _: Message, tag: str | None) -> str:
        """Say which URLs are most likely to fail; with a tag, those whose monitor has it."""
        with _told():
            riskiest = self._client.riskiest(horizon=self._settings.horizon, tag=tag)
            lines = [_forecast(item) for item in islice(riskiest, _MOST)]
        return _list(lines) or "nothing is known yet of any such URL"

    @arg_botcmd("urls", nargs="+", metavar="url")
    def crawl(self, _: Message, urls: list[str]) -> Iterator[str]:
        """Probe URLs now."""
        with _told():
            task = self._client.create_task(urls)
            yield f"probing {_number(task.total, 'URL')}"
            self._client.wait(task.task_id)
            results = list(self._client.results(task.task_id))
        outcomes = Counter(result.outcome for result in results)
        failing_first = sorted(results, key=lambda result: result.outcome == "ok")
        lines = [
            f"{_code(result.url)} {result.outcome}" + ("" if result.total_ms is None else f", {result.total_ms:.0f} ms")
            for result in failing_first[:_MOST]
        ]
        counts = ", ".join(f"{number:,} {outcome}" for outcome, number in outcomes.most_common())
        yield f"{counts}:\n\n{_list(lines, of=len(results))}"

    @arg_botcmd("tag", nargs="?")
    def subscribe(self, message: Message, tag: str | None) -> str:
        """Tell this room when URLs with the tag fail, recover, or become likely to; without a tag, list its tags."""
        place = _place(message)
        if tag is None:
            tags = sorted(tag for at, tag in self._subscriptions() if at == place)
            return _list([_code(tag) for tag in tags]) or "there is no subscription here"
        with _told():
            seen = self._now(self._client.riskiest(**self._watched(tag)), {})
        with self._lock, self.mutable(_KEPT, {}) as subscriptions:
            subscriptions[place, tag] = seen
        down = sum(known.health == "down" for known in seen.values())
        risky = f"likelier than {self._settings.above:.0%} to fail in the next {_hours(self._settings.horizon)}"
        return _lines(
            f"I shall tell here when a URL with the tag {_code(tag)} fails, recovers, or is {risky}.",
            f"Now I know of {_number(len(seen), 'such URL')}, of which {down} down.",
        )

    @arg_botcmd("tag")
    def unsubscribe(self, message: Message, tag: str) -> str:
        """Tell this room no more of URLs with the tag."""
        with self._lock, self.mutable(_KEPT, {}) as subscriptions:
            there_was = subscriptions.pop((_place(message), tag), None) is not None
        return f"no more of {_code(tag)}" if there_was else f"there is no subscription to {_code(tag)} here"

    def _subscriptions(self) -> Subscriptions:
        """None once the bot is stopped."""
        with self._lock:
            return dict(self.get(_KEPT, {})) if self.is_activated else {}

    def _look(self) -> None:
        """Tell each place what has changed since the last look, and write down what was told."""
        for tag in {tag for _, tag in self._subscriptions()}:
            try:
                items = list(self._client.riskiest(**self._watched(tag)))
            except UrlHealthClientError as error:
                self.log.warning("nothing is told of the tag %s: %s", tag, error)
                continue
            for place in [place for place, other in self._subscriptions() if other == tag]:
                try:
                    self._tell(place, tag, items)
                except Exception:  # a room may be gone, and each backend says that in another way
                    self.log.exception("nothing is told in %s of the tag %s", place.name, tag)

    def _tell(self, place: Place, tag: str, items: Sequence[CurrentItem]) -> None:
        with self._lock:
            seen = self._subscriptions().get((place, tag))
            if seen is None:  # it was ended meanwhile
                return
            now = self._now(items, seen)
            news = [item for item in items if _is_news(seen.get(item.target, _NOTHING), now[item.target])]
            if news:
                lines = _list([self._news(item, now[item.target]) for item in news[:_MOST]], of=len(news))
                to = self.query_room(place.name) if place.is_room else self.build_identifier(place.name)
                self.send(to, f"{_code(tag)}:\n\n{lines}")
            # Only now: what could not be sent is told at the next look.
            if any(seen.get(target) != known for target, known in now.items()):
                with self.mutable(_KEPT, {}) as subscriptions:
                    subscriptions[place, tag] = seen | now

    def _news(self, item: CurrentItem, now: Seen) -> str:
        if now.health == "up" and now.risky:
            return _forecast(item)
        url, _, name = item.target.partition("#")
        return _state(self._client.url(url, name=name or None))

    def _now(self, items: Iterable[CurrentItem], seen: Mapping[str, Seen]) -> dict[str, Seen]:
        above = self._settings.above
        return {item.target: _seen(item, seen.get(item.target, _NOTHING), above=above) for item in items}

    def _watched(self, tag: str) -> dict[str, Any]:
        return {"horizon": self._settings.horizon, "tag": tag}


def _seen(item: CurrentItem, before: Seen, *, above: float) -> Seen:
    """What is now known of a target: while its state is unknown, it is as it was."""
    health = before.health if item.health == "unknown" else item.health
    threshold = above * (_OVER if before.risky else 1.0)
    return Seen(health, health == "up" and (item.probability or 0.0) > threshold)


def _is_news(before: Seen, now: Seen) -> bool:
    """Whether it fails, is up again, or has become likely to fail."""
    return (before.health == "down") != (now.health == "down") or (now.risky and not before.risky)


def _place(message: Message) -> Place:
    return Place(True, str(message.to)) if message.is_group else Place(False, str(message.frm))


@contextmanager
def _told() -> Iterator[None]:
    """What the platform says is wrong is the reply."""
    try:
        yield
    except UrlHealthClientError as error:
        raise CommandError(str(error)) from error


def _state(state: UrlState) -> str:
    since = "" if state.since is None else f" since {state.since:%Y-%m-%d %H:%M} UTC"
    why = f" ({state.last.outcome})" if state.last is not None and state.state == "down" else ""
    return f"{_code(state.target)} is {state.state}{since}{why}"


def _forecast(item: CurrentItem) -> str:
    if item.probability is None:
        return f"{_code(item.target)} is {item.health}"
    return f"{_code(item.target)} is {item.health}, {_risk(item.probability, item.horizon, item.reasons)}"


def _risk(probability: float, horizon: str, reasons: Sequence[Reason]) -> str:
    raising = [reason.text for reason in reasons if reason.contribution > 0]
    why = f", because: {'; '.join(raising[:2])}" if raising else ""
    return f"{probability:.0%} likely to fail in the next {_hours(horizon)}{why}"


def _hours(horizon: str) -> str:
    return horizon.replace("h", " h")


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _lines(*lines: str) -> str:
    """Lines as paragraphs, which Markdown does not join."""
    return "\n\n".join(lines)


def _list(lines: Sequence[str], *, of: int = 0) -> str:
    """Lines as a list; `of`: how many there would be."""
    more = f"\n\nand {of - len(lines):,} more" if of > len(lines) else ""
    return "\n".join(f"- {line}" for line in lines) + more


def _code(text: str) -> str:
    """Text that is no Markdown."""
    return f"`{text.replace('`', '%60')}`"
