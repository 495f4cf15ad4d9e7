# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 at the target: sessions and commands, byte for byte."""

import errno

import pytest
import trio
import trio.testing

import vof
from tests import wire
from tests.models import Echo
from tests.wire_v0 import (
    CONNECT,
    DISCONNECT,
    EBUSY,
    ECHRNG,
    EINVAL,
    ENODEV,
    EOPNOTSUPP,
    EPROTO,
    GET_CONFIG,
    GET_CONFIG_CHANGED,
    GET_DEVICE_FEATURE,
    GET_DEVICE_ID,
    GET_FEATURE,
    GET_GENERATION,
    GET_NUM_QUEUES,
    GET_QUEUE_SIZE,
    GET_STATUS,
    GET_VENDOR_ID,
    KEEPALIVE,
    NEW,
    SET_CONFIG,
    SET_DRIVER_FEATURE,
    SET_FEATURE,
    SET_QUEUE_SIZE,
    SET_STATUS,
    VRING,
    WRITE,
    Desc,
    config,
    connect,
    done,
    feature,
    garbage,
    names,
    plain,
    queue,
    serving,
    status,
)
from vof.target.access import THIS_MACHINE
from vof.target.limits import Limits
from vof.transport import parse_url

ANY = "vof+tcp://127.0.0.1:0"


class Model(Echo):
    """Two queues, one of an odd size; a configuration; every feature bit there is."""

    device_features = (1 << 64) - 1

    def __init__(self) -> None:
        super().__init__(queue_sizes=(64, 100), config=bytes(range(1, 17)))


# -- which dialect ------------------------------------------------------------------------------


async def test_both_dialects_on_one_listener():
    async with serving(Echo, url=ANY) as target:
        async with vof.connect(str(target.url)) as native:
            peer = await target.peer()
            assert await peer.control() == next(
                ident for ident in target.server.associations if ident != native.instance_id
            )
            assert await peer.get(plain(GET_DEVICE_ID)) == native.device_id == 42


@pytest.mark.parametrize("cut", [1, 8, 10, 15, 16, 17, 39, 40, 41, 1063])
async def test_the_dialect_shows_however_the_first_bytes_come(cut: int):
    async with serving(Echo, url=ANY) as target:
        peer = await target.peer()
        data = connect()
        await peer.send(data[:cut])
        await trio.testing.wait_all_tasks_blocked(0.001)
        await peer.send(data[cut:])
        assert (await peer.completion()).status == 0


async def test_a_listener_of_one_dialect_takes_no_other():
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.send(wire.connect_control())
        assert await peer.ended()
    async with serving(Echo, url=ANY + "?dialect=v5") as target:
        peer = await target.peer()
        await peer.send(connect())
        assert await peer.ended()


def test_the_port():
    assert parse_url("vof+tcp://host/it?dialect=v0").port == 15771


# -- CONNECT ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 0xFFFF])
@pytest.mark.parametrize("ident", [0, 1, 0xFFFF])
async def test_a_session(index: int, ident: int):
    async with serving(Echo) as target:
        control, vq = await target.peer(), await target.peer()
        await control.send(connect(NEW, index, ident))
        got = await control.completion()
        assert got == (0, ident, 0, *target.server.associations)
        await vq.says(connect(got.value, 1, 5), done(5))
        assert await vq.request(b"abc", 3) == (3, b"abc")


async def test_rubbish_where_nothing_is_asked():
    async with serving(Echo) as target:
        control, vq = await target.peer(), await target.peer()
        data = bytearray(connect(body=names(b"me\0" + garbage(99), b"it\0" + garbage(99))))
        for start, stop in ((2, 4), (11, 16), (32, 40), (40 + 512, 40 + 1024)):
            data[start:stop] = garbage(stop - start)
        ident = await control.get(bytes(data))
        data[4:8] = ident.to_bytes(2, "little") + bytes(2)
        await vq.says(bytes(data), done(int.from_bytes(data[2:4], "little")))


async def test_target_ids_are_not_guessed():
    async with serving(Echo) as target:
        idents = [await (await target.peer()).control() for _ in range(24)]
        assert len(set(idents)) == 24
        assert all(ident < NEW for ident in idents)
        assert max(idents) > 255
        assert sorted(idents) != idents


