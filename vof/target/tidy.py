# SPDX-License-Identifier: BSD-3-Clause
"""Memory of queues that became idle goes back, without a wake-up in an idle process."""

import trio

from vof.target.queue import FabricDeviceQueue

PERIOD_S = 1.0


class Tidy:
    """Knows which queues hold memory, and trims those that had nothing to do lately."""

    def __init__(self) -> None:
        self._seen: dict[FabricDeviceQueue, int] = {}
        self._busy = trio.Event()

    def touch(self, queue: FabricDeviceQueue) -> None:
        """Note that a trimmed queue became busy."""
        queue.trimmed = False
        self._seen[queue] = -1
        self._busy.set()

    def forget(self, queue: FabricDeviceQueue) -> None:
        """Note that a queue ended."""
        self._seen.pop(queue, None)

    async def run(self) -> None:
        """Trim for ever; sleeps as long as nothing is busy."""
        while True:
            await self._busy.wait()
            await trio.sleep(PERIOD_S)
            for queue, requests in list(self._seen.items()):
                if queue.requests == requests:
                    queue.trim()
                    del self._seen[queue]
                else:
                    self._seen[queue] = queue.requests
            if not self._seen:
                self._busy = trio.Event()
