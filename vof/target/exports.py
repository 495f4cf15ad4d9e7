# SPDX-License-Identifier: BSD-3-Clause
"""From configured devices to exports: opens what is behind them, makes models on demand."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import trio

from vof.errors import ConfigError
from vof.target.bridges.backend import Backend
from vof.target.config import Device
from vof.target.devices import (
    BlkModel,
    ConsoleModel,
    FileBacking,
    Link,
    MemoryBacking,
    NetModel,
    Port,
    PtyPort,
    RngModel,
    SocketLink,
    SocketPort,
    TapLink,
    links,
    ports,
)
from vof.target.load import maker
from vof.target.server import Export
from vof.virtio.model import DeviceModel
from vof.virtio.net import parse_mac, station


class Backing(Protocol):
    """What stands behind a device and is shared by its models."""

    def close(self) -> None:
        """Let go of it; nothing may use it any more. Idempotent."""


class Opened(NamedTuple):
    """A device that is ready to be served.

    Attributes:
        export: for the server.
        backing: what is behind it (a disk, a link, a port), or None.
    """

    export: Export
    backing: Backing | None


class Made(NamedTuple):
    """What a factory makes.

    Attributes:
        make: returns a fresh model for one initiator.
        backing: what is behind all of them, or None.
        read_only: like ``make``, for an initiator that may not write; None where that means
            nothing. See ``config.READ_ONLY``.
    """

    make: Callable[[], DeviceModel]
    backing: Backing | None = None
    read_only: Callable[[], DeviceModel] | None = None


def _disk(backing: FileBacking, values: Mapping[str, Any]) -> Made:
    """Return a maker of block devices over a backing, and the backing."""
    make = partial(
        BlkModel,
        backing,
        queues=values["queues"],
        queue_size=values["queue_size"],
        size_max=values["request_max"],
        blk_size=values["block_size"],
        serial=values["serial"].encode(),
    )
    return Made(make, backing, partial(make, read_only=True))


def _blk(values: Mapping[str, Any]) -> Made:
    return _disk(FileBacking(values["path"], read_only=values["read_only"]), values)


def _mem(values: Mapping[str, Any]) -> Made:
    return _disk(MemoryBacking(values["size"]), values)


def _rng(values: Mapping[str, Any]) -> Made:
    return Made(partial(RngModel, values["queue_size"]))


def _link(values: Mapping[str, Any]) -> Link | None:
    if values["tap"]:
        return TapLink(values["tap"])
    return SocketLink(values["socket"], values["peer"]) if values["socket"] else None


def _net(values: Mapping[str, Any]) -> Made:
    link = _link(values)
    mac = parse_mac(values["mac"]) if values["mac"] else station(values["tvqn"])
    make = partial(NetModel, link, mac=mac, mtu=values["mtu"], queue_size=values["queue_size"])
    return Made(make, link)


def _console(values: Mapping[str, Any]) -> Made:
    cols, rows = values["cols"], values["rows"]
    port: Port
    port = PtyPort(values["pty"], cols, rows) if values["pty"] else SocketPort(values["socket"])
    make = partial(ConsoleModel, port, cols=cols, rows=rows, queue_size=values["queue_size"])
    return Made(make, port)


def _vhost_user(values: Mapping[str, Any]) -> Made:
    backend = Backend(values["tvqn"], values)
    return Made(backend.make, backend)


def _model(values: Mapping[str, Any]) -> Made:
    return Made(maker(values["class"], values["python_path"], values["options"]))


FACTORIES: dict[str, Callable[[Mapping[str, Any]], Made]] = {
    "blk": _blk,
    "mem": _mem,
    "rng": _rng,
    "net": _net,
    "console": _console,
    "model": _model,
    "vhost-user": _vhost_user,
}
"""How each type of ``config.DEVICES`` is opened, by its values and its ``tvqn``."""


def _probe_disk(values: Mapping[str, Any]) -> None:
    path, read_only = values["path"], values["read_only"]
    FileBacking(path, read_only=True).close()
    if not read_only and not os.access(path, os.W_OK):
        raise ConfigError(path, "", "may not be written; export it read-only")


def _probe_net(values: Mapping[str, Any]) -> None:
    links.probe(values["tap"], values["socket"])


def _probe_console(values: Mapping[str, Any]) -> None:
    ports.probe(values["pty"] or values["socket"])


def _probe_vhost_user(values: Mapping[str, Any]) -> None:
    command = values["command"]
    if command and shutil.which(command[0]) is None:
        raise ConfigError(command[0], "", "no such program")


PROBES: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "blk": _probe_disk,
    "net": _probe_net,
    "console": _probe_console,
    "model": _model,
    "vhost-user": _probe_vhost_user,
}
"""How it is seen whether a device could be opened, for the types that may fail."""


def open_device(device: Device) -> Opened:
    """Open one device. Raises ConfigError."""
    made = FACTORIES[device.type]({**device.values, "tvqn": device.tvqn})
    return Opened(Export(device.tvqn, made.make, device.allow, made.read_only), made.backing)


async def start(opened: Iterable[Opened], nursery: trio.Nursery) -> None:
    """Start what is a program of its own behind the devices; it ends when they are closed.

    Raises:
        ConfigError: one cannot be started; all are to be closed.
    """
    for one in opened:
        if isinstance(one.backing, Backend):
            await nursery.start(one.backing.run)


def probe(devices: Iterable[Device]) -> None:
    """See whether the devices could be opened, and change nothing. Raises ConfigError."""
    for device in devices:
        if device.type in PROBES:
            PROBES[device.type](device.values)


def open_all(devices: Iterable[Device]) -> list[Opened]:
    """Open all, or none. Raises ConfigError."""
    opened: list[Opened] = []
    try:
        for device in devices:
            opened.append(open_device(device))  # noqa: PERF401 - what was opened is closed below
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(opened: Iterable[Opened]) -> None:
    """Close what is behind the devices."""
    for one in opened:
        if one.backing is not None:
            one.backing.close()
