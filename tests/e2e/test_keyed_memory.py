# SPDX-License-Identifier: BSD-3-Clause
"""Queue pairs where a system lets little memory be registered: one error, and all others go on."""

import logging

import pytest
import trio
import trio.testing

import vof
from tests.models import Echo
from vof.errors import ConnectionLost, OutOfMemory
from vof.initiator.requests import RequestQueue
from vof.protocol.registered import LOCAL, REMOTE_READ, REMOTE_WRITE
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.transport.loopback_pairs import LoopbackDomain, faults
from vof.virtio.device import VirtqueueInfo

URL = "vof+loopback+keyed://scarce"
LIMIT = 10
MIB = 1 << 20


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch):
    """Bytes that a domain may register in all, for each of the rights."""
    given: dict[int, int] = {}
    register = LoopbackDomain.register

    def limited(self, region, rights):
        have = sum(grant.region.size for grant in self._grants.values() if grant.rights == rights)
        if have + region.size > given.get(rights, have + region.size):
            raise OutOfMemory("no more may be locked")
        return register(self, region, rights)

    monkeypatch.setattr(LoopbackDomain, "register", limited)
    faults.clear()
    yield given
    assert not faults


@pytest.fixture
async def server():
    async with trio.open_nursery() as nursery:
        server = Server({"it": Export("it", Echo)})
        await nursery.start(server.serve, await listen(parse_url(URL)))
        yield server
        with trio.fail_after(LIMIT):
            while server.connections:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def started(device, count=1):
    await device.initialize(0)
    vqs = await device.find_vqs([VirtqueueInfo(f"q{number}") for number in range(count)])
    await device.ready()
    return [RequestQueue(vq) for vq in vqs]


async def ask(queue, data, answer):
    with trio.fail_after(LIMIT):
        assert await queue.request([data, answer], 1, 1) == len(data)
    assert answer == data


async def test_a_target_that_has_none(server, most, caplog):
    most[LOCAL] = 0
    with pytest.raises(ConnectionLost):
        async with vof.connect(URL + "/it"):
            pass
    await trio.testing.wait_all_tasks_blocked()
    [record] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "no more may be locked" in record.getMessage()
    assert not record.exc_info
    assert server.refusals == {"memory": 1}
    most.clear()
    async with vof.connect(URL + "/it") as device:
        [queue] = await started(device)
        await ask(queue, b"question", bytearray(8))


async def test_a_target_that_has_none_for_a_large_request(server, most, caplog):
    """It ends that queue alone, which can be connected anew."""
    async with vof.connect(URL + "/it") as device:
        one, other = await started(device, 2)
        most[LOCAL] = 2 * MIB
        big = device.pool.alloc(4 * MIB)
        with pytest.raises(ConnectionLost):
            await ask(one, big, device.pool.alloc(4 * MIB))
        with trio.fail_after(LIMIT):
            while len(server.connections) > 2:
                await trio.lowlevel.checkpoint()
        assert server.refusals == {"memory": 1}
        assert not device.needs_reset
        await ask(other, b"question", bytearray(8))
        await device.del_vq(0)
        await ask(RequestQueue(await device.setup_vq(0, VirtqueueInfo("q"))), b"q", bytearray(1))
    assert not [one for one in caplog.records if one.exc_info]


async def test_a_target_that_has_none_for_what_is_written_beforehand(server, monkeypatch):
    """Then it has no eager buffer, and reads what is readable."""

    def refuse(size):
        raise OutOfMemory("no more may be locked")

    async with vof.connect(URL + "/it") as device:
        monkeypatch.setattr("vof.protocol.v5_keyed_target.own_region", refuse)
        [association] = server.associations.values()
        before = association.budget.used
        [queue] = await started(device)
        assert association.budget.used == before
        await ask(queue, b"question", bytearray(8))


async def test_an_initiator_that_has_none_to_add_with(server, most):
    """Nothing was added; what fits later is added, and the queue goes on."""
    async with vof.connect(URL + "/it") as device:
        [queue] = await started(device)
        await ask(queue, bytes(9000), bytearray(9000))
        free = queue.vq.num_free
        for right in (REMOTE_READ, REMOTE_WRITE):
            most[right] = 2 * MIB
            for _ in range(3):
                with pytest.raises(OutOfMemory):
                    await ask(queue, bytes(3 * MIB), bytearray(3 * MIB))
                assert queue.vq.num_free == free
                await ask(queue, bytes(9000), bytearray(9000))
            most.clear()
        await ask(queue, bytes(3 * MIB), bytearray(3 * MIB))


@pytest.mark.parametrize("right", [REMOTE_READ, REMOTE_WRITE])
async def test_an_initiator_that_has_none(server, most, right):
    most[right] = 0
    with pytest.raises(OutOfMemory):
        async with vof.connect(URL + "/it") as device:
            await started(device)
    most.clear()
    async with vof.connect(URL + "/it") as device:
        [queue] = await started(device)
        await ask(queue, b"question", bytearray(8))


async def test_a_pool_outlives_its_device(server):
    """What was given out stays; more cannot be registered where nothing is connected."""
    async with vof.connect(URL + "/it") as device:
        view = device.pool.alloc(64)
    view[:] = bytes(64)
    assert len(device.pool.alloc(64)) == 64
    with pytest.raises(ConnectionLost):
        device.pool.alloc(4 * MIB)
