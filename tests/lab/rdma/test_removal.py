# SPDX-License-Identifier: BSD-3-Clause
"""An RDMA device is removed while two processes use it, of which the target has another."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import vof
from tests.lab.rdma.forked import Process, load, program
from tests.lab.rdma.test_ends import device_comes
from tests.lab.rdma.test_ends import run as command
from tests.lab.rdma.test_processes import KIB, LIMIT, verify
from vof.initiator.drivers import Blk

ADDRESS = "10.0.8.1"


def pinned(process: Process) -> int:
    """Return how many KiB of a process are pinned: what it has registered."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmPin:\s*(\d+) kB", status)[1])


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110 - the kernel tells nobody
            await trio.sleep(0.05)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may remove a device")
async def test_both_sides_let_go_and_the_other_device_goes_on(run, address: str):
    await device_comes("spare3", ADDRESS)
    both = [word for at in (address, ADDRESS) for word in ("--listen", f"vof+rdma://{at}:0")]
    words = ("--allow", "*@any", "--admin", "none", "--mem", "16M,tvqn=disk,queues=2")
    target = run(program, "target", *both, *words)
    kept, lost = target.line(), target.line()
    async with vof.connect(kept) as device, Blk(device) as disk:
        await verify(disk, 4 * KIB, 4, 1)
        before = pinned(target)
        initiator = run(load, lost)
        assert await trio.to_thread.run_sync(initiator.line) == "loading"
        assert pinned(initiator) > 0
        assert pinned(target) > before
        await command("sh", "-c", "rdma link delete spare3rxe > /dev/null 2>&1 &")
        why = await trio.to_thread.run_sync(initiator.line)  # the target may be quicker
        assert re.search("the RDMA device is being removed|the peer closed it", why), why
        await until(lambda: pinned(initiator) == 0)
        await until(lambda: pinned(target) <= before)
        await verify(disk, 4 * KIB, 4, 1)
        async with vof.connect(kept) as another:
            assert another.device_id == device.device_id
    target.signal()
    assert target.end() == 0
    initiator.signal(signal.SIGKILL)
    await until(lambda: not Path("/sys/class/infiniband/spare3rxe").exists())
    await command("ip", "link", "delete", "spare3")
