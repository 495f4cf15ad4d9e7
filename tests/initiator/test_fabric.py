# SPDX-License-Identifier: BSD-3-Clause
"""The device level against targets that are slow, silent, busy or wrong."""

from itertools import product

import pytest
import trio

import vof
from tests.liar import Liar, lying, serving
from tests.models import Echo
from tests.wire import serving as honest
from vof.errors import (
    CommandError,
    ConnectionLost,
    NotPermitted,
    NotSupported,
    RemoteProtocolError,
)
from vof.initiator.fabric import _places
from vof.protocol import v5
from vof.virtio.device import VirtqueueInfo

Q = VirtqueueInfo("q")


def test_configuration_is_cut_into_aligned_pieces():
    for offset, length in product(range(9), range(40)):
        places = _places(offset, length)
        covered = [at for start, width in places for at in range(start, start + width)]
        assert covered == list(range(offset, offset + length))
        assert all(width in (1, 2, 4, 8) and start % width == 0 for start, width in places)


async def test_configuration_of_one_generation():
    """A read that was torn by a change is made again."""
    first, second = {"generation": 1, "value": 0x11}, {"generation": 2, "value": 0x22}
    async with lying(None, {v5.GET_CONFIG: [first, second, second, second]}) as url:
        async with vof.connect(url) as device:
            assert await device.get(0, 9) == b"\x22" + bytes(7) + b"\x22"


async def test_configuration_that_never_stands_still():
    answers = [{"generation": number} for number in range(1000)]
    async with lying(None, {v5.GET_CONFIG: answers}) as url:
        async with vof.connect(url) as device:
            with pytest.raises(RemoteProtocolError, match="stands still"):
                await device.get(0, 9)
            with pytest.raises(RemoteProtocolError, match="stands still"):
                await device.read_config(0, 1)


async def test_more_configuration_than_the_control_queue_holds():
    space = bytes(range(256)) * 4
    async with honest(lambda: Echo(config=space)) as target:
        async with vof.connect(str(target.url)) as device:
            assert await device.get(0, len(space)) == space
            assert await device.get(3, 900) == space[3:903]


@pytest.mark.parametrize("silent", [True, False], ids=["silence", "end"])
async def test_who_waits_for_room_is_told_of_the_end(silent: bool):
    liar = Liar(None, {v5.GET_CONFIG: None})
    async with serving(liar) as url:
        timeout = 0.1 if silent else 10
        with trio.fail_after(5):
            async with vof.connect(url, timeout=timeout) as device:

                async def read() -> None:
                    with pytest.raises(ConnectionLost, match="GET_CONFIG" if silent else "lost"):
                        await device.get(0, 2000)

                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(read)
                    while liar.seen.count(v5.GET_CONFIG) < v5.CONTROL_QUEUE_SIZE:
                        await trio.lowlevel.checkpoint()
                    if not silent:
                        await liar.streams[0].aclose()


async def test_a_cancelled_command_gives_its_place_back():
    async with honest(lambda: Echo(config=bytes(64))) as target:
        async with vof.connect(str(target.url), timeout=2) as device:
            for _ in range(3 * v5.CONTROL_QUEUE_SIZE):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await device.get_status()
                with trio.move_on_after(0):
                    await device.get(0, 64)
            assert await device.get(0, 64) == bytes(64)


@pytest.mark.parametrize(
    ("opcode", "method", "answer"),
    [
        (v5.GET_CONFIG, lambda device: device.generation(), v5.ECONFOFF),
        (v5.GET_VQ_SIZE, lambda device: device.get_vq_size(0), v5.EQUEUEQUOT),
    ],
)
async def test_one_refusal_means_zero_another_is_an_error(opcode: int, method, answer: int):
    refusals = [{"status": answer}, {"status": v5.ENOCMD}]
    async with lying(None, {opcode: refusals}) as url:
        async with vof.connect(url) as device:
            assert await method(device) == 0
            with pytest.raises(CommandError, match="ENOCMD"):
                await method(device)
            assert await device.get_status() == 0


async def test_features_are_words_of_64_bits():
    liar = Liar(None, {v5.GET_DEVICE_FEATURE: [{"feature": 1 << 63}, {"feature": 5}]})
    async with serving(liar) as url:
        async with vof.connect(url) as device:
            assert await device.get_features() == 1 << 63 | 5 << 64
            await device.finalize_features(1 << 63 | 1 << 66)
            assert device.features == 1 << 63 | 1 << 66
            assert liar.seen.count(v5.SET_DRIVER_FEATURE) == 2


async def test_status_zero_is_not_written():
    async with honest(Echo) as target:
        async with vof.connect(str(target.url)) as device:
            with pytest.raises(NotPermitted, match="reset"):
                await device.set_status(0)


async def test_too_many_queues_connect_none():
    async with honest(Echo) as target:
        async with vof.connect(str(target.url)) as device:
            with pytest.raises(NotSupported, match="2 queues, not 3"):
                await device.find_vqs([Q, Q, Q])
            assert device.vqs == []
            assert len(target.server.connections) == 1


