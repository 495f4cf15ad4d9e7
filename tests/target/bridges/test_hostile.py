# SPDX-License-Identifier: BSD-3-Clause
"""Backends that break every rule, beside a device that must not notice."""

import gc
import logging
import os
import random
import re
from functools import partial

import pytest
import trio

import vof
from tests.target.bridges.rig import MIB, Process, serving, verified
from tests.vhost_backend.misbehave import FAILING, HARMLESS, REFUSED
from vof.bridge import Bridge
from vof.errors import VofError
from vof.initiator.drivers import Blk
from vof.memory import Region
from vof.target.bridges import session
from vof.target.bridges.vhost_user import VhostUserDevice
from vof.target.devices import BlkModel, MemoryBacking
from vof.target.server import Export
from vof.virtio.constants import VIRTIO_ID_BLOCK

ROWS = [*REFUSED, *FAILING, *HARMLESS]
LIES = ["other_id", "free_id", "length", "longer", "twice_used", "ahead", "no_end", "everywhere"]
"""Of these, what depends on how rings lie in memory."""
CASES = [("split", row) for row in ROWS] + [("packed", row) for row in LIES]
SILENT = "hang", "half", "stuck_kick"
"""Of these, whom one must not wait for long."""
SAYS = {
    "hang:SET_FEATURES": "the backend did not answer SET_FEATURES in 0.3 s",
    "close:SET_STATUS": "the backend closed the connection",
    "refuse:ADD_MEM_REG": "the backend refuses ADD_MEM_REG",
    "version:ADD_MEM_REG": "vhost-user version 2, not 1",
    "twice:ADD_MEM_REG": "message 37, which nobody asked for",
    "inflight:4096:0:none": "an answer to GET_INFLIGHT_FD without a descriptor",
    "other_id": "as used, which is not in flight",
    "free_id": "as used, which is not in flight",
    "length": "a used length of 4294967295",
    "error": "the backend says that the ring is wrong",
    "die": "the backend closed the connection",
}
"""What some of them are told in the log."""
LONGEST_S = 2
"""Between two answers to the innocent, on a busy machine."""
SURE_S, VAIN_S = 10, 0.15
"""Before an initiator gives up: where it is sure to end before, and where it may wait in vain."""
ENDING = "other_id", "free_id", "length", "error"
"""Rows after which a device needs a reset at once."""
REST_S = 0.005
"""Between two requests of the innocent, who shares the CPU with the backend."""
MOST_LOSSES = 10
"""Of a backend that comes back only to leave again."""
MOST_BYTES = 64 * MIB
"""More anonymous memory than before."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """From rings and a row to the socket of a backend that does it."""
    paths, processes = {}, []
    for rings, rows, words in ("split", ROWS, []), ("packed", LIES, ["--packed"]):
        words += [word for row in rows for word in ("--misbehave", row)]
        processes.append(Process(tmp_path_factory.mktemp("b"), *words, name="s"))
        paths |= {(rings, row): f"{processes[-1].path}.{n}" for n, row in enumerate(rows)}
    try:
        for process in processes:
            process.ready()
        yield paths
    finally:
        for process in processes:
            process.end()


@pytest.fixture
def patience(monkeypatch, row):
    """How long a backend has for an answer: little, where it will not give one."""
    seconds = 10.0
    if row.startswith(SILENT):
        seconds = 0.1 if row in REFUSED else 0.3
    monkeypatch.setattr(session, "Frontend", partial(session.Frontend, timeout=seconds))


@pytest.fixture
def said():
    """What is logged, as text: a record would hold an exception, and all that this holds."""
    lines, make = [], logging.getLogRecordFactory()

    def plain(*args, **more):
        record = make(*args, **more)
        record.msg, record.args = record.getMessage(), ()
        if record.exc_info:
            record.msg += "\n" + logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        lines.append(record.msg)
        return record

    logging.setLogRecordFactory(plain)
    yield lines
    logging.setLogRecordFactory(make)


def account():
    """Open descriptors, and bytes of anonymous memory."""
    gc.collect()
    with open("/proc/self/status") as file:
        (found,) = re.findall(r"RssAnon:\s+(\d+) kB", file.read())
    return len(os.listdir("/proc/self/fd")), int(found) << 10


class Innocent:
    """An initiator of another device of the same server, and how long it had to wait at most."""

    def __init__(self):
        self.slowest = 0
        self.once_more = trio.Event()

    async def work(self, url, task_status=trio.TASK_STATUS_IGNORED):
        rng = random.Random(7)
        async with vof.connect(url) as remote, Blk(remote) as disk:
            task_status.started()
            while True:
                at, data = 512 * rng.randrange(1000), rng.randbytes(4096)
                began = trio.current_time()
                await disk.write(at, data)
                assert await disk.read(at, len(data)) == data
                self.slowest = max(self.slowest, trio.current_time() - began)
                self.once_more.set()
                await trio.sleep(REST_S)


async def uses(url, seconds):
    """Be an initiator of a hostile device; return whether all succeeded."""
    success = False
    try:
        with trio.move_on_after(seconds):
            async with vof.connect(url) as remote, Blk(remote) as disk:
                await verified(disk, MIB // 4)
                success = True
    except* (VofError, AssertionError):
        pass
    return success


async def meets(path, seconds, server, url):
    """Open a hostile device, serve it, use it, remove it: return the outcome."""
    async with trio.open_nursery() as nursery:
        region = Region(16 * MIB)
        device = VhostUserDevice(path, VIRTIO_ID_BLOCK, region, nursery)
        try:
            try:
                await device.open()
            except VofError as error:
                return f"refused: {error}"
            bridge = await Bridge.open(device, nursery)
            server.add(Export("hostile", lambda: bridge))
            success = await uses(url("hostile"), seconds)
            await server.remove("hostile", 0)
            assert bridge.losses <= MOST_LOSSES
            return "harmless" if success else "failing"
        finally:
            device.close()
            region.close()
            nursery.cancel_scope.cancel()


async def beside_an_innocent(path, seconds):
    backing, innocent = MemoryBacking(MIB), Innocent()
    with trio.fail_after(20):
        async with serving(innocent=lambda: BlkModel(backing)) as (server, url):
            async with trio.open_nursery() as nursery:
                await nursery.start(innocent.work, url("innocent"))
                outcome = await meets(path, seconds, server, url)
                innocent.once_more = trio.Event()
                await innocent.once_more.wait()
                nursery.cancel_scope.cancel()
    backing.close()
    assert innocent.slowest < LONGEST_S
    return outcome


@pytest.mark.parametrize(("rings", "row"), CASES)
def test_an_innocent_beside(hostile, patience, said, rings, row):
    before = account()
    path = hostile[rings, row]
    seconds = SURE_S if row in HARMLESS or row in ENDING else VAIN_S * (1 + 3 * (row in SAYS))
    outcome, _, why = trio.run(beside_an_innocent, path, seconds).partition(": ")
    after = account()
    expected = {"refused": REFUSED, "failing": FAILING, "harmless": HARMLESS}[outcome]
    assert row in expected, why
    assert outcome != "refused" or path in why
    assert after[0] == before[0]
    assert after[1] < before[1] + MOST_BYTES
    assert not any("Traceback" in line for line in said), said
    assert row not in SAYS or any(SAYS[row] in line for line in said), said


def test_shared_memory_cannot_be_taken_back(backends):
    backend = backends("--misbehave", "shrink").ready()
    assert trio.run(beside_an_innocent, backend.path, 10) == "harmless"
    assert "sealed" in backend.heard()
    assert "shrunk" not in backend.heard()
