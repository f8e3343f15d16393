"""Sends messages: webhooks by ourselves, signed; to all else by Apprise, in a process of its own.

A message is claimed at the last moment: a webhook's when it is connected, before a byte of the request is written. So
what could not be connected to is sent again, and what was under way when this process was killed is not.
"""

import base64
import hashlib
import hmac
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import orjson
import pycurl

from urlhealth.alerts.messages import trial_payload
from urlhealth.alerts.rules import UNREADABLE, Channel
from urlhealth.alerts.store import AlertStore, Message
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import new_id
from urlhealth.errors import NotFound, UrlHealthError, one_line
from urlhealth.probing.guard import guard_of
from urlhealth.settings import Settings
from urlhealth.vocabulary import Clock

#: Longest time for one message.
TIMEOUT_S: Final = 10
_APPRISE_TIMEOUT_S: Final = 60
#: Messages that are sent at once: a receiver that hangs does not hold up the others' for long.
_AT_ONCE: Final = 8

log = logging.getLogger(__name__)


class Sender:
    """Sends one message to one channel."""

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self._guard = guard_of(settings)
        self._networks = {
            "allow": [str(network) for network in settings.allow_addresses],
            "deny": [str(network) for network in settings.deny_addresses],
        }
        self._user_agent = settings.user_agent
        self._ca_file = settings.ca_file
        self._clock = clock

    def send(self, channel: Channel, message_id: str, payload: bytes, *, claim: Callable[[], bool]) -> str | None:
        """Send it; returns why it could not be, None if it was.

        Args:
            payload: JSON, a webhook's body.
            claim: called once, right before anything is sent; if it says no, nothing is.
        """
        if channel.url == UNREADABLE:
            return "it is stored encrypted with another key: see URLHEALTH_SECRET_KEY, or apply it again"
        if channel.is_webhook:
            return self._post(channel, message_id, payload, claim)
        return self._notify(channel, payload) if claim() else NOT_CLAIMED

    def try_out(self, channel: Channel) -> str | None:
        """Send a test message now; returns why it could not be, None if it was."""
        message_id = new_id(self._clock)
        payload = orjson.dumps({"id": message_id, **trial_payload(channel.name)})
        return self.send(channel, message_id, payload, claim=lambda: True)

    def _post(self, channel: Channel, message_id: str, payload: bytes, claim: Callable[[], bool]) -> str | None:
        refusal: str | None = None

        def open_socket(_purpose: int, address: Any) -> Any:
            nonlocal refusal
            family, kind, protocol, peer = address
            refusal = self._guard.refusal(peer[0], peer[1])
            return pycurl.SOCKET_BAD if refusal else socket.SocketType(family, kind, protocol).detach()

        failure: BaseException | None = None

        def connected(*_addresses: Any) -> Any:
            nonlocal failure
            try:
                return pycurl.PREREQFUNC_OK if claim() else pycurl.PREREQFUNC_ABORT
            except BaseException as error:
                failure = error
                return pycurl.PREREQFUNC_ABORT

        curl = pycurl.Curl()
        try:
            curl.setopt(pycurl.URL, channel.url)
            curl.setopt(pycurl.PROXY, "")
            curl.setopt(pycurl.NOPROXY, "")
            curl.setopt(pycurl.NOSIGNAL, 1)
            curl.setopt(pycurl.OPENSOCKETFUNCTION, open_socket)
            curl.setopt(pycurl.PREREQFUNCTION, connected)
            curl.setopt(pycurl.TIMEOUT, TIMEOUT_S)
            curl.setopt(pycurl.USERAGENT, self._user_agent)
            if self._ca_file is not None:
                curl.setopt(pycurl.CAINFO, str(self._ca_file))
            headers = {"Content-Type": "application/json", **self._signed(channel, message_id, payload)}
            curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()] + ["Expect:"])
            curl.setopt(pycurl.POSTFIELDS, payload)
            curl.setopt(pycurl.WRITEFUNCTION, lambda _piece: None)
            curl.perform()
            status = curl.getinfo(pycurl.RESPONSE_CODE)
        except pycurl.error as error:
            if failure is not None:
                raise failure from None
            if error.args[0] == pycurl.E_ABORTED_BY_CALLBACK:
                return NOT_CLAIMED
            return f"refused: {refusal}" if refusal else str(error.args[1] or error.args[0])
        finally:
            curl.close()
        return None if 200 <= status < 300 else f"it answered with HTTP {status}"

    def _signed(self, channel: Channel, message_id: str, payload: bytes) -> Mapping[str, str]:
        """Headers as in https://www.standardwebhooks.com: many frameworks can check them."""
        timestamp_s = self._clock() // 1000
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signature(channel.secret or "", message_id, timestamp_s, payload),
        }

    def _notify(self, channel: Channel, payload: bytes) -> str | None:
        message = orjson.loads(payload)
        request = {"url": channel.url, "title": message["title"], "body": message["text"]} | self._networks
        command = [sys.executable, "-m", "urlhealth.alerts.apprise_process"]
        try:
            done = subprocess.run(
                command, input=orjson.dumps(request), capture_output=True, timeout=_APPRISE_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"it was not sent within {_APPRISE_TIMEOUT_S} s"
        if done.returncode == 0:
            return None
        said = done.stdout.decode(errors="replace").strip()
        return one_line(said or f"the process that sends it ended with {done.returncode}")[:500]


#: What :meth:`Sender.send` says where nothing was sent, because another process has.
NOT_CLAIMED: Final = "another process sends it"


def signature(secret: str, message_id: str, timestamp_s: int, payload: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of `id.timestamp.payload`, base64. A secret that begins with `whsec_` is base64."""
    key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    signed = f"{message_id}.{timestamp_s}.".encode() + payload
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"


class Delivery:
    """Sends the messages that are due. Only the process that holds the lease may step."""

    def __init__(self, store: AlertStore, sender: Sender, *, lease: Lease) -> None:
        self._store = store
        self._sender = sender
        self._lease = lease
        #: What became of messages, where that could not be noted yet.
        self._unnoted: dict[str, tuple[Message, str | None]] = {}

    def step(self) -> int:
        """Send some; returns how many were tried.

        Raises:
            LeaseLost: another process is the writer.
        """
        for message, problem in list(self._unnoted.values()):
            self._note(message, problem)
        self._store.give_up_interrupted(lease=self._lease)
        due = self._store.due_messages(limit=_AT_ONCE)
        if len(due) < 2:
            for message in due:
                self._send(message)
        else:
            with ThreadPoolExecutor(len(due), thread_name_prefix="urlhealth-alert") as pool:
                list(pool.map(self._send, due))
        return len(due)

    def _send(self, message: Message) -> None:
        try:
            channel = self._store.channel(message.channel, owner=message.owner)
        except NotFound as error:
            self._note(message, str(error))
            return
        try:
            problem = self._sender.send(
                channel,
                message.message_id,
                message.payload,
                claim=lambda: self._store.claim(message, lease=self._lease),
            )
        except UrlHealthError:
            raise
        except Exception as error:  # whatever is wrong with one message, it does not hold up the others
            log.exception("alert %s to %s failed", message.message_id, channel.name)
            problem = one_line(error)
        if problem == NOT_CLAIMED:
            return
        if problem is not None:
            log.warning("alert %s to %s: %s", message.message_id, channel.name, problem)
        self._note(message, problem)

    def _note(self, message: Message, problem: str | None) -> None:
        self._unnoted[message.message_id] = message, problem
        self._store.finish(message, problem=problem)
        del self._unnoted[message.message_id]
