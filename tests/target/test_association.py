# SPDX-License-Identifier: BSD-3-Clause
"""The target's answers, command by command and status by status, on raw bytes."""

import os
import threading

import pytest
import trio

from tests.models import Echo, Faulty, Hoard
from tests.wire import command, request, serving
from vof.protocol import v0, v5
from vof.target.devices import BlkModel, MemoryBacking
from vof.target.instance import HANDLERS
from vof.target.limits import Limits
from vof.virtio.blk import REQUEST, VIRTIO_BLK_T_OUT
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit

CONFIG = bytes(range(1, 21))


async def test_ids_features_and_sizes():
    async with serving(lambda: Echo(config=CONFIG)) as target:
        peer = await target.peer()
        await peer.control()
        assert (await peer.ask(v5.GET_DEVICE_ID))["device_id"] == 42
        assert (await peer.ask(v5.GET_VENDOR_ID))["vendor_id"] == 0x666F56
        assert (await peer.ask(v5.GET_FEATURE, select=7))["feature"] == 0
        assert (await peer.ask(v5.SET_FEATURE, select=0, feature=0))["status"] == v5.OK
        features = (await peer.ask(v5.GET_DEVICE_FEATURE, select=0))["feature"]
        assert features == bit(VIRTIO_F_VERSION_1)
        assert (await peer.ask(v5.GET_DEVICE_FEATURE, select=3))["feature"] == 0
        assert (await peer.ask(v5.SET_DRIVER_FEATURE, select=3, feature=0))["status"] == v5.OK
        assert (await peer.ask(v5.GET_VQ_SIZE, vq_index=1))["size"] == 64
        assert (await peer.ask(v5.KEEPALIVE, 0xFEFF))["command_id"] == 0xFEFF


async def test_config():
    async with serving(lambda: Echo(config=CONFIG)) as target:
        peer = await target.peer()
        await peer.control()
        for width in (1, 2, 4, 8):
            got = await peer.ask(v5.GET_CONFIG, offset=3, bytes=width)
            assert got["value"] == int.from_bytes(CONFIG[3 : 3 + width], "little")
            assert got["generation"] == 0
        assert (await peer.ask(v5.SET_CONFIG, offset=2, bytes=2, value=0xFFFFAABB))["status"] == 0
        assert (await peer.ask(v5.GET_CONFIG, offset=0, bytes=4))["value"] == 0xAABB0201


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (command(v5.SET_FEATURE, select=0, feature=1), v5.EFEATURE),
        (command(v5.SET_FEATURE, select=9, feature=1 << 63), v5.EFEATURE),
        (command(v5.SET_STATUS, device_status=4), v5.ESTATUS),
        (command(v5.SET_STATUS, device_status=0x100), v5.ESTATUS),
        (command(v5.SET_DRIVER_FEATURE, select=0, feature=1), v5.EDEVFEATURE),
        (command(v5.SET_DRIVER_FEATURE, select=1, feature=1), v5.EDEVFEATURE),
        (command(v5.GET_VQ_SIZE, vq_index=2), v5.EQUEUEQUOT),
        (command(v5.GET_VQ_SIZE, vq_index=0xFFFF), v5.EQUEUEQUOT),
        (command(v5.GET_CONFIG, offset=0, bytes=3), v5.ECONFBYTES),
        (command(v5.GET_CONFIG, offset=0, bytes=0), v5.ECONFBYTES),
        (command(v5.GET_CONFIG, offset=13, bytes=8), v5.ECONFOFF),
        (command(v5.GET_CONFIG, offset=0xFFFF, bytes=1), v5.ECONFOFF),
        (command(v5.SET_CONFIG, offset=0xFFFF, bytes=8), v5.ECONFOFF),
        (command(v5.SET_CONFIG, offset=12, bytes=8), v5.ECONFOFF),
        (command(v5.SET_CONFIG, offset=0, bytes=5), v5.ECONFBYTES),
        (command(v5.GET_KEYED_NUM_DESCS), v5.ENOCMD),
        (command(v5.GET_KEYED_EAGER_BUF), v5.ENOCMD),
        (command(v5.VQ_KEYED_EAGER_BUF), v5.ENOCMD),
        (b"\x34\x12\x01\x00" + bytes(12), v5.ENOCMD),
        (request(1, b"x" * 70000, 5), v5.ENOCMD),
    ],
)
async def test_refusals_leave_the_control_queue_alive(data: bytes, status: int):
    async with serving(lambda: Echo(config=CONFIG)) as target:
        peer = await target.peer()
        await peer.control()
        assert await peer.status(data) == status
        assert (await peer.ask(v5.GET_STATUS, 77))["command_id"] == 77
        assert (await peer.ask(v5.GET_STATUS))["device_status"] == 0


