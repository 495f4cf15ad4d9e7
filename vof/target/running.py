# SPDX-License-Identifier: BSD-3-Clause
"""What a daemon serves at the moment, and how one device or listener comes or goes."""

import logging
from collections.abc import Iterable, Mapping, Sequence

import trio

from vof.errors import InvalidArgument
from vof.target.bridges.backend import Backend
from vof.target.config import Device
from vof.target.devices import FileBacking, watch
from vof.target.exports import Opened, close_all
from vof.target.server import Server
from vof.transport import Listener, Url

log = logging.getLogger("vof.target")


class Entry:
    """A device that is served, or that is leaving.

    Attributes:
        device: as configured.
        opened: for the server.
        draining: it is leaving.
        scope: cancelled to end what the daemon itself does for it.
    """

    def __init__(self, device: Device, opened: Opened) -> None:
        self.device = device
        self.opened = opened
        self.draining = False
        self.scope = trio.CancelScope()

    async def watch(self) -> None:
        """Notice changes from outside, until ``scope`` is cancelled."""
        backing = self.opened.backing
        if isinstance(backing, FileBacking):
            with self.scope:
                await watch(backing)


class Running:
    """The devices and listeners of a server, as the configuration names them.

    Attributes:
        server: which serves them.
        entries: those that are leaving included.
        listeners: by the URL that was configured; empty where the service manager listens.
        inherited: the service manager listens.
        backends: for programs behind devices; outlives the server.
    """

    def __init__(
        self,
        server: Server,
        nursery: trio.Nursery,
        backends: trio.Nursery,
        devices: Iterable[tuple[Device, Opened]],
        listeners: Mapping[Url, Sequence[Listener]],
        inherited: bool = False,
    ) -> None:
        """Take over what the server serves already.

        Args:
            server: runs.
            nursery: lives as long as it does.
            backends: for programs behind devices; outlives it.
            devices: that it serves.
            listeners: that it has.
            inherited: see above.
        """
        self.backends = backends
        self.server = server
        self.entries: list[Entry] = []
        self.listeners = dict(listeners)
        self.inherited = inherited
        self._nursery = nursery
        for device, opened in devices:
            self._note(device, opened)

    @property
    def served(self) -> dict[str, Entry]:
        """Those that are not leaving, by their tvqn."""
        return {one.device.tvqn: one for one in self.entries if not one.draining}

    def _note(self, device: Device, opened: Opened) -> None:
        entry = Entry(device, opened)
        self.entries.append(entry)
        self._nursery.start_soon(entry.watch)

    def add(self, device: Device, opened: Opened) -> None:
        """Serve one more device, which is closed at the end."""
        self._note(device, opened)
        self.server.add(opened.export)

    def allow(self, device: Device) -> None:
        """Let those use a served device whom ``device``, which is the same but for that, names."""
        self.served[device.tvqn].device = device
        self.server.allow(device.tvqn, device.allow)
        log.info("%s: allowed to %s", device.tvqn, ", ".join(map(str, device.allow)) or "nobody")

    async def remove(self, tvqn: str, seconds: float) -> bool:
        """Drain a device, serve it no more and close what is behind it. Suspends.

        Returns:
            Whether all requests in flight ended in ``seconds``; those that did not are cut.

        Raises:
            InvalidArgument: no such device is served.
        """
        entry = self.served.get(tvqn)
        if entry is None:
            known = ", ".join(self.served) or "none"
            raise InvalidArgument(f"no device {tvqn!r} is served; there are: {known}")
        entry.draining = True
        log.info("%s: draining", tvqn)
        in_time = await self.server.remove(tvqn, seconds)
        entry.scope.cancel()
        self.entries.remove(entry)
        close_all([entry.opened])
        if isinstance(entry.opened.backing, Backend):
            await entry.opened.backing.gone.wait()
        log.info("%s: removed%s", tvqn, "" if in_time else "; requests in flight were cut")
        return in_time

    def listen(self, url: Url, listeners: Sequence[Listener]) -> None:
        """Accept connections on the listeners of one more URL."""
        self.listeners[url] = listeners
        for listener in listeners:
            self.server.listen(listener)

    def unlisten(self, url: Url) -> None:
        """Accept connections there no more."""
        for listener in self.listeners.pop(url):
            self.server.unlisten(listener)

    def close(self) -> None:
        """Close what is behind the devices; nothing serves them any more."""
        close_all(entry.opened for entry in self.entries)
