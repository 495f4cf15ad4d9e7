# SPDX-License-Identifier: BSD-3-Clause
"""The file system driver over a real target, with a directory behind it."""

import errno
import os
import random
import stat
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.conformance.fabric import fabric
from tests.fuse import FuseModel
from vof.errors import (
    ConnectionLost,
    InvalidArgument,
    NotSupported,
    QueueBroken,
    RemoteProtocolError,
)
from vof.initiator.drivers import Fs, Rng
from vof.initiator.drivers.fuse import PIECE as MOST
from vof.initiator.drivers.pieces import PIECES
from vof.virtio import fs as form

MAKE = fabric("vof+loopback://files")
PIECE = 8192
LONGEST_S = 20


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"content")
    (tmp_path / "empty").touch()
    (tmp_path / "down").symlink_to("a/b")
    (tmp_path / "up").symlink_to("../../a/b/../b/file")
    (tmp_path / "absolute").symlink_to("/a")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "nowhere").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


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


@pytest.fixture
def model(tree):
    model = FuseModel(tree)
    yield model
    model.close()


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


# -- who waits, and who does not ----------------------------------------------------------------


async def test_many_at_once(model, tree):
    contents = {f"file{number}": os.urandom(20_000 + number) for number in range(60)}
    model.init["max_pages"] = 1

    async def work(fs, name):
        await fs.write(name, contents[name])
        assert await fs.read(name) == contents[name]

    async with mounted(model, queues=2) as fs, trio.open_nursery() as nursery:
        for name in contents:
            nursery.start_soon(work, fs, name)
    assert {name: (tree / name).read_bytes() for name in contents} == contents


OPERATION_OF = {
    "LOOKUP": lambda fs: fs.stat("a/b/file"),
    "OPEN": lambda fs: fs.read("empty"),
    "OPENDIR": lambda fs: fs.listdir("a"),
    "READDIR": lambda fs: fs.listdir("a"),
    "CREATE": lambda fs: fs.create("new"),
    "MKDIR": lambda fs: fs.mkdir("new"),
    "READ": lambda fs: fs.read("a/b/file"),
    "WRITE": lambda fs: fs.write("new", b"x"),
    "SETATTR": lambda fs: fs.write("empty", b"x"),
    "FLUSH": lambda fs: fs.write("new", b"x"),
}


@pytest.mark.parametrize("name", OPERATION_OF)
async def test_what_is_cancelled_leaves_nothing_behind(model, name):
    model.late = {name}
    async with mounted(model, queues=2) as fs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(OPERATION_OF[name], fs)
            await model.holds(1)
            nursery.cancel_scope.cancel()
        for _ in range(4):
            await fs.statfs()
        if name != "LOOKUP":  # the device may look at the node that it still has a request for
            assert model.lookups or name in ("OPENDIR", "CREATE", "MKDIR")
        model.late = set()
        while model.held:
            model.let_go()
        await settle(fs, model)


async def test_more_is_cancelled_than_the_queue_holds(tree):
    """Each late answer gives a handle, and the queue is full of what nobody waits for."""
    model = FuseModel(tree, queues=1, queue_size=4)
    model.late = {"OPEN"}
    async with mounted(model) as fs:
        for _ in range(4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fs.open, "empty")
                await model.holds(len(model.held) + 1)
                nursery.cancel_scope.cancel()
        model.late = set()
        with trio.move_on_after(0.01):
            await fs.statfs()
        while model.held:
            model.let_go()
        assert len(model.handles) == 4
        assert await fs.read("a/b/file") == b"content"
        await settle(fs, model)


async def test_a_late_answer_may_be_an_error(model):
    model.late = {"OPEN"}
    async with mounted(model) as fs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.open, "empty")
            await model.holds(1)
            nursery.cancel_scope.cancel()
        model.late, model.refuse = set(), {"OPEN": errno.EIO}
        model.let_go()
        await settle(fs, model)
    assert "RELEASE" not in model.seen


