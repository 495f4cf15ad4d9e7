# SPDX-License-Identifier: BSD-3-Clause
"""Entropy device model (virtio 1.2, 5.4): the operating system's random source."""

import os
from collections.abc import Sequence

from vof.virtio.constants import VIRTIO_ID_RNG
from vof.virtio.model import Chain, DeviceModel, DeviceQueue

MAX_BYTES = 16 * 1024
"""How much one buffer gets: a driver must be content with less than it asked for."""


class RngModel(DeviceModel):
    """A source of random bytes; nothing is shared. Answers inline, in order."""

    device_id = VIRTIO_ID_RNG

    def __init__(self, queue_size: int = 16) -> None:
        super().__init__()
        self.queue_sizes = (queue_size,)

    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """See ``DeviceModel.serve``. A longer buffer gets its first MAX_BYTES bytes."""
        while True:
            self._fill(await queue.receive(), queue)
            queue.flush()

    def _fill(self, chains: Sequence[Chain], queue: DeviceQueue) -> None:
        for chain in chains:
            written = 0
            for view in chain.writable:
                size = min(len(view), MAX_BYTES - written)
                view[:size] = os.urandom(size)
                written += size
            queue.push(chain, written)
