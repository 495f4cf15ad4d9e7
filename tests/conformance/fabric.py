# SPDX-License-Identifier: BSD-3-Clause
"""Both ends of the fabric in one process, as the conformance suite wants it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

import vof
from vof.target.access import ANY, Allow
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.virtio import DeviceModel, VirtioDevice

Make = Callable[[DeviceModel], AbstractAsyncContextManager[VirtioDevice]]


def fabric(url: str, dialect: str = "v5") -> Make:
    """Return a ``make`` that serves the model at ``url`` and connects to it.

    The listener finds out by itself what is spoken.
    """

    @asynccontextmanager
    async def make(model: DeviceModel) -> AsyncIterator[VirtioDevice]:
        async with trio.open_nursery() as nursery:
            listeners = await listen(parse_url(url))
            server = Server({"it": Export("it", lambda: model, (Allow("*", ANY),))})
            await nursery.start(server.serve, listeners)
            there = listeners[0].url._replace(tvqn="it", options=(("dialect", dialect),))
            async with vof.connect(str(there)) as device:
                yield device
            nursery.cancel_scope.cancel()

    return make
