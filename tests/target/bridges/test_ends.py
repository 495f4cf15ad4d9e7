# SPDX-License-Identifier: BSD-3-Clause
"""Backends that end under load, and others that take their place."""

from contextlib import asynccontextmanager, suppress

import pytest
import trio

import vof
from tests.target.bridges.rig import BLOCK, bridged, load, verified
from vof.errors import VofError
from vof.initiator.drivers import Blk
from vof.target.bridges import vhost_user

ENDS = 3


@asynccontextmanager
async def under_load(backend):
    """An initiator works while the body runs; then every block is where it was written."""
    with trio.fail_after(20):
        async with bridged(backend.path) as (bridge, url):
            async with vof.connect(url) as remote, Blk(remote, queues=2) as disk:
                over = trio.Event()
                async with trio.open_nursery() as nursery:
                    written = await nursery.start(load, disk, over)
                    yield bridge
                    over.set()
                await disk.flush()
            content = backend.image.read_bytes()
            assert written
            assert all(content[at : at + BLOCK] == data for at, data in written.items())


def in_thread(call, *args):
    return trio.to_thread.run_sync(call, *args)


async def until(what):
    """Wait for something that nobody tells."""
    while not what():  # noqa: ASYNC110
        await trio.sleep(0.005)


@pytest.mark.parametrize("rings", [[], ["--packed"]], ids=["split", "packed"])
async def test_nothing_is_seen_of_a_backend_that_dies_but_a_pause(backends, rings):
    def words(seed):
        return *rings, "--die-after", str(100 + seed), "--seed", str(seed)

    backend = backends(*words(0)).ready()
    async with under_load(backend) as bridge:
        for turn in range(1, ENDS):
            await in_thread(backend.again, *words(turn))
        await in_thread(backend.again, *rings)
    assert bridge.losses == ENDS
    assert bridge.replayed == bridge.failed == 0
    assert any("resubmits" in line for line in backend.heard())
    assert not any("refused" in line for line in backend.heard())


OTHERS = {
    "forgets": ["--without", "INFLIGHT_SHMFD"],
    "packed": ["--packed"],
    "acknowledges nothing": ["--without", "REPLY_ACK"],
    "one queue less": ["--queues", "2"],
}


@pytest.mark.parametrize("words", OTHERS.values(), ids=OTHERS)
async def test_another_takes_the_place_of_one_that_is_killed(backends, words):
    backend = backends().ready()
    async with under_load(backend) as bridge:
        for turn in range(ENDS):
            requests = bridge.losses
            await in_thread(backend.kill)
            await in_thread(backend.again, *([], words)[turn % 2 == 0])
            await until(lambda before=requests: bridge.losses > before)
            await until(lambda: bridge.lost_since is None)
    assert bridge.losses == ENDS
    assert bridge.failed == 0


SPOILERS = [
    "close:GET_FEATURES",
    "close:SET_INFLIGHT_FD",
    "close:SET_VRING_KICK",
    "value:GET_QUEUE_NUM:0",
]


async def test_those_that_fail_to_take_its_place_do_no_harm(backends, monkeypatch):
    monkeypatch.setattr(vhost_user, "LONGEST_S", 0.05)
    backend = backends().ready()
    async with under_load(backend) as bridge:
        for name in SPOILERS:
            await in_thread(backend.kill)
            await in_thread(backend.again, "--misbehave", name)
            request = name.split(":")[1]
            await until(lambda request=request: request in backend.heard())
        await in_thread(backend.kill)
        await in_thread(backend.again)
    assert bridge.failed == 0


async def test_an_initiator_may_leave_while_there_is_no_backend(backends):
    backend = backends().ready()
    async with bridged(backend.path) as (bridge, url):
        with trio.fail_after(10):
            async with vof.connect(url) as remote, Blk(remote) as disk:
                await disk.write(0, b"\x01" * 512)
                backend.kill()
                with trio.move_on_after(0.05):
                    await disk.read(0, 512)
            await in_thread(backend.again)
            async with vof.connect(url) as remote, Blk(remote) as disk:
                assert await disk.read(0, 512) == b"\x01" * 512
    assert bridge.losses == 1


@pytest.mark.parametrize("rings", [[], ["--packed"]], ids=["split", "packed"])
async def test_who_comes_after_one_that_left_only_noise(backends, rings):
    backend = backends(*rings, "--misbehave", "poison").ready()
    async with bridged(backend.path) as (bridge, url):
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tries, url)
                await in_thread(backend.again, *rings)
                await until(lambda: bridge.lost_since is None)
            async with vof.connect(url) as remote, Blk(remote) as disk:
                await verified(disk)
    assert bridge.losses >= 1


async def tries(url):
    """An initiator whose device is lost."""
    with suppress(VofError):
        async with vof.connect(url) as remote, Blk(remote) as disk:
            await disk.read(0, BLOCK)
