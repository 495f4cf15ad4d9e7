# SPDX-License-Identifier: BSD-3-Clause
"""Where initiators connect: each scheme, its real address, and what stands in its way."""

import os
import resource
import socket
import stat
import struct

import pytest
import trio
import trio.testing

from vof.transport import Url, connect, listen, parse_url
from vof.transport.connection import SocketConnection

LIMIT = 10


@pytest.fixture(params=["vof+tcp://127.0.0.1:0", "vof+tcp://[::1]:0", "unix", "vof+loopback://l"])
def url(request, tmp_path):
    text = request.param
    return parse_url(f"vof+unix://{tmp_path}/socket" if text == "unix" else text)


def open_files():
    return len(os.listdir("/proc/self/fd"))


async def talk(listener, url=None):
    """Connect to a listener and exchange a byte."""
    with trio.fail_after(LIMIT):
        near = await connect(url or listener.url)
        far = await listener.accept()
    try:
        near._sock.send(b"x")
        await trio.lowlevel.wait_readable(far._sock)
        assert far._sock.recv(10) == b"x"
        return near.peer, far.peer
    finally:
        near.close()
        far.close()


async def test_a_listener_says_where_it_is(url):
    before = open_files()
    (listener,) = await listen(url)
    assert listener.url.scheme == url.scheme
    assert (listener.url.host, listener.url.path) == (url.host, url.path)
    assert (listener.url.port != 0) == (url.scheme == "vof+tcp")
    assert not listener.url.tvqn
    near, far = await talk(listener, parse_url(str(listener.url)).with_tvqn("disk"))
    wanted = {"vof+unix": f"unix:{os.getuid()}", "vof+loopback": "loopback"}
    assert near == far == wanted.get(url.scheme, url.host)
    listener.close()
    assert open_files() == before


async def test_a_closed_listener_is_gone(url):
    (listener,) = await listen(url)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def accept():
                with pytest.raises(trio.ClosedResourceError):
                    await listener.accept()

            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            listener.close()
    listener.close()
    with pytest.raises(OSError):  # noqa: PT011 - refused, or no such file
        await connect(listener.url)
    (again,) = await listen(listener.url)
    listener.close()
    await talk(again)
    again.close()


async def test_a_place_in_use_is_refused(url):
    (listener,) = await listen(url)
    before = open_files()
    with pytest.raises(OSError, match="in use"):
        await listen(listener.url)
    assert open_files() == before
    connection = None
    if url.scheme == "vof+unix":  # to see whether it is alive, somebody asked
        connection = await listener.accept()
        connection.close()
    await talk(listener)
    listener.close()


async def test_a_connection_that_was_not_accepted_ends_with_the_listener(url):
    (listener,) = await listen(url)
    near = await connect(listener.url)
    listener.close()
    with trio.fail_after(LIMIT):
        await trio.lowlevel.wait_readable(near._sock)
    try:
        assert near._sock.recv(1) == b""
    except ConnectionResetError:
        pass
    near.close()


# -- tcp --------------------------------------------------------------------------------------


async def test_a_name_with_two_addresses_has_one_port(monkeypatch):
    async def both(host, port, **_):
        assert (host, port) == ("both", 0)
        found = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            found += await original(address, port, type=socket.SOCK_STREAM)
            assert found[-1][0] == family
        return found

    original = trio.socket.getaddrinfo
    monkeypatch.setattr(trio.socket, "getaddrinfo", both)
    listeners = await listen(Url("vof+tcp", "both"))
    assert [listener.url.host for listener in listeners] == ["127.0.0.1", "::1"]
    assert len({listener.url.port for listener in listeners}) == 1
    monkeypatch.undo()
    for listener in listeners:
        await talk(listener)
        listener.close()


async def test_an_ipv6_listener_takes_no_ipv4():
    before = open_files()
    with pytest.raises(OSError, match="Invalid argument"):  # else it would listen on 127.0.0.1
        await listen(Url("vof+tcp", "::ffff:127.0.0.1"))
    assert open_files() == before


async def test_tcp_sends_at_once_and_notices_a_dead_peer():
    (listener,) = await listen(parse_url("vof+tcp://127.0.0.1:0"))
    near = await connect(listener.url)
    far = await listener.accept()
    for end in (near, far):
        get = end._sock.getsockopt
        assert get(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT
        idle, interval, count = (get(socket.IPPROTO_TCP, option) for option in options)
        assert idle + interval * count == 60
        assert get(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        end.close()
    listener.close()


async def test_a_port_with_connections_that_linger_can_be_listened_on_again():
    (listener,) = await listen(parse_url("vof+tcp://127.0.0.1:0"))
    near = await connect(listener.url)
    far = await listener.accept()
    far.close()  # the first to close has it linger
    near.close()
    listener.close()
    (listener,) = await listen(listener.url)
    await talk(listener)
    listener.close()


async def test_a_connection_that_died_in_the_queue_is_passed_over():
    (listener,) = await listen(parse_url("vof+tcp://127.0.0.1:0"))
    before = open_files()
    dead = await connect(listener.url)
    dead._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    dead.close()
    await talk(listener)
    assert open_files() == before
    listener.close()


async def test_no_file_descriptor_left_is_an_error_that_passes():
    (listener,) = await listen(parse_url("vof+tcp://127.0.0.1:0"))
    near = await connect(listener.url)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            await listener.accept()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    far = await listener.accept()
    far.close()
    near.close()
    listener.close()


# -- unix -------------------------------------------------------------------------------------


async def test_a_stale_socket_file_is_replaced(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    (listener,) = await listen(Url("vof+unix", path=str(path)))
    await talk(listener)
    listener.close()
    assert not path.exists()


async def test_a_listener_too_busy_to_answer_is_alive(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        with pytest.raises(OSError, match="in use"):
            await listen(Url("vof+unix", path=path))
        second = socket.socket(socket.AF_UNIX)
        second.setblocking(False)
        with second, pytest.raises(BlockingIOError):
            second.connect(path)  # the file is still there, and so is the queue


async def test_another_file_is_not_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        await listen(Url("vof+unix", path=str(path)))
    assert path.read_text() == "precious"


async def test_a_file_that_was_taken_away_is_no_trouble(tmp_path):
    path = tmp_path / "socket"
    (listener,) = await listen(Url("vof+unix", path=str(path)))
    assert stat.S_ISSOCK(path.stat().st_mode)
    path.unlink()
    listener.close()


async def test_a_directory_that_is_not_there(tmp_path):
    before = open_files()
    with pytest.raises(FileNotFoundError):
        await listen(Url("vof+unix", path=str(tmp_path / "no" / "socket")))
    assert open_files() == before


# -- loopback ---------------------------------------------------------------------------------


async def test_a_loopback_listener_takes_so_many_and_no_more():
    (listener,) = await listen(Url("vof+loopback", "many"))
    near, far = socket.socketpair()
    waiting = SocketConnection(far, "peer")
    for _ in range(1024):
        listener.offer(waiting)
    before = open_files()
    with pytest.raises(ConnectionRefusedError, match="too many"):
        await connect(listener.url)
    assert open_files() == before
    listener.close()
    assert near.recv(1) == b""
    near.close()
