# SPDX-License-Identifier: BSD-3-Clause
"""The console model between two queues and a port."""

import pytest
import trio

from tests.target.devices.fakes import OLD, FakeQueue, segments
from tests.target.devices.terminals import some
from vof.errors import InvalidArgument, VofError
from vof.target.devices import ConsoleModel, Port
from vof.virtio import Chain
from vof.virtio.console import (
    RECEIVEQ,
    TRANSMITQ,
    VIRTIO_CONSOLE_F_EMERG_WRITE,
    VIRTIO_CONSOLE_F_SIZE,
    ConsoleConfig,
)
from vof.virtio.constants import VIRTIO_F_VERSION_1, VIRTIO_ID_CONSOLE, bit


class FakePort(Port):
    """Has ``input`` and takes ``room`` bytes more; notes what it took."""

    def __init__(self, room=1 << 20):
        super().__init__("fake")
        self.input, self.room, self.taken = bytearray(), room, bytearray()
        self.inside = 0

    async def read(self, segments):
        self.inside += 1
        try:
            while not self.input:
                await trio.lowlevel.checkpoint()
            count = 0
            for view in segments:
                part = self.input[: len(view)]
                view[: len(part)] = part
                del self.input[: len(part)]
                count += len(part)
            return count
        finally:
            self.inside -= 1

    async def write(self, segments):
        self.inside += 1
        try:
            for byte in b"".join(segments):
                while not self.room:
                    await trio.lowlevel.checkpoint()
                self.room -= 1
                self.taken.append(byte)
        finally:
            self.inside -= 1

    def write_now(self, data):
        self.taken += data

    attached = _source = _left = close = None  # of real ports; the model asks for none of them


def space(size, cuts=()):
    return Chain((), segments(bytes([OLD]) * size, cuts), None)


def data(text, cuts=()):
    return Chain(segments(text, cuts), (), None)


class Console:
    """A model, a port and two queues."""

    def __init__(self, port, nursery):
        self.port = port
        self.model = ConsoleModel(port)
        self.queues = [FakeQueue(), FakeQueue()]
        for index, queue in enumerate(self.queues):
            nursery.start_soon(self.model.serve, index, queue)


@pytest.fixture
def console(nursery):
    return Console(FakePort(), nursery)


def test_device():
    model = ConsoleModel(FakePort(), queue_size=8)
    assert (model.device_id, model.queue_sizes) == (VIRTIO_ID_CONSOLE, (8, 8))
    assert model.config() == bytes(12)
    assert model.device_features == bit(VIRTIO_F_VERSION_1, VIRTIO_CONSOLE_F_EMERG_WRITE)
    assert tuple(model.held_queues) == (RECEIVEQ,)


def test_a_size_is_told():
    model = ConsoleModel(FakePort(), cols=132, rows=43)
    assert model.device_features & bit(VIRTIO_CONSOLE_F_SIZE)
    assert model.config() == bytes((132, 0, 43)) + bytes(9)
    assert ConsoleConfig.unpack(model.config()) == (132, 43, 0, 0)
    for wrong in ({"cols": 65536}, {"rows": -1}):
        with pytest.raises(InvalidArgument, match="0 to 65535"):
            ConsoleModel(FakePort(), **wrong)


def test_one_driver_at_a_time():
    port = FakePort()
    model = ConsoleModel(port)
    with pytest.raises(VofError, match="fake is in use: one initiator at a time"):
        ConsoleModel(port)
    model.close()
    ConsoleModel(port)


def test_an_emergency_needs_no_queue():
    port = FakePort()
    model = ConsoleModel(port)
    model.write_config(8, b"!\0\0\0")
    model.write_config(8, b"?")
    assert port.taken == b"!?"
    for offset in (0, 2, 4, 9, 11):
        with pytest.raises(InvalidArgument, match="read-only"):
            model.write_config(offset, b"x")
    assert model.config() == bytes(12)


@pytest.mark.parametrize("cuts", [(), (0, 1, 50), (0, 0, 100, 100)])
async def test_every_byte_goes_out_in_order(console, cuts):
    text = some(1000)
    chains = [data(text[start : start + 100], cuts) for start in range(0, 1000, 100)]
    assert await console.queues[TRANSMITQ].run(*chains) == [0] * 10
    assert console.port.taken == text


@pytest.mark.parametrize("cuts", [(), (0, 1, 50), (0, 0, 100, 100)])
async def test_every_byte_comes_in_in_order(console, cuts):
    console.port.input += (text := some(1000))
    chains = [space(150, cuts) for _ in range(7)]
    used = await console.queues[RECEIVEQ].run(*chains)
    assert used == [150] * 6 + [100]
    found = [b"".join(chain.writable)[:count] for chain, count in zip(chains, used, strict=True)]
    assert b"".join(found) == text
    assert set(b"".join(chains[-1].writable)[100:]) == {OLD}


async def test_what_has_no_room_or_no_data_comes_back_at_once(console):
    console.port.input += b"text"
    chains = [space(0), data(b"not for this queue"), space(0, (0, 0)), space(9)]
    assert await console.queues[RECEIVEQ].run(*chains) == [0, 0, 0, 4]
    chains = [data(b""), space(9), data(b"", (0, 0))]
    assert await console.queues[TRANSMITQ].run(*chains) == [0] * 3
    assert not console.port.taken


async def test_buffers_wait_while_there_is_nothing(console):
    early = [space(9), space(9)]
    console.queues[RECEIVEQ].offer(*early)
    assert await console.queues[TRANSMITQ].run(data(b"on it goes")) == [0]
    assert not console.queues[RECEIVEQ].visible
    console.port.input += b"late"
    assert await console.queues[RECEIVEQ].used(early[0]) == [4]
    assert early[1] not in console.queues[RECEIVEQ].visible


async def test_without_buffers_nothing_is_taken_from_the_port(console):
    console.port.input += b"waits"
    await trio.testing.wait_all_tasks_blocked()
    assert console.port.input == b"waits"
    assert not console.port.inside


async def test_chains_wait_while_the_port_takes_nothing(console):
    console.port.room = 15
    chains = [data(b"x" * 10) for _ in range(3)]
    console.queues[TRANSMITQ].offer(*chains)
    assert await console.queues[TRANSMITQ].used(chains[0]) == [0]
    while console.port.room:
        await trio.lowlevel.checkpoint()
    assert len(console.queues[TRANSMITQ].visible) == 1
    console.port.room = 100
    assert await console.queues[TRANSMITQ].used(*chains) == [0] * 3


async def test_the_end_of_a_queue_leaves_nothing(nursery):
    port = FakePort(room=0)
    async with trio.open_nursery() as inner:
        console = Console(port, inner)
        console.queues[RECEIVEQ].offer(space(9))
        console.queues[TRANSMITQ].offer(data(b"x"))
        while port.inside < 2:
            await trio.lowlevel.checkpoint()
        inner.cancel_scope.cancel()
    assert not port.inside
    port.input += b"for the next"
    queue = FakeQueue()
    nursery.start_soon(console.model.serve, RECEIVEQ, queue)
    assert await queue.run(space(20)) == [12]
