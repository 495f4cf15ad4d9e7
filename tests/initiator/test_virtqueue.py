# SPDX-License-Identifier: BSD-3-Clause
"""The queue level against bytes that come slowly, in part, late, or not at all."""

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

import vof
from tests.liar import Liar, serving
from tests.models import Echo, Hoard
from tests.wire import serving as honest
from vof.errors import (
    ConnectionLost,
    InvalidArgument,
    NotPermitted,
    QueueBroken,
    QueueBusy,
    VofError,
)
from vof.protocol import v5
from vof.virtio.device import VirtqueueInfo

LARGE = 50_000
"""More than what is copied through the scratch buffer."""


@asynccontextmanager
async def queue(url, callback=None, size: int = 0):
    """The device at ``url``, started, and its first queue. Nothing may hang."""
    with trio.fail_after(10):
        async with vof.connect(str(url)) as device:
            await device.initialize(0)
            (vq,) = await device.find_vqs([VirtqueueInfo("q", callback, size)])
            await device.ready()
            yield device, vq


async def used(vq):
    """The next used buffer."""
    while (found := vq.get_buf_ctx()) is None:
        assert not vq.is_broken, vq.broken_by
        await vq.wait_used()
    return found


def completion(ident: int, payload: bytes, length: int | None = None) -> bytes:
    fields = {"command_id": ident, "length": len(payload) if length is None else length}
    return v5.COMMANDS[v5.VQ].completion.encode(fields | {"in_length": len(payload)}) + payload


def spaces(sizes) -> list[bytearray]:
    return [bytearray(b"\xee" * size) for size in sizes]


