# SPDX-License-Identifier: BSD-3-Clause
"""``vof console``: in a terminal of its own, and with pipes and files."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
from hashlib import sha256
from time import monotonic

import pytest

from tests.target.devices.terminals import some
from vof.cli import console, main
from vof.errors import ConfigError
from vof.target.devices import ConsoleModel, SocketPort

LONGEST_S = 20


def read_until(fd, done):
    """Read from a descriptor until ``done(data)``; return the data."""
    data = b""
    end = monotonic() + LONGEST_S
    while not done(data):
        assert select.select([fd], [], [], max(0, end - monotonic()))[0], data
        try:
            more = os.read(fd, 65536)
        except OSError:  # the other end of a pty is gone
            more = b""
        assert more, data
        data += more
    return data


class Far:
    """The target's side: somebody at the socket."""

    def __init__(self, port):
        from socket import AF_UNIX, socket

        self.sock = socket(AF_UNIX)
        self.sock.settimeout(LONGEST_S)
        self.sock.connect(port.path)

    def receive(self, count):
        data = bytearray()
        while len(data) < count:
            data += self.sock.recv(count - len(data))
        return bytes(data)

    def send(self, data):
        self.sock.sendall(data)


@pytest.fixture
def port(tmp_path):
    port = SocketPort(str(tmp_path / "port"))
    yield port
    port.close()


@pytest.fixture
def served(port, serve):
    served = serve(it=lambda: ConsoleModel(port))
    yield served
    served.stop()


@pytest.fixture
def far(port):
    far = Far(port)
    yield far
    far.sock.close()


# -- a terminal -----------------------------------------------------------------------------------


class Terminal:
    """A pty with ``vof console`` in it."""

    def __init__(self, url, *words):
        self.fd, self._slave = pty.openpty()
        self.before = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "vof", "console", url, *words],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
        )

    def type(self, data):
        assert os.write(self.fd, data) == len(data)

    def shows(self, words):
        return read_until(self.fd, lambda data: words in data)

    def started(self, words=b"^] ends"):
        """Wait until keys go to the console."""
        self.shows(words + b"\r\n")
        end = monotonic() + LONGEST_S
        while termios.tcgetattr(self._slave)[3] & termios.ICANON:
            assert monotonic() < end
            os.sched_yield()
        return self

    def ended(self):
        """Wait for the end; return the exit code. The terminal is as it was."""
        code = self.process.wait(LONGEST_S)
        assert termios.tcgetattr(self._slave) == self.before
        return code

    def close(self):
        self.process.kill()
        self.process.wait(LONGEST_S)
        os.close(self._slave)
        os.close(self.fd)


@pytest.fixture
def terminal(served):
    """Return ``terminal(*words)``: a running ``vof console``."""
    running = []

    def terminal(*words):
        running.append(Terminal(served["it"], *words))
        return running[-1]

    yield terminal
    for one in running:
        one.close()


def test_every_key_goes_to_the_other_side_until_the_escape_key(terminal, far):
    here = terminal().started()
    keys = bytes(set(range(256)) - {0x1D})
    here.type(keys)
    assert far.receive(255) == keys
    far.send(b"line\nfeed\x1b[0m")
    here.shows(b"line\nfeed\x1b[0m")
    here.type(b"last\x1dnever")
    assert here.ended() == 0
    assert far.receive(4) == b"last"
    far.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.sock.recv(1)


@pytest.mark.parametrize(
    ("escape", "says", "keys", "left"),
    [("^a", b"^a ends", b"\x1d\x01", b"\x1d"), ("q", b"q ends", b"Qq", b"Q")],
)
def test_another_escape_key(terminal, far, escape, says, keys, left):
    here = terminal("--escape", escape).started(says)
    here.type(keys)
    assert here.ended() == 0
    assert far.receive(1) == left


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_leaves_the_terminal_as_it_was(terminal, number, code):
    here = terminal("--escape", "none").started(b"no escape key")
    here.process.send_signal(number)
    assert here.ended() == code


def test_a_lost_connection_is_said_in_a_terminal_that_is_as_it_was(terminal, served):
    here = terminal().started()
    served.stop()
    assert here.ended() == 1
    text = here.shows(b"lost")
    assert b"\r\nvof: connection to " in text  # the terminal makes lines again


def test_the_escape_key_is_seen_where_nothing_is_taken(terminal, far):
    here = terminal().started()
    key = b"x" * console.PIECE
    while not select.select([here.fd], [], [], 0)[0]:  # until the bell rings
        select.select([], [here.fd], [], 0.1)
        try:
            os.set_blocking(here.fd, False)
            os.write(here.fd, key)
        except BlockingIOError:
            pass
    os.set_blocking(here.fd, True)
    here.shows(console.BELL)
    threading.Thread(target=lambda: os.write(here.fd, b"\x1d")).start()
    assert here.ended() == 0


