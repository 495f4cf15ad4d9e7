# SPDX-License-Identifier: BSD-3-Clause
"""From configured devices to exports: opens what is behind them, makes models on demand."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from vof.errors import ConfigError
from vof.target.config import Device
from vof.target.devices import BlkModel, FileBacking, MemoryBacking, RngModel
from vof.target.server import Export
from vof.virtio.model import DeviceModel


class Backing(Protocol):
    """What stands behind a device and is shared by its models."""

    def close(self) -> None:
        """Let go of it; nothing may use it any more. Idempotent."""


class Opened(NamedTuple):
    """A device that is ready to be served.

    Attributes:
        export: for the server.
        backing: what is behind it (a disk, a link), or None.
    """

    export: Export
    backing: Backing | None


Made = tuple[Callable[[], DeviceModel], Backing | None]


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
    return make, backing


def _blk(values: Mapping[str, Any]) -> Made:
    return _disk(FileBacking(values["path"], read_only=values["read_only"]), values)


def _mem(values: Mapping[str, Any]) -> Made:
    return _disk(MemoryBacking(values["size"]), values)


def _rng(values: Mapping[str, Any]) -> Made:
    return partial(RngModel, values["queue_size"]), None


FACTORIES: dict[str, Callable[[Mapping[str, Any]], Made]] = {
    "blk": _blk,
    "mem": _mem,
    "rng": _rng,
}
"""How each type of ``config.DEVICES`` is opened."""


def open_device(device: Device) -> Opened:
    """Open one device. Raises ConfigError."""
    make, backing = FACTORIES[device.type](device.values)
    return Opened(Export(device.tvqn, make), backing)


def probe(devices: Iterable[Device]) -> None:
    """See whether the devices could be opened, and change nothing. Raises ConfigError."""
    for device in devices:
        if device.type == "blk":
            path, read_only = device.values["path"], device.values["read_only"]
            FileBacking(path, read_only=True).close()
            if not read_only and not os.access(path, os.W_OK):
                raise ConfigError(path, "", "may not be written; export it read-only")


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
