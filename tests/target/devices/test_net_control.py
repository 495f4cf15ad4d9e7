# SPDX-License-Identifier: BSD-3-Clause
"""The control queue of the network model, and what it makes of received frames."""

import pytest

from tests.target.devices.fakes import segments
from tests.target.devices.nets import MAC, plugged
from vof.virtio import Chain
from vof.virtio.net import BROADCAST, CONTROLQ, VIRTIO_NET_ERR, VIRTIO_NET_OK, NetConfig

PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST = ((0, number) for number in range(6))
TABLE, ADDRESS = (1, 0), (1, 1)
OTHER, GROUP = b"\2other", b"\3group"


def table(stations=(), groups=()):
    return b"".join(len(macs).to_bytes(4, "little") + b"".join(macs) for macs in (stations, groups))


@pytest.mark.parametrize(
    ("said", "hears"),
    [
        ([], {MAC, OTHER, GROUP, BROADCAST}),
        ([(PROMISC, b"\0")], {MAC, BROADCAST}),
        ([(PROMISC, b"\0"), (PROMISC, b"\1")], {MAC, OTHER, GROUP, BROADCAST}),
        ([(PROMISC, b"\0"), (ALLMULTI, b"\1")], {MAC, GROUP, BROADCAST}),
        ([(PROMISC, b"\0"), (ALLUNI, b"\1")], {MAC, OTHER, BROADCAST}),
        ([(PROMISC, b"\0"), (NOBCAST, b"\1")], {MAC}),
        ([(PROMISC, b"\0"), (NOUNI, b"\1")], {BROADCAST}),
        ([(PROMISC, b"\0"), (ALLMULTI, b"\1"), (NOMULTI, b"\1")], {MAC, BROADCAST}),
        ([(PROMISC, b"\0"), (TABLE, table([OTHER], [GROUP]))], {MAC, OTHER, GROUP, BROADCAST}),
        ([(PROMISC, b"\0"), (TABLE, table([OTHER]))], {MAC, OTHER, BROADCAST}),
        ([(PROMISC, b"\0"), (TABLE, table([OTHER])), (TABLE, table())], {MAC, BROADCAST}),
        ([(PROMISC, b"\0"), (TABLE, table([], [MAC] * 1025))], {MAC, GROUP, BROADCAST}),
        ([(PROMISC, b"\0"), (ADDRESS, OTHER)], {OTHER, BROADCAST}),
    ],
)
async def test_the_driver_says_what_it_wants_to_receive(said, hears):
    async with plugged() as here:
        for command, data in said:
            assert await here.command(*command, data, cuts=(1, 2, 4)) == VIRTIO_NET_OK
        here.give(4)
        sent = [to + bytes(54) for to in (MAC, OTHER, GROUP, BROADCAST)]
        await here.send(*sent)
        assert {frame[:6] for frame in await here.frames(len(hears))} == hears
        assert here.counters.rx_filtered == 4 - len(hears)


async def test_the_address_that_the_driver_sets_is_shown():
    async with plugged() as here:
        assert await here.command(*ADDRESS, OTHER) == VIRTIO_NET_OK
        assert NetConfig.unpack(here.model.config()).mac == OTHER


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0",
        b"\0\0\0\0",
        b"\0\0\2",
        b"\0\6\1",
        b"\1\0",
        b"\1\0\0\0\0\0",
        b"\1\0" + table() + b"x",
        b"\1\0" + table([OTHER])[:-1],
        b"\1\0\xff\xff\xff\xff" + bytes(60),
        b"\1\1" + OTHER[:5],
        b"\1\1" + OTHER + b"x",
        b"\1\1" + GROUP,
        b"\1\1" + bytes(6),
        b"\1\2" + OTHER,
        b"\2\0\0\0",
        b"\4\0\1\0",
        b"\xff" * 70_000,
    ],
)
async def test_a_command_that_is_none_is_refused_and_changes_nothing(data):
    async with plugged() as here:
        before = here.model.config()
        assert await here.raw(data) == VIRTIO_NET_ERR
        assert here.model.config() == before
        here.give(1)
        await here.send(*(sent := here.some(60)))
        assert await here.frames(1) == sent


async def test_a_command_without_room_for_the_answer_or_without_anything():
    async with plugged() as here:
        chains = [Chain(segments(b"\0\0\0"), (), None), Chain((), segments(b"x"), None)]
        assert await here.queues[CONTROLQ].run(*chains) == [0, 1]
        assert chains[1].writable[0][0] == VIRTIO_NET_ERR


async def test_what_was_not_negotiated_is_refused():
    async with plugged() as here:
        here.model.features = 1 << 32
        for command in ((*PROMISC, b"\0"), (*ALLUNI, b"\1"), (*TABLE, table()), (*ADDRESS, OTHER)):
            assert await here.command(*command) == VIRTIO_NET_ERR
