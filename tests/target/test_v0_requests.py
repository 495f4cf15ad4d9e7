# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 at the target: requests, byte for byte, and the devices behind them."""

import struct

import pytest
import trio
import trio.testing

from tests.models import Echo, Hoard
from tests.wire_v0 import (
    BLK,
    EINVAL,
    EOPNOTSUPP,
    GET_CONFIG,
    GET_DEVICE_ID,
    GET_FEATURE,
    INDIRECT,
    NEXT,
    SET_QUEUE_SIZE,
    WRITE,
    Desc,
    config,
    done,
    feature,
    plain,
    queue,
    serving,
    vring,
)
from vof.target.devices import BlkModel, MemoryBacking, RngModel
from vof.target.limits import Limits

PAD = b"\xde\xad\xbe\xef"
SMALL = Limits(request_bytes=1 << 20, queue_bytes=4 << 20)


def hoarding(**more):
    models: list[Hoard] = []

    def make() -> Hoard:
        models.append(Hoard(**more))
        return models[-1]

    return models, make


# -- what comes back ----------------------------------------------------------------------------


async def test_every_writable_descriptor_comes_back():
    """In the order of the request, with all that was not ours to read."""
    descs = [
        Desc(0xFFFF_FFFF_FFFF_FFFF, 3, 700, NEXT | WRITE, 0xAABBCCDD, PAD),
        Desc(5, 4, 9, 0, 1, PAD),
        Desc(6, 5, 0xFFFF, WRITE | 0xFFF8, 2, PAD),
        Desc(7, 2, 0, NEXT, 3, PAD),
        Desc(8, 1, 3, WRITE, 4, PAD),
    ]
    async with serving(Echo) as target:
        _, vq = await target.queue()
        back = descs[0].pack() + descs[2].pack() + descs[4].pack()
        await vq.says(
            vring(0xFFFE, *descs, length=0xFFFFFFFF) + b"abcdef",
            done(0xFFFE, 9, 0, 3) + back + b"abc" + b"defab" + b"c",
        )


@pytest.mark.parametrize(
    ("written", "lengths"),
    [
        (0, (1, 1, 0, 1)),
        (1, (1, 1, 0, 1)),
        (2, (2, 1, 0, 1)),
        (4, (4, 1, 0, 1)),
        (5, (4, 1, 0, 1)),
        (6, (4, 2, 0, 1)),
        (8, (4, 4, 0, 1)),
        (9, (4, 4, 0, 1)),
        (12, (4, 4, 0, 4)),
    ],
)
async def test_each_with_a_byte_at_least(written: int, lengths: tuple[int, ...]):
    """What the device did not fill comes back with one zero; what is empty stays so."""
    models, make = hoarding()
    async with serving(make) as target:
        _, vq = await target.queue()
        descs = [Desc(0, size, ident, WRITE) for ident, size in ((5, 4), (6, 4), (7, 0), (8, 4))]
        await vq.send(vring(3, *descs))
        await models[0].holds(1)
        data = b"\xff" * 12
        chain = models[0].chains[0]
        for segment in chain.writable:
            segment[:], data = data[: len(segment)], data[len(segment) :]
        models[0].use(0, written)
        answer, at = done(3, written, 0, 4), 0
        payload = b""
        for desc, length in zip(descs, lengths, strict=True):
            answer += desc._replace(length=length).pack()
            filled = max(0, min(written - at, desc.length))
            at += desc.length
            payload += (b"\xff" * filled).ljust(length, b"\0")
        got = await vq.take(len(answer + payload))
        assert got == answer + payload


async def test_empty_descriptors_do_no_harm():
    async with serving(Echo) as target:
        _, vq = await target.queue()
        descs = [
            Desc(0, 0, 1, 0),
            Desc(0, 2, 2, 0),
            Desc(0, 0, 3, 0),
            Desc(0, 0, 4, WRITE),
            Desc(0, 2, 5, WRITE),
            Desc(0, 0, 6, WRITE),
        ]
        back = b"".join(desc.pack() for desc in descs[3:])
        await vq.says(vring(1, *descs) + b"ab", done(1, 2, 0, 3) + back + b"ab")
        only = Desc(0, 0, 0, WRITE)
        await vq.says(vring(2, only), done(2, 0, 0, 1) + only.pack())
        await vq.says(vring(3, Desc(0, 0, 0, 0)), done(3))
        await vq.says(vring(4, b"to read alone"), done(4))


