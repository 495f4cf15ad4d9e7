# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 at the target: status, features, changes of the configuration, ends."""

import pytest
import trio
import trio.testing

from tests.models import Echo
from tests.target.test_v0_behaviour import Model
from tests.wire_v0 import (
    DISCONNECT,
    EBUSY,
    EINVAL,
    GET_CONFIG_CHANGED,
    GET_DEVICE_ID,
    GET_GENERATION,
    GET_STATUS,
    KEEPALIVE,
    SET_DRIVER_FEATURE,
    done,
    feature,
    garbage,
    plain,
    serving,
    status,
    vring,
)

# -- status, features ---------------------------------------------------------------------------


async def test_the_status_belongs_to_one_session():
    async with serving(Model) as target:
        (one, _), (two, _) = await target.queue(), await target.queue()
        for value in (0, 1, 3):
            await one.says(status(2, value), done(2))
            await one.says(plain(GET_STATUS), done(1, value))
        assert await two.get(plain(GET_STATUS)) == 0
        await one.says(feature(SET_DRIVER_FEATURE, 3, 0, 1 << 32 | 1), done(3))
        await one.says(status(2, 11), done(2))
        await one.says(plain(GET_STATUS), done(1, 11))
        await one.says(feature(SET_DRIVER_FEATURE, 3, 0, 1 << 32), done(3, 0, EINVAL))


async def test_requests_wait_for_the_driver_that_says_that_it_is_ready():
    models = []

    def make() -> Model:
        models.append(Model())
        return models[-1]

    async with serving(make) as target:
        control, vq = await target.peer(), await target.peer()
        ident = await control.control()
        for value in (0, 1, 3):
            await control.says(status(2, value), done(2))
        await control.says(feature(SET_DRIVER_FEATURE, 3, 0, 1 << 32), done(3))
        await control.says(status(2, 11), done(2))
        await vq.join(ident)
        await vq.send(vring(7, b"x", 1))
        await vq.says(plain(GET_DEVICE_ID), done(1, 42))  # this does not wait
        assert models[0].served == 0
        await control.says(status(2, 15), done(2))
        head, _, data = await vq.used()
        assert (head, data) == ((0, 7, 1, 1), [b"x"])


async def test_a_reset():
    async with serving(Model) as target:
        control, vq = await target.queue()
        await control.start()
        ident = next(iter(target.server.associations))
        await control.says(status(9, 0), done(9))
        assert await vq.ended()
        assert await control.get(plain(GET_STATUS)) == 0
        again = await target.peer()
        await again.join(ident)
        await again.send(vring(7, b"x", 1))
        await control.start()
        # a reset is part of start: what was asked before it is gone
        assert await again.ended()
        again = await target.peer()
        await again.join(ident)
        assert await again.request(b"x", 1) == (1, b"x")


# -- configuration changes ----------------------------------------------------------------------


async def test_a_change_of_the_configuration():
    models = []

    def make() -> Model:
        models.append(Model())
        return models[-1]

    async with serving(make) as target:
        control, _ = await target.queue()
        for generation in range(1, 4):
            await control.send(plain(GET_CONFIG_CHANGED, 0x100 + generation, garbage(12)))
            await control.says(plain(KEEPALIVE, 2), done(2))  # which the other one outlasts
            models[0].change(bytes([generation + 99]))
            assert await control.completion() == (0, 0x100 + generation, 0, generation)
            assert await control.get(plain(GET_GENERATION)) == generation


async def test_a_change_that_nobody_waits_for_is_kept():
    models = []

    def make() -> Model:
        models.append(Model())
        return models[-1]

    async with serving(make) as target:
        control, _ = await target.queue()
        models[0].change(b"\xff")
        await control.says(plain(KEEPALIVE, 2), done(2))
        await control.says(plain(GET_CONFIG_CHANGED, 3), done(3, 1))
        await control.send(plain(GET_CONFIG_CHANGED, 4))
        await control.says(plain(KEEPALIVE, 5), done(5))
        models[0].change(b"\xfe")
        assert await control.completion() == (0, 4, 0, 2)


async def test_those_who_wait_for_a_change_are_bounded():
    async with serving(Model) as target:
        control, _ = await target.queue()
        for ident in range(1000):
            await control.send(plain(GET_CONFIG_CHANGED, ident))
        await control.send(plain(KEEPALIVE, 5000))
        held = 1000
        while (got := await control.completion()).ident != 5000:
            assert got.status == EBUSY
            held -= 1
        assert 1 <= held <= 64


# -- ends ---------------------------------------------------------------------------------------


async def test_a_virtqueue_is_given_up():
    async with serving(Echo) as target:
        control, vq = await target.queue()
        await vq.says(plain(DISCONNECT, 77, garbage(12)), done(77))
        assert await vq.ended()
        again = await target.peer()
        await again.join(next(iter(target.server.associations)))
        assert await control.get(plain(GET_DEVICE_ID)) == 42


@pytest.mark.parametrize("politely", [True, False])
async def test_the_end_of_the_control_queue_is_the_end_of_all(politely: bool):
    async with serving(Echo) as target:
        (control, vq), (_, innocent) = await target.queue(), await target.queue()
        if politely:
            await control.says(plain(DISCONNECT, 77), done(77))
            assert await control.ended()
        else:
            await control.stream.aclose()
        assert await vq.ended()
        assert await innocent.request(b"a", 1) == (1, b"a")


async def test_the_end_of_a_virtqueue_ends_nothing_else():
    async with serving(Echo) as target:
        control, vq = await target.queue()
        ident, other = next(iter(target.server.associations)), await target.peer()
        await other.join(ident, 1)
        await vq.stream.aclose()
        assert await other.request(b"a", 1) == (1, b"a")
        assert await control.get(plain(GET_DEVICE_ID)) == 42
        with trio.fail_after(5):
            while 0 in target.server.associations[ident].queues:
                await trio.lowlevel.checkpoint()
        await (await target.peer()).join(ident)
