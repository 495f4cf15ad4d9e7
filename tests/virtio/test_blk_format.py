# SPDX-License-Identifier: BSD-3-Clause
"""Block device layouts, byte for byte (virtio 1.2, 5.2)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vof.errors import RemoteProtocolError
from vof.virtio import blk
from vof.virtio.blk import BlkConfig, status_of

# Field, offset and width as in struct virtio_blk_config (5.2.4), by hand.
FIELDS = [
    ("capacity", 0, 8),
    ("size_max", 8, 4),
    ("seg_max", 12, 4),
    ("cylinders", 16, 2),
    ("heads", 18, 1),
    ("sectors", 19, 1),
    ("blk_size", 20, 4),
    ("physical_block_exp", 24, 1),
    ("alignment_offset", 25, 1),
    ("min_io_size", 26, 2),
    ("opt_io_size", 28, 4),
    ("writeback", 32, 1),
    ("num_queues", 34, 2),
    ("max_discard_sectors", 36, 4),
    ("max_discard_seg", 40, 4),
    ("discard_sector_alignment", 44, 4),
    ("max_write_zeroes_sectors", 48, 4),
    ("max_write_zeroes_seg", 52, 4),
    ("write_zeroes_may_unmap", 56, 1),
]
BITS = {
    "SIZE_MAX": 1,
    "SEG_MAX": 2,
    "GEOMETRY": 4,
    "RO": 5,
    "BLK_SIZE": 6,
    "FLUSH": 9,
    "TOPOLOGY": 10,
    "CONFIG_WCE": 11,
    "MQ": 12,
    "DISCARD": 13,
    "WRITE_ZEROES": 14,
    "LIFETIME": 15,
    "SECURE_ERASE": 16,
}

configs = st.builds(
    BlkConfig, **{name: st.integers(0, 256**width - 1) for name, _, width in FIELDS}
)


@pytest.mark.parametrize(("name", "offset", "width"), FIELDS)
def test_a_field_lies_where_the_specification_says(name, offset, width):
    value = int.from_bytes(bytes(range(0xA1, 0xA1 + width)), "little")
    packed = BlkConfig(**{name: value}).pack()
    assert packed == value.to_bytes(width, "little").rjust(offset + width, b"\0").ljust(60, b"\0")


def test_the_fields_are_all_there_in_order():
    assert BlkConfig._fields == tuple(name for name, _, _ in FIELDS)
    assert blk.CONFIG.size == 60


@given(configs)
def test_a_configuration_round_trips(config):
    assert BlkConfig.unpack(config.pack()) == config


@given(configs, st.integers(0, 80), st.binary(max_size=20))
def test_another_length_reads_what_is_there(config, length, more):
    data = (config.pack() + more)[:length]
    read = BlkConfig.unpack(data)
    for name, offset, width in FIELDS:
        expected = int.from_bytes(data[offset : offset + width], "little")
        assert getattr(read, name) == expected, name


def test_an_empty_configuration_is_zero():
    assert BlkConfig.unpack(b"") == BlkConfig()
    assert BlkConfig().pack() == bytes(60)


def test_a_request_head():
    assert blk.REQUEST.pack(blk.VIRTIO_BLK_T_OUT, 0, 0x1122334455).hex() == (
        "01000000000000005544332211000000"
    )
    assert blk.REQUEST.size == 16


def test_a_range():
    assert blk.RANGE.pack(7, 8, blk.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP).hex() == (
        "07000000000000000800000001000000"
    )
    assert blk.RANGE.size == 16


def test_the_numbers_of_the_specification():
    numbers = {k: v for k, v in vars(blk).items() if re.match(r"VIRTIO_BLK_[TSF]_", k)}
    assert numbers == {
        "VIRTIO_BLK_T_IN": 0,
        "VIRTIO_BLK_T_OUT": 1,
        "VIRTIO_BLK_T_FLUSH": 4,
        "VIRTIO_BLK_T_GET_ID": 8,
        "VIRTIO_BLK_T_DISCARD": 11,
        "VIRTIO_BLK_T_WRITE_ZEROES": 13,
        "VIRTIO_BLK_S_OK": 0,
        "VIRTIO_BLK_S_IOERR": 1,
        "VIRTIO_BLK_S_UNSUPP": 2,
        **{f"VIRTIO_BLK_F_{name}": number for name, number in BITS.items()},
    }
    assert {n: f"VIRTIO_BLK_F_{name}" for name, n in BITS.items()} == blk.FEATURES
    assert (blk.SECTOR, blk.VIRTIO_BLK_ID_BYTES) == (512, 20)


def test_status_of():
    assert [status_of(n) for n in range(3)] == [
        "VIRTIO_BLK_S_OK",
        "VIRTIO_BLK_S_IOERR",
        "VIRTIO_BLK_S_UNSUPP",
    ]


@pytest.mark.parametrize("status", [3, 0x7F, 0xFF])
def test_a_status_byte_of_no_meaning_is_the_devices_fault(status):
    with pytest.raises(RemoteProtocolError, match=f"status byte {status} "):
        status_of(status)
