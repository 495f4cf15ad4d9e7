# SPDX-License-Identifier: BSD-3-Clause
"""Virtqueues that are connected while others of their device are being stopped."""

import pytest
import trio
import trio.testing

from tests.models import Hoard
from tests.wire import Peer, command, request, serving
from vof.protocol import v5


class Slow(Hoard):
    """Takes until told to stop serving; knows which queues it serves, and since when it is over."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = trio.Event()
        self.serving: set[int] = set()
        self.after: set[int] = set()

    async def serve(self, index, queue) -> None:
        if self.closed:
            self.after.add(index)
        self.serving.add(index)
        try:
            await super().serve(index, queue)
        finally:
            self.serving.remove(index)

    def close(self) -> None:
        super().close()
        self.after |= self.serving


async def stopping(target, model: Slow, data: bytes | None) -> tuple[int, Peer]:
    """A device whose queue 0 is being stopped, by a command or by the end of the connection."""
    control, vq = await target.queue()
    (instance,) = target.server.associations
    await vq.send(request(1, b"a", 1))
    await model.holds(1)
    if data is None:
        await control.stream.aclose()
    else:
        await control.send(data)
    await trio.testing.wait_all_tasks_blocked(0.01)
    return instance, control


@pytest.mark.parametrize("data", [None, command(v5.DISCONNECT)], ids=["end", "goodbye"])
async def test_a_device_that_ends_takes_no_more_queues(data: bytes | None):
    model = Slow()
    async with serving(lambda: model) as target:
        instance, control = await stopping(target, model, data)
        vq = await target.peer()
        status = await vq.join(instance, 1)
        model.ending.set()
        await target.gone()
        assert model.closed
        assert not model.after  # nothing is served by a model that is closed
        assert status == (v5.EBADDEV if data is None else v5.OK)
        if data is not None:
            assert (await control.answer(v5.DISCONNECT))["status"] == v5.OK
            assert await vq.ended()


async def test_a_reset_stops_what_was_connected_meanwhile():
    model = Slow()
    async with serving(lambda: model) as target:
        instance, control = await stopping(target, model, command(v5.RESET_DEVICE))
        vq = await target.peer()
        assert await vq.join(instance, 1) == v5.OK
        model.ending.set()
        assert (await control.answer(v5.RESET_DEVICE))["status"] == v5.OK
        assert await vq.ended()
        assert not model.serving
        again = await target.peer()
        assert await again.join(instance, 1) == v5.OK
        await again.send(request(2, b"b", 1))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(model.chains) == 1  # that of before: this one waits for DRIVER_OK
        await control.start()
        await model.holds(2)
