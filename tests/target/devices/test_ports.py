# SPDX-License-Identifier: BSD-3-Clause
"""What a console is connected to: a unix socket, a pty; and who comes, leaves, or does not read."""

import os
import random
import resource
import socket
import stat
import termios

import pytest
import trio

from tests.target.devices.terminals import Pty, Socket, full, some
from vof.errors import ConfigError, VofError
from vof.target.devices import PtyPort, SocketPort, ports

KINDS = {"socket": (SocketPort, Socket), "pty": (PtyPort, Pty)}


def fds():
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def port(kind, tmp_path):
    port = kind[0](str(tmp_path / "port"))
    yield port
    port.close()


@pytest.fixture
def attach(kind, port):
    """Return a function that attaches somebody."""
    everybody = []

    def attach():
        everybody.append(kind[1](port.path))
        return everybody[-1]

    yield attach
    for one in everybody:
        one.leave()


async def got(port, count):
    """Read so many bytes from the port."""
    data = b""
    with trio.fail_after(5):
        while len(data) < count:
            space = memoryview(bytearray(1000))
            data += space[: await port.read((space[:0], space[:10], space[10:]))]
    return data


async def write(port, *data):
    with trio.fail_after(5):
        await port.write([memoryview(part) for part in data])


# -- a file ---------------------------------------------------------------------------------------


def test_a_socket_is_ours_alone_and_goes_with_us(tmp_path):
    path = str(tmp_path / "port")
    before = fds()
    for _ in range(2):
        port = SocketPort(path)
        assert os.stat(path).st_mode == stat.S_IFSOCK | 0o600
        port.close()
        port.close()
        assert not os.path.lexists(path)
    assert fds() == before


def test_a_pty_is_raw_ours_alone_and_goes_with_us(tmp_path):
    path = str(tmp_path / "port")
    before = fds()
    port = PtyPort(path, 132, 43)
    assert os.readlink(path) == port.device
    assert os.stat(path).st_mode == stat.S_IFCHR | 0o600
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    assert os.get_terminal_size(fd) == (132, 43)
    assert not termios.tcgetattr(fd)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    os.close(fd)
    port.close()
    port.close()
    assert not os.path.lexists(path)
    assert fds() == before


def test_what_an_earlier_run_left_is_replaced(tmp_path):
    path = str(tmp_path / "port")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    SocketPort(path).close()
    os.symlink("/dev/pts/4194303", path)
    PtyPort(path).close()
    assert not os.path.lexists(path)


@pytest.mark.parametrize("make", [SocketPort, PtyPort])
def test_anything_else_stays_and_nothing_is_left_open(make, tmp_path):
    path = tmp_path / "port"
    path.write_text("mine")
    before = fds()
    with pytest.raises(ConfigError, match="give another path"):
        make(str(path))
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="does not exist; create it"):
        make(str(tmp_path / "none" / "port"))
    assert fds() == before


def test_a_living_socket_is_no_one_elses(tmp_path):
    one = SocketPort(str(tmp_path / "port"))
    with pytest.raises(ConfigError, match="another program uses it"):
        SocketPort(one.path)
    assert os.path.exists(one.path)
    one.close()


def test_a_link_to_something_else_stays(tmp_path):
    (tmp_path / "port").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="no link to a pty"):
        PtyPort(str(tmp_path / "port"))
    assert os.readlink(tmp_path / "port") == str(tmp_path)


def test_a_path_that_is_too_long(tmp_path):
    with pytest.raises(ConfigError, match="too long"):
        SocketPort(str(tmp_path / ("x" * 200)))


@pytest.mark.parametrize("make", [SocketPort, PtyPort])
def test_what_another_put_in_its_place_stays(make, tmp_path):
    path = tmp_path / "port"
    port = make(str(path))
    path.unlink()
    path.symlink_to("/dev/pts/4194303")
    port.close()
    assert path.is_symlink()


def test_a_probe_changes_nothing(tmp_path):
    ports.probe(str(tmp_path / "port"))
    assert not list(tmp_path.iterdir())
    for directory in ("none", "file"):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"create it|directory's owner"):
            ports.probe(str(tmp_path / directory / "port"))


def test_one_user_at_a_time(port):
    port.take()
    with pytest.raises(VofError, match="one initiator at a time"):
        port.take()
    port.release()
    port.take()


# -- bytes ----------------------------------------------------------------------------------------


async def test_both_directions(port, attach):
    here = attach()
    here.send(b"to us")
    assert await got(port, 5) == b"to us"
    await write(port, b"", b"to ", b"", b"you")
    assert await here.receive(6) == b"to you"


async def test_what_nobody_reads_is_lost_at_once(port, attach):
    for _ in range(50):
        await write(port, b"lost" * 10_000)
    port.write_now(b"lost")
    here = attach()
    await write(port, b"kept")
    port.write_now(b"!")
    assert await here.receive(5) == b"kept!"


