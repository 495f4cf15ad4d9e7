# SPDX-License-Identifier: BSD-3-Clause
"""A started file system driver in a test, which leaves nothing behind at the device."""

from contextlib import asynccontextmanager

import trio
import trio.testing

from tests.conformance.fabric import fabric
from vof.initiator.drivers import Fs

MAKE = fabric("vof+loopback://files")
PIECE = 8192
LONGEST_S = 20


@asynccontextmanager
async def mounted(model, **options):
    """A started driver; when it ends, the device has back what it gave."""
    model.left = None
    with trio.fail_after(LONGEST_S):
        async with MAKE(model) as device, Fs(device, **options) as fs:
            yield fs
            await settle(fs, model)
            assert model.lookups == {}
            assert model.handles == {}
    assert model.left == ({}, {})


async def settle(fs, model):
    """Have all answers taken, and all that is posted answered."""
    for _ in range(2 * fs.num_queues):
        await fs.statfs()
    while model.lookups or model.handles:
        await fs.statfs()
