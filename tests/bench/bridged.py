# SPDX-License-Identifier: BSD-3-Clause
"""A target of one local vhost-user block device: ``python -m tests.bench.bridged SOCKET``."""

import signal
import sys

import trio

from vof.bridge import Bridge
from vof.memory import Region
from vof.target.bridges.vhost_user import VhostUserDevice
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.virtio.constants import VIRTIO_ID_BLOCK

MIB = 1 << 20


async def main(path: str, url: str = "vof+tcp://127.0.0.1:0") -> None:
    """Serve until SIGTERM; print the URL when it does."""
    async with trio.open_nursery() as nursery:
        region = Region(64 * MIB)
        device = VhostUserDevice(path, VIRTIO_ID_BLOCK, region, nursery)
        await device.open()
        bridge = await Bridge.open(device, nursery)
        listeners = await listen(parse_url(url))
        await nursery.start(Server({"it": Export("it", lambda: bridge)}).serve, listeners)
        print(listeners[0].url.with_tvqn("it"), flush=True)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                break
        device.close()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