@pytest.mark.parametrize("flags", [NEXT, INDIRECT, NEXT | INDIRECT, 0xFFFD])
async def test_other_flags_say_nothing(flags: int):
    async with serving(Echo) as target:
        _, vq = await target.queue()
        back = Desc(0, 2, 1, flags | WRITE)
        await vq.says(
            vring(1, Desc(0, 2, 0, flags), back) + b"ab", done(1, 2, 0, 1) + back.pack() + b"ab"
        )


@pytest.mark.parametrize("cut", [16, 17, 39, 40, 41, 64, 88, 90, 91])
async def test_a_request_in_two_pieces(cut: int):
    async with serving(Echo) as target:
        _, vq = await target.queue()
        data = vring(1, b"abc", 2, 1)
        assert len(data) == 16 + 3 * 24 + 3
        await vq.send(data[:cut])
        await trio.testing.wait_all_tasks_blocked(0.001)
        await vq.send(data[cut:] + vring(2, b"d", 1))
        assert (await vq.used())[2] == [b"ab", b"c"]
        assert (await vq.used())[2] == [b"d"]


# -- what is refused ----------------------------------------------------------------------------


async def test_no_descriptors_at_all():
    async with serving(Echo) as target:
        _, vq = await target.queue()
        await vq.says(vring(9), done(9, 0, EINVAL))
        assert await vq.request(b"a", 1) == (1, b"a")


async def test_requests_have_no_place_on_the_control_queue():
    async with serving(Echo) as target:
        control, _ = await target.queue()
        descs = [Desc(1, 2, 3, WRITE, 4, PAD), Desc(0, 3, 1, 0), Desc(0, 0, 6, WRITE)]
        await control.says(
            vring(7, *descs) + b"abc" + plain(GET_DEVICE_ID),
            done(7, 0, EOPNOTSUPP, 2)
            + descs[0]._replace(length=1).pack()
            + descs[2].pack()
            + b"\0"
            + done(1, 42),
        )


async def test_as_many_descriptors_as_there_may_be():
    async with serving(Echo) as target:
        control, vq = await target.queue()
        most = await control.get(feature(GET_FEATURE, 1))
        assert most >= 128
        half = most // 2
        used, data = await vq.request(*[b"a"] * half, *[1] * half)
        assert (used, data) == (half, b"a" * half)
        await vq.send(vring(2, *[b"b"] * (most + 1)))
        assert await vq.completion() == (EINVAL, 2, 0, 0)
        await vq.send(vring(3, *[1] * (most + 1)))
        head, descs, data = await vq.used()
        assert head == (EINVAL, 3, most + 1, 0)
        assert [desc.ident for desc in descs] == list(range(most + 1))
        assert data == [b"\0"] * (most + 1)
        assert await vq.request(b"a", 1) == (1, b"a")


async def test_more_than_may_be_is_refused_and_passed_over():
    limit = SMALL.request_bytes
    async with serving(Echo, SMALL) as target:
        _, vq = await target.queue()
        await vq.says(vring(2, bytes(limit + 1)), done(2, 0, EINVAL))
        back = [Desc(0, limit, 1, WRITE), Desc(0, 5, 2, WRITE)]
        await vq.send(vring(3, b"x", limit, 5))
        short = b"".join(desc._replace(length=1).pack() for desc in back)
        assert await vq.take(16 + 48 + 2) == done(3, 0, EINVAL, 2) + short + b"\0\0"
        assert await vq.request(b"a" * limit, limit) == (limit, b"a" * limit)


# -- order, and how many ------------------------------------------------------------------------