REFUSED = {
    "another carrier": (connect(ident=9, oftype=1), EPROTO),
    "short body": (connect(ident=9, body=bytes(17)), EPROTO),
    "long body": (connect(ident=9, body=names() + bytes(999)), EPROTO),
    "no body": (connect(ident=9, body=b""), EPROTO),
    "unknown device": (connect(ident=9, body=names(tvqn=b"other")), ENODEV),
    "no name": (connect(ident=9, body=names(tvqn=b"")), ENODEV),
    "a longer name": (connect(ident=9, body=names(tvqn=b"it2")), ENODEV),
    "no such session": (connect(0x1234, 0, 9), ENODEV),
}


@pytest.mark.parametrize(("data", "code"), REFUSED.values(), ids=REFUSED)
async def test_a_refused_connect_and_another(data: bytes, code: int):
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.says(data, done(9, 0, code))
        await peer.says(data, done(9, 0, code))
        await peer.control()


async def test_a_name_without_an_end_is_none():
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.says(connect(ident=9, body=names(tvqn=b"x" * 256)), done(9, 0, ENODEV))
        await peer.says(connect(ident=9, body=names(ivqn=b"x" * 256)), done(9, 0, EPROTO))
        await peer.control()


async def test_names_to_be_written_are_none():
    """The descriptor comes back, and the connection goes on."""
    async with serving(Echo) as target:
        peer = await target.peer()
        await peer.send(connect(ident=9, flags=WRITE, body=b"", length=1024))
        head, (desc,), (data,) = await peer.used()
        assert head == (ENODEV, 9, 1, 0)
        assert (desc.ident, desc.flags, data) == (0, WRITE, bytes(desc.length))
        await peer.control()


JOINS = {
    "another initiator": ({"body": names(b"you")}, 0, EPROTO),
    "another device": ({"body": names(tvqn=b"other")}, 0, EPROTO),
    "a queue too many": ({}, 2, ECHRNG),
    "the control queue": ({}, 0xFFFF, ECHRNG),
    "a busy queue": ({}, 1, EBUSY),
    "another carrier": ({"oftype": 1}, 0, EPROTO),
}


@pytest.mark.parametrize(("more", "index", "code"), JOINS.values(), ids=JOINS)
async def test_a_refused_virtqueue_and_another(more: dict, index: int, code: int):
    async with serving(Echo) as target:
        control, first, peer = await target.peer(), await target.peer(), await target.peer()
        ident = await control.control()
        await first.join(ident, 1)
        await peer.says(connect(ident, index, 9, **more), done(9, 0, code))
        await peer.join(ident, 0)
        assert await first.request(b"a", 1) == (1, b"a")


async def test_who_may_not_use_the_device():
    async with serving(Echo) as target:
        exports = target.server.exports
        exports["it"] = exports["it"]._replace(allow=())
        peer = await target.peer()
        await peer.says(connect(ident=9), done(9, 0, errno.EACCES))
        exports["it"] = exports["it"]._replace(allow=THIS_MACHINE)
        await peer.control()


async def test_more_sessions_than_there_may_be():
    async with serving(Echo, Limits(associations=2)) as target:
        first, second, third = [await target.peer() for _ in range(3)]
        await first.control()
        await second.control()
        await third.says(connect(ident=3), done(3, 0, EPROTO))
        await first.says(plain(DISCONNECT), done(1))
        assert await first.ended()
        with trio.fail_after(5):
            while len(target.server.associations) > 1:
                await trio.lowlevel.checkpoint()
        await third.control()


@pytest.mark.parametrize("ndesc", [0, 2, 65535])
async def test_connect_has_one_descriptor(ndesc: int):
    async with serving(Echo) as target:
        innocent, peer = await target.peer(), await target.peer()
        await innocent.control()
        await peer.send(connect(ndesc=ndesc))
        assert await peer.ended()
        await innocent.says(plain(KEEPALIVE), done(1))


EVERY_OTHER = (*range(1, 5), *range(4096, 4109), 5, 4095, 4109, 8193, 65535)


@pytest.mark.parametrize("opcode", [*EVERY_OTHER, VRING])
async def test_connect_is_first(opcode: int):
    async with serving(Echo) as target:
        innocent, peer = await target.peer(), await target.peer()
        await innocent.control()
        await peer.send(plain(opcode))
        assert await peer.ended()
        await innocent.says(plain(KEEPALIVE), done(1))


