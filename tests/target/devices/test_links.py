# SPDX-License-Identifier: BSD-3-Clause
"""What a network device is plugged into: unix datagram sockets and taps."""

import errno
import fcntl
import os
import socket
import struct

import pytest
import trio

from vof.errors import ConfigError
from vof.target.devices import SocketLink, TapLink, links

FRAME = bytes(range(60))
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
TAP = f"vof{os.getpid()}"
"""No other test run has it."""


# -- sockets --------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path):
    return str(tmp_path / "ours"), str(tmp_path / "theirs")


@pytest.fixture
def link(paths):
    link = SocketLink(*paths)
    yield link
    link.close()


@pytest.fixture
def peer(paths):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(paths[1])
        peer.setblocking(False)
        yield peer


def receive(link):
    buffer = memoryview(bytearray(2000))
    return bytes(buffer[: link.receive_into(buffer)])


def test_each_datagram_is_a_frame(link, peer, paths):
    for number in range(5):
        link.send(FRAME[number:])
        assert peer.recvfrom(2000) == (FRAME[number:], paths[0])
        peer.sendto(FRAME[number:], paths[0])
        assert receive(link) == FRAME[number:]
    with pytest.raises(BlockingIOError):
        receive(link)


def test_a_peer_may_come_later_and_again(link, paths):
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            link.send(FRAME)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.bind(paths[1])
            link.send(FRAME)
            assert peer.recv(2000) == FRAME
            peer.sendto(FRAME, paths[0])
            assert receive(link) == FRAME
        with pytest.raises(ConnectionRefusedError):
            link.send(FRAME)
        os.unlink(paths[1])


def test_a_peer_that_does_not_read_takes_no_more(link, peer):
    fill = [FRAME] * 10_000
    with pytest.raises(BlockingIOError):
        [*map(link.send, fill)]
    while True:
        try:
            assert peer.recv(2000) == FRAME
        except BlockingIOError:
            break
    link.send(FRAME)


@pytest.mark.parametrize("connected", [False, True])
async def test_room_is_waited_for(link, peer, paths, connected):
    if connected:
        peer.connect(paths[0])
    sent = got = 0

    async def send():
        nonlocal sent
        while sent < 2000:
            try:
                link.send(FRAME)
                sent += 1
            except BlockingIOError:
                await link.room()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while got < 2000:
                await trio.lowlevel.wait_readable(peer)
                assert peer.recv(2000) == FRAME
                got += 1


async def test_there_is_no_room_with_a_peer_that_is_gone(link):
    with pytest.raises(FileNotFoundError):
        await link.room()


def test_stale_frames_are_counted_and_gone(link, peer, paths):
    for _ in range(5):
        peer.sendto(FRAME, paths[0])
    assert link.discard() == 5
    assert link.discard() == 0


def test_the_file_goes_with_the_link_unless_it_is_anothers(paths):
    first = SocketLink(*paths)
    first.close()
    first.close()
    assert not os.path.exists(paths[0])
    first = SocketLink(*paths)
    os.unlink(paths[0])
    second = SocketLink(*paths)
    first.close()
    assert os.path.exists(paths[0])
    second.close()


def test_a_dead_file_is_replaced_and_a_live_one_is_not(link, paths, tmp_path):
    with pytest.raises(ConfigError, match="another program uses it"):
        SocketLink(*paths)
    dead = str(tmp_path / "dead")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(dead)
    SocketLink(dead, paths[1]).close()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"):
        SocketLink(str(file), paths[1])
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "words"), [("/nowhere/at/all", "does not exist"), ("/" + "x" * 200, "too long")]
)
def test_a_path_that_cannot_be(path, words, recwarn):
    with pytest.raises(ConfigError, match=words) as caught:
        SocketLink(path, "/tmp/peer")
    assert caught.value.key == "socket"
    assert not recwarn


def test_a_probe_of_a_socket_makes_none(paths, tmp_path):
    links.probe(socket=paths[0])
    links.probe(socket="here")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="does not exist"):
        links.probe(socket="/nowhere/at/all")


# -- taps -----------------------------------------------------------------------------------------


def no_tap():
    """Return why this machine gives us no tap, or "" when it does."""
    try:
        fd = os.open(links.TUN, os.O_RDWR)
    except OSError as error:
        return error.strerror
    try:
        fcntl.ioctl(fd, links.TUNSETIFF, struct.pack("16sH22x", TAP.encode(), 0x1002))
    except OSError as error:
        return error.strerror
    finally:
        os.close(fd)
    return ""


async def test_a_tap_carries_frames_both_ways_or_says_why_not():
    """A packet socket on the interface is the other end."""
    if why := no_tap():
        with pytest.raises(ConfigError, match=r"load|not permitted|may not be opened") as caught:
            TapLink(TAP)
        assert (caught.value.path, caught.value.key) == (TAP, "tap")
        assert why
        return
    link = TapLink(TAP)
    try:
        with pytest.raises(ConfigError, match="another program uses it"):
            TapLink(TAP)
        with pytest.raises(OSError, match="Input/output error"):
            link.send(FRAME)  # it is down
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as other:
            flags = struct.pack("16sh22x", TAP.encode(), IFF_UP)
            fcntl.ioctl(other, SIOCSIFFLAGS, flags)
            other.bind((TAP, 0x88B5))
            other.setblocking(False)
            frame = b"\xff" * 6 + b"\2abcde" + b"\x88\xb5" + FRAME
            link.send(frame)
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(other)
                assert other.recv(2000) == frame
                other.send(frame)
                while receive_later(link) != frame:  # the system has something to say, too
                    await trio.lowlevel.wait_readable(link.fd)
    finally:
        link.close()
        link.close()
    assert TAP not in dict(map(reversed, socket.if_nameindex()))


def receive_later(link):
    try:
        return receive(link)
    except BlockingIOError:
        return None


@pytest.mark.parametrize("name", ["", "x" * 16, "a/b"])
def test_a_name_that_no_interface_has(name):
    with pytest.raises(ConfigError, match="a name of 1 to 15 bytes"):
        TapLink(name)


@pytest.mark.parametrize("code", links.TAP_ADVICE)
def test_each_failure_says_what_to_do(code, monkeypatch):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    before = set(os.listdir("/proc/self/fd"))
    for module, name in ((os, "open"), (fcntl, "ioctl")):
        with monkeypatch.context() as patch:
            if name == "ioctl":
                patch.setattr(links, "TUN", os.devnull)
            patch.setattr(module, name, fail)
            with pytest.raises(ConfigError) as caught:
                TapLink("tap0")
        assert links.TAP_ADVICE[code] in str(caught.value)
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_interface_that_is_no_tap_is_named():
    words = "load|not permitted|may not be opened" if no_tap() else "is no tap"
    with pytest.raises(ConfigError, match=f"lo: tap: .*({words})"):
        TapLink("lo")


def test_a_probe_of_a_tap(monkeypatch, tmp_path):
    monkeypatch.setattr(links, "TUN", os.devnull)
    links.probe(tap="tap0")
    monkeypatch.setattr(links, "TUN", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="load the kernel module"):
        links.probe(tap="tap0")
    assert errno.ENOENT in links.TAP_ADVICE
