# SPDX-License-Identifier: BSD-3-Clause
"""From configured devices to exports: opens what is behind them, makes models on demand."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from vof.errors import ConfigError
from vof.target.config import Device
from vof.target.devices import BlkModel, FileBacking, MemoryBacking, RngModel
from vof.target.server import Export
from vof.virtio.model import DeviceModel


class Opened(NamedTuple):
    """A device that is ready to be served.

    Attributes:
        export: for the server.
        backing: the disk behind it, or None.
    """

    export: Export
    backing: FileBacking | None


def _disk(backing: FileBacking, values: Mapping[str, Any]) -> Callable[[], DeviceModel]:
    """Return a maker of block devices over a backing."""
    return partial(
        BlkModel,
        backing,
        queues=values["queues"],
        queue_size=values["queue_size"],
        size_max=values["request_max"],
        blk_size=values["block_size"],
        serial=str(values["serial"]).encode(),
    )


def open_device(device: Device) -> Opened:
    """Open one device. Raises ConfigError."""
    values = dict(device.values)
    backing: FileBacking | None = None
    make: Callable[[], DeviceModel]
    if device.type == "rng":
        make = partial(RngModel, values["queue_size"])
    elif device.type == "mem":
        backing = MemoryBacking(values["size"])
        make = _disk(backing, values)
    else:
        backing = FileBacking(values["path"], read_only=values["read_only"])
        make = _disk(backing, values)
    try:
        make().close()
    except ValueError as error:
        raise ConfigError(*device.where, str(error)) from None
    return Opened(Export(device.tvqn, make), backing)


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
