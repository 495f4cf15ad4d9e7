# SPDX-License-Identifier: BSD-3-Clause
"""The bell of eventfds."""

import os

import pytest
import trio

from vof.target.bridges.eventfd import EventfdBell
from vof.transport import polling

FULL = (2**64 - 2).to_bytes(8, "little")


@pytest.fixture
async def bell(monkeypatch):
    monkeypatch.setattr(polling, "_shared", polling._Shared())
    bell = EventfdBell()
    yield bell
    bell.close()
    bell.close()


async def test_either_side_wakes_who_waits(bell):
    for wake in (bell.wake, lambda: os.write(bell.call, FULL)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.wait)
            await trio.testing.wait_all_tasks_blocked()
            wake()
    bell.ring()
    assert int.from_bytes(os.read(bell.kick, 8), "little") == 1


async def test_who_was_woken_may_find_it_closed(bell):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await trio.testing.wait_all_tasks_blocked()
        bell.wake()
        bell.close()


async def test_a_device_that_fills_the_counters_stops_nobody(bell):
    for fd in (bell.call, bell.kick):
        os.write(fd, FULL)
    bell.wake()
    bell.ring()
    await bell.wait()


async def test_a_device_that_makes_descriptors_block_stops_nobody(bell):
    for fd in (bell.call, bell.kick):
        os.set_blocking(fd, True)
    os.write(bell.call, FULL)
    for _ in range(10000):  # more than any device leaves unread
        bell.ring()
    bell.wake()
    for _ in range(2):
        bell.wake()
        await bell.wait()


async def test_attended_it_is_polled_by_others_and_still_wakes(bell):
    looks = []
    bell.attend(lambda: looks.append(1))
    near, far = os.pipe()
    spin = polling.Spin(near)
    os.write(bell.call, FULL)  # disturbs no spin
    os.write(far, b"x")
    spin.slept()  # the loop had its turn
    assert spin()
    assert looks
    await bell.wait()
    bell.attend(None)
    looks.clear()
    spin.slept()
    assert spin()
    assert not looks
    spin.close()
    os.close(near)
    os.close(far)
