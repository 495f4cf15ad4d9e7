# SPDX-License-Identifier: BSD-3-Clause
"""The block driver over a fake device: what it sends, and what it makes of the answers."""

import array
import random

import pytest
import trio
import trio.testing

from tests.initiator.drivers.fakes import FakeDisk, FakeEntropy
from vof.errors import (
    ConnectionLost,
    DeviceError,
    InvalidArgument,
    NotSupported,
    QueueBroken,
    RemoteProtocolError,
)
from vof.initiator.drivers import Blk
from vof.initiator.drivers.blk import PIECE, WANTED
from vof.initiator.drivers.pieces import PIECES
from vof.virtio.blk import (
    RANGE,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SECURE_ERASE,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit

K = 1024


def filled(device, seed=1):
    device.data[:] = random.Random(seed).randbytes(len(device.data))
    return bytes(device.data)


# -- start and end --------------------------------------------------------------------------------


async def test_what_the_device_says_is_what_the_disk_is():
    offered = bit(VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SECURE_ERASE)
    device = FakeDisk(sectors=100, offered=offered, blk_size=4096)
    async with Blk(device) as disk:
        assert (disk.capacity, disk.block_size, disk.read_only) == (51200, 4096, True)
        assert disk.num_queues == 1
        assert disk.config.capacity == 100
        assert disk.features == device.features
        assert device.features == bit(VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_RO, VIRTIO_F_VERSION_1), (
            "what the driver knows, and no more"
        )
        assert device.status == 15


async def test_without_a_feature_its_field_means_nothing():
    device = FakeDisk(blk_size=4096, num_queues=7, size_max=512, seg_max=1, queues=7)
    filled(device)
    async with Blk(device, queues=7) as disk:
        assert (disk.block_size, disk.num_queues, disk.read_only) == (512, 1, False)
        await disk.read(0, 8 * K)
        await disk.flush()
        with pytest.raises(NotSupported):
            await disk.discard(0, 512)
        with pytest.raises(NotSupported):
            await disk.write_zeroes(0, 512)
    assert device.requests == [(0, [16], [8 * K + 1])]


async def test_the_end_resets_and_listens_no_more():
    device = FakeDisk()
    async with Blk(device):
        before = device.resets
        assert device.config_changed is not None
    assert (device.status, device.resets, device.config_changed) == (0, before + 1, None)


async def test_a_device_out_of_reach_does_not_hide_what_happened():
    async def fail(device):
        async with Blk(device):
            device.unreachable = ConnectionLost("gone")
            raise KeyError

    with pytest.raises(KeyError):
        await fail(FakeDisk())


@pytest.mark.parametrize(
    ("make", "queues"), [(FakeEntropy, 1), (FakeDisk, 0), (FakeDisk, -1)], ids=["rng", "0", "-1"]
)
def test_a_disk_is_a_block_device_with_queues(make, queues):
    with pytest.raises(InvalidArgument):
        Blk(make(), queues=queues)


@pytest.mark.parametrize(("size", "expected"), [(0, 16), (4, 4)])
async def test_the_queue_size_is_the_callers_or_the_largest(size, expected):
    device = FakeDisk()
    async with Blk(device, queue_size=size):
        assert device.vqs[0].get_vring_size() == expected


# -- reads and writes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (512, 4096), (0, 32 * K), (1024, 0)])
async def test_a_read_is_one_request_of_two_buffers(offset, length):
    device = FakeDisk()
    content = filled(device)
    async with Blk(device) as disk:
        assert await disk.read(offset, length) == content[offset : offset + length]
    assert device.requests == ([(0, [16], [length + 1])] if length else [])


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: array.array("I", data)]
)
async def test_a_write_lands_where_it_belongs(kind):
    device = FakeDisk()
    content = filled(device)
    async with Blk(device) as disk:
        await disk.write(1024, kind(b"new!" * 256))
        assert bytes(device.data) == content[:1024] + b"new!" * 256 + content[2048:]
        assert await disk.read(1024, 1024) == b"new!" * 256


@pytest.mark.parametrize("buffer", [bytearray(2048), memoryview(array.array("Q", bytes(2048)))])
async def test_read_into_fills_the_callers_memory(buffer):
    device = FakeDisk()
    content = filled(device)
    async with Blk(device) as disk:
        await disk.read_into(512, buffer)
    assert bytes(buffer) == content[512 : 512 + 2048]