async def test_features_are_fixed_after_features_ok():
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.control()
        await peer.start(11)
        got = await peer.ask(v5.SET_DRIVER_FEATURE, select=0, feature=1 << 32)
        assert got["status"] == v5.EDEVFEATURE
        assert (await peer.ask(v5.GET_STATUS))["device_status"] == 11


async def test_without_version_1_features_ok_does_not_stick():
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.control()
        for status in (1, 3, 11):
            assert (await peer.ask(v5.SET_STATUS, device_status=status))["status"] == 0
        assert (await peer.ask(v5.GET_STATUS))["device_status"] == 3


async def test_requests_and_their_refusals():
    limits = Limits(request_bytes=100_000)
    async with serving(Hoard, limits) as target:
        control, vq = await target.queue(size=2)
        await vq.send(request(1, bytes(100_001), 0))
        assert (await vq.answer(v5.VQ))["status"] == v5.EOUTVQBUF
        await vq.send(request(2, b"x", 100_001))
        assert (await vq.answer(v5.VQ))["status"] == v5.EINVQBUF
        await vq.send(request(3, b"a", 1) + request(4, b"b", 1) + request(5, b"c" * 99_999, 1))
        got = await vq.answer(v5.VQ)
        assert (got["status"], got["command_id"]) == (v5.ECMDQUOT, 5)
        assert await vq.status(command(v5.GET_STATUS, 6)) == v5.ENOCMD
        assert (await control.ask(v5.GET_STATUS))["device_status"] == 15


async def test_a_hostile_length_allocates_nothing_and_is_drained():
    async with serving(Echo) as target:
        _, vq = await target.queue()
        await vq.send(command(v5.VQ, 1, out_length=0xFFFFFFFF, in_length=0xFFFFFFFF))
        for _ in range(64):
            await vq.send(bytes(1 << 16))
        # Still draining; another peer is served meanwhile.
        other = await target.peer()
        await other.control()


async def test_disconnect_drains():
    model = Hoard()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"a", 4) + command(v5.DISCONNECT, 2))
        await model.holds(1)
        model.chains[0].writable[0][:] = b"done"
        model.use(written=4)
        assert await vq.used() == (1, 4, b"done")
        assert (await vq.answer(v5.DISCONNECT))["command_id"] == 2
        assert await vq.ended()
        assert (await control.ask(v5.DISCONNECT, 3))["command_id"] == 3
        assert await control.ended()
        await target.gone()
        assert model.closed


async def test_losing_the_control_queue_destroys_losing_a_virtqueue_does_not():
    model = Echo()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.stream.aclose()
        assert (await control.ask(v5.GET_STATUS))["device_status"] == 15
        again = await target.peer()
        instance = next(iter(target.server.associations))
        with trio.fail_after(5):
            while await again.join(instance) == v5.EQUEUEBUSY:
                pass
        await again.send(request(1, b"ab", 4))
        assert await again.used() == (1, 4, b"abab")
        await control.stream.aclose()
        assert await again.ended()
        await target.gone()
        assert model.closed


async def test_requests_before_driver_ok_are_held():
    model = Echo()
    async with serving(lambda: model) as target:
        control, vq = await target.peer(), await target.peer()
        assert await vq.join(await control.control()) == 0
        await vq.send(request(1, b"early", 5))
        await control.start(11)
        assert not model.served
        assert (await control.ask(v5.SET_STATUS, device_status=15))["status"] == 0
        assert await vq.used() == (1, 5, b"early")


