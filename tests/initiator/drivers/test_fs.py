# SPDX-License-Identifier: BSD-3-Clause
"""The file system driver over a real target, with a directory behind it."""

import errno
import os
import random
import stat

import pytest

from tests.initiator.drivers.mount import MAKE, PIECE, mounted
from vof.errors import (
    InvalidArgument,
    NotSupported,
)
from vof.initiator.drivers import Fs, Rng
from vof.initiator.drivers.fuse import PIECE as MOST
from vof.virtio import fs as form

# -- what is there ------------------------------------------------------------------------------


async def test_what_it_is(model):
    async with mounted(model, queues=9) as fs:
        assert (fs.tag, fs.num_queues, fs.version) == ("shared", 2, "7.31")
        assert fs.max_transfer == MOST
        room = await fs.statfs()
        assert room.frsize == os.statvfs(model.directory).f_frsize
        assert room.namelen == 255
    assert model.seen[0] == "INIT"
    assert model.seen[-1] == "DESTROY"


async def test_directories(model, tree):
    async with mounted(model) as fs:
        for path in ("", "/", "a", "/a/b/", "./a//b/."):
            assert sorted(await fs.listdir(path)) == sorted(os.listdir(tree / path.strip("/")))
        entries = {entry.name: entry.type for entry in await fs.scandir()}
        assert (entries[b"a"], entries[b"empty"]) == (4, 8)


async def test_a_directory_in_many_parts(model, tree):
    names = {f"{number:0200d}" for number in range(1000)}
    (tree / "many").mkdir()
    for name in names:
        (tree / "many" / name).touch()
    async with mounted(model) as fs:
        assert set(await fs.listdir("many")) == names
    assert model.seen.count("READDIR") > 3


async def test_a_directory_without_end_is_given_up(model, monkeypatch):
    monkeypatch.setattr("vof.initiator.drivers.fs.MOST_ENTRIES", 1000)
    one = form.Dirent(b"again", 1, 8, 1).pack()
    model.READDIR = lambda *_: one * 100
    async with mounted(model) as fs:
        with pytest.raises(NotSupported, match="more than 1000"):
            await fs.listdir()


@pytest.mark.parametrize("path", ["", "a", "a/b/file", "empty", "down", "pipe", "round"])
async def test_stat(model, tree, path):
    async with mounted(model) as fs:
        found, wanted = await fs.stat(path), os.lstat(tree / path)
    for name in ("ino", "size", "mode", "nlink", "uid", "gid"):
        assert getattr(found, name) == getattr(wanted, f"st_{name}")
    assert found.mtime * 10**9 + found.mtimensec == wanted.st_mtime_ns


