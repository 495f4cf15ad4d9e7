# SPDX-License-Identifier: BSD-3-Clause
"""Ends in every order: what one side, the listener or the device leaves, and that nothing stays."""

import errno
import os
import sys
from pathlib import Path

import pytest
import trio

import vof
from tests.lab.rdma.test_pair import HOSTS, IWARP, LIMIT, AtStep
from tests.models import Echo
from tests.wire_keyed import serving
from vof.errors import ConnectionLost
from vof.initiator.requests import RequestQueue
from vof.transport import connect, listen, parse_url
from vof.transport.verbs import Device
from vof.virtio.device import VirtqueueInfo

ROOT = Path(__file__).parents[3]
SPARE = "10.0.9.1"
SHOW = ("rdma", "resource", "show")
LONG = 2 * LIMIT


async def run(*words: str) -> str:
    with trio.fail_after(LONG):
        done = await trio.run_process(words, capture_stdout=True, capture_stderr=True)
    return done.stdout.decode()


async def device_comes(name: str, address: str = SPARE) -> None:
    """A device on an interface of its own, both with this name."""
    await run("ip", "link", "add", name, "type", "dummy")
    await run("ip", "address", "add", f"{address}/24", "dev", name)
    await run("ip", "link", "set", name, "up")
    await run("rdma", "link", "add", f"{name}rxe", "type", "rxe", "netdev", name)


async def device_goes(name: str) -> None:
    """Begin to remove it, which ends when nobody has anything of it: with this process at last."""
    words = f"rdma link delete {name}rxe; ip link delete {name}"
    await run("sh", "-c", f"({words}) > /dev/null 2>&1 &")


async def talk(device, begun: trio.Event) -> None:
    await device.initialize(0)
    [vq] = await device.find_vqs([VirtqueueInfo("q")])
    await device.ready()
    requests = RequestQueue(vq)
    while True:
        answer = device.pool.alloc(9000)
        assert await requests.request([bytes(9000), answer], 1, 1) == 9000
        begun.set()


async def connects(url: str) -> None:
    """Connect as soon as somebody listens there."""
    with trio.fail_after(LONG):
        while True:
            try:
                async with vof.connect(url) as device:
                    assert device.device_id == Echo.device_id
                    return
            except ConnectionLost:
                await trio.sleep(0.1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may remove a device")
async def test_a_device_that_is_removed_under_load_and_another_that_comes():
    """Connections end, on both sides, with all they had; their address is listened on again.

    librdmacm keeps its own context of a device until it meets another, and so does the kernel.
    """
    ended: list[str] = []

    async def use(url: str, begun: trio.Event) -> None:
        with pytest.raises(ConnectionLost) as caught:
            async with vof.connect(url) as device:
                await talk(device, begun)
        ended.append(str(caught.value))

    await device_comes("spare1")
    async with serving(Echo, url=f"vof+rdma://{SPARE}:0") as target:
        [everywhere] = await listen(parse_url("vof+rdma://0.0.0.0:0"))
        target.server.listen(everywhere)
        urls = [f"vof+rdma://{SPARE}:{port}/it" for port in (target.url.port, everywhere.url.port)]
        with trio.fail_after(LONG):
            async with trio.open_nursery() as users:
                for url in urls:
                    begun = trio.Event()
                    users.start_soon(use, url, begun)
                    await begun.wait()
                await device_goes("spare1")
            while target.server.connections:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert len(ended) == 2
        assert all("being removed" in text for text in ended)
        await run("ip", "address", "delete", f"{SPARE}/24", "dev", "spare1")
        await device_comes("spare2")
        for url in urls:
            await connects(url)
    with trio.fail_after(LONG):
        while "spare1rxe" in (shown := await run(*SHOW)):  # noqa: ASYNC110
            await trio.sleep(0.05)
    assert "spare2rxe: pd 1 cq 1 qp 1 cm_id 0 mr 0" in shown  # the kernel's own
    await device_goes("spare2")


async def test_a_listener_closed_while_somebody_connects(flat):
    """At each step of who connects: an error or a connection that ends, and nothing stays."""
    number = reached = 0
    while number == reached:
        number += 1
        [listener] = await listen(parse_url(f"vof+rdma://{HOSTS[0]}:0"))
        scope = trio.CancelScope()
        instrument = AtStep(scope, number)

        async def accept(listener=listener, scope=scope) -> None:
            with scope:
                while True:
                    (await listener.accept()).close()
            listener.close()

        async def dial(listener=listener) -> None:
            try:
                (await connect(listener.url)).close()
            except OSError as error:
                assert error.errno in (errno.ECONNABORTED, errno.ECONNREFUSED)  # noqa: PT017

        trio.lowlevel.add_instrument(instrument)
        try:
            with trio.fail_after(LONG):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(accept)
                    async with trio.open_nursery() as dialling:
                        dialling.start_soon(dial)
                    reached += instrument.left <= 0
                    nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(instrument)
        listener.close()
    assert number > 4


DIAL = """
import sys, trio
from vof.transport import connect, parse_url
trio.run(connect, parse_url(sys.argv[1]))
"""


async def test_a_peer_killed_before_it_is_accepted(flat):
    """It asked for a connection, and is gone when that is given."""
    [listener] = await listen(parse_url(f"vof+rdma://{HOSTS[0]}:0"))
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", DIAL, str(listener.url)], cwd=ROOT
    )
    try:
        with trio.fail_after(LONG):  # a program starts slowly there
            while not listener._receive.statistics().current_buffer_used:  # noqa: ASYNC110
                await trio.sleep(0.05)
    finally:
        process.kill()
        await process.wait()
    with trio.move_on_after(2):  # it may be passed over
        connection = await listener.accept()
        connection.close()
    listener.close()


@pytest.mark.skipif(IWARP, reason="iWARP settles it below the connection manager")
@pytest.mark.parametrize("answers", [0, 1])
async def test_how_many_reads_a_peer_answers_at_a_time(flat, monkeypatch, answers: int):
    """No more are asked of it; one that answers none is of no use, and refused."""
    init = Device.__init__

    def begin(self, *args) -> None:
        init(self, *args)
        self.answers = answers

    monkeypatch.setattr(Device, "__init__", begin)
    async with serving(Echo, url=f"vof+rdma://{HOSTS[0]}:0") as target:
        if not answers:
            with pytest.raises(ConnectionRefusedError):
                await connect(target.url)
            return
        async with vof.connect(str(target.url)) as device:
            await device.initialize(0)
            [vq] = await device.find_vqs([VirtqueueInfo("q", None, 8)])
            await device.ready()
            assert {one._pair.reads for one in target.server.connections} == {1}
            requests = RequestQueue(vq)

            async def ask(size: int) -> None:
                answer = device.pool.alloc(size)
                assert await requests.request([os.urandom(size), answer], 1, 1) == size

            with trio.fail_after(LONG):
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(ask, 20_000)