async def test_connect_comes_once():
    async with serving(Echo) as target:
        control, vq = await target.queue()
        ident = next(iter(target.server.associations))
        await vq.send(connect(ident, 1))
        assert await vq.ended()
        with trio.fail_after(5):
            while target.server.associations[ident].queues:
                await trio.lowlevel.checkpoint()
        again = await target.peer()
        await again.join(ident)
        assert await again.request(b"a", 1) == (1, b"a")
        innocent = await target.peer()
        await innocent.control()
        await control.send(connect())
        assert await control.ended()
        assert await again.ended()
        await innocent.says(plain(KEEPALIVE), done(1))


# -- commands -----------------------------------------------------------------------------------

VALUES = {
    "vendor": (plain(GET_VENDOR_ID, 0xEFFF), 0x666F56),
    "device": (plain(GET_DEVICE_ID, 0, garbage(12)), 42),
    "generation": (plain(GET_GENERATION, 3, garbage(12)), 0),
    "status": (plain(GET_STATUS, 4, garbage(12)), 0),
    "features": (feature(GET_DEVICE_FEATURE, 5, 0, 7), ((1 << 64) - 1) ^ 0x3FE_FF000000),
    "queues": (plain(GET_NUM_QUEUES, 6, garbage(12)), 2),
    "a queue's size": (queue(GET_QUEUE_SIZE, 7, 0), 64),
    "an odd size is rounded down": (queue(GET_QUEUE_SIZE, 8, 1), 64),
    "one byte": (config(GET_CONFIG, 9, 15, 1), 16),
    "two odd bytes": (config(GET_CONFIG, 9, 3, 2), 0x0504),
    "four bytes": (config(GET_CONFIG, 9, 12, 4), 0x100F0E0D),
    "eight bytes": (config(GET_CONFIG, 9, 1, 8, 99), 0x0908070605040302),
    "segments": (feature(GET_FEATURE, 10, 0, 1), 1024),
}
INVALID = {
    "features 64 on": (feature(GET_DEVICE_FEATURE, 5, 1), EINVAL),
    "features much later": (feature(GET_DEVICE_FEATURE, 5, 0xFFFFFFFF), EINVAL),
    "no queue": (queue(GET_QUEUE_SIZE, 6, 2), ECHRNG),
    "no such queue at all": (queue(GET_QUEUE_SIZE, 6, 0xFFFF), ECHRNG),
    "no bytes": (config(GET_CONFIG, 7, 0, 0), EINVAL),
    "three bytes": (config(GET_CONFIG, 7, 0, 3), EINVAL),
    "all too many bytes": (config(GET_CONFIG, 7, 0, 255), EINVAL),
    "over the end": (config(GET_CONFIG, 7, 9, 8), EINVAL),
    "behind the end": (config(GET_CONFIG, 7, 0xFFFF, 1), EINVAL),
    "a feature that is none": (feature(GET_FEATURE, 8, 1), EINVAL),
}


@pytest.mark.parametrize("virtqueue", [False, True], ids=["control", "virtqueue"])
@pytest.mark.parametrize(("data", "value"), VALUES.values(), ids=VALUES)
async def test_a_value(data: bytes, value: int, virtqueue: bool):
    async with serving(Model) as target:
        peer = (await target.queue())[virtqueue]
        await peer.says(data * 2, done(int.from_bytes(data[2:4], "little"), value) * 2)


@pytest.mark.parametrize("virtqueue", [False, True], ids=["control", "virtqueue"])
@pytest.mark.parametrize(("data", "code"), INVALID.values(), ids=INVALID)
async def test_a_value_that_is_none(data: bytes, code: int, virtqueue: bool):
    async with serving(Model) as target:
        peer = (await target.queue())[virtqueue]
        ident = int.from_bytes(data[2:4], "little")
        await peer.says(data + plain(GET_DEVICE_ID), done(ident, 0, code) + done(1, 42))


async def test_a_device_without_configuration():
    async with serving(Echo) as target:
        control, _ = await target.queue()
        await control.says(config(GET_CONFIG, 4, 0, 1), done(4, 0, EINVAL))
        await control.says(config(SET_CONFIG, 4, 0, 1), done(4, 0, EINVAL))


@pytest.mark.parametrize("opcode", [5, 4095, 4109, 8191, 8193, 65535])
async def test_an_unknown_command(opcode: int):
    async with serving(Echo) as target:
        for peer in await target.queue():
            await peer.says(plain(opcode, 0xABCD, garbage(12)), done(0xABCD, 0, EOPNOTSUPP))
            await peer.says(plain(GET_DEVICE_ID), done(1, 42))


