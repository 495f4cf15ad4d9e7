# SPDX-License-Identifier: BSD-3-Clause
"""The target: presents device models to initiators over the fabric."""

from vof.target.devices.requests import RequestModel
from vof.target.limits import Limits
from vof.target.server import Export, Server
from vof.virtio.model import DeviceModel

__all__ = ["DeviceModel", "Export", "Limits", "RequestModel", "Server"]
