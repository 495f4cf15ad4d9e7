# SPDX-License-Identifier: BSD-3-Clause
"""check_model: the built-in models pass, and it sees a model that breaks a rule."""

import pytest

from tests.conformance.fabric import fabric
from tests.conformance.memory_device import maker
from vof.conformance import Failed, check_model
from vof.errors import LocalProtocolError
from vof.protocol.dialects import DIALECTS
from vof.target.devices import (
    BlkModel,
    ConsoleModel,
    MemoryBacking,
    NetModel,
    PtyPort,
    RngModel,
    SocketPort,
)
from vof.virtio import DeviceModel

MAKES = {"plain": maker(), "ring-like": maker(count_buffers=True), "late": maker(late=2)}

FABRICS = {
    f"{name}-{dialect}": fabric(f"vof+loopback{name}://models", dialect)
    for name in ("", "+keyed")
    for dialect in DIALECTS
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
async def test_rng(make):
    await check_model(RngModel, make)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
async def test_blk(make):
    await check_model(lambda: BlkModel(MemoryBacking(1 << 20), queues=3), make)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
async def test_net(make):
    await check_model(NetModel, make)


@pytest.mark.parametrize("port", [SocketPort, PtyPort])
@pytest.mark.parametrize("make", [*MAKES.values(), *FABRICS.values()], ids=[*MAKES, *FABRICS])
async def test_console(make, port, tmp_path):
    one = port(str(tmp_path / "port"))
    await check_model(lambda: ConsoleModel(one, cols=80, rows=25), make)
    one.close()


class Swallow(DeviceModel):
    """Uses each chain with nothing written."""

    device_id = 60
    queue_sizes = (16, 32)

    async def serve(self, index, queue):
        while True:
            for chain in await queue.receive():
                self.use(index, queue, chain)
            queue.flush()

    def use(self, index, queue, chain):
        queue.push(chain, 0)


class KeepsTheSecondQueue(Swallow):
    def use(self, index, queue, chain):
        if index == 0:
            queue.push(chain, 0)


class KeepsOne(Swallow):
    kept = False

    def use(self, index, queue, chain):
        if self.kept:
            queue.push(chain, 0)
        self.kept = True


class UsesTwice(Swallow):
    def use(self, index, queue, chain):
        queue.push(chain, 0)
        queue.push(chain, 0)


class ClaimsTooMuch(Swallow):
    def use(self, index, queue, chain):
        queue.push(chain, sum(map(len, chain.writable)) + 1)


class Stumbles(Swallow):
    def use(self, index, queue, chain):
        queue.push(chain, len(chain.readable[0]) * 0)


class OffersNothing(Swallow):
    device_features = 0


class HasNoType(Swallow):
    device_id = 0


class HasAnEmptyQueue(Swallow):
    queue_sizes = (16, 0)


class ConfigurationGrows(Swallow):
    size = 0

    def config(self):
        self.size += 1
        return bytes(self.size)


ERRORS = {Stumbles: IndexError, UsesTwice: LocalProtocolError}
"""What comes out of a model's ``serve`` before the check finds anything; else Failed."""


async def test_plain_model_passes(autojump_clock):
    await check_model(Swallow, maker())
    await check_model(KeepsTheSecondQueue, maker(), holds=[1])


@pytest.mark.parametrize(
    "model",
    [
        KeepsTheSecondQueue,
        KeepsOne,
        UsesTwice,
        ClaimsTooMuch,
        Stumbles,
        OffersNothing,
        HasNoType,
        HasAnEmptyQueue,
        ConfigurationGrows,
    ],
)
async def test_bad_model_is_caught(model, autojump_clock):
    caught = None
    try:
        await check_model(model, maker())
    except Exception as error:
        caught = error
        while isinstance(caught, ExceptionGroup):
            caught = caught.exceptions[0]
    assert isinstance(caught, ERRORS.get(model, Failed))