async def test_what_fails_in_one_piece_of_many(model):
    model.init["max_pages"] = 1
    model.refuse = {"WRITE": errno.ENOSPC}
    async with mounted(model) as fs:
        with pytest.raises(OSError, match="No space") as caught:
            await fs.write("new", bytes(1 << 20))
        assert caught.value.filename == "new"
    assert model.seen.count("WRITE") == PIECES


async def test_an_error_in_the_block_ends_it_without_more_ado(model):
    async def fail(device):
        async with Fs(device) as fs:
            await fs.stat("a")
            raise KeyError

    async with MAKE(model) as device:
        with pytest.raises(KeyError):
            await fail(device)
        assert "DESTROY" not in model.seen
        assert not model.alive


async def test_to_close_a_file_comes_upon_late_answers(model):
    async with mounted(model) as fs:
        file = await fs.open("empty")
        model.late = {"OPEN"}
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(fs.open, "a/b/file")
            await model.holds(6)
            nursery.cancel_scope.cancel()
        model.late = set()
        while model.held:
            model.let_go()
        await trio.testing.wait_all_tasks_blocked()
        file.close()
        await trio.testing.wait_all_tasks_blocked()
        assert model.seen.count("RELEASE") > 1, "whoever comes by takes them"
        await settle(fs, model)
        assert model.seen.count("RELEASE") == 7


async def test_a_queue_that_is_broken_takes_nothing_back(model):
    async with MAKE(model) as device, Fs(device, queues=2) as fs:
        file = await fs.open("empty")
        device.break_device(ConnectionLost("cut"))
        with pytest.raises(QueueBroken, match="cut"):
            await file.read(0, 1)
        file.close()
        with pytest.raises(QueueBroken, match="cut"):
            await fs.stat("a")
        assert not fs._fuse._forgets
        assert not fs._fuse._unreleased


@pytest.mark.parametrize("times", [1, 2])
async def test_a_file_that_others_create_and_remove(model, times):
    async with mounted(model) as fs:
        lookup, left = model.LOOKUP, [None] * times

        def gone(node, _, names):
            if left and names == (b"empty",):
                left.pop()
                raise OSError(errno.ENOENT, "not yet")
            return lookup(node, _, names)

        model.LOOKUP = gone
        if times == 1:
            await fs.write("empty", b"x")
        else:
            with pytest.raises(BlockingIOError):
                await fs.write("empty", b"x")


async def test_an_open_file_that_is_cancelled_is_released(model):
    model.late = {"READ"}

    async def read(fs):
        async with await fs.open("a/b/file") as file:
            await file.read(0, 5)

    async with mounted(model) as fs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, fs)
            await model.holds(1)
            nursery.cancel_scope.cancel()
        for _ in range(4):
            await fs.statfs()
        assert "RELEASE" not in model.seen, "the device still reads"
        model.late = set()
        model.let_go()
        await settle(fs, model)
        assert "RELEASE" in model.seen


async def test_random_work_randomly_cancelled(model, tree):
    model.init["max_pages"] = 1

    async def work(fs, number):
        chance, name = random.Random(number), f"file{number}"
        for turn in range(20):
            with trio.move_on_after(chance.random() / 200 if number % 2 else LONGEST_S):
                data = bytes((number,)) * chance.randrange(30_000)
                await fs.write(name, data)
                assert await fs.read(name) == data
                assert name in await fs.listdir()
                await fs.rename(name, f"{name}-{turn}")
                await fs.remove(f"{name}-{turn}")

    async with mounted(model, queues=2) as fs:
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(work, fs, number)
        await settle(fs, model)
    assert not {name for name in os.listdir(tree) if name in {f"file{n}" for n in range(0, 12, 2)}}


async def test_a_device_that_takes_no_forget(model, tree, monkeypatch):
    """What is not taken is kept to a bound."""
    monkeypatch.setattr("vof.initiator.drivers.fuse.MOST_KEPT", 50)
    take, kept = model.take, []
    model.take = lambda index, *rest: take(index, *rest) if index else kept.append(rest)
    for number in range(200):
        (tree / str(number)).touch()
    with trio.fail_after(LONGEST_S):
        async with MAKE(model) as device, Fs(device) as fs:
            for number in range(200):
                await fs.stat(str(number))
            assert len(kept) == 16
            assert len(fs._fuse._forgets) <= 50
            assert len(model.lookups) == 200