PLACES = [(1, 512), (0, 1), (0, 513), (-512, 512), (0, -512), (0, 33 * K), (32 * K, 512)]
PLACES += [(1 << 70, 512), (0, 1 << 70), (511, 0), (33 * K, 0)]


@pytest.mark.parametrize(("offset", "length"), PLACES)
@pytest.mark.parametrize("operation", ["read", "discard", "write_zeroes"])
async def test_a_place_that_is_none_is_refused_before_anything_is_sent(operation, offset, length):
    device = FakeDisk(offered=bit(VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES))
    async with Blk(device) as disk:
        with pytest.raises(InvalidArgument):
            await getattr(disk, operation)(offset, length)
    assert not device.requests


@pytest.mark.parametrize(("offset", "length"), [p for p in PLACES if 0 <= p[1] < 1 << 20])
async def test_a_place_that_is_none_is_not_written(offset, length):
    device = FakeDisk()
    async with Blk(device) as disk:
        with pytest.raises(InvalidArgument):
            await disk.write(offset, bytes(length))
        with pytest.raises(InvalidArgument):
            await disk.read_into(offset, bytearray(length))
    assert not device.requests


async def test_a_read_only_disk_is_not_written():
    every = bit(VIRTIO_BLK_F_RO, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES)
    device = FakeDisk(offered=every)
    async with Blk(device) as disk:
        for call in (disk.write(0, bytes(512)), disk.discard(0, 512), disk.write_zeroes(0, 512)):
            with pytest.raises(InvalidArgument, match="read-only"):
                await call
        assert await disk.read(0, 512) == bytes(512)


# -- pieces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "segments"),
    [
        ({"size_max": 2048, "seg_max": 3}, [[2048, 2048, 2048], [2048, 2048, 1024]]),
        ({"size_max": 2048}, [[2048]] * 5 + [[1024]]),
        ({"size_max": 1000, "seg_max": 2}, [[1000, 536]] * 7 + [[512]]),
        ({"size_max": 1, "seg_max": 4}, [[512] * 4] * 5 + [[512] * 2]),
        ({"size_max": 4096, "seg_max": 0}, [[4096], [4096], [3072]]),
        ({"seg_max": 4}, [[11 * K]]),
        ({"seg_max": 4, "size_max": 0}, [[11 * K]]),  # as qemu-storage-daemon says it
    ],
    ids=str,
)
async def test_requests_fit_the_segments_that_the_device_allows(config, segments):
    numbers = {"size_max": VIRTIO_BLK_F_SIZE_MAX, "seg_max": VIRTIO_BLK_F_SEG_MAX}
    device = FakeDisk(offered=bit(*(numbers[key] for key in config)), **config)
    content = filled(device)
    limit = max(config.get("size_max") or 1 << 30, 512)
    async with Blk(device) as disk:
        assert await disk.read(1024, 11 * K) == content[1024 : 1024 + 11 * K]
        for _, readable, writable in device.requests:
            assert readable == [16]
            assert max(writable) <= limit
            assert writable[-1] == 1 or limit == 1 << 30
        if config.get("size_max"):
            assert [sizes[:-1] for _, _, sizes in device.requests] == segments
        else:
            assert [sizes for _, _, sizes in device.requests] == [[11 * K + 1]]
        device.requests.clear()
        await disk.write(1024, content[: 11 * K])
    assert [sizes[1:] for _, sizes, _ in device.requests] == segments
    assert bytes(device.data[1024 : 1024 + 11 * K]) == content[: 11 * K]


async def test_a_read_whose_status_byte_does_not_fit_its_segment_has_it_apart():
    device = FakeDisk(offered=bit(VIRTIO_BLK_F_SIZE_MAX), size_max=4096)
    async with Blk(device) as disk:
        await disk.read(0, 3584)
        await disk.read(0, 4096)
    assert device.requests == [(0, [16], [3585]), (0, [16], [4096, 1])]


