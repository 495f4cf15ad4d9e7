# SPDX-License-Identifier: BSD-3-Clause
"""The virtio abstraction: both views of a device, both views of a queue. Pure: no I/O."""

from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.model import Chain, DeviceModel, DeviceQueue
from vof.virtio.virtqueue import Virtqueue

__all__ = ["Chain", "DeviceModel", "DeviceQueue", "VirtioDevice", "Virtqueue", "VirtqueueInfo"]