# -- a device that does not answer as it must ----------------------------------------------------


def patched(reply, offset, value):
    return reply[:offset] + value + reply[offset + len(value) :]


LIES = {
    "nothing": lambda r: b"",
    "less than a header": lambda r: r[:15],
    "another's number": lambda r: patched(r, 8, b"\xff"),
    "a length beyond the answer": lambda r: patched(r, 0, b"\xff\xff"),
    "a length of 0": lambda r: patched(r, 0, bytes(4)),
    "an error above 0": lambda r: patched(r, 4, b"\2\0\0\0"),
    "an error of no program's": lambda r: patched(r[:16], 0, b"\x10\0\0\0\0\xfe\xff\xff"),
    "an error with an answer": lambda r: patched(r, 4, b"\xfe\xff\xff\xff"),
    "too little": lambda r: patched(r[:-8], 0, (len(r) - 8).to_bytes(4, "little")),
}
FIXED = ["LOOKUP", "OPEN", "SETATTR", "WRITE", "CREATE", "MKDIR", "FLUSH", "OPENDIR"]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", FIXED)
async def test_a_lie(model, name, lie):
    def mangle(op, reply):
        return (
            LIES[lie](reply) if op == name and (len(reply) > 16 or lie != "too little") else reply
        )

    if name == "FLUSH" and lie in ("too little", "an error with an answer"):
        return  # it has no answer but a header
    async with MAKE(model) as device, Fs(device) as fs:
        model.mangle = mangle
        with pytest.raises(RemoteProtocolError):
            await OPERATION_OF[name](fs)
        model.mangle = lambda _, reply: reply
        assert await fs.read("a/b/file") == b"content"


@pytest.mark.parametrize("mode", [0, 0o644, 0o170644])
async def test_no_type_of_file(model, mode):
    offset = 16 + 40 + 60
    async with MAKE(model) as device, Fs(device) as fs:
        model.mangle = lambda op, reply: (
            patched(reply, offset, mode.to_bytes(4, "little")) if op == "LOOKUP" else reply
        )
        with pytest.raises(RemoteProtocolError, match="no type of file"):
            await fs.stat("a")


async def test_the_root_again(model):
    async with MAKE(model) as device, Fs(device) as fs:
        model.mangle = lambda op, reply: patched(reply, 16, bytes((1, *bytes(7))))
        with pytest.raises(RemoteProtocolError, match="root"):
            await fs.stat("a")


async def test_a_name_that_leads_to_nothing_by_itself(model):
    async with MAKE(model) as device, Fs(device) as fs:
        model.LOOKUP = lambda *_: bytes(128)
        with pytest.raises(FileNotFoundError):
            await fs.stat("a")
        with pytest.raises(FileNotFoundError):
            await fs.remove("a")


@pytest.mark.parametrize("data", [b"x", form.Dirent(b"a/b", 1, 8, 1).pack(), bytes(24)])
async def test_no_entries_of_a_directory(model, data):
    async with mounted(model) as fs:
        model.READDIR = lambda *_: data
        with pytest.raises(RemoteProtocolError):
            await fs.listdir()


@pytest.mark.parametrize("target", [b"", b"a\0b"])
async def test_no_target_of_a_link(model, target):
    async with mounted(model) as fs:
        model.READLINK = lambda *_: target
        with pytest.raises(RemoteProtocolError, match="link"):
            await fs.readlink("down")


@pytest.mark.parametrize("written", [0, 2])
async def test_no_number_of_written_bytes(model, written):
    async with mounted(model) as fs:
        model.WRITE = lambda *_: written.to_bytes(8, "little")
        with pytest.raises(RemoteProtocolError, match="bytes written"):
            await fs.write("new", b"x")


async def test_a_device_that_creates_something_else(model):
    create = model.CREATE

    def mode(*words):
        return patched(create(*words), 40 + 60, (stat.S_IFIFO).to_bytes(4, "little"))

    async with MAKE(model) as device, Fs(device) as fs:
        model.CREATE = mode
        with pytest.raises(RemoteProtocolError, match="created no file"):
            await fs.create("new")


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
