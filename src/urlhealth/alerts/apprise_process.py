"""`python -m urlhealth.alerts.apprise_process`: sends one message by Apprise, and holds it to the address guard.

Apprise has a hundred services and several network libraries below them. Every connection of this process, whichever of
them makes it, goes through an audit hook, which cannot be taken away again. Reads a JSON object from standard input;
exit code 0 if it was sent, otherwise standard output says why not.
"""

import logging
import re
import sys
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any, Final
from urllib.parse import unquote

import orjson

from urlhealth.probing.guard import AddressGuard

#: Services that show messages on this machine.
LOCAL: Final = frozenset({"dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"})


#: What stands between the parts of a URL.
_PARTS: Final = re.compile(r"[/?&=:@,;]")


class Refused(OSError):
    """A connection that the guard does not allow."""


def main() -> int:
    """Send the message; the exit code."""
    request = orjson.loads(sys.stdin.buffer.read())
    if request["url"].split("://")[0].lower() in LOCAL:
        print("refused: such a channel would act on the platform's own machine")
        return 1
    refusals = guard_connections(request["allow"], request["deny"])
    import apprise

    said: list[str] = []
    logger = logging.getLogger("apprise")
    logger.addHandler(_Remember(said))
    logger.propagate = False
    # Of `add`, a comma would begin another service, which nobody has looked at.
    service = apprise.Apprise.instantiate(request["url"])
    sender = apprise.Apprise()
    if service is None or not sender.add(service):
        print("Apprise does not know such a URL: see its list of services")
        return 1
    if sender.notify(title=request["title"], body=request["body"], body_format=apprise.NotifyFormat.TEXT):
        return 0
    # What Apprise says may have the URL in it, which is secret; its class of error has not.
    print(f"refused: {refusals[0]}" if refusals else _without(said, request["url"]) or "the service did not take it")
    return 1


def guard_connections(allow: Sequence[str], deny: Sequence[str]) -> list[str]:
    """From now on refuse connections of this process to addresses that are not allowed; returns what was refused."""
    guard = AddressGuard(list(map(ip_network, allow)), deny=list(map(ip_network, deny)))
    refusals: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            return
        address = arguments[1]
        if address is None:  # of a socket that is connected already
            return
        # Not a pair: a Unix socket, of a service of this machine.
        # Services have ports of many kinds; whose they are is what counts.
        refusal = guard.refusal(str(address[0] if isinstance(address, tuple) else address), 443)
        if refusal is not None:
            refusals.append(refusal)
            raise Refused(refusal)

    sys.addaudithook(hook)
    return refusals


class _Remember(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


def _without(said: Sequence[str], url: str) -> str:
    """The last line that does not show a part of the URL, in either spelling, its host apart."""
    _, _, rest = url.partition("://")
    host = rest.partition("/")[0].rpartition("@")[2].partition("?")[0]
    parts = [part for each in (rest, unquote(rest)) for part in _PARTS.split(each) if len(part) > 3]
    secret = [part for part in parts if part not in host]
    shown = [line for line in said if not any(part in line for part in secret)]
    return shown[-1] if shown else ""


if __name__ == "__main__":
    sys.exit(main())
