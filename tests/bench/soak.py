# SPDX-License-Identifier: BSD-3-Clause
"""Connect and disconnect, again and again: a target keeps nothing of who is gone.

    python -m tests.bench.soak --cycles 100000 [--workers N]

A cycle is a device instance with one virtqueue, made ready, and one answered request; the ways to
leave take turns. At the beginning, after each tenth and at the end, when nobody is connected, the
target's file descriptors, tasks and resident memory are printed. Fails if one of them grew.
"""

import argparse
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.wire import READY, command, connect_control, names, request
from vof.protocol import v5
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit

PROGRAM = """
import signal
import sys
import trio
from vof.cli import main

def tell(*_):
    print("tasks", trio.lowlevel.current_statistics().tasks_living, flush=True)

signal.signal(signal.SIGUSR1, tell)
sys.exit(main(sys.argv[1:]))
"""
"""A target that tells how many tasks live in it."""

LONGEST_S = 20
GROWTH_KIB = 2048
"""How much resident memory may grow, after the first tenth, whatever the number of cycles: an
allocator does not give everything back. A connection alone is worth more than 20 bytes."""
CUT = struct.pack("ii", 1, 0)


class State(NamedTuple):
    """What a target has."""

    descriptors: int
    tasks: int
    resident_kib: int


class Soaked:
    """A target process with a source of random bytes."""

    def __init__(self) -> None:
        words = ["target", "--listen", "vof+tcp://127.0.0.1:0", "--rng", "tvqn=it"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        url = urlsplit(self.process.stdout.readline())
        self.address = (url.hostname, url.port)

    def tasks(self) -> int:
        self.process.send_signal(signal.SIGUSR1)
        return int(self.process.stdout.readline().split()[1])

    def state(self) -> State:
        """Wait until nobody is connected, and the target did what it does then."""
        proc = f"/proc/{self.process.pid}"
        end = time.monotonic() + LONGEST_S
        before = None
        while True:
            with open(f"{proc}/status") as file:
                rows = dict(line.split(":", 1) for line in file)
            resident = int(rows["VmRSS"].split()[0])
            state = State(len(os.listdir(f"{proc}/fd")), self.tasks(), resident)
            if state[:2] == before or time.monotonic() > end:
                return state
            before = state[:2]
            time.sleep(0.3)  # twice the same: it is at rest


@contextmanager
def soaked():
    target = Soaked()
    try:
        yield target
    finally:
        target.process.terminate()
        target.process.communicate(timeout=LONGEST_S)


def answers(sock: socket.socket, count: int) -> bytes:
    """Take so many completions of 16 bytes."""
    data = b""
    while len(data) < 16 * count:
        more = sock.recv(16 * count - len(data))
        assert more, "the target closed a connection"
        data += more
    return data


START = b"".join(
    command(v5.SET_DRIVER_FEATURE, 2, select=0, feature=bit(VIRTIO_F_VERSION_1)) * (status == 11)
    + command(v5.SET_STATUS, status, device_status=status)
    for status in READY
)
CONTROL = connect_control(body=names(tvqn=b"it"))


def cycle(address, way: int) -> None:
    """One life of a device instance; it ends in one of four ways."""
    with socket.create_connection(address) as control, socket.create_connection(address) as vq:
        control.settimeout(LONGEST_S)
        vq.settimeout(LONGEST_S)
        control.sendall(CONTROL)
        fields = v5.COMMANDS[v5.CONNECT].completion.decode(answers(control, 1))
        assert fields["status"] == v5.OK
        control.sendall(START)
        ident = fields["device_instance_id"]
        vq.sendall(
            command(v5.CONNECT, 9, device_instance_id=ident, vq_index=0) + request(1, b"", 16)
        )
        answers(control, len(READY) + 1)
        answers(vq, 3)
        if way == 0:  # in order
            for sock in (vq, control):
                sock.sendall(command(v5.DISCONNECT, 3))
                answers(sock, 1)
        elif way == 1:  # the control queue first, with a request in flight
            vq.sendall(request(2, b"", 16))
            control.close()
        elif way == 2:  # in the middle of a command
            vq.sendall(request(2, b"", 16)[:7])
        else:  # cut
            for sock in (vq, control):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CUT)


def cycles(address, count: int, workers: int) -> None:
    """So many cycles, by some threads. Raises what one of them raised."""
    errors = []

    def work(numbers) -> None:
        try:
            for number in numbers:
                if errors:
                    return
                cycle(address, number % 4)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(range(first, count, workers),))
        for first in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def grown(first: State, last: State) -> list[str]:
    """What is there more than before."""
    allowed = State(0, 0, GROWTH_KIB)
    return [
        f"{name}: {before} became {after}"
        for name, before, after, most in zip(State._fields, first, last, allowed, strict=True)
        if after - before > most
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Connect and disconnect, again and again.")
    parser.add_argument("--cycles", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=3, help="number not divisible by 2")
    args = parser.parse_args()
    with soaked() as target:
        print(f"{'cycles':>8}  a second  {target.state()}")
        first = None
        for tenth in range(1, 11):
            begin = time.perf_counter()
            cycles(target.address, args.cycles // 10, args.workers)
            rate = args.cycles // 10 / (time.perf_counter() - begin)
            state = target.state()
            first = first or state
            print(f"{args.cycles // 10 * tenth:>8}  {rate:8.0f}  {state}", flush=True)
    wrong = grown(first, state)
    print("grew: " + "; ".join(wrong) if wrong else "flat")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
