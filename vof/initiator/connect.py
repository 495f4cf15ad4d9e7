# SPDX-License-Identifier: BSD-3-Clause
"""``connect``: from a URL to a device."""

import os
import platform
from types import TracebackType

import trio

from vof.errors import ConfigError
from vof.initiator.fabric import FabricDevice
from vof.protocol import v5
from vof.transport import parse_url

TIMEOUT_S = 10.0
KEEPALIVE_S = 30.0


def default_ivqn() -> str:
    """Return the name that this process goes by: ``$VOF_IVQN``, or ``initiator/HOST/PID``."""
    return os.environ.get("VOF_IVQN") or f"initiator/{platform.node() or 'unknown'}/{os.getpid()}"


class connect:
    """Connect to a device: ``async with vof.connect(url) as device:``.

    Background tasks live until the end of the block; they never raise into it. At the end queues
    are disconnected, the association is ended, and all connections are closed.

    Args:
        url: ``vof+tcp://host[:port]/TVQN`` or another form that ``vof.transport.SCHEMES`` lists.
        ivqn: name of this initiator; by default that of ``default_ivqn``.
        timeout: for a connection, and for the answer to each control command, in seconds.
        keepalive: how long the control queue may be silent before the target is asked for a sign
            of life, in seconds; 0 never asks.

    Raises:
        ConfigError: the URL is not one, or a name is too long.
        ConnectionLost: nobody answers there.
        CommandError: the target refuses; its message says why.
    """

    def __init__(
        self,
        url: str,
        *,
        ivqn: str | None = None,
        timeout: float = TIMEOUT_S,
        keepalive: float = KEEPALIVE_S,
    ) -> None:
        self._url = parse_url(url)
        self._ivqn = default_ivqn() if ivqn is None else ivqn
        self._timeout = timeout
        self._keepalive = keepalive
        for name, value in (("tvqn", self._url.tvqn), ("ivqn", self._ivqn)):
            size = len(value.encode())
            if not 0 < size < v5.VQN_BYTES or "\0" in value:
                raise ConfigError(url, name, f"a name has 1 to {v5.VQN_BYTES - 1} bytes, no NUL")

    async def __aenter__(self) -> FabricDevice:
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        self._nursery = nursery
        try:
            device = FabricDevice(self._url, self._ivqn, self._timeout, self._keepalive, nursery)
            await device.open()
        except BaseException:
            await self._finish()
            raise
        self._device = device
        return device

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._device.close()
        finally:  # also when a driver's callback raises
            await self._finish()

    async def _finish(self) -> None:
        """End the background tasks. The block's own exception passes by unwrapped."""
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(None, None, None)