@pytest.mark.parametrize("how", [(v5.RESET_DEVICE, {}), (v5.SET_STATUS, {"device_status": 0})])
async def test_reset_waits_for_what_runs_and_closes_the_virtqueues(how):
    opcode, fields = how
    model = Hoard()
    model.ending = trio.Event()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"a", 1))
        await model.holds(1)
        await control.send(command(opcode, 5, **fields))
        with trio.move_on_after(0.05):
            await control.answer(opcode)
            raise AssertionError("the reset completed while the model still held a chain")
        model.ending.set()
        assert (await control.answer(opcode))["command_id"] == 5
        assert await vq.ended()
        assert (await control.ask(v5.GET_STATUS))["device_status"] == 0
        assert (await control.ask(v5.GET_CONFIG, offset=0, bytes=1))["status"] == v5.ECONFOFF


async def test_config_change_event_once_until_read():
    model = Echo(config=CONFIG)
    async with serving(lambda: model) as target:
        peer = await target.peer()
        await peer.control()
        model.config_changed()  # nothing changed: no event
        model.change(b"\x10")
        event = v5.CONFIG_EVENT.decode(await peer.take(16))
        assert event == {"status": 0, "command_id": v5.ID_CONFIG_CHANGE, "generation": 1}
        model.change(b"\x20")
        model.change(b"\x30")
        got = await peer.ask(v5.GET_CONFIG, 4, offset=0, bytes=1)
        assert (got["value"], got["generation"]) == (0x30, 3)
        # What changed while the event was outstanding is told once more, to be safe.
        assert v5.CONFIG_EVENT.decode(await peer.take(16))["generation"] == 3
        await peer.ask(v5.GET_CONFIG, 4, offset=0, bytes=1)
        await peer.ask(v5.RESET_DEVICE)
        model.change(b"\x40")
        assert v5.CONFIG_EVENT.decode(await peer.take(16))["generation"] == 4


async def test_a_bug_of_the_model_asks_for_a_reset(caplog: pytest.LogCaptureFixture):
    async with serving(Faulty) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"a", 1))
        event = v5.CONFIG_EVENT.decode(await control.take(16))
        assert event["command_id"] == v5.ID_CONFIG_CHANGE
        assert (await control.ask(v5.GET_STATUS))["device_status"] == 15 | 0x40
        assert await vq.ended()
        assert (await control.ask(v5.RESET_DEVICE))["status"] == 0
        assert (await control.ask(v5.GET_STATUS))["device_status"] == 0
    assert "a bug of the model" in caplog.text


async def test_keepalive_of_the_target():
    async with serving(Echo, Limits(keepalive_seconds=0.02)) as target:
        peer = await target.peer()
        await peer.control()
        for _ in range(3):
            event = v5.KEEPALIVE_EVENT.decode(await peer.take(16))
            assert event == {"status": 0, "command_id": v5.ID_KEEPALIVE}


async def test_two_initiators_are_strangers():
    async with serving(lambda: Echo(config=CONFIG)) as target:
        one, two = await target.peer(), await target.peer()
        first, second = await one.control(), await two.control()
        assert first != second
        await one.start()
        assert (await two.ask(v5.GET_STATUS))["device_status"] == 0
        await one.ask(v5.SET_CONFIG, offset=0, bytes=1, value=99)
        assert (await two.ask(v5.GET_CONFIG, offset=0, bytes=1))["value"] == 1
        await one.stream.aclose()
        assert (await two.ask(v5.GET_STATUS))["status"] == 0


async def test_back_pressure_and_the_way_out_of_it():
    model = Hoard()
    async with serving(lambda: model, Limits(request_bytes=8192, queue_bytes=20_000)) as target:
        _, vq = await target.queue()
        for ident in range(10):
            await vq.send(request(ident, b"x" * 4096, 4096))
        await model.holds(2)
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        assert len(model.chains) == 2
        for ident in range(10):
            await model.holds(1)
            model.use(written=0)
            assert await vq.used() == (ident, 0, b"")


async def test_disconnect_before_driver_ok_waits_with_the_requests():
    async with serving(Echo) as target:
        control, vq = await target.peer(), await target.peer()
        assert await vq.join(await control.control()) == 0
        await vq.send(request(1, b"early", 5) + command(v5.DISCONNECT, 2))
        await control.start()
        assert await vq.used() == (1, 5, b"early")
        assert (await vq.answer(v5.DISCONNECT))["command_id"] == 2
        assert await vq.ended()


