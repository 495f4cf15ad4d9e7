# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that ask one queue, and devices that keep what they are asked."""

from contextlib import asynccontextmanager

import trio
import trio.testing

from tests.conformance.fabric import fabric
from tests.conformance.memory_device import maker
from tests.models import Hoard
from vof.errors import VofError
from vof.initiator import RequestQueue
from vof.virtio import VirtqueueInfo

LIMIT = 10
settled = trio.testing.wait_all_tasks_blocked


LOOPBACK = fabric("vof+loopback://requests")
MAKES = {"loopback": LOOPBACK, "memory": maker(), "late memory": maker(late=3)}


def opener(make):
    """Return ``opened(model)``, which yields a RequestQueue on the only queue of the model."""

    @asynccontextmanager
    async def opened(model):
        with trio.fail_after(LIMIT):  # nothing in it may hang
            async with make(model) as device:
                await device.initialize(0)
                (vq,) = await device.find_vqs([VirtqueueInfo("requests")])
                await device.ready()
                queue = RequestQueue(vq)
                yield queue
                assert not queue._waiting
                assert not queue._room
                assert not queue._leading

    return opened


def hoard(size=16):
    return Hoard(queue_sizes=(size,))


async def ask(queue, number, results=None):
    """One request, with an answer of its own; ``results`` get how it ended."""
    question, answer = b"%08d" % number, bytearray(12)
    try:
        written = await queue.request([question, answer], 1, 1)
    except VofError as error:
        results[number] = error
        return
    assert written in (0, 12)
    if written:
        assert answer == (question * 2)[:12]
    if results is not None:
        results[number] = written


def asked(model):
    return [int(bytes(chain.readable[0])) for chain in model.chains]


def count_kicks(vq, monkeypatch):
    kicks = []
    notify = vq.notify
    monkeypatch.setattr(vq, "notify", lambda: kicks.append(1) or notify(), raising=False)
    return kicks