async def test_deep_in_order_and_the_same_id_again():
    async with serving(Echo) as target:
        _, vq = await target.queue()
        data = [bytes([number]) * 40 for number in range(64)]
        await vq.send(b"".join(vring(number & 1, *[one, 40]) for number, one in enumerate(data)))
        for number, one in enumerate(data):
            head, _, (got,) = await vq.used()
            assert (head.ident, got) == (number & 1, one)


async def test_in_the_order_of_the_device():
    models, make = hoarding()
    async with serving(make) as target:
        _, vq = await target.queue()
        for ident in (5, 6, 7):
            await vq.send(vring(ident, b"x", 1))
        await models[0].holds(3)
        for number, ident in ((2, 7), (0, 5), (0, 6)):
            models[0].chains[number].writable[0][0] = ident
            models[0].use(number, 1)
            assert (await vq.used())[::2] == ((0, ident, 1, 1), [bytes([ident])])


async def test_beyond_the_queue_size_it_waits():
    models, make = hoarding(queue_sizes=(4,))
    async with serving(make) as target:
        control, vq = await target.peer(), await target.peer()
        ident = await control.control()
        await control.says(queue(SET_QUEUE_SIZE, 1, 0, 2), done(1))
        await vq.join(ident)
        for ident in range(5):
            await vq.send(vring(ident, b"x", 1))
        await models[0].holds(2)
        for ident in range(5):
            await trio.testing.wait_all_tasks_blocked(0.001)
            assert len(models[0].chains) == min(2, 5 - ident)
            models[0].chains[0].writable[0][0] = 0
            models[0].use(0, 1)
            assert (await vq.completion()).ident == ident
            await vq.take(25)


