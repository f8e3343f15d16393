"""uvicorn's HTTP protocol with limits on what a client may send beside a body, and on how slowly it sends and reads."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Request line and headers together, and what stands between the pieces of a body and after it; bytes that came in one
#: piece with a complete head, or with some of the body, are not counted.
MAX_HEAD_BYTES: Final = 64 * 1024
#: Time from a connection, an answer, or the first byte of a further request, to the end of the head.
HEAD_S: Final = 30.0
#: Time in which a client must take some of an answer that it holds up.
READ_S: Final = 60.0


class LimitedHttp(HttpToolsProtocol):
    """httptools itself takes heads and trailers of any length, and all of it waits for ever."""

    head_s = HEAD_S
    read_s = READ_S

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._counted_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(self.head_s, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def data_received(self, data: bytes) -> None:
        self._counts = True
        super().data_received(data)
        if self._counts and not self.transport.is_closing():
            self._counted_bytes += len(data)
            if self._counted_bytes > MAX_HEAD_BYTES:
                self._refuse()

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            words = b"the headers are too long"
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(words), words)
            )
        self.transport.close()

    def on_message_begin(self) -> None:
        self._counted_bytes = 0
        self._wait_for_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._counted_bytes, self._counts = 0, False
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._counted_bytes, self._counts = 0, False
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # What uvicorn waits for next it waits for until the first byte, which may be one of a body that nobody reads.
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_head()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.read_s, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_reading()
        self._read_timer = self.loop.call_later(self.read_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_reading()
        super().connection_lost(exc)
