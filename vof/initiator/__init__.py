# SPDX-License-Identifier: BSD-3-Clause
"""The initiator: drives remote devices. ``connect`` first."""

from vof.initiator.connect import connect
from vof.initiator.fabric import FabricDevice
from vof.initiator.requests import RequestQueue

__all__ = ["FabricDevice", "RequestQueue", "connect"]