async def test_what_sets_something_is_for_the_control_queue():
    async with serving(Echo) as target:
        _, vq = await target.queue()
        for opcode in (SET_FEATURE, SET_STATUS, SET_DRIVER_FEATURE, SET_QUEUE_SIZE, SET_CONFIG):
            await vq.says(plain(opcode, 8), done(8, 0, EOPNOTSUPP))
        assert await vq.request(b"a", 1) == (1, b"a")


SETS = {
    "keepalive": (plain(KEEPALIVE, 3, garbage(12)), 0),
    "few segments": (feature(SET_FEATURE, 3, 0, 128), 0),
    "all segments": (feature(SET_FEATURE, 3, 0, 1024), 0),
    "too many segments": (feature(SET_FEATURE, 3, 0, 1025), EINVAL),
    "far too many segments": (feature(SET_FEATURE, 3, 0, (1 << 64) - 1), EINVAL),
    "a feature that is none": (feature(SET_FEATURE, 3, 1, 1), EINVAL),
    "driver features": (feature(SET_DRIVER_FEATURE, 3, 0, 1 << 32 | 1), 0),
    "no driver features": (feature(SET_DRIVER_FEATURE, 3), 0),
    "a ring's feature": (feature(SET_DRIVER_FEATURE, 3, 0, 1 << 28), EINVAL),
    "a packed ring": (feature(SET_DRIVER_FEATURE, 3, 0, 1 << 34), EINVAL),
    "late features": (feature(SET_DRIVER_FEATURE, 3, 1, 1), EINVAL),
    "no late features": (feature(SET_DRIVER_FEATURE, 3, 1), EINVAL),
    "a size": (queue(SET_QUEUE_SIZE, 3, 0, 32), 0),
    "the size that it has": (queue(SET_QUEUE_SIZE, 3, 1, 64), 0),
    "too large a size": (queue(SET_QUEUE_SIZE, 3, 0, 128), EINVAL),
    "an odd size": (queue(SET_QUEUE_SIZE, 3, 0, 48), EINVAL),
    "no size": (queue(SET_QUEUE_SIZE, 3, 0, 0), EINVAL),
    "a huge size": (queue(SET_QUEUE_SIZE, 3, 0, 1 << 63), EINVAL),
    "no queue": (queue(SET_QUEUE_SIZE, 3, 2, 32), ECHRNG),
    "configuration": (config(SET_CONFIG, 3, 0, 4, 0x01020304), 0),
    "fixed configuration": (config(SET_CONFIG, 3, 8, 4), EINVAL),
    "over the end": (config(SET_CONFIG, 3, 15, 2), EINVAL),
    "three bytes": (config(SET_CONFIG, 3, 0, 3), EINVAL),
    "the status": (status(3, 1), 0),
    "a status out of order": (status(3, 15), EINVAL),
    "a status with more bits": (status(3, 0x101), EINVAL),
}


@pytest.mark.parametrize(("data", "code"), SETS.values(), ids=SETS)
async def test_a_setting(data: bytes, code: int):
    async with serving(Model) as target:
        control = await target.peer()
        await control.control()
        await control.says(data + plain(GET_DEVICE_ID), done(3, 0, code) + done(1, 42))


async def test_configuration_that_is_written_stands():
    async with serving(Model) as target:
        control, _ = await target.queue()
        await control.says(config(SET_CONFIG, 3, 2, 2, 0xFFFF_FFFF_FFFF_BBAA), done(3))
        await control.says(config(GET_CONFIG, 4, 0, 8), done(4, 0x08070605_BBAA_0201))
        assert await control.get(plain(GET_GENERATION)) == 0


async def test_the_size_of_a_queue():
    async with serving(Model) as target:
        control = await target.peer()
        ident = await control.control()
        await control.says(queue(SET_QUEUE_SIZE, 3, 0, 16), done(3))
        await control.says(queue(GET_QUEUE_SIZE, 4, 0), done(4, 16))
        await (await target.peer()).join(ident)
        await control.says(queue(SET_QUEUE_SIZE, 5, 0, 32), done(5, 0, EINVAL))
        await control.says(queue(SET_QUEUE_SIZE, 6, 1, 32), done(6))


def test_every_command_is_tried():
    tried = {int.from_bytes(data[:2], "little") for data, _ in (VALUES | INVALID | SETS).values()}
    tried |= {CONNECT, DISCONNECT, GET_CONFIG_CHANGED, VRING}
    assert tried == {*range(5), *range(4096, 4109), VRING}
    assert Desc(1, 2, 3, 4, 5).pack()[20:] == bytes(4)
