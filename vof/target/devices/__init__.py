# SPDX-License-Identifier: BSD-3-Clause
"""The built-in device models, and what is behind them."""

from vof.target.devices.backing import FileBacking, MemoryBacking
from vof.target.devices.blk import BlkModel
from vof.target.devices.console import ConsoleModel
from vof.target.devices.links import Link, SocketLink, TapLink
from vof.target.devices.net import NetModel
from vof.target.devices.ports import Port, PtyPort, SocketPort
from vof.target.devices.requests import RequestModel
from vof.target.devices.rng import RngModel
from vof.target.devices.watch import watch

__all__ = [
    "BlkModel",
    "ConsoleModel",
    "FileBacking",
    "Link",
    "MemoryBacking",
    "NetModel",
    "Port",
    "PtyPort",
    "RequestModel",
    "RngModel",
    "SocketLink",
    "SocketPort",
    "TapLink",
    "watch",
]
