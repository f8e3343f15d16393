"""What to alert on, and where to: rules and channels, as they stand in a file that is kept in git."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from urlhealth.errors import InvalidRequest
from urlhealth.settings import expanded
from urlhealth.vocabulary import HORIZONS

Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]

#: In place of a channel's URL that cannot be decrypted.
UNREADABLE: Final = "encrypted-with-another-key://"

_EVERY: Final = {"day": timedelta(days=1), "week": timedelta(days=7)}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Channel(_Part):
    """Where messages go: a signed webhook (`http://`, `https://`), or any service that Apprise knows by a URL."""

    name: Line
    url: Annotated[str, Field(min_length=3, max_length=2_000, pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://\S*$", repr=False)]
    secret: Annotated[
        str | None, Field(min_length=16, max_length=200, repr=False, description="Signs a webhook's messages.")
    ] = None

    @property
    def is_webhook(self) -> bool:
        """Whether we send it ourselves, signed; otherwise Apprise does."""
        return self.url.lower().startswith(("http://", "https://"))

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.is_webhook and self.secret is None:
            raise ValueError("a webhook needs a secret, by which its receiver knows our messages")
        if not self.is_webhook and self.secret is not None:
            raise ValueError("only a webhook (http://, https://) has a secret")
        return self

    def shown(self) -> str:
        """The URL without what may be secret in it."""
        scheme, _, rest = self.url.partition("://")
        host = rest.split("/")[0].rsplit("@")[-1]
        return f"{scheme}://{host}/..." if self.is_webhook else f"{scheme}://..."


class QuietHours(_Part):
    """A part of each day in which nothing is sent; what still holds at its end is sent then."""

    start: time
    end: time
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"there is no timezone {self.timezone!r}: write one like Europe/Berlin") from error
        if self.start == self.end or self.start.tzinfo or self.end.tzinfo:
            raise ValueError("start and end are two times of the day, like 22:00, without a timezone of their own")
        return self

    def over_ms(self, ts_ms: int) -> int:
        """The first instant from `ts_ms` on that is not in it."""
        now = datetime.fromtimestamp(ts_ms / 1000, ZoneInfo(self.timezone))
        clock = now.time()
        overnight = self.start > self.end
        quiet = clock >= self.start or clock < self.end if overnight else self.start <= clock < self.end
        if not quiet:
            return ts_ms
        day = now.date() + timedelta(days=int(overnight and clock >= self.start))
        return round(datetime.combine(day, self.end, now.tzinfo).timestamp() * 1000)


class Window(_Part):
    """A time, from `start` up to before `end`, in which no alert begins."""

    start: AwareDatetime
    end: AwareDatetime
    every: Literal["day", "week"] | None = None

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.start >= self.end:
            raise ValueError("ends before it starts")
        return self

    def covers(self, ts_ms: int) -> bool:
        """Whether an instant lies in it."""
        since = datetime.fromtimestamp(ts_ms / 1000, UTC) - self.start
        if self.every is not None and since >= timedelta():
            since %= _EVERY[self.every]
        return timedelta() <= since < self.end - self.start


class _Rule(_Part):
    """What rules of all kinds have."""

    #: Whether the end of an alert is told, unless the rule says.
    tells_recovery: ClassVar[bool] = True

    name: Line
    channels: Annotated[tuple[Line, ...], Field(min_length=1, max_length=20)]
    tag: Line | None = Field(None, description="Only targets whose monitor has this tag.")
    group: Line | None = Field(None, description="Only targets of this group.")
    group_s: float = Field(
        30.0, ge=0, le=3600, description="Time for which a message waits for the other targets of its host."
    )
    quiet_hours: QuietHours | None = None
    maintenance: Annotated[tuple[Window, ...], Field(max_length=100)] = ()
    recovery: bool | None = Field(None, description="Whether the end is told. Null: as is usual for the kind.")

    @property
    def recovers(self) -> bool:
        """Whether the end of an alert is told."""
        return self.tells_recovery if self.recovery is None else self.recovery

    def rests(self, ts_ms: int) -> bool:
        """Whether no alert begins at this instant."""
        return any(window.covers(ts_ms) for window in self.maintenance)

    def due_ms(self, ts_ms: int) -> int:
        """When what begins at `ts_ms` is to be told."""
        due_ms = ts_ms + round(self.group_s * 1000)
        return due_ms if self.quiet_hours is None else self.quiet_hours.over_ms(due_ms)


class _Confirmed(_Rule):
    """A rule that a number of the last verdicts must confirm."""

    probes: Annotated[int, Field(ge=1, le=20)] = 2
    of: Annotated[int, Field(ge=1, le=20)] = 3

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.probes > self.of:
            raise ValueError(f"{self.probes} of {self.of} probes cannot be")
        return self

    def holds(self, found: Sequence[bool], *, now: bool) -> bool:
        """Whether an alert is open after these verdicts, oldest first; `now`: whether it is open before.

        It begins with a verdict that says so, if `probes` of the last `of` do; and ends with one that does not, if
        fewer than that do.
        """
        enough = sum(found[-self.of :]) >= self.probes
        return enough and (now or found[-1]) if found else now


class StateRule(_Confirmed):
    """The target is down."""

    kind: Literal["state"]


class LatencyRule(_Confirmed):
    """The target is up, and slow."""

    kind: Literal["latency"]
    above_ms: float | None = Field(None, gt=0, description="Null: what is slow for the URL's own past (degraded).")


class RiskRule(_Rule):
    """The target is up, and likely to fail."""

    tells_recovery: ClassVar[bool] = False

    kind: Literal["risk"]
    above: Annotated[float, Field(gt=0, le=1)]
    horizon: Literal["1h", "6h", "24h"] = "6h"

    @property
    def hours(self) -> int:
        return HORIZONS[self.horizon]

    def holds(self, probability: float, *, now: bool) -> bool:
        """Whether an alert is open at this probability; one that is open ends only well below the threshold."""
        return probability >= (self.ends_below if now else self.above)

    @property
    def ends_below(self) -> float:
        """An alert ends when the probability is less than this."""
        return 0.8 * self.above


class CertificateRule(_Rule):
    """The certificate expires soon."""

    kind: Literal["certificate"]
    days: Annotated[float, Field(gt=0, le=400)] = 14.0


class LagRule(_Rule):
    """The platform itself is late: with probes, or with what follows on them."""

    kind: Literal["lag"]
    above_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0


Rule: TypeAlias = StateRule | LatencyRule | RiskRule | CertificateRule | LagRule
AnyRule: TypeAlias = Annotated[Rule, Field(discriminator="kind")]

_RULE: Final[TypeAdapter[Rule]] = TypeAdapter(AnyRule)


class AlertFile(_Part):
    """All of it, as a file has it."""

    channels: tuple[Channel, ...] = ()
    rules: tuple[AnyRule, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for kind, parts in (("channel", self.channels), ("rule", self.rules)):
            names = [part.name for part in parts]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"two {kind}s are called {twice!r}")
        return self

    def check_channels(self, known: Iterable[str] = ()) -> None:
        """Raises `InvalidRequest` if a rule names a channel that is neither here nor `known`."""
        there = {channel.name for channel in self.channels} | set(known)
        for rule in self.rules:
            for name in rule.channels:
                if name not in there:
                    raise InvalidRequest(f"rule {rule.name!r}: there is no channel {name!r}")


def rule_of(given: Mapping[str, Any]) -> Rule:
    """The rule that some JSON means; raises `InvalidRequest`."""
    try:
        return _RULE.validate_python(given)
    except ValidationError as error:
        raise InvalidRequest(in_words(error)) from None


def read_file(file: Path) -> AlertFile:
    """The channels and rules of a YAML file; `-` is standard input. `${NAME}` stands for an environment variable.

    Raises:
        InvalidRequest: it cannot be read, is none, or has something in it that cannot be.
    """
    import yaml

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise InvalidRequest(f"{file}{line}: it is not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise InvalidRequest(f"{file}: it must have lists `channels` and `rules`")
    try:
        return AlertFile.model_validate(_with_variables(content))
    except ValidationError as error:
        raise InvalidRequest(f"{file}: {in_words(error)}") from None


def _with_variables(value: Any) -> Any:
    match value:
        case str():
            return expanded(value)
        case list():
            return [_with_variables(item) for item in value]
        case dict():
            return {key: _with_variables(item) for key, item in value.items()}
    return value


def in_words(error: ValidationError) -> str:
    """What pydantic found, in a sentence, without the values: they may be secret."""
    first, *rest = error.errors(include_url=False, include_input=False)
    place = ".".join(str(part) for part in first["loc"])
    words = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{place}: {words[:1].lower()}{words[1:]}{more}" if place else f"{words}{more}"
