"""The body of a new task: JSON, or URLs line by line as they come, in memory that does not grow with their number.

All of it is lazy and synchronous: a worker thread pulls the body through it.
"""

import codecs
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final, TypeVar

import orjson
from anyio import from_thread
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from serving.dependencies import check_count
from serving.errors import body_too_long
from serving.middleware import MAX_BODY_BYTES
from serving.schemas import Options, TaskOptions, TaskRequest
from urlhealth.errors import InvalidRequest, InvalidUrls

Model = TypeVar("Model", bound=BaseModel)

_IS_JSON: Final = re.compile(r"application/(json|[^/]+\+json)")

#: Longest line. The longest URL fits in, also with each of its characters escaped.
MAX_LINE_BYTES: Final = 64 << 10
#: What is streamed may be this long, packed and unpacked: a million of the longest URLs.
MAX_STREAM_BYTES: Final = 2 << 30
NDJSON_TYPES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_UNPACK_BYTES: Final = 1 << 20


def task_of(request: Request, *, max_urls: int) -> tuple[Iterable[str], Options]:
    """The URLs and options of a new task, in whichever form they are sent; iterating over the URLs reads the body.

    For a worker thread: the event loop reads meanwhile.

    Raises:
        HTTPException: 408, 413, 415.
        InvalidRequest, RequestValidationError: saying what is wrong with the body.
    """
    pieces = received(request)
    match media_type(request):
        case "application/json":
            body = json_task(b"".join(limited(pieces, MAX_BODY_BYTES)))
            check_count(body.urls, max_urls)
            return body.urls, body.options
        case content_type if content_type in NDJSON_TYPES:
            request.state.max_body_bytes = MAX_STREAM_BYTES
            options, urls = ndjson_task(limited(pieces, MAX_STREAM_BYTES))
            return _at_most(urls, max_urls), options
        case "text/plain":
            request.state.max_body_bytes = MAX_STREAM_BYTES
            return _at_most(text_urls(limited(pieces, MAX_STREAM_BYTES)), max_urls), Options()
        case content_type:
            raise HTTPException(
                415,
                f"the Content-Type is {content_type[:80]!r}: send application/json, application/x-ndjson, or "
                "text/plain with a URL a line",
            )


def received(request: Request) -> Iterator[bytes]:
    """The body as it comes, unpacked, for a worker thread that the event loop waits for.

    Raises:
        HTTPException: 408, 415.
        InvalidRequest: it is packed, and cannot be unpacked.
    """
    match request.headers.get("content-encoding", "identity").strip().lower():
        case "identity":
            return _pieces(request)
        case "gzip" | "x-gzip":
            return unpacked(_pieces(request))
        case coding:
            raise HTTPException(415, f"the body is packed as {coding[:40]!r}: send it plain, or as gzip")


def media_type(request: Request) -> str:
    """The body's media type, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _pieces(request: Request) -> Iterator[bytes]:
    stream = request.stream()

    async def following() -> bytes | None:
        return await anext(stream, None)

    while (piece := from_thread.run(following)) is not None:
        yield piece


def _at_most(urls: Iterable[str], most: int) -> Iterator[str]:
    for position, url in enumerate(urls):
        if position == most:
            raise InvalidUrls({most: f"is one too many: a task takes at most {most} URLs"})
        yield url


def unpacked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What gzip pieces unpack to, at most 1 MiB at once however well they are packed.

    Raises:
        InvalidRequest: they are not gzip, or break off.
    """
    inflater = zlib.decompressobj(wbits=31)
    for piece in pieces:
        part = b""
        while piece or len(part) == _UNPACK_BYTES:
            if inflater.eof and piece:  # Gzip files may be joined to one.
                inflater = zlib.decompressobj(wbits=31)
            try:
                part = inflater.decompress(piece, _UNPACK_BYTES)
            except zlib.error:
                raise InvalidRequest("the body is not gzip, although its Content-Encoding says so") from None
            piece = inflater.unconsumed_tail or inflater.unused_data
            yield part
    if not inflater.eof:
        raise InvalidRequest("the gzip body breaks off before its end")


def text_urls(pieces: Iterable[bytes]) -> Iterator[str]:
    """The URLs of a text: one a line, without empty lines and those that begin with `#`.

    Raises:
        InvalidRequest: a line is too long, or not UTF-8.
    """
    for number, line in lines(pieces):
        if not line.startswith(b"#"):
            try:
                yield line.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"line {number} is not UTF-8") from None


def ndjson_task(pieces: Iterable[bytes]) -> tuple[Options, Iterator[str]]:
    """A task as JSON lines: `{"options": {...}}` first, where options are wanted; then its URLs, each a string or an
    object `{"url": ...}`. What is neither is passed on as it is: it is found where URLs are parsed.

    Raises:
        InvalidRequest: a line is too long, or not JSON; now or while iterating.
        RequestValidationError: there is something wrong with the options.
    """
    items = (loads(number, line) for number, line in lines(pieces))
    first = list(islice(items, 1))
    options = Options()
    if first and isinstance(first[0], dict) and "options" in first[0]:
        options = valid(TaskOptions, first.pop()).options
    return options, (_url(item) for item in chain(first, items))


def json_task(body: bytes) -> TaskRequest:
    """A task as one JSON object.

    Raises:
        RequestValidationError: saying what is wrong with it.
    """
    return valid(TaskRequest, json_value(body))


def json_value(body: bytes) -> Any:
    """What a body of JSON means; raises `RequestValidationError` where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        fault = {"type": "json_invalid", "loc": ("body",), "msg": "", "ctx": {"error": str(error)}}
        raise RequestValidationError([fault]) from None


def limited(pieces: Iterable[bytes], most_bytes: int) -> Iterator[bytes]:
    """The pieces; raises `HTTPException` (413) when they are too much."""
    size_bytes = 0
    for piece in pieces:
        size_bytes += len(piece)
        if size_bytes > most_bytes:
            raise body_too_long(most_bytes)
        yield piece


def lines(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and contents of the lines that are not blank."""
    number, rest = 0, b""
    for piece in chain(pieces, [b"\n"]):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > MAX_LINE_BYTES:
                raise _long_line(number)
            if line := line.strip():
                yield number, line
        if len(rest) > MAX_LINE_BYTES:
            raise _long_line(number + 1)


def _long_line(number: int) -> InvalidRequest:
    return InvalidRequest(f"line {number} is longer than {MAX_LINE_BYTES} bytes: send one URL a line")


def loads(number: int, line: bytes) -> Any:
    """What a line of JSON means; raises `InvalidRequest`, naming the line."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"line {number} is not JSON: {error}") from None


def _url(item: Any) -> Any:
    return item["url"] if isinstance(item, dict) and item.keys() == {"url"} else item


async def sent(request: Request, model: type[Model]) -> Model:
    """The JSON body that was sent, for routes that are asked too often to have FastAPI look for it.

    Raises:
        RequestValidationError: saying what is wrong with it.
    """
    body = await request.body()
    if not body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": ""}])
    if not _IS_JSON.fullmatch(media_type(request)):
        raise RequestValidationError([{"type": "model_attributes_type", "loc": ("body",), "msg": ""}])
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = json_value(body)  # It knows more than JSON, and says what it does not know.
    return valid(model, value)


def valid(model: type[Model], value: Any) -> Model:
    """The body that a value means; raises `RequestValidationError` saying what is wrong with it."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None