async def test_a_long_transfer_has_some_pieces_under_way_at_a_time(nursery):
    device = FakeDisk(sectors=(PIECES + 3) * PIECE // 512, queue_size=64)
    content = filled(device)
    device.holding = True
    got = []

    async def read():
        got.append(await disk.read(0, len(content)))

    async with Blk(device) as disk:
        nursery.start_soon(read)
        await device.holds(PIECES)
        await trio.testing.wait_all_tasks_blocked()
        assert len(device.held) == PIECES
        device.holding = False
        device.release()
        await trio.testing.wait_all_tasks_blocked()
        assert got == [content]
    assert {sum(sizes) for _, _, sizes in device.requests} == {PIECE + 1}


async def test_more_at_once_than_the_queue_holds_waits_for_room():
    device = FakeDisk(offered=bit(VIRTIO_BLK_F_SIZE_MAX), size_max=512, queue_size=3)
    content = filled(device)
    async with Blk(device) as disk:
        assert await disk.read(0, len(content)) == content
        assert device.vqs[0].most == 3


async def test_requests_go_round_the_queues():
    device = FakeDisk(offered=bit(VIRTIO_BLK_F_MQ), num_queues=3, queues=3)
    async with Blk(device, queues=8) as disk:
        assert disk.num_queues == 3
        for _ in range(6):
            await disk.read(0, 512)
    assert [index for index, _, _ in device.requests] == [0, 1, 2, 0, 1, 2]


async def test_many_tasks_at_once_get_each_its_own():
    device = FakeDisk(queue_size=4)
    content = filled(device)
    got = {}

    async def read(offset):
        got[offset] = await disk.read(offset, 512)

    async with Blk(device) as disk, trio.open_nursery() as nursery:
        for offset in range(0, len(content), 512):
            nursery.start_soon(read, offset)
    assert got == {offset: content[offset : offset + 512] for offset in range(0, 32 * K, 512)}


# -- the other requests ---------------------------------------------------------------------------


async def test_flush_get_id_and_ranges_are_what_the_specification_says():
    every = bit(VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES)
    device = FakeDisk(offered=every, max_discard_sectors=3, max_write_zeroes_sectors=64)
    async with Blk(device) as disk:
        await disk.flush()
        assert await disk.get_id() == "fake"
        await disk.discard(1024, 2048)
        await disk.write_zeroes(0, 32 * K)
        await disk.write_zeroes(512, 512, unmap=True)
        await disk.write_zeroes(512, 0)
    assert device.seen == [
        (VIRTIO_BLK_T_FLUSH, 0, b""),
        (VIRTIO_BLK_T_GET_ID, 0, b""),
        (VIRTIO_BLK_T_DISCARD, 0, RANGE.pack(2, 3, 0)),
        (VIRTIO_BLK_T_DISCARD, 0, RANGE.pack(5, 1, 0)),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, RANGE.pack(0, 64, 0)),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, RANGE.pack(1, 1, 1)),
    ]


@pytest.mark.parametrize(
    ("serial", "name"), [(b"", ""), (b"x" * 20, "x" * 20), (b"a\0b", "a"), (b"\xff", "\ufffd")]
)
async def test_a_name_is_text_up_to_its_end(serial, name):
    device = FakeDisk()
    device.serial = serial
    async with Blk(device) as disk:
        assert await disk.get_id() == name


# -- what goes wrong ------------------------------------------------------------------------------

CALLS = {
    VIRTIO_BLK_T_IN: lambda disk: disk.read(0, 512),
    VIRTIO_BLK_T_OUT: lambda disk: disk.write(0, bytes(512)),
    VIRTIO_BLK_T_FLUSH: lambda disk: disk.flush(),
    VIRTIO_BLK_T_GET_ID: lambda disk: disk.get_id(),
    VIRTIO_BLK_T_DISCARD: lambda disk: disk.discard(0, 512),
    VIRTIO_BLK_T_WRITE_ZEROES: lambda disk: disk.write_zeroes(0, 512),
}
CHOICES = [*CALLS.items(), (VIRTIO_BLK_T_IN, lambda disk: disk.read_into(0, bytearray(512)))]
STATUSES = [
    (VIRTIO_BLK_S_IOERR, DeviceError, "IOERR"),
    (VIRTIO_BLK_S_UNSUPP, DeviceError, "UNSUPP"),
    (77, RemoteProtocolError, "77"),
    (None, RemoteProtocolError, "without writing its status"),
]


