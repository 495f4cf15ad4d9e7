# SPDX-License-Identifier: BSD-3-Clause
"""A real target process, and what a test does to it."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ANY = ("--listen", "vof+tcp://127.0.0.1:0")
LONGEST_S = 100
BUFFERED = {key: os.environ[key] for key in os.environ if key != "PYTHONUNBUFFERED"}
"""So that it shows whether the target itself flushes what it announces."""


class Daemon:
    """A target process."""

    def __init__(
        self, words, program=("-m", "vof"), env=None, stdout=subprocess.PIPE, cwd=ROOT, **more
    ):
        if "--admin" not in words:
            words = ("--admin", "none", *words)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *program, "target", *words],
            stdout=stdout,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env=BUFFERED | (env or {}),
            **more,
        )
        self.read = {"stdout": b"", "stderr": b""}

    def line(self, name="stdout"):
        """Return the next line; one that does not come is a failure, not a wait for ever."""
        file = getattr(self.process, name)
        while b"\n" not in self.read[name]:
            assert select.select([file], [], [], LONGEST_S)[0], f"nothing on {name}"
            data = file.read(4096)
            assert data, f"{name} ended: {self.end()}"
            self.read[name] += data
        line, _, self.read[name] = self.read[name].partition(b"\n")
        return line.decode()

    def children(self):
        """Return the processes that it runs."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for one in threads for pid in one.read_text().split()]

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def end(self):
        """Return exit code, rest of stdout, stderr."""
        out, err = self.process.communicate(timeout=LONGEST_S)
        out, err = self.read["stdout"] + out, self.read["stderr"] + err
        return self.process.returncode, out.decode(), err.decode()


PASS_FDS = """
import os, sys
for number, fd in enumerate(map(int, sys.argv[1].split(",")), 3):
    os.dup2(fd, number)
    os.set_inheritable(number, True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(sys.argv[1].split(",")))
os.environ["LISTEN_FDNAMES"] = "a:b"
os.execv(sys.executable, [sys.executable, "-W", "error", "-m", "vof", *sys.argv[2:]])
"""
"""What a service manager does to a child: sockets from 3 on, and who they are for."""


class Manager:
    """The end that a service manager reads.

    Attributes:
        env: what a service is given.
    """

    def __init__(self, name):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(name.replace("@", "\0", 1))
        self._socket.settimeout(LONGEST_S)
        self.env = {"NOTIFY_SOCKET": name}

    def read(self):
        """Return the next message as a mapping."""
        return dict(line.split("=") for line in self._socket.recv(512).decode().split("\n"))

    def quiet(self):
        """Return whether nothing waits."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self):
        self._socket.close()