async def test_what_was_sent_before_anybody_asked(port, attach):
    attach().send(b"early")
    assert await got(port, 5) == b"early"


async def test_one_who_sends_and_leaves_is_heard(port, attach):
    for text in (b"one", b"two", b"three"):
        here = attach()
        here.send(text)
        here.leave()
        assert await got(port, len(text)) == text


async def test_a_reader_waits_for_somebody_to_come(port, attach, nursery):
    data = []

    async def read():
        data.append(await got(port, 2))

    for number in range(3):
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        here = attach()
        await trio.testing.wait_all_tasks_blocked()
        here.send(b"me")
        with trio.fail_after(5):
            while len(data) == number:
                await trio.lowlevel.checkpoint()
        here.leave()
    assert data == [b"me"] * 3


async def test_who_comes_while_another_task_writes_is_read_too(port, attach, nursery):
    """The writer is the first to notice who came; the reader is told."""
    data = []

    async def read():
        data.append(await got(port, 2))

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    here = attach()
    port.write_now(b"hi")
    assert await here.receive(2) == b"hi"
    await trio.testing.wait_all_tasks_blocked()
    here.send(b"me")
    with trio.fail_after(5):
        while not data:
            await trio.lowlevel.checkpoint()


async def test_who_does_not_read_holds_up_the_writer(port, attach, nursery):
    here = attach()
    data = random.Random(1).randbytes(1 << 20)
    done = trio.Event()

    async def send():
        await write(port, data)
        done.set()

    nursery.start_soon(send)
    await full()
    assert not done.is_set()
    assert await here.receive(len(data)) == data
    with trio.fail_after(5):
        await done.wait()


async def test_who_leaves_frees_the_writer(port, attach, nursery):
    here = attach()
    done = trio.Event()

    async def send():
        await write(port, bytes(1 << 20))
        done.set()

    nursery.start_soon(send)
    if isinstance(port, SocketPort):
        nursery.start_soon(port.read, (memoryview(bytearray(1)),))
    await full()
    here.leave()
    with trio.fail_after(5):
        await done.wait()
    nursery.cancel_scope.cancel()


async def test_cancelled_reads_lose_nothing(port, attach):
    here = attach()
    chance = random.Random(2)
    data = some(20_000)
    found = bytearray()

    async def send():
        for start in range(0, len(data), 500):
            while not here.room():
                await trio.lowlevel.checkpoint()
            here.send(data[start : start + 500])
            for _ in range(chance.randrange(4)):
                await trio.lowlevel.checkpoint()

    async def read():
        space = memoryview(bytearray(300))
        found.extend(space[: await port.read((space,))])

    cancelled = 0
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while len(found) < len(data):
                async with trio.open_nursery() as one:
                    one.start_soon(read)
                    for _ in range(chance.randrange(4)):
                        await trio.lowlevel.checkpoint()
                    before = len(found)
                    one.cancel_scope.cancel()
                cancelled += len(found) == before
    assert found == data
    assert cancelled


async def test_one_who_left_is_heard_before_the_next_is_written_to(tmp_path):
    port = SocketPort(str(tmp_path / "port"))
    one, other = Socket(port.path), Socket(port.path)
    one.send(b"one")
    one.leave()
    await write(port, b"lost")
    await write(port, b"lost")
    assert await got(port, 3) == b"one"
    other.send(b"other")
    assert await got(port, 5) == b"other"
    await write(port, b"kept")
    assert await other.receive(4) == b"kept"
    other.leave()
    port.close()


async def test_one_who_left_and_said_nothing_holds_up_nobody(tmp_path):
    port = SocketPort(str(tmp_path / "port"))
    crowd = [Socket(port.path) for _ in range(4)]
    for one in crowd[:3]:
        one.leave()
    await write(port, b"for the last")
    assert await crowd[3].receive(12) == b"for the last"
    crowd[3].leave()
    port.close()


async def test_others_wait_until_it_is_their_turn(tmp_path):
    port = SocketPort(str(tmp_path / "port"))
    crowd = [Socket(port.path) for _ in range(3)]
    for number, one in enumerate(crowd):
        one.send(b"%d" % number)
    for number, one in enumerate(crowd):
        assert await got(port, 1) == b"%d" % number
        await write(port, b"only %d" % number)
        assert await one.receive(6) == b"only %d" % number
        one.leave()
    port.close()


async def test_too_many_open_files_are_waited_out(tmp_path, autojump_clock, nursery):
    port = SocketPort(str(tmp_path / "port"))
    here = Socket(port.path)
    here.send(b"here")
    spare = os.dup(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        with trio.move_on_after(10 * ports.PAUSE_S) as scope:
            await port.read((memoryview(bytearray(4)),))
        assert scope.cancelled_caught
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await got(port, 4) == b"here"
    here.leave()
    port.close()
