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
    shifted = values.astype(np.int64).view(np.uint64)[:, None] >> np.arange(0, 7 * _VARINT_BYTES, 7, dtype=np.uint64)
    used = shifted != 0
    used[:, 0] = True
    data = (shifted & np.uint64(0x7F)).astype(np.uint8)
    data[:, :-1] |= used[:, 1:].astype(np.uint8) << 7
    return Pieces(data=data, used=used)


def fixed(values: npt.NDArray[np.generic]) -> Pieces:
    """Each number as it is in memory, little-endian; shape (n,)."""
    data = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    return Pieces(data=data, used=np.ones(data.shape, bool))


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
