# SPDX-License-Identifier: BSD-3-Clause
"""Storage that fails under a disk: full, broken, shorter. What is answered OK is there; what is
not is answered IOERR; and the target goes on.
"""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack, contextmanager
from functools import partial

import pytest
import trio

import vof
from vof.errors import DeviceError
from vof.initiator.drivers import Blk
from vof.virtio.blk import VIRTIO_BLK_S_IOERR

BLOCK = 64 << 10
ROOM = 1 << 20
SIZE = 8 << 20
VOF = f"{sys.executable} -m vof target --listen vof+tcp://127.0.0.1:0"

TMPFS = f"mount -t tmpfs -o size={ROOM} none $0 && head -c {ROOM // 2} /dev/zero >$0/filler && "
IMAGE = f"truncate -s {SIZE} $0/disk.img && "
FILE = f"exec {VOF} --blk $0/disk.img,tvqn=disk,queues=2"
LOOP = f"losetup -f --show $0/disk.img >$1 && exec {VOF} --blk $(cat $1),tvqn=disk,queues=2"


def cannot(*words):
    """Why a command cannot be run here, or None."""
    if shutil.which(words[0]) is None:
        return f"{words[0]} is missing (Debian package util-linux or mount)"
    done = subprocess.run(words, capture_output=True, text=True)
    return f"{' '.join(words[:2])}: {done.stderr.strip()}" if done.returncode else None


NAMESPACE = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
"""In a mount namespace of its own: nothing stays mounted when the target is gone."""


@contextmanager
def target(script, *words, wrap=()):
    """A target process started by a shell; yields the process, the URL of its disk and its log."""
    process = subprocess.Popen(
        [*wrap, "sh", "-ec", script, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = []
    try:
        url = process.stdout.readline().strip()
        assert url, process.communicate()[1]
        yield process, url, log
        assert process.poll() is None
    finally:
        process.terminate()
        log += process.communicate(timeout=20)[1].splitlines()
    assert process.returncode == 0


@contextmanager
def on_loop(directory):
    """A target of a block device: a loop device over a file that has no room to be written."""
    name = directory / "loop"
    (directory / "room").mkdir()
    try:
        with target(TMPFS + IMAGE + LOOP, directory / "room", name, wrap=NAMESPACE) as given:
            yield given
    finally:
        subprocess.run(["losetup", "-d", name.read_text().strip()], check=True)


def content(number):
    return hashlib.shake_128(b"%d" % number).digest(BLOCK)


async def write(disk, number, good, bad):
    try:
        await disk.write(number * BLOCK, content(number))
    except DeviceError as error:
        bad.append((number, error.status))
    else:
        good.append(number)


async def fill(disk, numbers):
    """Write blocks at once; return those that are there, and those that failed."""
    good, bad = [], []
    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(write, disk, number, good, bad)
    assert {status for _, status in bad} <= {VIRTIO_BLK_S_IOERR}
    return good, [number for number, _ in bad]


async def check(disk, good):
    for number in good:
        assert await disk.read(number * BLOCK, BLOCK) == content(number)


def failures(log, what):
    """How often the log says that something failed; nothing else goes wrong."""
    assert not [line for line in log if "Traceback" in line or "internal" in line]
    return sum(f"{what} failed" in line for line in log)


async def is_full_then_not(url, make_room):
    """Fill a disk that has room for less than it says; then there is more room."""
    with trio.fail_after(30):
        async with vof.connect(url) as device, Blk(device, queues=2) as disk:
            good, bad = await fill(disk, range(SIZE // BLOCK))
            assert good
            assert len(bad) > len(good)
            await check(disk, good)
            await disk.flush()
            await disk.write(good[0] * BLOCK, content(good[0]))  # in its place, there is room
            make_room()
            more, bad = await fill(disk, bad[:4])
            assert (len(more), bad) == (4, [])
            await disk.flush()
            await check(disk, good + more)


async def test_no_space_on_the_file_system(tmp_path):
    if reason := cannot(*NAMESPACE, "mount", "-t", "tmpfs", "none", str(tmp_path)):
        pytest.skip(reason)
    script = TMPFS + IMAGE + FILE
    with target(script, tmp_path, wrap=NAMESPACE) as (process, url, log):
        filler = f"/proc/{process.pid}/root{tmp_path}/filler"
        await is_full_then_not(url, partial(os.unlink, filler))
    assert 1 <= failures(log, "write") <= 3
    assert any("No space left on device" in line for line in log)


async def test_a_limit_on_the_size_of_files(tmp_path):
    with target(IMAGE + FILE, tmp_path) as (process, url, log):
        name = resource.RLIMIT_FSIZE
        resource.prlimit(process.pid, name, (ROOM, resource.RLIM_INFINITY))
        more = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        await is_full_then_not(url, partial(resource.prlimit, process.pid, name, more))
    assert 1 <= failures(log, "write") <= 3
    assert any("File too large" in line for line in log)


async def test_a_device_that_loses_what_it_took(tmp_path):
    """A block device answers writes from its cache, and fails later, when it is flushed."""
    if os.geteuid() or (reason := cannot("losetup", "-f")):
        pytest.skip("loop devices are for root" if os.geteuid() else reason)
    with on_loop(tmp_path) as (_, url, log):
        with trio.fail_after(30):
            async with AsyncExitStack() as stack:
                disks = []
                for _ in range(2):
                    device = await stack.enter_async_context(vof.connect(url))
                    disks.append(await stack.enter_async_context(Blk(device, queues=2)))
                for disk in disks:
                    await disk.flush()
                _, bad = await fill(disks[0], range(SIZE // BLOCK))
                assert not bad
                await disks[1].write(0, content(0))
                for disk in disks:  # the system tells but one of them
                    with pytest.raises(DeviceError) as caught:
                        await disk.flush()
                    assert caught.value.status == VIRTIO_BLK_S_IOERR
                for disk in disks:
                    await disk.write(0, content(0))
                    await check(disk, [0])
                    await disk.flush()
    assert 1 <= failures(log, "flush") <= 3


async def test_a_file_becomes_shorter(tmp_path):
    image = tmp_path / "disk.img"
    with target(IMAGE + FILE, tmp_path) as (_, url, log):
        with trio.fail_after(30):
            async with vof.connect(url) as device, Blk(device, queues=2) as disk:
                good, _ = await fill(disk, range(16))
                os.truncate(image, 4 * BLOCK + 512)
                for number in (4, 5, 100):
                    disk.capacity = SIZE  # whether it was told or not
                    with pytest.raises(DeviceError) as caught:
                        await disk.read(number * BLOCK, BLOCK)
                    assert caught.value.status == VIRTIO_BLK_S_IOERR
                await check(disk, [number for number in good if number < 4])
                os.truncate(image, SIZE)
                while await disk.refresh() != SIZE:
                    await trio.lowlevel.checkpoint()
                assert await disk.read(5 * BLOCK, BLOCK) == bytes(BLOCK)
                good, bad = await fill(disk, range(SIZE // BLOCK))
                assert not bad
                await check(disk, good)
    assert failures(log, "read") <= 2