SHAPES = [(5,), (0, 3, 0, 2), (17_000,), (16_384,), (16_385,), (1, LARGE, 1), (10_000, 10_000)]


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("callback", [None, lambda _: None], ids=["polling", "callbacks"])
async def test_a_completion_in_single_bytes(sizes, callback):
    payload = bytes(n * 7 & 0xFF for n in range(sum(sizes)))
    # All bytes of the header, the first and the last of the payload come alone.
    edges = {*range(40), len(payload) // 2, *range(len(payload) - 5, len(payload) + 17)}

    async def drip(stream: trio.SocketStream, ident: int) -> None:
        data, start = completion(ident, payload), 0
        for stop in sorted({edge for edge in edges if 0 < edge < len(data)} | {len(data)}):
            await stream.send_all(data[start:stop])
            start = stop
            for _ in range(3):
                await trio.lowlevel.checkpoint()

    async with serving(Liar(drip)) as url, queue(url, callback) as (_, vq):
        buffers = spaces(sizes)
        vq.add_sgs([b"?", *buffers], 1, len(sizes), "token", "context")
        vq.kick()
        assert await used(vq) == ("token", len(payload), "context")
        assert b"".join(buffers) == payload
        assert vq.num_free == vq.get_vring_size()


@pytest.mark.parametrize("sizes", [(40,), (20, 0, 20), (LARGE,), (1, LARGE)], ids=str)
async def test_a_completion_that_ends_anywhere(sizes):
    """No part of a completion is a used buffer; the queue breaks, once, and gives buffers back."""
    payload = bytes(sum(sizes))
    whole = len(completion(0, payload))
    for cut in sorted({*range(min(whole, 60)), 20_000, whole - 1} & set(range(whole))):

        async def tear(stream: trio.SocketStream, ident: int, cut: int = cut) -> None:
            await stream.send_all(completion(ident, payload)[:cut])
            await stream.aclose()

        async with serving(Liar(tear)) as url, queue(url) as (_, vq):
            vq.add_sgs([b"?", *spaces(sizes)], 1, len(sizes), "token")
            vq.kick()
            while not vq.is_broken:
                await vq.wait_used()
                assert vq.get_buf() is None
            assert isinstance(vq.broken_by, ConnectionLost)
            assert vq.detach_unused_buf() == "token"
            assert vq.detach_unused_buf() is None


async def test_what_was_taken_back_is_not_written_any_more():
    """Half of a payload came, the buffer was taken back, then the rest came."""
    payload = b"\x11" * LARGE
    half = trio.Event()

    async def late(stream: trio.SocketStream, ident: int) -> None:
        data = completion(ident, payload)
        await stream.send_all(data[:30_000])
        await half.wait()
        await stream.send_all(data[30_000:] + completion(ident + 1, b"next"))

    async with serving(Liar(late)) as url, queue(url) as (_, vq):
        lent, following = bytearray(LARGE), bytearray(4)
        vq.add_sgs([b"?", lent], 1, 1, "lent")
        vq.kick()
        while not lent[29_000]:
            vq.poll(0)
            await trio.lowlevel.checkpoint()
        vq.break_()
        assert vq.detach_unused_buf() == "lent"
        before = bytes(lent)
        vq.unbreak()
        vq.add_sgs([b"?", following], 1, 1, "following")
        vq.kick()
        half.set()
        assert await used(vq) == ("following", 4, None)
        assert following == b"next"
        assert lent == before
        assert vq.num_free == vq.get_vring_size()


async def test_more_than_the_socket_takes_arrives_whole():
    """A kick never waits; what the peer does not take yet follows by itself."""
    async with honest(lambda: Echo(queue_sizes=(32,))) as target:
        async with queue(target.url) as (_, vq):
            questions = [bytes([number]) * 1_000_000 for number in range(32)]
            answers = [bytearray(1_000_000) for _ in questions]
            for number, question in enumerate(questions):
                vq.add_sgs([question, answers[number]], 1, 1, number)
                vq.kick()
            assert vq.num_free == 0
            assert sorted([(await used(vq))[0] for _ in questions]) == list(range(32))
            assert answers == questions


@pytest.mark.parametrize("enabled", [True, False])
async def test_the_end_of_the_connection_is_noticed(enabled: bool):
    """By the callback where there is one, by the next operation otherwise."""
    called: list[bool] = []
    callback = (lambda vq: called.append(vq.is_broken)) if enabled else None
    async with honest(Hoard) as target, queue(target.url, callback) as (device, vq):
        vq.add_outbuf([b"x"], "token")
        assert vq.kick()
        (served,) = next(iter(target.server.associations.values())).queues.values()
        served.scope.cancel()
        await served.finished.wait()
        while not vq.is_broken:
            if not enabled:
                assert vq.get_buf() is None
            await trio.lowlevel.checkpoint()
        assert called == [True] * enabled
        assert isinstance(vq.broken_by, ConnectionLost)
        assert not vq.kick()
        with pytest.raises(QueueBroken):
            vq.add_outbuf([b"x"], "other")
        assert vq.detach_unused_buf() == "token"
        assert await device.get_status() == 15  # the device lives on


@pytest.mark.parametrize("end", ["used", "broken", "disabled"])
async def test_waiting_beside_callbacks(end: str):
    """The task that calls back reads the connection; who waits is woken by it, or takes over."""
    called: list[object] = []
    model = Hoard()
    async with honest(lambda: model) as target, queue(target.url, called.append) as (_, vq):
        vq.add_outbuf([b"x"], "token")
        vq.kick()
        await model.holds(1)

        async def wait() -> None:
            await vq.wait_used()
            assert vq.get_buf() == (None if end == "broken" else ("token", 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            if end == "broken":
                vq.break_()
            else:
                if end == "disabled":
                    vq.disable_cb()
                model.use()
        assert len(called) == (end != "disabled")


async def test_kicking_into_a_dead_connection():
    async def hang_up(stream: trio.SocketStream, ident: int) -> None:
        await stream.aclose()

    async with serving(Liar(hang_up)) as url, queue(url) as (_, vq):
        for number in range(8):
            vq.add_outbuf([b"x" * 100_000], number)
            while vq.kick() and number == 7:
                await trio.lowlevel.checkpoint()
                vq.poll(0)
            await trio.lowlevel.checkpoint()
            if vq.is_broken:
                break
        assert vq.is_broken
        assert isinstance(vq.broken_by, ConnectionLost)


async def test_resizing_needs_a_target_that_agrees():
    answers = [{"device_instance_id": 5}] * 2 + [{"status": v5.ENODEV}]
    liar = Liar(None, {v5.CONNECT: answers})
    recycled: list[object] = []
    async with serving(liar) as url, queue(url, size=8) as (_, vq):
        assert (vq.get_vring_size(), vq.num_max) == (8, 16)
        for size in (0, -1, 17):
            with pytest.raises(InvalidArgument):
                await vq.resize(size, lambda *_: recycled.append(None))
        await vq.resize(8, lambda *_: recycled.append(None))
        vq.add_outbuf([b"x"], "token")
        assert not recycled
        with pytest.raises(QueueBusy, match="ENODEV"):
            await vq.resize(16, lambda _, token: recycled.append(token))
        assert recycled == ["token"]
        assert vq.is_broken
        with pytest.raises(NotPermitted):
            await vq.resize(16, lambda *_: recycled.append(None))


async def test_deleting_a_busy_queue_does_not_wait_for_it():
    """Only an idle queue is disconnected; what is in flight on another may never end."""
    model = Hoard()
    async with honest(lambda: model) as target, queue(target.url) as (device, vq):
        vq.add_outbuf([b"x"], "token")
        vq.kick()
        await model.holds(1)
        with trio.fail_after(1):
            await device.del_vqs()
        assert vq.is_broken
        assert vq.detach_unused_buf() == "token"


async def test_losing_the_control_queue_breaks_all():
    async with honest(Hoard) as target:
        with trio.fail_after(5):
            async with vof.connect(str(target.url)) as device:
                await device.initialize(0)
                vqs = await device.find_vqs([VirtqueueInfo("a"), VirtqueueInfo("b")])
                await device.ready()
                vqs[1].add_outbuf([b"x"], "token")
                vqs[1].kick()
                next(iter(target.server.associations.values())).end()
                await vqs[1].wait_used()
                while not all(vq.is_broken for vq in vqs):
                    await trio.lowlevel.checkpoint()
                assert all(isinstance(vq.broken_by, VofError) for vq in vqs)
                assert vqs[1].detach_unused_buf() == "token"
                assert device.vqs == []
                with pytest.raises(ConnectionLost):
                    await device.reset()
