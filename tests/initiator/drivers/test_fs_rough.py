# SPDX-License-Identifier: BSD-3-Clause
"""The file system driver: tasks that are cancelled, queues that break, and devices that lie."""

import errno
import os
import random
import stat

import pytest
import trio
import trio.testing

from tests.fuse import FuseModel
from tests.initiator.drivers.mount import LONGEST_S, MAKE, mounted, settle
from vof.errors import (
    ConnectionLost,
    QueueBroken,
    RemoteProtocolError,
)
from vof.initiator.drivers import Fs
from vof.initiator.drivers.pieces import PIECES
from vof.virtio import fs as form

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