# -- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [None, 2, 256])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 40 * 4096, 300_001])
async def test_data_goes_and_comes_back(model, tree, pages, size):
    if pages is None:
        model.init["flags"] = 0  # it does not tell
    else:
        model.init["max_pages"] = pages
    data = random.Random(size).randbytes(size)
    async with mounted(model, queues=2) as fs:
        assert fs.max_transfer == min((pages or 32) * 4096, MOST)
        await fs.write("new", data)
        assert (tree / "new").read_bytes() == data
        assert await fs.read("new") == data
        assert await fs.read("new", size // 2) == data[size // 2 :]
        assert await fs.read("new", size // 3, 1000) == data[size // 3 :][:1000]
        assert await fs.read("new", 0, size + 5) == data
        assert await fs.read("new", size + 7, 5) == b""
        async with await fs.open("new") as file:
            assert (
                b"".join([bytes(part) async for part in file.stream(3, size // 2)])
                == (data[3:][: size // 2])
            )


@pytest.mark.parametrize("size", [0, 4095, 4096, 20_000, 5 << 20])
async def test_no_more_room_is_offered_than_a_file_needs(model, tree, size):
    read, rooms = model.READ, []
    model.READ = lambda node, fields, _: rooms.append(fields[2]) or read(node, fields, _)
    (tree / "file").write_bytes(bytes(size))
    async with mounted(model) as fs:
        assert len(await fs.read("file")) == size
    assert sum(rooms) <= size + 2 * 4096 + 2


async def test_a_file_that_grew_since_it_was_opened(model, tree):
    async with mounted(model) as fs, await fs.open("empty") as file:
        (tree / "empty").write_bytes(bytes(50_000))
        assert sum([len(part) async for part in file.stream()]) == 50_000


async def test_read_into_and_write_within(model, tree):
    async with mounted(model) as fs:
        async with await fs.open("a/b/file", "r+") as file:
            buffer = bytearray(b"." * 10)
            assert await file.read_into(2, buffer) == 5
            assert buffer == b"ntent....."
            mine = bytearray(b"XY")
            await file.write(1, mine)
            await file.write(20, memoryview(b"end"))
            await file.sync()
            assert (await file.stat()).size == 23
            await file.truncate(21)
        assert (tree / "a/b/file").read_bytes() == b"cXYtent" + bytes(13) + b"e"
        await fs.truncate("a/b/file", 2)
        assert (tree / "a/b/file").read_bytes() == b"cX"


async def test_short_answers_are_asked_again(model):
    read, write = model.READ, model.WRITE
    model.READ = lambda node, fields, _: read(node, (*fields[:2], min(fields[2], 10)), _)
    model.WRITE = lambda node, fields, data: write(node, (*fields[:2], len(data[:10])), data[:10])
    data = os.urandom(95)
    async with mounted(model) as fs:
        await fs.write("new", data)
        assert await fs.read("new") == data


async def test_modes(model, tree):
    async with mounted(model) as fs:
        for mode in ("r", "r+"):
            with pytest.raises(FileNotFoundError) as caught:
                await fs.open("new", mode)
            assert caught.value.filename == "new"
        for mode in ("x", "x+"):
            async with await fs.open(mode, mode, 0o600) as file:
                await file.write(0, mode.encode())
            with pytest.raises(FileExistsError):
                await fs.open(mode, mode)
            assert (tree / mode).read_text() == mode
            assert stat.S_IMODE((tree / mode).stat().st_mode) == 0o600
        for mode in ("w", "w+"):
            (tree / "old").write_bytes(b"old content")
            async with await fs.open("old", mode) as file:
                await file.write(0, b"new")
            assert (tree / "old").read_bytes() == b"new"
        with pytest.raises(InvalidArgument, match="mode 'a' is none of r, r"):
            await fs.open("new", "a")


async def test_closed_is_closed(model):
    async with mounted(model) as fs:
        file = await fs.open("empty")
        file.close()
        file.close()
        with pytest.raises(InvalidArgument, match="closed"):
            await file.read(0, 1)
        async with await fs.open("empty") as file:
            for offset, length in ((-1, 1), (0, -1), (1 << 63, 0)):
                with pytest.raises(InvalidArgument, match="bytes at"):
                    await file.read(offset, length)


@pytest.mark.parametrize(("name", "code"), [("FLUSH", errno.ENOSPC), ("FSYNC", errno.EIO)])
async def test_errors_that_come_late_are_told(model, name, code):
    async def write(fs):
        async with await fs.open("empty", "w") as file:
            await file.write(0, b"x")
            await file.sync()

    async with mounted(model) as fs:
        model.refuse = {name: errno.ENOSYS}
        await write(fs)
        model.refuse = {name: code}
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
            await write(fs)
        assert caught.value.errno == code


# -- names --------------------------------------------------------------------------------------


async def test_making_moving_and_removing(model, tree):
    async with mounted(model) as fs:
        await fs.mkdir("d", 0o700)
        assert stat.S_IMODE((tree / "d").stat().st_mode) == 0o700
        await fs.create("d/one")
        with pytest.raises(FileExistsError):
            await fs.create("d/one")
        with pytest.raises(FileExistsError):
            await fs.mkdir("d")
        await fs.rename("d/one", "a/two")
        assert (tree / "a" / "two").exists()
        with pytest.raises(OSError, match="not empty"):
            await fs.rmdir("a")
        with pytest.raises(NotADirectoryError):
            await fs.rmdir("a/two")
        await fs.remove("a/two")
        await fs.rmdir("d")
        assert not (tree / "d").exists()
        await fs.remove("down")  # the link, not what it leads to
        assert (tree / "a" / "b").exists()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("gone", FileNotFoundError),
        ("gone/more", FileNotFoundError),
        ("empty/more", NotADirectoryError),
        ("a", IsADirectoryError),
        ("", IsADirectoryError),
    ],
)
async def test_what_cannot_be_read(model, path, error):
    async with mounted(model) as fs:
        with pytest.raises(error) as caught:
            await fs.read(path)
        assert caught.value.filename == path


async def test_only_files_are_opened(model):
    async with mounted(model) as fs:
        for path, code in (("pipe", errno.ENXIO), ("up", errno.ELOOP), ("down/file", errno.ELOOP)):
            for mode in ("r", "w"):
                with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
                    await fs.open(path, mode)
                assert caught.value.errno == code
        with pytest.raises(NotADirectoryError):
            await fs.listdir("empty")
        with pytest.raises(NotADirectoryError):
            await fs.create("empty/x")
        for call in (fs.mkdir, fs.remove, fs.rmdir, fs.create):
            with pytest.raises(OSError, match="busy"):
                await call("/")


@pytest.mark.parametrize("path", ["..", "a/../b", "/..", "a\0b", "n" * 1025])
async def test_what_is_no_path(model, path):
    async with mounted(model) as fs:
        for call in (fs.stat, fs.listdir, fs.read, fs.mkdir, fs.remove):
            with pytest.raises(InvalidArgument):
                await call(path)
    assert "LOOKUP" not in model.seen


async def test_names_may_be_any_bytes(model, tree):
    name = b"\xff\n \xc3"
    async with mounted(model) as fs:
        await fs.create(os.fsdecode(name))
        assert os.fsdecode(name) in await fs.listdir()
        await fs.remove(os.fsdecode(name))
    assert name not in os.listdir(os.fsencode(tree))


async def test_links_are_followed_where_one_wants_that(model, tree):
    async with mounted(model, follow=True) as fs:
        assert await fs.read("down/file") == b"content"
        assert await fs.read("up") == b"content"
        assert await fs.listdir("absolute/b") == ["file"]
        assert (await fs.stat("down")).kind == "directory"
        assert await fs.readlink("down") == "a/b"
        await fs.create("down/new")
        assert (tree / "a" / "b" / "new").exists()
        with pytest.raises(OSError, match="symbolic links"):
            await fs.stat("round")
        with pytest.raises(FileNotFoundError):
            await fs.stat("nowhere")
        with pytest.raises(OSError, match="Invalid"):
            await fs.readlink("empty")


# -- the beginning --------------------------------------------------------------------------------


@pytest.mark.parametrize(("major", "minor"), [(6, 99), (7, 30), (8, 0)])
async def test_another_version(model, major, minor):
    model.init |= {"major": major, "minor": minor}
    async with MAKE(model) as device:
        with pytest.raises(NotSupported, match=rf"FUSE {major}\.{minor}"):
            async with Fs(device):
                pytest.fail("it has begun")


async def test_a_newer_minor_version_is_spoken_as_ours(model):
    model.init["minor"] = 40
    async with mounted(model) as fs:
        assert fs.version == "7.31"


@pytest.mark.parametrize(("most", "pages", "piece"), [(0, 256, 4096), (1 << 31, 9999, MOST)])
async def test_sizes_are_kept_sensible(model, most, pages, piece):
    model.init |= {"max_write": most, "max_pages": pages}
    async with mounted(model) as fs:
        assert fs.max_transfer == piece


async def test_it_begins_anew(model):
    async with mounted(model) as fs:
        await fs.stat("a")
    async with mounted(model) as fs:
        await fs.stat("a")


async def test_what_it_does_not_drive(model):
    async with MAKE(model) as device:
        with pytest.raises(InvalidArgument, match="0 queues"):
            Fs(device, queues=0)
        with pytest.raises(InvalidArgument, match="no entropy device"):
            Rng(device)