async def test_beyond_the_budget_it_waits():
    models, make = hoarding()
    limits = Limits(request_bytes=1 << 20, queue_bytes=1 << 20)
    async with serving(make, limits) as target:
        _, vq = await target.queue()

        async def send() -> None:
            for ident in range(4):
                await vq.send(vring(ident, bytes(600_000), 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for ident in range(4):
                await models[0].holds(1)
                await trio.testing.wait_all_tasks_blocked(0.001)
                assert len(models[0].chains) == 1
                models[0].chains[0].writable[0][0] = 1
                models[0].use(0, 1)
                head, _, data = await vq.used()
                assert (head.ident, data) == (ident, [b"\1"])


# -- disks --------------------------------------------------------------------------------------

READ, WRITE_, FLUSH, GET_ID = 0, 1, 4, 8
DISK = bytes(range(256)) * 256


def disk(**more):
    backing = MemoryBacking(len(DISK))
    backing.write([memoryview(DISK)], 0, False)
    return lambda: BlkModel(backing, serial=b"number one", **more)


async def test_a_disk_and_its_configuration():
    async with serving(disk(queues=3)) as target:
        control, vq = await target.queue()
        for peer in (control, vq):
            for offset, width, value in ((0, 8, 128), (8, 4, 1 << 20), (12, 4, 126), (34, 2, 3)):
                await peer.says(config(GET_CONFIG, 5, offset, width), done(5, value))


async def test_reads_and_writes():
    async with serving(disk()) as target:
        _, vq = await target.queue()
        answer = done(4, 1537, 0, 3)
        for ident, length in ((1, 512), (2, 1024), (3, 1)):
            answer += Desc(0, length, ident, WRITE).pack()
        request = vring(4, BLK.pack(READ, 0, 3), 512, 1024, 1)
        await vq.says(request, answer + DISK[1536:3072] + b"\0")
        data = [b"\xaa" * 512, b"\xbb" * 1024]
        await vq.says(
            vring(5, BLK.pack(WRITE_, 0, 3), *data, 1),
            done(5, 1, 0, 1) + Desc(0, 1, 3, WRITE).pack() + b"\0",
        )
        await vq.says(request, answer + b"".join(data) + b"\0")
        segments = [b"\xcc" * 512] * 126
        assert await vq.request(BLK.pack(WRITE_, 0, 1), *segments, 1) == (1, b"\0")
        used, got = await vq.request(BLK.pack(READ, 0, 1), *[512] * 126, 1)
        assert (used, got) == (126 * 512 + 1, b"\xcc" * 126 * 512 + b"\0")


async def test_a_disk_says_its_name():
    async with serving(disk()) as target:
        _, vq = await target.queue()
        name = b"number one".ljust(20, b"\0")
        assert await vq.request(BLK.pack(GET_ID, 0, 0), 20, 1) == (21, name + b"\0")
        for length in (1, 19, 21, 127, 256):
            used, got = await vq.request(BLK.pack(GET_ID, 0, 0), length, 1)
            assert (used, got) == (length + 1, name[:length].ljust(length + 1, b"\0"))


async def test_a_flush_and_what_is_unknown():
    async with serving(disk()) as target:
        _, vq = await target.queue()
        assert await vq.request(BLK.pack(FLUSH, 0, 0), 1) == (1, b"\0")
        assert await vq.request(BLK.pack(FLUSH, 0, 0), 20, 1) == (21, bytes(21))
        for kind in (2, 5, 99, 1 << 31):
            assert await vq.request(BLK.pack(kind, 0, 0), 8, 1) == (9, bytes(8) + b"\2")


@pytest.mark.parametrize("sector", [128, 1 << 54, (1 << 55) + 3, (1 << 64) - 1])
async def test_no_disk_ends_where_numbers_wrap(sector: int):
    async with serving(disk()) as target:
        _, vq = await target.queue()
        assert await vq.request(BLK.pack(READ, 0, sector), 512, 1) == (513, bytes(512) + b"\1")
        assert await vq.request(BLK.pack(WRITE_, 0, sector), b"!" * 512, 1) == (1, b"\1")
        _, got = await vq.request(BLK.pack(READ, 0, 0), len(DISK), 1)
        assert got == DISK + b"\0"


async def test_a_large_segment():
    backing = MemoryBacking(8 << 20)
    async with serving(lambda: BlkModel(backing)) as target:
        _, vq = await target.queue()
        data = bytes(range(256)) * (32 << 10)
        assert await vq.request(BLK.pack(WRITE_, 0, 0), data, 1) == (1, b"\0")
        assert await vq.request(BLK.pack(READ, 0, 0), len(data), 1) == (len(data) + 1, data + b"\0")
    backing.close()


async def test_a_refused_request_says_so_in_its_status_byte():
    """Linux looks at nothing else."""
    async with serving(disk(), SMALL) as target:
        control, vq = await target.queue()
        most = await control.get(feature(GET_FEATURE, 1))
        for segments in (
            [BLK.pack(READ, 0, 0), SMALL.request_bytes, 512, 1],
            [BLK.pack(WRITE_, 0, 0), bytes(SMALL.request_bytes), 1],
            [BLK.pack(READ, 0, 0), *[512] * most, 1],
            [BLK.pack(READ, 0, 0)[:15], 512, 1],
        ):
            writable = [part for part in segments if isinstance(part, int)]
            await vq.send(vring(6, *segments))
            head, descs, data = await vq.used()
            assert (head.ident, head.ndesc) == (6, len(writable))
            assert all(1 <= d.length <= n for d, n in zip(descs, writable, strict=True))
            assert data[-1] == b"\1"
            assert not any(b"".join(data[:-1]))
        assert await vq.request(BLK.pack(READ, 0, 0), 512, 1) == (513, DISK[:512] + b"\0")


async def test_a_refusal_that_cannot_be_told_ends_the_connection():
    async with serving(disk(), SMALL) as target:
        control, vq = await target.queue()
        await vq.send(vring(6, BLK.pack(READ, 0, 0), SMALL.request_bytes + 1))
        assert await vq.ended()
        assert await control.get(plain(GET_DEVICE_ID)) == 2


async def test_random_numbers():
    async with serving(RngModel) as target:
        _, vq = await target.queue()
        used, first = await vq.request(64)
        assert (used, len(first)) == (64, 64)
        _, second = await vq.request(64)
        assert first != second
        await vq.send(vring(1, 20_000, 7))
        head, descs, data = await vq.used()
        assert head == (0, 1, 2, 16384)
        assert [desc.length for desc in descs] == [16384, 1]
        assert data[1] == b"\0"
        assert struct.pack("<H", 16384) == struct.pack("<H", len(data[0]))
