# SPDX-License-Identifier: BSD-3-Clause
"""The block model: every request, every refusal, any cut, over a file and over memory."""

import errno
import os
import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.target.devices.fakes import answer, blk, segments, written_data
from vof.errors import InvalidArgument
from vof.target.devices import BlkModel, FileBacking, MemoryBacking, backing
from vof.virtio import Chain
from vof.virtio.blk import (
    FEATURES,
    RANGE,
    REQUEST,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    BlkConfig,
)
from vof.virtio.constants import feature_names

SIZE = 256 * 1024
SECTORS = SIZE // 512
PATTERN = random.Random(1).randbytes(SIZE)

IN, OUT = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
DISCARD, ZEROES = VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES
OK, IOERR, UNSUPP = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP


def make_file(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(PATTERN)
    return FileBacking(path)


def make_memory(tmp_path=None):
    disk = MemoryBacking(SIZE)
    os.pwrite(disk.fd, PATTERN, 0)
    return disk


@pytest.fixture(params=[make_file, make_memory])
def disk(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


@pytest.fixture
def memory():
    made = make_memory()
    yield made
    made.close()


def content(disk):
    return os.pread(disk.fd, SIZE + 4096, 0)


def ask(model, chain):
    """Serve one request; return data, status, used length."""
    (written,) = answer(model, [chain])
    return *written_data(chain), written


# -- every request ----------------------------------------------------------------------------


@pytest.mark.parametrize(("sector", "length"), [(0, 512), (3, 4096), (SECTORS - 1, 512), (0, SIZE)])
def test_read(disk, sector, length):
    data, status, written = ask(BlkModel(disk), blk(IN, sector, into=length))
    assert (data, status) == (PATTERN[sector * 512 :][:length], OK)
    assert written == length + 1


@pytest.mark.parametrize(("sector", "length"), [(0, 512), (3, 4096), (SECTORS - 1, 512), (0, SIZE)])
def test_write(disk, sector, length):
    new = bytes(range(256)) * (length // 256)
    assert ask(BlkModel(disk), blk(OUT, sector, new)) == (b"", OK, 1)
    start = sector * 512
    assert content(disk) == PATTERN[:start] + new + PATTERN[start + length :]


def test_requests_without_data_are_fine(disk):
    chains = [blk(IN), blk(OUT), blk(IN, SECTORS), blk(OUT, SECTORS)]
    assert answer(BlkModel(disk), chains) == [1] * 4
    assert [written_data(chain) for chain in chains] == [(b"", OK)] * 4


def test_many_at_once(disk):
    model = BlkModel(disk)
    writes = [blk(OUT, n, bytes([n]) * 512) for n in range(100)]
    reads = [blk(IN, n, into=512) for n in range(100)]
    assert answer(model, writes, reads) == [1] * 100 + [513] * 100
    assert [written_data(chain) for chain in reads] == [(bytes([n]) * 512, OK) for n in range(100)]


def test_flush(disk):
    assert ask(BlkModel(disk), blk(VIRTIO_BLK_T_FLUSH)) == (b"", OK, 1)


@pytest.mark.parametrize("cuts", [(), (1,), (7, 19)])
def test_get_id(disk, cuts):
    chain = blk(VIRTIO_BLK_T_GET_ID, into=20, in_cuts=cuts)
    assert ask(BlkModel(disk, serial=b"disk-7"), chain) == (b"disk-7" + bytes(14), OK, 21)


def test_get_id_fills_any_room(disk):
    model = BlkModel(disk, serial=b"x" * 20)
    assert ask(model, blk(VIRTIO_BLK_T_GET_ID, into=3))[0] == b"xxx"
    assert ask(model, blk(VIRTIO_BLK_T_GET_ID, into=30))[0] == b"x" * 20 + bytes(10)


@pytest.mark.parametrize("unmap", [0, 1])
def test_write_zeroes(disk, unmap):
    ranges = RANGE.pack(2, 5, unmap) + RANGE.pack(100, 8, unmap) + RANGE.pack(0, 0, unmap)
    assert ask(BlkModel(disk), blk(ZEROES, 0, ranges)) == (b"", OK, 1)
    expected = bytearray(PATTERN)
    expected[1024 : 7 * 512] = bytes(5 * 512)
    expected[100 * 512 : 108 * 512] = bytes(8 * 512)
    assert content(disk) == expected


def test_discard_gives_storage_back(disk):
    before = os.fstat(disk.fd).st_blocks
    chain = blk(DISCARD, 0, RANGE.pack(0, SECTORS, 0), cuts=(20,))
    assert ask(BlkModel(disk), chain) == (b"", OK, 1)
    assert os.fstat(disk.fd).st_blocks < before
    assert len(content(disk)) == SIZE


def fail_fallocate(monkeypatch, number):
    def fallocate(fd, mode, offset, length):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(backing, "fallocate", fallocate)


def test_where_the_file_system_cannot_discard(disk, monkeypatch):
    fail_fallocate(monkeypatch, errno.EOPNOTSUPP)
    monkeypatch.setattr(backing, "ZEROS", memoryview(bytes(1000)))
    discard, zeroes = blk(DISCARD, 0, RANGE.pack(0, 8, 0)), blk(ZEROES, 0, RANGE.pack(8, 8, 1))
    assert answer(BlkModel(disk), [discard, zeroes]) == [1, 1]
    assert content(disk) == PATTERN[:4096] + bytes(4096) + PATTERN[8192:]


# -- every refusal ----------------------------------------------------------------------------

TOO_FAR = 2**64 // 512
REFUSALS = {
    "unknown type": (blk(99), UNSUPP),
    "unknown type with room": (blk(2**32 - 1, into=100), UNSUPP),
    "read past the end": (blk(IN, SECTORS, into=512), IOERR),
    "read over the end": (blk(IN, SECTORS - 1, into=1024), IOERR),
    "read past the end without data": (blk(IN, SECTORS + 1), IOERR),
    "read where 64 bits wrap": (blk(IN, TOO_FAR - 1, into=1024), IOERR),
    "read far away": (blk(IN, 2**64 - 1, into=512), IOERR),
    "read of an odd length": (blk(IN, 0, into=513), IOERR),
    "read of an odd length, cut": (blk(IN, 0, into=1023, in_cuts=(512,)), IOERR),
    "write past the end": (blk(OUT, SECTORS, bytes(512)), IOERR),
    "write over the end": (blk(OUT, SECTORS - 1, bytes(1024)), IOERR),
    "write where 64 bits wrap": (blk(OUT, TOO_FAR, bytes(512)), IOERR),
    "write of an odd length": (blk(OUT, 0, bytes(511)), IOERR),
    "write of an odd length with room": (blk(OUT, 0, bytes(511), into=9, in_cuts=(3,)), IOERR),
    "discard without ranges": (blk(DISCARD), IOERR),
    "discard of half a range": (blk(DISCARD, 0, RANGE.pack(0, 1, 0)[:-1]), IOERR),
    "discard past the end": (blk(DISCARD, 0, RANGE.pack(SECTORS, 1, 0)), IOERR),
    "discard far away": (blk(DISCARD, 0, RANGE.pack(2**64 - 1, 1, 0)), IOERR),
    "discard of too many ranges": (blk(DISCARD, 0, RANGE.pack(0, 1, 0) * 33), IOERR),
    "discard with unmap": (blk(DISCARD, 0, RANGE.pack(0, 1, 1)), UNSUPP),
    "discard with an unknown flag": (blk(DISCARD, 0, RANGE.pack(0, 1, 2)), UNSUPP),
    "one bad range of two": (blk(ZEROES, 0, RANGE.pack(0, 1, 0) + RANGE.pack(9**9, 1, 0)), IOERR),
    "bad flag after bad range": (
        blk(ZEROES, 0, RANGE.pack(9**9, 1, 0) + RANGE.pack(0, 1, 2)),
        UNSUPP,
    ),
    "zeroes with an unknown flag": (blk(ZEROES, 0, RANGE.pack(0, 1, 3)), UNSUPP),
    "zeroes past the end": (blk(ZEROES, 0, RANGE.pack(SECTORS - 1, 2, 1)), IOERR),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(memory, name):
    chain, status = REFUSALS[name]
    room = sum(map(len, chain.writable)) - 1
    assert ask(BlkModel(memory), chain) == (bytes(room), status, room + 1)
    assert content(memory) == PATTERN


def test_range_of_too_many_sectors():
    disk = MemoryBacking(1 << 40)
    most = BlkConfig.unpack(BlkModel(disk).config()).max_write_zeroes_sectors
    chains = [blk(DISCARD, 0, RANGE.pack(0, most + more, 0)) for more in (0, 1)]
    answer(BlkModel(disk), chains)
    assert [written_data(chain)[1] for chain in chains] == [OK, IOERR]
    disk.close()


HEADER = REQUEST.pack(IN, 0, 0)


@pytest.mark.parametrize(
    ("readable", "writable", "after"),
    [
        (b"", b"", b""),
        (b"", b"abc", b"\0\0\1"),
        (HEADER[:-1], b"abc", b"\0\0\1"),
        (HEADER, b"", b""),
        (HEADER + b"more", b"", b""),
    ],
)
@pytest.mark.parametrize("cuts", [(), (0,), (1, 1), (2, 9)])
def test_malformed(memory, readable, writable, after, cuts):
    """Where there is a place for a status, it says IOERR."""
    chain = Chain(segments(readable, cuts), segments(writable, cuts), None)
    good = blk(IN, into=512)
    assert answer(BlkModel(memory), [chain, good, Chain((), (), None)]) == [len(after), 513, 0]
    assert b"".join(chain.writable) == after


def test_read_only(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(PATTERN)
    path.chmod(0o444)
    disk = FileBacking(path, read_only=True)
    model = BlkModel(disk)
    names = feature_names(model.device_features, FEATURES)
    assert "VIRTIO_BLK_F_RO" in names
    assert not {"VIRTIO_BLK_F_DISCARD", "VIRTIO_BLK_F_WRITE_ZEROES"} & set(names)
    config = BlkConfig.unpack(model.config())
    assert not config.max_discard_sectors | config.max_write_zeroes_seg
    for chain in (
        blk(OUT, 0, bytes(512)),
        blk(OUT),
        blk(ZEROES, 0, RANGE.pack(0, 1, 0)),
        blk(DISCARD, 0, RANGE.pack(0, 1, 0)),
    ):
        assert ask(model, chain) == (b"", IOERR, 1)
    assert ask(model, blk(IN, into=SIZE)) == (PATTERN, OK, SIZE + 1)
    assert ask(model, blk(VIRTIO_BLK_T_FLUSH)) == (b"", OK, 1)
    disk.close()


# -- cuts, and many operations ----------------------------------------------------------------

cut_lists = st.lists(st.integers(0, 2100), max_size=6)


@given(
    kind=st.sampled_from([IN, OUT, VIRTIO_BLK_T_GET_ID, DISCARD, ZEROES, VIRTIO_BLK_T_FLUSH, 77]),
    sector=st.sampled_from([0, 1, SECTORS - 2, SECTORS, 2**64 - 1]),
    out=st.sampled_from([b"", b"abc" * 512, bytes(2048), RANGE.pack(3, 2, 0) * 2, b"z" * 700]),
    into=st.sampled_from([0, 20, 512, 2048, 1000]),
    cuts=cut_lists,
    in_cuts=cut_lists,
)
@settings(max_examples=150, deadline=None)
def test_cuts_have_no_meaning(kind, sector, out, into, cuts, in_cuts):
    whole, cut = blk(kind, sector, out, into), blk(kind, sector, out, into, cuts, in_cuts)
    first, second = make_memory(), make_memory()
    model, other = BlkModel(first, serial=b"me"), BlkModel(second, serial=b"me")
    assert ask(model, whole) == ask(other, cut)
    assert content(first) == content(second)
    first.close()
    second.close()


@pytest.mark.parametrize("seed", range(6))
def test_random_operations(disk, seed):
    rng = random.Random(seed)
    model, expected = BlkModel(disk), bytearray(PATTERN)
    batches, sums = [], []
    for _ in range(20):
        batch, place = [], 0
        while place < SECTORS and len(batch) < 40:  # apart, since a batch has no order
            place += rng.randrange(20)
            sectors = min(rng.choice([1, 2, 7, 8, 64]), SECTORS - place)
            if sectors <= 0:
                break
            where = slice(place * 512, (place + sectors) * 512)
            cuts = [rng.randrange(sectors * 512) for _ in range(rng.randrange(3))]
            match rng.randrange(4):
                case 0:
                    new = rng.randbytes(sectors * 512)
                    batch.append(blk(OUT, place, new, cuts=cuts))
                    expected[where] = new
                case 1:
                    ranges = RANGE.pack(place, sectors, rng.randrange(2))
                    batch.append(blk(ZEROES, 0, ranges))
                    expected[where] = bytes(sectors * 512)
                case _:
                    batch.append(blk(IN, place, into=sectors * 512, in_cuts=cuts))
                    sums.append((batch[-1], sha256(expected[where]).digest()))
            place += sectors
        batches.append(batch)
    answer(model, *batches)
    assert all(sha256(written_data(chain)[0]).digest() == digest for chain, digest in sums)
    statuses = {written_data(chain)[1] for batch in batches for chain in batch}
    assert statuses == {OK}
    assert content(disk) == expected


# -- configuration ----------------------------------------------------------------------------


def test_config(memory):
    model = BlkModel(memory, 4, queue_size=64, size_max=8192, seg_max=9, blk_size=4096)
    config = BlkConfig.unpack(model.config())
    assert model.queue_sizes == (64,) * 4
    assert (config.capacity, config.num_queues) == (SECTORS, 4)
    assert (config.size_max, config.seg_max, config.blk_size) == (8192, 9, 4096)
    assert config.max_discard_sectors
    assert config.max_write_zeroes_seg
    assert config.write_zeroes_may_unmap == 1
    assert {
        name.removeprefix("VIRTIO_") for name in feature_names(model.device_features, FEATURES)
    } == {
        "BLK_F_SIZE_MAX",
        "BLK_F_SEG_MAX",
        "BLK_F_BLK_SIZE",
        "BLK_F_FLUSH",
        "BLK_F_TOPOLOGY",
        "BLK_F_MQ",
        "BLK_F_DISCARD",
        "BLK_F_WRITE_ZEROES",
        "F_VERSION_1",
    }


def test_topology_names_the_block_of_the_file_system(memory):
    config = BlkConfig.unpack(BlkModel(memory).config())
    assert config.blk_size << config.physical_block_exp == memory.block_size
    assert config.min_io_size * config.blk_size == memory.block_size


@pytest.mark.parametrize(
    "options",
    [
        {"serial": bytes(21)},
        {"blk_size": 256},
        {"blk_size": 1000},
        {"queues": 0},
        {"queue_size": 65536},
    ],
)
def test_options_that_cannot_be(memory, options):
    with pytest.raises(InvalidArgument):
        BlkModel(memory, **options)


def test_resize(memory):
    models = [BlkModel(memory), BlkModel(memory)]
    events = []
    for number, model in enumerate(models):
        model.config_changed = lambda number=number: events.append(number)
    os.ftruncate(memory.fd, SIZE + 1024 + 100)
    assert BlkConfig.unpack(models[0].config()).capacity == SECTORS + 2
    assert events == [0, 1]
    assert ask(models[1], blk(IN, SECTORS, into=1024)) == (bytes(1024), OK, 1025)
    assert ask(models[1], blk(IN, SECTORS + 2, into=512))[1] == IOERR
    models[0].close()
    os.ftruncate(memory.fd, 100)
    memory.refresh()
    assert events == [0, 1, 1]
    assert BlkConfig.unpack(models[1].config()).capacity == 0
    assert ask(models[1], blk(IN, into=512)) == (bytes(512), IOERR, 513)


# -- storage that fails -----------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(), (100,)])
def test_the_file_became_shorter_unnoticed(disk, caplog, cuts):
    os.ftruncate(disk.fd, 1024)
    model = BlkModel(disk)
    assert ask(model, blk(IN, 1, into=512))[1] == OK
    for _ in range(2):
        assert ask(model, blk(IN, 1, into=4096, in_cuts=cuts)) == (bytes(4096), IOERR, 4097)
    assert len(caplog.records) == 1
    assert "read failed" in caplog.text


def test_no_space(disk, caplog):
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, disk.fd)
    os.close(full)
    chains = [blk(OUT, 0, bytes(4096)), blk(OUT, 1, bytes(4096), cuts=(30,)), blk(IN, into=512)]
    assert answer(BlkModel(disk), chains) == [1, 1, 513]
    assert [written_data(chain)[1] for chain in chains] == [IOERR, IOERR, OK]
    assert [record.getMessage() for record in caplog.records] == [
        f"{disk.path}: write failed: No space left on device"
    ]


def test_ranges_that_fail(disk, monkeypatch, caplog):
    fail_fallocate(monkeypatch, errno.EIO)
    chains = [blk(DISCARD, 0, RANGE.pack(0, 8, 0)), blk(ZEROES, 0, RANGE.pack(8, 8, 1))]
    answer(BlkModel(disk), chains)
    assert [written_data(chain)[1] for chain in chains] == [IOERR, IOERR]
    assert content(disk) == PATTERN
    assert len(caplog.records) == 2
