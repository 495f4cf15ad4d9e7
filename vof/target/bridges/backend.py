# SPDX-License-Identifier: BSD-3-Clause
"""A local vhost-user device as a target serves it: program, connection, memory and bridge."""

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from time import monotonic
from typing import Any

import trio

from vof.bridge import Bridge
from vof.errors import ConfigError, ConnectionLost, VofError
from vof.memory import Region
from vof.target.bridges.supervise import Supervisor
from vof.target.bridges.vhost_user import SHORTEST_S, Connect, VhostUserDevice, at
from vof.transport.unix import bind
from vof.virtio.constants import DEVICE_NAMES, VIRTIO_ID_FS, VIRTIO_ID_NET, bit
from vof.virtio.fs import FsConfig
from vof.virtio.model import DeviceModel
from vof.virtio.net import (
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
    NetConfig,
    parse_mac,
    station,
)
from vof.virtio.vhost_user import Protocol

log = logging.getLogger("vof.target")

MODE = 0o600
NUMBERS = {name: number for number, name in DEVICE_NAMES.items()}
LEAST_QUEUES = {VIRTIO_ID_NET: 2, VIRTIO_ID_FS: 2}
"""Of types whose backends need not say how many queues they have."""

OWN_FEATURES = {VIRTIO_ID_NET: bit(VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS)}
"""Of the configuration spaces that are made here, for types whose backends have none."""


class Backend:
    """A configured vhost-user device; ``run`` makes it be there.

    Attributes:
        path: of the socket.
        gone: set when ``run`` ended.
    """

    def __init__(self, tvqn: str, values: Mapping[str, Any]) -> None:
        """Take the values of a configured device; see ``config.DEVICES``."""
        self.path: str = values["socket"]
        self._tvqn = tvqn
        self._values = values
        self.gone = trio.Event()
        self._scope = trio.CancelScope()
        self._bridge: Bridge | None = None
        self._device: VhostUserDevice | None = None
        command = values["command"]
        self._supervisor = Supervisor(tvqn, command) if command else None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the program, connect, and serve until ``close``. Suspends.

        Raises:
            ConfigError: it cannot be started or reached in time, or cannot be bridged.
        """
        failed: VofError | None = None
        with self._scope, ExitStack() as stack:
            async with trio.open_nursery() as nursery:
                try:
                    await self._begin(nursery, stack)
                    task_status.started()
                    await trio.sleep_forever()
                except VofError as error:
                    failed = error
                nursery.cancel_scope.cancel()
        self.gone.set()
        if isinstance(failed, ConfigError):
            raise failed
        if failed is not None:
            raise ConfigError(self.path, "", str(failed).removeprefix(f"{self.path}: "))

    async def _begin(self, nursery: trio.Nursery, stack: ExitStack) -> None:
        values = self._values
        connect = self._listen(stack) if values["listen"] else at(self.path)
        if self._supervisor is not None:
            await nursery.start(self._supervisor.run)
        kind = NUMBERS.get(values["device"], values["device"])
        queues = values["queues"] or LEAST_QUEUES.get(kind, 0)
        region = Region(values["memory"])
        device = self._device = VhostUserDevice(
            self.path,
            kind,
            region,
            nursery,
            queues=queues,
            queue_size=values["queue_size"],
            config=self._config(kind, queues),
            own_features=OWN_FEATURES.get(kind, 0),
            connect=connect,
        )
        stack.callback(device.close)
        if self._supervisor is not None:
            device.given_up = self._supervisor.kill
        await self._reach(device)
        self._bridge = await Bridge.open(device, nursery, values["replay"] or None, self._tvqn)

    def _listen(self, stack: ExitStack) -> Connect:
        """Make a socket that the backend connects to."""
        try:
            listener = bind(self.path, MODE)
        except OSError as error:
            raise ConfigError(self.path, "", f"cannot listen: {error.strerror}") from None
        stack.callback(listener.close)
        stack.callback(partial(_unlink, self.path))
        listener.listen(1)
        ours = trio.socket.from_stdlib_socket(listener)

        async def accept() -> socket.socket:
            taken, _ = await ours.accept()
            return socket.socket(fileno=taken.detach())

        return accept

    def _config(self, kind: int, queues: int) -> bytes:
        """Return the configuration space of a type whose backends have none."""
        values = self._values
        if kind == VIRTIO_ID_FS:
            return FsConfig(values["tag"] or self._tvqn, queues - 1).pack()
        if kind == VIRTIO_ID_NET:
            mac = parse_mac(values["mac"]) if values["mac"] else station(self._tvqn)
            return NetConfig(mac, VIRTIO_NET_S_LINK_UP, queues // 2, values["mtu"]).pack()
        return b""

    async def _reach(self, device: VhostUserDevice) -> None:
        """Connect as soon as the backend is there. Raises VofError: it is not, in time."""
        seconds = self._values["start_seconds"]
        deadline = monotonic() + seconds
        error: VofError = ConnectionLost(f"no backend connects to {self.path} in {seconds:g} s")
        with trio.move_on_at(trio.current_time() + seconds):
            while True:
                try:
                    return await device.open()
                except ConnectionLost as lost:
                    error = lost
                    if monotonic() > deadline:
                        break
                    await trio.sleep(SHORTEST_S)
        raise error

    def make(self) -> DeviceModel:
        """Return the device, for one driver. Raises VofError: another has it."""
        assert self._bridge is not None
        return self._bridge.take()

    def facts(self) -> dict[str, object]:
        """Return how it is, for the status."""
        bridge, device, supervisor = self._bridge, self._device, self._supervisor
        assert bridge is not None
        assert device is not None
        lost = bridge.lost_since
        return {
            "state": "connected" if lost is None else "lost",
            "lost_seconds": None if lost is None else monotonic() - lost,
            "losses": bridge.losses,
            "why": bridge.why,
            "rings": "packed" if device.packed else "split",
            "remembers": device.has(Protocol.INFLIGHT_SHMFD),
            "replay": bridge.replay,
            "replayed": bridge.replayed,
            "failed": bridge.failed,
            "pid": supervisor.pid if supervisor else None,
            "restarts": supervisor.restarts if supervisor else 0,
        }

    def close(self) -> None:
        """End it; nobody uses it any more. Idempotent."""
        self._scope.cancel()


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
