# SPDX-License-Identifier: BSD-3-Clause
"""The entropy driver over a fake device."""

import pytest

from tests.initiator.drivers.fakes import FakeDisk, FakeEntropy
from vof.errors import ConnectionLost, DeviceError, InvalidArgument
from vof.initiator.drivers import Rng
from vof.initiator.drivers.rng import MOST_EMPTY, PIECE


def counted(length):
    return bytes(number & 0xFF for number in range(length))


@pytest.mark.parametrize("length", [0, 1, 16, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
@pytest.mark.parametrize("piece", [1 << 20, 5000])
async def test_all_bytes_come_however_short_the_answers(length, piece):
    async with Rng(FakeEntropy(piece)) as rng:
        assert await rng.read(length) == counted(length)


async def test_never_more_is_asked_than_is_missing():
    device = FakeEntropy(piece=10)
    async with Rng(device) as rng:
        await rng.read(25)
    assert device.requests == [(0, [], [25]), (0, [], [15]), (0, [], [5])]


async def test_some_empty_answers_are_borne():
    async with Rng(FakeEntropy(dry=MOST_EMPTY - 1)) as rng:
        assert await rng.read(4) == counted(4)


async def test_a_device_that_gives_nothing_is_given_up():
    device = FakeEntropy(dry=1000)
    async with Rng(device) as rng:
        with pytest.raises(DeviceError, match="no entropy"):
            await rng.read(4)
    assert len(device.requests) == MOST_EMPTY


async def test_less_than_nothing_is_refused():
    async with Rng(FakeEntropy()) as rng:
        with pytest.raises(InvalidArgument):
            await rng.read(-1)


async def test_a_queue_that_breaks_fails_the_read_as_maybe_executed(nursery):
    device = FakeEntropy()
    device.holding = True

    async def cut():
        await device.holds(1)
        device.vqs[0].break_(ConnectionLost("gone"))

    async with Rng(device) as rng:
        nursery.start_soon(cut)
        with pytest.raises(ConnectionLost) as caught:
            await rng.read(1)
    assert caught.value.maybe_executed


def test_another_device_is_refused():
    with pytest.raises(InvalidArgument, match="entropy"):
        Rng(FakeDisk())


async def test_the_end_resets():
    device = FakeEntropy()
    async with Rng(device):
        assert device.status == 15
        before = device.resets
    assert (device.status, device.resets) == (0, before + 1)


async def test_a_device_out_of_reach_does_not_hide_what_happened():
    async def fail(device):
        async with Rng(device):
            device.unreachable = ConnectionLost("gone")
            raise KeyError

    with pytest.raises(KeyError):
        await fail(FakeEntropy())