def test_every_legal_command_has_a_handler():
    legal = {row.opcode for row in v5.COMMANDS.values() if "c" in row.queues}
    beyond = {v0.COMMON[op] for op in v0.COMMON} - v5.COMMANDS.keys()
    assert legal | beyond == HANDLERS.keys() | {v5.CONNECT, v5.DISCONNECT}


class Slow(BlkModel):
    """A disk whose threads wait at a gate."""

    def __init__(self, backing) -> None:
        super().__init__(backing)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def _inline(self, job) -> bool:
        return False

    def _execute(self, job) -> int:
        self.entered.set()
        assert self.gate.wait(10)
        return super()._execute(job)


@pytest.mark.parametrize("end", [v5.RESET_DEVICE, v5.DISCONNECT])
async def test_threads_are_waited_for(end: int):
    """What a thread is at lands before the answer, and what had not begun never does."""
    backing = MemoryBacking(1 << 20)
    model = Slow(backing)
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        for sector in range(4):
            header = REQUEST.pack(VIRTIO_BLK_T_OUT, 0, sector)
            await vq.send(request(sector, header + b"x" * 512, 1))
        with trio.fail_after(5):
            await trio.to_thread.run_sync(model.entered.wait)
        await control.send(command(end, 5))
        with trio.move_on_after(0.05) as waiting:
            await control.answer(end)
        assert waiting.cancelled_caught
        model.gate.set()
        assert (await control.answer(end))["command_id"] == 5
        landed = os.pread(backing.fd, 2048, 0)
        count = landed.count(b"x") // 512  # adjacent writes go together
        assert count
        assert landed == (b"x" * 512 * count).ljust(2048, b"\0")
        await trio.to_thread.run_sync(lambda: None)
        assert os.pread(backing.fd, 2048, 0) == landed
        assert await vq.take(1 << 16) == b""
    backing.close()


async def test_a_virtqueue_that_ends_while_disconnect_waits_is_free_again():
    model = Hoard()
    async with serving(lambda: model) as target:
        _, vq = await target.queue()
        await vq.send(request(1, b"a", 1) + command(v5.DISCONNECT, 2))
        await model.holds(1)
        await vq.stream.aclose()
        again = await target.peer()
        instance = next(iter(target.server.associations))
        with trio.fail_after(5):
            while await again.join(instance) == v5.EQUEUEBUSY:
                pass


async def test_nothing_comes_behind_disconnect(caplog: pytest.LogCaptureFixture):
    model = Hoard()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"a", 1) + command(v5.DISCONNECT, 2))
        await model.holds(1)
        await vq.send(request(2, b"b", 1))
        assert await vq.ended()
        assert len(model.chains) == 1
        assert (await control.ask(v5.GET_STATUS))["device_status"] == 15
    assert "DISCONNECT under way" in caplog.text


@pytest.mark.parametrize("ready", [True, False], ids=["served", "held"])
async def test_connect_on_a_virtqueue_ends_it_alone(ready: bool):
    async with serving(Echo) as target:
        control, vq = await target.peer(), await target.peer()
        assert await vq.join(await control.control()) == v5.OK
        if ready:
            await control.start()
        await vq.send(command(v5.CONNECT))
        assert await vq.ended()
        assert (await control.ask(v5.GET_STATUS))["device_status"] == 15 * ready


async def test_disconnect_of_control_takes_the_virtqueues_along():
    model = Hoard()
    async with serving(lambda: model) as target:
        control, vq = await target.queue()
        await vq.send(request(1, b"a", 1))
        await model.holds(1)
        assert (await control.ask(v5.DISCONNECT, 3))["command_id"] == 3
        assert await vq.ended()
        assert await control.ended()
        await target.gone()
        assert model.closed


async def test_reset_and_start_again():
    """Held requests of a queue that a reset closes are never served."""
    model = Echo()
    async with serving(lambda: model) as target:
        control, vq = await target.peer(), await target.peer()
        instance = await control.control()
        assert await vq.join(instance) == v5.OK
        await vq.send(request(1, b"early", 5))
        for _ in range(3):
            assert (await control.ask(v5.RESET_DEVICE))["status"] == v5.OK
            assert await vq.ended()
            await control.start()
            vq = await target.peer()
            assert await vq.join(instance) == v5.OK
        assert not model.served
        await vq.send(request(2, b"late", 4))
        assert await vq.used() == (2, 4, b"late")
        assert model.served == 1
