# SPDX-License-Identifier: BSD-3-Clause
"""Backings: how they open, what they say when they cannot; and the watch for their size."""

import errno
import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from vof.errors import ConfigError
from vof.target.devices import FileBacking, MemoryBacking, watch
from vof.target.devices.libc import in_memory
from vof.target.devices.watch import PAUSE


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    return path


def test_file(path):
    disk = FileBacking(path)
    assert (disk.size, disk.limit, disk.read_only) == (4096, 4096, False)
    disk.write((b"", b"ab", b"", b"c"), 4)
    view = bytearray(5)
    disk.read((memoryview(view),), 3)
    assert view == b"\0abc\0"
    disk.close()
    disk.close()


def test_many_pieces(path):
    disk = FileBacking(path)
    pieces = [bytes([n % 251]) for n in range(3000)]
    disk.write(pieces, 0)
    views = [bytearray(1) for _ in range(3000)]
    disk.read(views, 0)
    assert b"".join(views) == b"".join(pieces)
    disk.close()


def test_an_open_file_is_not_inherited(path):
    disk = FileBacking(path)
    assert not os.get_inheritable(disk.fd)
    disk.close()


def test_read_only(path):
    disk = FileBacking(path, read_only=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.write((b"x",), 0)
    disk.close()


def test_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"disk: does not exist; create it") as caught:
        FileBacking(tmp_path / "disk")
    assert caught.value.path == str(tmp_path / "disk")


@pytest.mark.parametrize("what", ["/", "/dev/null"])
def test_not_a_disk(what):
    with pytest.raises(ConfigError, match=f"^{what}: is neither a regular file nor a block device"):
        FileBacking(what)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "permission denied; export it read-only"),
        (errno.EROFS, "read-only file system"),
        (errno.EBUSY, "is in use"),
        (errno.ENFILE, "cannot be opened: Too many open files in system"),
    ],
)
def test_what_to_do(path, monkeypatch, number, advice):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(ConfigError, match=advice):
            FileBacking(path)


@pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 70])
def test_memory_of_no_possible_size(size):
    with pytest.raises(ConfigError, match="memory: a disk of"):
        MemoryBacking(size)


def test_memory():
    disk = MemoryBacking(1 << 40)
    assert disk.size == 1 << 40
    assert os.fstat(disk.fd).st_blocks == 0
    disk.close()


def test_which_file_never_blocks():
    disk, node = MemoryBacking(512), os.open("/dev/null", os.O_RDONLY)
    assert disk.read_flags == disk.write_flags == 0
    assert in_memory(disk.fd)
    assert not in_memory(node)  # though /dev itself is in memory
    os.close(node)
    disk.close()


class Counted(FileBacking):
    """Knows how often its size was looked at."""

    looks = 0

    def refresh(self):
        super().refresh()
        self.looks += 1


async def until(condition):
    with trio.fail_after(10):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_watch(path, nursery):
    disk = FileBacking(path)
    sizes = []
    disk.subscribe(lambda: sizes.append(disk.size))
    nursery.start_soon(watch, disk)
    await wait_all_tasks_blocked()
    os.truncate(path, 8192)
    await until(lambda: sizes == [8192])
    path.unlink()  # it is the file that is watched, not the name
    with trio.fail_after(10):
        os.ftruncate(disk.fd, 1000)
        await until(lambda: sizes == [8192, 1000])
    nursery.cancel_scope.cancel()


def test_watch_is_quiet(path):
    async def main():
        disk = Counted(path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, disk)
            await wait_all_tasks_blocked()
            armed = disk.looks
            for _ in range(3):
                os.pwrite(disk.fd, b"x", 0)
                await until(lambda: disk.looks == armed + 1)  # noqa: B023
                for _ in range(10):  # within the pause nothing is noticed ...
                    os.pwrite(disk.fd, b"x", 0)
                os.ftruncate(disk.fd, disk.size + 512)
                await wait_all_tasks_blocked(0.01)
                assert disk.looks == armed + 1
                size = disk.size
                clock.jump(PAUSE)  # ... but after it, with no further event
                await until(lambda: disk.looks == armed + 2)  # noqa: B023
                assert disk.size == size + 512
                armed = disk.looks
            clock.jump(1000)
            await wait_all_tasks_blocked(0.01)
            assert disk.looks == armed
            nursery.cancel_scope.cancel()
        disk.close()

    clock = MockClock()
    trio.run(main, clock=clock)


async def test_watch_of_what_cannot_be_watched(path, caplog):
    disk = FileBacking(path)
    disk.close()
    await watch(disk)
    assert "a change of size will not be noticed" in caplog.text
