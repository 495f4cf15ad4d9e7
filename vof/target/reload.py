# SPDX-License-Identifier: BSD-3-Clause
"""From what runs to what is configured now, by the difference.

A new configuration is read and checked whole, its new devices are opened and its new listeners
listen, before anything changes: a wrong one changes nothing. Then what is the same is not touched:
a device of the same tvqn, type and values keeps its connections, and every listener that stays
keeps its socket. What is gone is drained; what changed is drained, and served anew. Where others
may use a device than before, those that may not any more are cut off at once.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import trio

from vof.errors import ConfigError
from vof.target.config import Config, Device
from vof.target.exports import Opened, close_all, open_device, probe, start
from vof.target.running import Running
from vof.transport import Listener, Url, listen, polling

log = logging.getLogger("vof.target")


class Difference(NamedTuple):
    """What is to be done.

    Attributes:
        added: devices that are new.
        changed: devices that are served with another type or other values.
        removed: tvqns of devices that are configured no more.
        listen: URLs that are new.
        unlisten: URLs that are configured no more.
        allowed: devices of which nothing changed but who may use them.
    """

    added: tuple[Device, ...]
    changed: tuple[Device, ...]
    removed: tuple[str, ...]
    listen: tuple[Url, ...]
    unlisten: tuple[Url, ...]
    allowed: tuple[Device, ...] = ()


def difference(
    devices: Mapping[str, Device], listening: Collection[Url], config: Config
) -> Difference:
    """Return what leads from devices, by tvqn, and URLs to a configuration. Pure."""
    wanted = {device.tvqn for device in config.devices}
    return Difference(
        added=tuple(one for one in config.devices if one.tvqn not in devices),
        changed=tuple(
            one
            for one in config.devices
            if one.tvqn in devices and not same(one, devices[one.tvqn])
        ),
        removed=tuple(tvqn for tvqn in devices if tvqn not in wanted),
        listen=tuple(url for url in config.listen if url not in listening),
        unlisten=tuple(url for url in listening if url not in config.listen),
        allowed=tuple(
            one
            for one in config.devices
            if one.tvqn in devices
            and same(one, devices[one.tvqn])
            and one.allow != devices[one.tvqn].allow
        ),
    )


def same(one: Device, other: Device) -> bool:
    """Return whether two devices are one, wherever they stand, and whoever may use them."""
    return (one.type, one.tvqn, one.values) == (other.type, other.tvqn, other.values)


class _Ready(NamedTuple):
    """What is open and not served yet."""

    opened: dict[str, Opened]
    listeners: dict[Url, Sequence[Listener]]

    def close(self) -> None:
        close_all(self.opened.values())
        for listeners in self.listeners.values():
            for listener in listeners:
                listener.close()


async def reload(running: Running, config: Config) -> dict[str, Collection[str]]:
    """Make what runs be what is configured. Suspends until what leaves is drained.

    Returns:
        What was done: tvqns that were ``added``, ``changed``, ``removed``, or are ``unchanged``,
        and of the last those that are ``allowed`` to others than before;
        URLs in ``listening`` and ``closed``; names of ``limits`` that changed; tvqns of devices
        whose requests in flight were ``cut``; and in ``failed``, by tvqn, why a changed device
        could not be opened again, so that it is served as before, or not at all.

    Raises:
        ConfigError: nothing has changed.
    """
    served = {tvqn: entry.device for tvqn, entry in running.served.items()}
    todo = difference(served, running.listeners, config)
    if running.inherited:
        todo = todo._replace(listen=(), unlisten=())
    ready = await _prepare(todo, running.backends)
    server, before = running.server, running.server.limits
    server.limits = config.limits
    polling.configure(config.poll_us)
    for device in todo.allowed:
        running.allow(device)
    for url in todo.unlisten:
        running.unlisten(url)
    for device in todo.added:
        running.add(device, ready.opened[device.tvqn])
    for url, listeners in ready.listeners.items():
        running.listen(url, listeners)
    cut: list[str] = []
    failed: dict[str, str] = {}
    seconds = config.limits.drain_seconds

    async def remove(tvqn: str) -> None:
        if not await running.remove(tvqn, seconds):
            cut.append(tvqn)

    async def replace(device: Device) -> None:
        await remove(device.tvqn)
        for candidate in (device, served[device.tvqn]):
            try:
                opened = ready.opened.pop(device.tvqn, None) or open_device(candidate)
                await start([opened], running.backends)
            except ConfigError as error:
                log.error("%s: %s", candidate.tvqn, error)
                failed.setdefault(candidate.tvqn, str(error))
            else:
                running.add(candidate, opened)
                return

    async with trio.open_nursery() as nursery:
        for tvqn in todo.removed:
            nursery.start_soon(remove, tvqn)
        for device in todo.changed:
            nursery.start_soon(replace, device)
    changed = [device.tvqn for device in todo.changed]
    return {
        "added": [device.tvqn for device in todo.added],
        "changed": changed,
        "removed": list(todo.removed),
        "unchanged": [tvqn for tvqn in served if tvqn not in (*changed, *todo.removed)],
        "allowed": [device.tvqn for device in todo.allowed],
        "listening": [str(url) for url in todo.listen],
        "closed": [str(url) for url in todo.unlisten],
        "limits": [
            field.name
            for field in dataclasses.fields(before)
            if getattr(before, field.name) != getattr(config.limits, field.name)
        ],
        "cut": cut,
        "failed": failed,
    }


async def _prepare(todo: Difference, backends: trio.Nursery) -> _Ready:
    """Open what is new and look at what changed. Raises ConfigError; nothing is open then.

    What a changed device uses may be in use by itself, as it still is. Then it is opened when that
    is closed.
    """
    ready = _Ready({}, {})
    try:
        for device in todo.added:
            ready.opened[device.tvqn] = opened = open_device(device)
            await start([opened], backends)
        for device in todo.changed:
            try:
                ready.opened[device.tvqn] = open_device(device)
            except ConfigError:
                probe((device,))
        for url in todo.listen:
            try:
                ready.listeners[url] = await listen(url)
            except (OSError, UnicodeError) as error:
                raise ConfigError(str(url), "", f"cannot listen: {error}") from None
    except BaseException:
        ready.close()
        raise
    return ready
