# SPDX-License-Identifier: BSD-3-Clause
"""Layouts: what goes in comes out, reserved bytes are 0 and ignored, wrong fields raise."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vof.protocol import v5
from vof.protocol.wire import Field, Layout, describe

LAYOUTS = list(v5.LAYOUTS.values())
layouts = st.sampled_from(LAYOUTS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def is_bytes(field: Field) -> bool:
    return field.width > 8


def fields_of(layout: Layout) -> st.SearchStrategy[dict[str, int | bytes]]:
    return st.fixed_dictionaries(
        {
            field.name: st.binary(min_size=field.width, max_size=field.width)
            if is_bytes(field)
            else st.integers(0, 256**field.width - 1)
            for field in layout.fields()
        }
    )


def reserved(layout: Layout) -> list[int]:
    """Return the offsets of the bytes that no field has."""
    taken = {n for f in layout.fields() for n in range(f.offset, f.offset + f.width)}
    return [n for n in range(layout.codec.size) if n not in taken]


@given(st.data())
def test_a_layout_round_trips(data):
    layout = data.draw(layouts)
    values = data.draw(fields_of(layout))
    encoded = layout.encode(values)
    assert len(encoded) == layout.codec.size
    assert layout.decode(encoded) == values
    assert layout.decode(b"\xff" * 7 + encoded, 7) == values


@given(st.data())
def test_a_field_is_little_endian_at_its_place_and_reserved_bytes_are_0(data):
    layout = data.draw(layouts)
    values = data.draw(fields_of(layout))
    expected = bytearray(layout.codec.size)
    for name, offset, width in layout.fields():
        value = values[name]
        expected[offset : offset + width] = (
            value if isinstance(value, bytes) else value.to_bytes(width, "little")
        )
    assert layout.encode(values) == expected


@given(st.data())
def test_reserved_bytes_are_not_read(data):
    layout = data.draw(layouts)
    values = data.draw(fields_of(layout))
    encoded = bytearray(layout.encode(values))
    for n in reserved(layout):
        encoded[n] = data.draw(st.integers(0, 255))
    assert layout.decode(encoded) == values


@given(layouts, st.data())
def test_any_bytes_decode(layout, data):
    encoded = data.draw(st.binary(min_size=layout.codec.size, max_size=layout.codec.size))
    values = layout.decode(encoded)
    assert set(values) == set(layout.names)
    again = layout.encode(values)
    assert all(again[n] in (encoded[n], 0) for n in range(len(again)))


@each_layout
def test_what_is_not_named_is_0(layout):
    assert layout.encode({}) == bytes(layout.codec.size)


@each_layout
def test_fields_lie_inside_and_do_not_overlap(layout):
    end = 0
    for field in layout.fields():
        assert field.offset >= end
        end = field.offset + field.width
    assert end <= layout.codec.size
    assert tuple(field.name for field in layout.fields()) == layout.names


@each_layout
def test_a_wrong_field_raises(layout):
    with pytest.raises(KeyError, match="has no field nothing, nowhere"):
        layout.encode({"nowhere": 0, "nothing": 0, layout.names[0]: 0})


@given(layouts, st.data())
def test_a_value_that_does_not_fit_raises(layout, data):
    field = data.draw(st.sampled_from(layout.fields()))
    if is_bytes(field):
        wrong = data.draw(st.integers())
    else:
        top = 256**field.width
        wrong = data.draw(st.one_of(st.integers(min_value=top), st.integers(max_value=-1)))
    with pytest.raises(struct.error):
        layout.encode({field.name: wrong})


@given(layouts, st.data())
def test_bytes_that_are_not_all_there_raise(layout, data):
    short = data.draw(st.binary(max_size=layout.codec.size - 1))
    with pytest.raises(struct.error):
        layout.decode(short)


def test_a_table_that_does_not_add_up_is_not_one():
    with pytest.raises(AssertionError, match="odd: 6 bytes, not 8"):
        Layout("odd", "1", "HI", "a b", 8)
    with pytest.raises(AssertionError, match="odd"):
        Layout("odd", "1", "HI2x", "a b c", 8)


def test_a_layout_says_what_it_is():
    layout = Layout("odd", "1", "H2xI", "a b", 8)
    assert repr(layout) == "<layout odd, 8 bytes>"
    assert layout.fields() == [Field("a", 0, 2), Field("b", 4, 4)]
    assert describe(layout, {"a": 1, "b": 2}) == "odd(a=1, b=2)"