def test_a_second_terminal_is_refused(terminal, far, served, capfd):
    here = terminal().started()
    assert main(["console", served["it"]]) == 1
    assert "device" in capfd.readouterr().err
    here.type(b"still here")
    assert far.receive(10) == b"still here"


def test_who_comes_back_finds_the_other_side_where_it_was(terminal, far):
    for turn in (b"one", b"two"):
        here = terminal().started()
        far.send(turn)
        here.shows(turn)
        here.type(b"\x1d")
        assert here.ended() == 0


def test_a_terminal_that_goes_ends_it(terminal):
    here = terminal().started()
    os.close(here.fd)
    here.fd = os.open(os.devnull, os.O_RDONLY)
    assert here.process.wait(LONGEST_S) == 0


# -- pipes and files ------------------------------------------------------------------------------


@pytest.fixture
def stdin(tmp_path):
    """Return ``stdin(fd)``, which makes a descriptor standard input."""
    before = os.dup(0)
    yield lambda fd: (os.dup2(fd, 0), os.close(fd))
    os.dup2(before, 0)
    os.close(before)


@pytest.fixture
def keyboard(stdin):
    """The other end of a pipe that is standard input."""
    ours, keys = os.pipe()
    stdin(ours)
    file = os.fdopen(keys, "wb", buffering=0)
    yield file
    file.close()


def test_a_pipe(served, far, keyboard, capfdbinary):
    def there():
        assert far.receive(6) == b"hello\n"
        far.send(b"and you\n")

    keyboard.write(b"hello\n")
    keyboard.close()
    thread = threading.Thread(target=there)
    thread.start()
    assert main(["console", served["it"], "--linger", "1"]) == 0
    thread.join()
    out, err = capfdbinary.readouterr()
    assert (out, err) == (b"and you\n", b"")


def test_there_is_no_escape_key_in_a_pipe(served, far, keyboard):
    keyboard.write(b"\x1d!")
    keyboard.close()
    assert main(["console", served["it"], "--linger", "0"]) == 0
    assert far.receive(2) == b"\x1d!"


def test_a_file_and_someone_slow(served, far, stdin, tmp_path):
    data = some(3 << 20)
    (tmp_path / "file").write_bytes(data)
    stdin(os.open(tmp_path / "file", os.O_RDONLY))
    found = []
    thread = threading.Thread(target=lambda: found.append(far.receive(len(data))))
    threading.Timer(0.2, thread.start).start()
    assert main(["console", served["it"], "--linger", "0"]) == 0
    thread.join()
    assert sha256(found[0]).digest() == sha256(data).digest()


def test_megabytes_are_printed_whole(served, far, stdin, tmp_path):
    """The command is left when they are printed, however slow that is."""
    data = some(3 << 20)
    thread = threading.Thread(target=far.send, args=(data,))
    thread.start()
    with subprocess.Popen(
        [sys.executable, "-m", "vof", "console", served["it"], "--linger", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.read() == data
        assert process.wait(LONGEST_S) == 0
    thread.join()


def test_lingering_waits_for_silence(served, far, keyboard, capfdbinary):
    """Each answer comes in time, all of them take longer than that."""
    keyboard.close()

    def there():
        for number in range(4):
            pause.wait(0.3)
            far.send(b"%d" % number)

    pause = threading.Event()
    thread = threading.Thread(target=there)
    thread.start()
    assert main(["console", served["it"], "--linger", "1"]) == 0
    thread.join()
    assert capfdbinary.readouterr().out == b"0123"


def test_nobody_reads_what_is_printed(served, far, keyboard):
    far.send(some(100_000))
    with subprocess.Popen(
        [sys.executable, "-m", "vof", "console", served["it"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(LONGEST_S) == 0
        assert process.stderr.read() == b""


def test_a_lost_connection_with_pipes(served, far, keyboard, capfd):
    def there():
        far.receive(1)
        served.stop()

    keyboard.write(b"x")
    thread = threading.Thread(target=there)
    thread.start()
    assert main(["console", served["it"]]) == 1
    thread.join()
    err = capfd.readouterr().err
    assert re.fullmatch(r"vof: connection to .* lost: .*\n", err)


@pytest.mark.parametrize(
    "words",
    [["--linger", "-1"], ["--linger", "nan"], ["--escape", ""], ["--escape", "ab"]],
)
def test_a_wrong_command_line(words, capfd):
    assert main(["console", "vof+unix:///none?tvqn=x", *words]) == 2
    assert words[0] in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "key"),
    [("^]", b"\x1d"), ("^A", b"\1"), ("^z", b"\x1a"), ("^@", b"\0"), ("^?", b"\x7f"), ("~", b"~")],
)
def test_keys(text, key):
    assert console._key(text) == key


@pytest.mark.parametrize("text", ["", "^^^", "^1", "é", "^~", "None"])
def test_no_keys(text):
    with pytest.raises(ConfigError, match="--escape"):
        console._key(text)


def test_a_device_that_is_no_console(world, capfd):
    assert main(["console", world["rng"]]) == 2
    assert "no console" in capfd.readouterr().err