@pytest.mark.parametrize(("status", "error", "text"), STATUSES, ids=str)
@pytest.mark.parametrize(("kind", "call"), CHOICES)
async def test_the_status_byte_is_believed(kind, call, status, error, text):
    device = FakeDisk(offered=WANTED & ~bit(VIRTIO_BLK_F_RO), size_max=4096, seg_max=1)
    async with Blk(device) as disk:
        device.fail = {kind: status}
        with pytest.raises(error, match=text) as caught:
            await call(disk)
        assert error is not DeviceError or caught.value.status == status
        device.fail = {}
        await call(disk)


async def test_a_failed_piece_is_raised_when_none_of_the_callers_buffer_is_out(nursery):
    device = FakeDisk(offered=bit(VIRTIO_BLK_F_SIZE_MAX), size_max=512, queue_size=64)
    device.holding = True
    errors = []

    async def write():
        try:
            await disk.write(0, bytes(32 * K))
        except DeviceError as error:
            errors.append(error.status)

    async with Blk(device) as disk:
        nursery.start_soon(write)
        await device.holds(PIECES)
        device.fail = {VIRTIO_BLK_T_OUT: VIRTIO_BLK_S_IOERR}
        device.release(1)
        await trio.testing.wait_all_tasks_blocked()
        assert not errors
        assert len(device.requests) == PIECES, "nothing new after an error"
        device.release()
        await trio.testing.wait_all_tasks_blocked()
        assert errors == [VIRTIO_BLK_S_IOERR]
        assert not device.vqs[0].inside


async def test_a_broken_queue_fails_all_pieces_as_one_error(nursery):
    device = FakeDisk(offered=bit(VIRTIO_BLK_F_SIZE_MAX), size_max=512)
    device.holding = True

    async def cut():
        await device.holds(PIECES)
        device.vqs[0].break_(ConnectionLost("gone"))

    async with Blk(device) as disk:
        nursery.start_soon(cut)
        with pytest.raises(ConnectionLost, match="gone") as caught:
            await disk.read(0, 32 * K)
        assert caught.value.maybe_executed
        with pytest.raises(QueueBroken) as caught:
            await disk.read(0, 512)
        assert not caught.value.maybe_executed


async def test_a_cancelled_read_leaves_its_memory_to_the_device():
    device = FakeDisk()
    content = filled(device)
    device.holding = True
    async with Blk(device) as disk:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disk.read, 0, 512)
                nursery.start_soon(disk.read, 512, 512)
                await device.holds(2)
                scope.cancel()
        assert len(device.vqs[0].inside) == 2
        late = [writable[0] for _, _, _, writable in device.held]
        device.holding = False
        device.held, held = [], device.held
        first = await disk.read(1024, 512)
        device.held = held
        device.release()
        second = await disk.read(1536, 512)
        assert (first, second) == (content[1024:1536], content[1536:2048])
        assert {bytes(view[:512]) for view in late} == {content[:512], content[512:1024]}
        assert not device.vqs[0].inside


# -- the configuration changes --------------------------------------------------------------------


async def test_the_next_call_sees_the_new_capacity():
    device = FakeDisk(sectors=8)
    called = []
    async with Blk(device) as disk:
        disk.resized = lambda: called.append(True)
        device.resize(16)
        assert called == [True]
        await disk.write(4096, b"z" * 4096)
        assert disk.capacity == 8192
        reads = device.reads_of_config
        assert await disk.read(4096, 4096) == b"z" * 4096
        assert device.reads_of_config == reads, "only once for each change"
        device.resize(4)
        with pytest.raises(InvalidArgument, match="2048 bytes"):
            await disk.read(2048, 512)


async def test_refresh_tells_the_capacity_at_once():
    device = FakeDisk(sectors=8)
    async with Blk(device) as disk:
        device.resize(32)
        assert await disk.refresh() == disk.capacity == 32 * 512


async def test_a_configuration_that_could_not_be_read_is_read_by_the_next_call():
    device = FakeDisk(sectors=8)
    async with Blk(device) as disk:
        device.resize(16)
        device.unreachable = ConnectionLost("slow")
        with pytest.raises(ConnectionLost):
            await disk.read(4096, 512)
        device.unreachable = None
        assert await disk.read(4096, 512) == bytes(512)
