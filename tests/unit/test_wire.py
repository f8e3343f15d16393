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
    numbers, where = np.array([[1.5, 2.5], [-3.0, 4.0]]), np.array([[1, 0], [1, 1]], bool)
    sizes, encoded = wire.fixed_messages(2, wire.tag(1, wire.FIXED64), numbers, where=where)
    expected = [DoubleValue(value=1.5), DoubleValue(), DoubleValue(value=-3.0), DoubleValue(value=4.0)]
    assert encoded == b"".join(b"\x12" + bytes([m.ByteSize()]) + m.SerializeToString() for m in expected)
    assert sizes.tolist() == [11 + 2, 11 + 11]
    sizes, whole = wire.fixed_messages(2, wire.tag(1, wire.FIXED64), numbers, where=np.ones((2, 2), bool))
    assert (sizes.tolist(), whole[:11], whole[22:]) == ([22, 22], encoded[:11], encoded[13:])
    pieces = wire.joined(wire.varints(np.array([1, 2, 300])), where=np.array([1, 0, 1], bool))
    assert bytes(wire.messages(2, pieces)) == b"\x12\x01\x01\x12\x00\x12\x02\xac\x02"