OK = {"device_instance_id": 5}
BUSY = {"status": v5.EQUEUEBUSY}


async def test_a_busy_queue_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vof.initiator.fabric.BUSY_PAUSE_S", 0)
    async with lying(None, {v5.CONNECT: [OK, BUSY, BUSY, OK]}) as url:
        async with vof.connect(url) as device:
            assert len(await device.find_vqs([Q])) == 1


@pytest.mark.parametrize("refusal", [BUSY, {"status": v5.ENODEV}])
async def test_a_queue_that_cannot_be_connected_takes_the_others_along(
    refusal, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vof.initiator.fabric.BUSY_PAUSE_S", 0)
    liar = Liar(None, {v5.CONNECT: [OK, OK, refusal]})
    async with serving(liar) as url:
        async with vof.connect(url) as device:
            with pytest.raises(CommandError) as refused:
                await device.find_vqs([Q, Q])
            assert refused.value.status == refusal["status"]
            assert device.vqs == []
            with trio.fail_after(5):
                while any(stream.socket.fileno() >= 0 for stream in liar.streams[1:]):
                    await trio.lowlevel.checkpoint()
            assert await device.get_status() == 0


def event(ident: int) -> bytes:
    return v5.CONFIG_EVENT.encode({"command_id": ident, "generation": 1})


class Spawned(trio.abc.Instrument):
    """How many tasks were made."""

    count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_a_flood_of_events_is_looked_into_by_one_task():
    liar = Liar(None)
    async with serving(liar) as url:
        async with vof.connect(url) as device:
            told = trio.Event()
            device.config_changed = lambda _: told.set()
            spawned = Spawned()
            trio.lowlevel.add_instrument(spawned)
            await liar.streams[0].send_all(event(v5.ID_CONFIG_CHANGE) * 2000)
            await device.get_status()
            with trio.fail_after(5):
                await told.wait()
            trio.lowlevel.remove_instrument(spawned)
            assert 1 <= spawned.count < 20
            # And one that comes later is seen.
            told = trio.Event()
            await liar.streams[0].send_all(event(v5.ID_CONFIG_CHANGE))
            with trio.fail_after(5):
                await told.wait()


async def test_the_need_of_a_reset_is_seen():
    status = [{"device_status": 0x40 | 15}]
    liar = Liar(None, {v5.GET_STATUS: status})
    async with serving(liar) as url:
        async with vof.connect(url) as device:
            await liar.streams[0].send_all(event(v5.ID_CONFIG_CHANGE))
            with trio.fail_after(5):  # also without a callback
                while not device.needs_reset:
                    await trio.lowlevel.checkpoint()
            await device.reset()
            assert not device.needs_reset


async def test_signs_of_life_change_nothing():
    liar = Liar(None)
    async with serving(liar) as url:
        async with vof.connect(url) as device:
            await liar.streams[0].send_all(event(v5.ID_KEEPALIVE) * 100)
            before = len(liar.seen)
            assert await device.get_status() == 0
            assert len(liar.seen) == before + 1


async def test_an_idle_target_is_asked_for_a_sign_of_life():
    liar = Liar(None)
    async with serving(liar) as url:
        async with vof.connect(url, keepalive=0.02) as device:
            with trio.fail_after(5):
                while liar.seen.count(v5.KEEPALIVE) < 3:
                    await trio.lowlevel.checkpoint()
            assert await device.get_status() == 0


async def test_a_target_that_gives_none_is_gone():
    async with lying(None, {v5.KEEPALIVE: None}) as url:
        async with vof.connect(url, keepalive=0.02, timeout=0.1) as device:
            (vq,) = await device.find_vqs([Q])
            with trio.fail_after(5):
                while not vq.is_broken:
                    await trio.lowlevel.checkpoint()
            assert isinstance(vq.broken_by, ConnectionLost)
            assert "KEEPALIVE" in str(vq.broken_by)
            with pytest.raises(ConnectionLost, match="KEEPALIVE"):
                await device.get_status()


@pytest.mark.parametrize(
    "said",
    [
        b"\0\0\x1f\0" + bytes(12),
        b"\0\0\x20\0" + bytes(12),
        b"\0\0\x00\xff" + bytes(12),
    ],
    ids=["an id of nothing in flight", "an id beyond the queue", "a reserved id"],
)
async def test_what_nobody_asked_for_on_the_control_queue(said: bytes):
    """An id of nothing in flight ends the device; a reserved one is left alone."""
    liar = Liar(None, {v5.GET_STATUS: None})
    reserved = said[3] == 0xFF
    async with serving(liar) as url:
        async with vof.connect(url, timeout=0.2) as device:
            (vq,) = await device.find_vqs([Q])
            await liar.streams[0].send_all(said)
            kind, words = (
                (ConnectionLost, "did not answer")
                if reserved
                else (RemoteProtocolError, "none in flight")
            )
            with trio.fail_after(5), pytest.raises(kind, match=words):
                await device.get_status()
            with trio.fail_after(5):
                while not vq.is_broken:
                    await trio.lowlevel.checkpoint()
            assert isinstance(vq.broken_by, kind)
