"""The wire format against Protobuf itself."""

import numpy as np
from google.protobuf.wrappers_pb2 import DoubleValue, Int64Value, UInt64Value

from urlhealth.feast_stores import wire


def test_numbers_are_encoded_as_protobuf_does() -> None:
    numbers = np.array([0, 1, 127, 128, 300, 2**31, 2**62, -1, -(2**63)], np.int64)
    pieces = wire.joined(wire.constant(wire.tag(1, wire.VARINT), len(numbers)), wire.varints(numbers))
    whole = bytes(pieces)
    ends = np.cumsum(pieces.sizes)
    for number, start, end in zip(numbers.tolist(), [0, *ends], ends, strict=False):
        assert Int64Value.FromString(whole[start:end]).value == number
    for number in (0, 127, 128, 2**40):
        assert UInt64Value.FromString(b"\x08" + wire.varint(number)).value == number


def test_messages_that_are_left_out_are_empty() -> None:
    numbers = np.array([1.5, 2.5, -3.0])
    pieces = wire.joined(
        wire.constant(wire.tag(1, wire.FIXED64), 3), wire.fixed(numbers), where=np.array([1, 0, 1], bool)
    )
    assert pieces.sizes.tolist() == [9, 0, 9]
    expected = [DoubleValue(value=1.5), DoubleValue(), DoubleValue(value=-3.0)]
    assert bytes(wire.messages(2, pieces)) == b"".join(
        b"\x12" + bytes([m.ByteSize()]) + m.SerializeToString() for m in expected
    )
