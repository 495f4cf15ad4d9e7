# SPDX-License-Identifier: BSD-3-Clause
"""The layouts of virtio-fs and FUSE, against virtio 1.2 and Linux's interface."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vof.errors import RemoteProtocolError
from vof.virtio import fs
from vof.virtio.fs import OPERATIONS, Attr, Dirent, Entry, FsConfig, unpack_dirents

OPCODES = {
    "LOOKUP": 1,
    "FORGET": 2,
    "GETATTR": 3,
    "SETATTR": 4,
    "READLINK": 5,
    "MKDIR": 9,
    "UNLINK": 10,
    "RMDIR": 11,
    "RENAME": 12,
    "OPEN": 14,
    "READ": 15,
    "WRITE": 16,
    "STATFS": 17,
    "RELEASE": 18,
    "FSYNC": 20,
    "FLUSH": 25,
    "INIT": 26,
    "OPENDIR": 27,
    "READDIR": 28,
    "RELEASEDIR": 29,
    "CREATE": 35,
    "DESTROY": 38,
    "BATCH_FORGET": 42,
}
ATTR = Attr(2, 5, 8, 1, 2, 3, 4, 5, 6, stat.S_IFREG | 0o644, 1, 7, 8, 0, 4096)
NAMES = st.binary(min_size=1, max_size=fs.FUSE_NAME_MAX).filter(
    lambda name: b"/" not in name and b"\0" not in name
)
WIDE, WORD = st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)
ENTRIES = st.lists(st.builds(Dirent, NAMES, WIDE, WORD, WIDE), max_size=8)


def test_the_numbers():
    assert {name: row.opcode for name, row in OPERATIONS.items()} == OPCODES
    assert {name for name, row in OPERATIONS.items() if not row.answered} == {
        "FORGET",
        "BATCH_FORGET",
    }
    assert {name: row.names for name, row in OPERATIONS.items() if row.names} == {
        "LOOKUP": 1,
        "MKDIR": 1,
        "UNLINK": 1,
        "RMDIR": 1,
        "RENAME": 2,
        "CREATE": 1,
    }
    assert {name for name, row in OPERATIONS.items() if row.reply is fs.DATA} == {
        "READLINK",
        "READ",
        "READDIR",
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_field_has_a_name(name):
    row = OPERATIONS[name]
    for layout in filter(None, (row.request, row.reply)):
        data = bytes(layout.codec.size)
        assert len(layout.codec.unpack(data)) == len(layout.fields)
        assert len(data) % 8 == 0


def test_the_configuration_byte_by_byte():
    packed = b"tag" + bytes(33) + bytes.fromhex("02000000")
    assert FsConfig("tag", 2).pack() == packed
    assert FsConfig.unpack(packed + b"more") == ("tag", 2)
    assert FsConfig.unpack(b"x" * 36) == ("x" * 36, 0)
    assert FsConfig.unpack(b"\xff")[0] == "\ufffd"


def test_headers_byte_by_byte():
    header = fs.HEADER_IN.pack(40, 1, 2, 3, 4, 5, 6, 0)
    assert header.hex() == (
        "2800000001000000 0200000000000000 0300000000000000 04000000 05000000 06000000 0000 0000"
    ).replace(" ", "")
    assert fs.HEADER_OUT.pack(16, -2, 7).hex() == "10000000feffffff0700000000000000"


def test_write_and_create_byte_by_byte():
    write = OPERATIONS["WRITE"].request.codec.pack(1, 2, 3, 4, 5, 6)
    fields = "0100000000000000 0200000000000000 03000000 04000000 0500000000000000 06000000"
    assert write.hex() == fields.replace(" ", "") + "00000000"
    create = OPERATIONS["CREATE"].request.codec.pack(1, 2, 3)
    assert create.hex() == "010000000200000003000000" + "00000000"


def test_attributes_round_trip():
    assert Attr.unpack(fs.ATTR.codec.pack(*ATTR)) == ATTR
    assert ATTR.kind == "file"


@pytest.mark.parametrize(
    ("change", "says"),
    [({"mode": 0o644}, "no type"), ({"mode": 0o170000}, "no type"), ({"size": 1 << 63}, "bytes")],
)
def test_attributes_that_cannot_be(change, says):
    with pytest.raises(RemoteProtocolError, match=says):
        Attr.unpack(fs.ATTR.codec.pack(*ATTR._replace(**change)))


def test_what_a_name_leads_to():
    def entry(node):
        return fs.ENTRY_OUT.codec.pack(node, 0, 0, 0, 0, 0, fs.ATTR.codec.pack(*ATTR))

    assert Entry.unpack(entry(9)) == (9, ATTR)
    assert Entry.unpack(bytes(128)) == (0, None)
    with pytest.raises(RemoteProtocolError, match="root"):
        Entry.unpack(entry(1))


@given(ENTRIES)
def test_entries_of_a_directory_round_trip(entries):
    assert unpack_dirents(b"".join(entry.pack() for entry in entries)) == entries


def dirent(size, name):
    return fs.DIRENT.pack(1, 2, size, 8) + name


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"x", "cut off"),
        (dirent(0, b""), "0 bytes"),
        (dirent(9, b"12345678"), "9 bytes"),
        (dirent(1032, bytes(1032)), "1032 bytes"),
        (dirent(3, b"../....."), "no name"),
        (dirent(3, b"a\0b....."), "no name"),
        (dirent(1, b"a.......") + b"\0" * 23, "cut off"),
    ],
)
def test_entries_that_cannot_be(data, says):
    with pytest.raises(RemoteProtocolError, match=says):
        unpack_dirents(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_entries_or_refused(data):
    try:
        entries = unpack_dirents(data)
    except RemoteProtocolError:
        return
    assert all(0 < len(entry.name) <= fs.FUSE_NAME_MAX for entry in entries)
