"""Protobuf's wire format for many small messages at once, made by NumPy instead of an object a message.

The format: https://protobuf.dev/programming-guides/encoding/
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """A piece of the encoding of each of n messages."""

    #: uint8, shape (n, k).
    data: npt.NDArray[np.uint8]
    #: Shape (n, k): which of them count.
    used: npt.NDArray[np.bool_]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each piece, shape (n,)."""
        sizes: npt.NDArray[np.int64] = np.count_nonzero(self.used, axis=1)
        return sizes

    def __bytes__(self) -> bytes:
        """All pieces, one after the other."""
        return self.data[self.used].tobytes()


def tag(number: int, kind: int) -> bytes:
    """What comes before the value of a field."""
    return varint(number << 3 | kind)


def varint(value: int) -> bytes:
    """One number that is not negative."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def varints(values: npt.NDArray[np.int64]) -> Pieces:
    """Each number (negative ones in ten bytes, as Protobuf's int64 has them); shape (n,)."""
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    width = _VARINT_BYTES if least < 0 else max((most.bit_length() + 6) // 7, 1)
    shifted = values.astype(np.int64).view(np.uint64)[:, None] >> np.arange(0, 7 * width, 7, dtype=np.uint64)
    used = shifted != 0
    used[:, 0] = True
    data = (shifted & np.uint64(0x7F)).astype(np.uint8)
    data[:, :-1] |= used[:, 1:].astype(np.uint8) << 7
    return Pieces(data=data, used=used)


def constant(value: bytes, n: int) -> Pieces:
    """The same bytes n times."""
    data = np.broadcast_to(np.frombuffer(value, np.uint8), (n, len(value)))
    return Pieces(data=data, used=np.ones(data.shape, bool))


def joined(*pieces: Pieces, where: npt.NDArray[np.bool_] | None = None) -> Pieces:
    """Pieces after one another; nothing at all of messages that are not in `where` (shape (n,))."""
    used = np.concatenate([piece.used for piece in pieces], axis=1)
    if where is not None:
        used &= where[:, None]
    return Pieces(data=np.concatenate([piece.data for piece in pieces], axis=1), used=used)


def messages(number: int, bodies: Pieces) -> Pieces:
    """Each body as a message in field `number` of the message around it."""
    return joined(constant(tag(number, BYTES), len(bodies.data)), varints(bodies.sizes), bodies)


def fixed_messages(
    number: int, inner: bytes, values: npt.NDArray[np.generic], *, where: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], bytes]:
    """Messages in field `number`, each of one number of fixed size after its tag, or empty where not in `where`.

    Args:
        inner: the numbers' tag.
        values: little-endian, shape (k, n), as `where`.

    Returns:
        Bytes of each of the k rows of messages, shape (k,), and all of them, one after the other.
    """
    start = tag(number, BYTES) + varint(len(inner) + values.itemsize) + inner
    data = np.empty((*values.shape, len(start) + values.itemsize), np.uint8)
    data[..., : len(start)] = np.frombuffer(start, np.uint8)
    data[..., len(start) :] = values.view(np.uint8).reshape(*values.shape, -1)
    if where.all():
        return np.full(len(values), data[0].size), data.tobytes()
    size_at = len(start) - len(inner) - 1  # a varint of one byte
    data[..., size_at][~where] = 0
    used = np.ones(data.shape, bool)
    used[..., size_at + 1 :] = where[..., None]
    return used.sum(axis=(1, 2)), data[used].tobytes()
