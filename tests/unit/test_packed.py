"""Layouts of packed rows."""

import math
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores.packed import Layout, PackedField
from urlhealth.features.columns import Column, StateView

VIEW = StateView(
    name="things",
    entity="thing",
    columns=(
        Column(name="a", dtype="float64", about="A double."),
        Column(name="b", dtype="int32", about="Three integers.", length=3),
        Column(name="c", dtype="float32", about="A float.", initial=math.nan),
        Column(name="d", dtype="int64", about="A long.", initial=-1),
    ),
)
LAYOUT = Layout.of(VIEW)

EVERYTHING = Layout(
    view="everything",
    fields=(
        PackedField(name="f8", kind="float64"),
        PackedField(name="f4", kind="float32"),
        PackedField(name="text", kind="string"),
        PackedField(name="i8", kind="int64"),
        PackedField(name="i4", kind="int32"),
        PackedField(name="flag", kind="bool"),
        PackedField(name="raw", kind="bytes"),
        PackedField(name="seen", kind="timestamp"),
        PackedField(name="three", kind="float32", length=3),
        PackedField(name="some", kind="int64", length=0),
    ),
)
ARROW = pa.schema(
    {
        "f8": pa.float64(),
        "f4": pa.float32(),
        "text": pa.string(),
        "i8": pa.int64(),
        "i4": pa.int32(),
        "flag": pa.bool_(),
        "raw": pa.binary(),
        "seen": pa.timestamp("us", "UTC"),
        "three": pa.list_(pa.float32()),
        "some": pa.list_(pa.int64()),
    }
)
floats32 = st.floats(width=32, allow_nan=False)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "f8": st.none() | st.floats(allow_nan=False),
            "f4": st.none() | floats32,
            "text": st.none() | st.text(),
            "i8": st.none() | st.integers(-(2**63), 2**63 - 1),
            "i4": st.none() | st.integers(-(2**31), 2**31 - 1),
            "flag": st.none() | st.booleans(),
            "raw": st.none() | st.binary(),
            "seen": st.none() | st.integers(0, 4_000_000_000),
            "three": st.none() | st.lists(floats32, min_size=3, max_size=3),
            "some": st.none() | st.lists(st.integers(-(2**63), 2**63 - 1)),
        }
    ),
    max_size=20,
)


@given(RECORDS)
def test_rows_give_back_what_was_packed(records: list[dict[str, object]]) -> None:
    columns = {name: [record[name] for record in records] for name in ARROW.names}
    instants = [None if s is None else datetime.fromtimestamp(s, UTC) for s in columns["seen"]]  # type: ignore[arg-type]
    table = pa.table({**columns, "seen": instants}, schema=ARROW)
    rows = EVERYTHING.pack(table)
    columns["text"] = [None if t is None else t.encode() for t in columns["text"]]  # type: ignore[attr-defined]
    assert EVERYTHING.unpack(rows, ARROW.names) == columns
    assert EVERYTHING.unpack(rows, ["some", "f8"]) == {name: columns[name] for name in ("some", "f8")}


def states(n: int, seed: int = 0) -> np.ndarray:
    drawn = VIEW.initial(n)
    rng = np.random.default_rng(seed)
    for column in VIEW.columns:
        drawn[column.name] = rng.integers(-1000, 1000, drawn[column.name].shape)
    return drawn


def test_rows_of_a_state_view_hold_its_records() -> None:
    drawn = states(5)
    assert LAYOUT.dtype["state"] == VIEW.dtype
    rows = LAYOUT.pack_states(drawn)
    assert LAYOUT.heads(rows)["state"].tobytes() == drawn.tobytes()
    assert LAYOUT.pack(pa.table(VIEW.to_arrow(drawn))) == rows


def test_nan_is_null_and_a_null_float_is_nan() -> None:
    table = pa.table({"a": [math.nan, None], "b": [[1, 2, 3]] * 2, "c": pa.array([1, None], pa.float32()), "d": [1, 2]})
    rows = LAYOUT.pack(table)
    assert LAYOUT.unpack(rows, ["a", "c"]) == {"a": [None, None], "c": [1, None]}
    assert np.isnan(LAYOUT.heads(rows)["state"]["a"]).all()


def test_what_does_not_fit_is_refused_by_name() -> None:
    table = pa.table(VIEW.to_arrow(states(2)))
    with pytest.raises(ValueError, match=r"feature b of view things .* arrays of 3 values are wanted, not of 2"):
        LAYOUT.pack(table.set_column(1, "b", pa.array([[1, 2], [1, 2, 3]])))
    with pytest.raises(ValueError, match="feature d of view things"):
        LAYOUT.pack(table.set_column(3, "d", pa.array(["x", "y"])))


@pytest.mark.parametrize(
    "changed",
    [
        PackedField(name="a", kind="int64"),
        PackedField(name="a", kind="float64", length=2),
        PackedField(name="z", kind="float64"),
    ],
)
def test_a_row_of_another_schema_is_never_misread(changed: PackedField) -> None:
    other = Layout(view="things", fields=(changed, *LAYOUT.fields[1:]))
    with pytest.raises(StoreUnavailable, match="view things holds rows of another schema"):
        other.heads(LAYOUT.pack_states(states(3)))
