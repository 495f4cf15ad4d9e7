# SPDX-License-Identifier: BSD-3-Clause
"""Devices of others through a bridge: a real vhost-user backend, and a target behind a target."""

import random
import subprocess
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

import vof
from vof.bridge import Bridge
from vof.errors import ConnectionLost, InvalidArgument, NotSupported
from vof.initiator.drivers import Blk, Net, Rng
from vof.memory import Region
from vof.target.bridges.vhost_user import VhostUserDevice
from vof.target.devices import BlkModel, MemoryBacking, NetModel, RngModel
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.virtio.constants import VIRTIO_ID_BLOCK

MIB = 1 << 20
SIZE = 16 * MIB


@contextmanager
def backend(require, tmp_path, queues=2):
    """qemu-storage-daemon with a vhost-user-blk export; yields socket and image."""
    program = require("qemu-storage-daemon", "qemu-system-common")
    image, path = tmp_path / "disk.img", tmp_path / "vhost.sock"
    with image.open("wb") as file:
        file.truncate(SIZE)
    export = (
        f"type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={path},"
        f"writable=on,num-queues={queues},logical-block-size=512"
    )
    process = subprocess.Popen(
        [program, "--blockdev", f"driver=file,node-name=f,filename={image}"]
        + ["--blockdev", "driver=raw,node-name=d,file=f", "--export", export],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield str(path), image
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def bridged(path, memory=64 * MIB):
    """The backend at ``path``, connected as soon as it is there."""
    async with trio.open_nursery() as nursery:
        region = Region(memory)
        device = VhostUserDevice(path, VIRTIO_ID_BLOCK, region, nursery)
        with trio.fail_after(60):
            while True:
                try:
                    await device.open()
                    break
                except ConnectionLost:
                    await trio.sleep(0.02)
        yield device, nursery
        device.close()
        nursery.cancel_scope.cancel()
    region.close()


@asynccontextmanager
async def served(make, url="vof+tcp://127.0.0.1:0"):
    """Serve what ``make`` returns; yields the URL."""
    async with trio.open_nursery() as nursery:
        listeners = await listen(parse_url(url))
        await nursery.start(Server({"it": Export("it", make)}).serve, listeners)
        yield str(listeners[0].url.with_tvqn("it"))
        nursery.cancel_scope.cancel()


async def verified(disk, image=None):
    """Write, read back and compare at many places at once."""
    rng = random.Random(1)
    content = bytearray(4 * MIB)
    places = [(at, rng.choice((512, 4096, 65536))) for at in range(0, 4 * MIB, 65536)]

    async def one(at, length):
        content[at : at + length] = data = rng.randbytes(length)
        await disk.write(at, data)
        assert await disk.read(at, length) == data

    async with trio.open_nursery() as nursery:
        for place in places:
            nursery.start_soon(one, *place)
    await disk.flush()
    assert await disk.read(0, 4 * MIB) == content
    if image is not None:
        assert image.read_bytes()[: 4 * MIB] == content


async def test_a_driver_on_a_real_backend(require, tmp_path):
    with backend(require, tmp_path) as (path, image):
        async with bridged(path) as (device, _):
            assert device.num_queues == 2
            for _ in range(2):  # reset, and all over again
                async with Blk(device, queues=2) as disk:
                    assert disk.capacity == SIZE
                    await verified(disk, image)
                    assert await disk.get_id() == "vhost_user_blk"
            with pytest.raises(InvalidArgument):
                await device.get(59, 2)


@pytest.mark.parametrize("dialect", ["v5", "v0"])
async def test_a_real_backend_over_the_fabric(require, tmp_path, dialect):
    with backend(require, tmp_path) as (path, image):
        async with bridged(path) as (device, nursery):
            bridge = await Bridge.open(device, nursery)
            async with served(lambda: bridge) as url:
                for _ in range(2):  # one initiator after the other
                    async with vof.connect(f"{url}?dialect={dialect}") as remote:
                        async with Blk(remote, queues=2) as disk:
                            assert disk.capacity == SIZE
                            await verified(disk, image)
                            await disk.write_zeroes(0, MIB)
                            assert not any(await disk.read(0, MIB))


@pytest.mark.parametrize(("near", "far"), [("v5", "v0"), ("v0", "v5")])
async def test_a_target_behind_a_target(near, far):
    backing = MemoryBacking(SIZE)
    async with served(lambda: BlkModel(backing, queues=2)) as behind:
        async with vof.connect(f"{behind}?dialect={far}") as device:
            async with trio.open_nursery() as nursery:
                bridge = await Bridge.open(device, nursery)
                async with served(lambda: bridge, "vof+loopback://front") as url:
                    async with vof.connect(f"{url}?dialect={near}") as remote:
                        async with Blk(remote, queues=2) as disk:
                            await verified(disk)
    backing.close()


async def test_a_control_queue_behind_a_target():
    async with served(NetModel) as behind, vof.connect(behind) as device:
        async with trio.open_nursery() as nursery:
            bridge = await Bridge.open(device, nursery)
            async with served(lambda: bridge, "vof+loopback://front") as url:
                async with vof.connect(url) as remote, Net(remote) as net:
                    await net.set_mac(mac := b"\2there")
                    await net.set_promiscuous(False)
                    for to in (b"\2other", mac):
                        await net.send(to + bytes(54))
                    assert await net.receive() == mac + bytes(54)


async def test_what_fills_from_the_front_brings_no_more_than_it_says():
    async with served(RngModel) as behind:
        async with vof.connect(behind) as device, trio.open_nursery() as nursery:
            bridge = await Bridge.open(device, nursery)
            async with served(lambda: bridge, "vof+loopback://front") as url:
                async with vof.connect(url) as remote, Rng(remote) as rng:
                    first, second = await rng.read(64), await rng.read(64)
                    assert len(first) == 64
                    assert first != second


async def test_what_cannot_cross_a_fabric_is_refused():
    class Balloon(RngModel):
        device_id = 5

    async with served(Balloon) as url:
        async with vof.connect(url) as device, trio.open_nursery() as nursery:
            with pytest.raises(NotSupported, match="balloon"):
                await Bridge.open(device, nursery)
