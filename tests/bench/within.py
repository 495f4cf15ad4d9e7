# SPDX-License-Identifier: BSD-3-Clause
"""Counts copies where the queue pair is one of software, within this process, which is counted.

It copies each byte once, in place of an adapter, so that is the least. Prints what ``copies`` does.
"""

import json
import os
import sys
from pathlib import Path

import trio

from tests.bench.copies import COUNT, DISK, cases
from vof.target import Export, Server
from vof.target.devices import BlkModel, MemoryBacking
from vof.transport import listen, parse_url

URL = "vof+loopback+keyed://here"


async def main() -> None:
    """Serve a disk in memory, and count."""
    count = Path(os.environ[COUNT])
    backing = MemoryBacking(DISK)
    exports = {"disk": Export("disk", lambda: BlkModel(backing))}
    async with trio.open_nursery() as nursery:
        await nursery.start(Server(exports).serve, await listen(parse_url(URL)))
        found = await cases((count, count), [f"{URL}/disk"])
        nursery.cancel_scope.cancel()
    backing.close()
    json.dump([one._asdict() for one in found], sys.stdout)


trio.run(main)
