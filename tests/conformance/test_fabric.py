# SPDX-License-Identifier: BSD-3-Clause
"""The fabric virtqueue passes the suite on every stream transport."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

import vof
from vof.conformance import CHECKS, DEVICE_CHECKS
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.virtio import DeviceModel, VirtioDevice

Make = Callable[[DeviceModel], AbstractAsyncContextManager[VirtioDevice]]


def fabric(url: str) -> Make:
    """Return a ``make`` that serves the model at ``url`` and connects to it."""

    @asynccontextmanager
    async def make(model: DeviceModel) -> AsyncIterator[VirtioDevice]:
        async with trio.open_nursery() as nursery:
            listeners = await listen(parse_url(url))
            server = Server({"it": Export("it", lambda: model)})
            await nursery.start(server.serve, listeners)
            async with vof.connect(str(listeners[0].url.with_tvqn("it"))) as device:
                yield device
            nursery.cancel_scope.cancel()

    return make


@pytest.fixture(params=["loopback", "unix", "tcp"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return fabric(
        {
            "loopback": "vof+loopback://conformance",
            "unix": f"vof+unix://{tmp_path}/s",
            "tcp": "vof+tcp://127.0.0.1:0",
        }[request.param]
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_virtqueue(make: Make, check: Callable) -> None:
    await check(make)


@pytest.mark.parametrize("check", DEVICE_CHECKS, ids=lambda check: check.__name__)
async def test_device(make: Make, check: Callable) -> None:
    await check(make)
