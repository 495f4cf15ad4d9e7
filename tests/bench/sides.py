# SPDX-License-Identifier: BSD-3-Clause
"""The sides of the comparison: each a server of one file, and a load on it over TCP loopback."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

VOF = Path(sys.executable).with_name("vof")
START_S = 240.0
"""For a server to start or to end: on a machine that is emulated, and busy, that takes long."""
ADDRESS = "127.0.0.1"
SYS_IO_URING_SETUP = 425
IO_URING_PARAMS = 120


class Load(NamedTuple):
    """What is asked of a server.

    Attributes:
        mix: ``randread``, ``read`` or ``write``; fio's words.
        size: bytes of a request.
        depth: requests in flight on one connection.
        connections: how many.
        awaited: through as many concurrent ``await``s as ``depth`` says, not by the queue's ops.
        pinned: server and load on the same CPU; else wherever the scheduler puts them.
    """

    mix: str
    size: int
    depth: int
    connections: int = 1
    awaited: bool = False
    pinned: bool = False


class Figure(NamedTuple):
    """What was measured.

    Attributes:
        total: requests.
        requests: of them, a second.
        bytes: payload a second.
        cpu_us: processor time per request, of server and load together.
        p50_us: half of the requests took at most this.
        p99_us: all but a hundredth of them.
    """

    total: int
    requests: float
    bytes: float
    cpu_us: float
    p50_us: float
    p99_us: float

    @property
    def turn_us(self) -> float:
        """From one request to the next; at depth 1, all that one costs."""
        return 1e6 / self.requests


class Server(NamedTuple):
    """A server that listens.

    Attributes:
        pid: its process.
        url: where it is.
        others: processes that do a part of its work.
    """

    pid: int
    url: str
    others: tuple[int, ...] = ()

    def cpu_seconds(self) -> float:
        """Return the processor time of all of it."""
        return sum(map(cpu_seconds, (self.pid, *self.others)))


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, all its threads, in user and kernel mode."""
    return time.clock_gettime(~pid << 3 | 2)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)


def placed(command: list[str], pinned: bool) -> list[str]:
    """Return the command, on the first CPU alone if ``pinned``."""
    first = min(os.sched_getaffinity(0))
    return ["taskset", "--cpu-list", str(first), *command] if pinned else command


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a server for the time of a block; what it says on stderr is in ``log``."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextmanager
def announced(command: list[str], image: Path, count: int = 1) -> Iterator[list[Server]]:
    """Run a server that prints its URLs, so many; yields it once for each."""
    log = image.with_suffix(".log")
    with running(command, log) as process:
        urls = [line.split()[0] for line in islice(process.stdout, count)]
        if len(urls) < count:
            raise SystemExit(f"{' '.join(command)} does not start\n{log.read_text()}")
        yield [Server(process.pid, url) for url in urls]


def output(command: list[str], seconds: float) -> str:
    """Return what a load prints; it must end ``START_S`` after its time, without an error."""
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + START_S, check=False
    )
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {run.returncode}\n{run.stdout}{run.stderr}")
    return run.stdout


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server((ADDRESS, 0)) as free:
        port: int = free.getsockname()[1]
    return port


class Nbd:
    """What ``fio --ioengine=nbd`` loads."""

    def load(self, server: Server, load: Load, seconds: float, size: int) -> Figure:
        """Load a server of ``size`` bytes; the figure has the load's own processor time."""
        return fio_figure(
            output(placed(self.command(server, load, seconds, size), load.pinned), seconds), load
        )

    @staticmethod
    def command(server: Server, load: Load, seconds: float, size: int) -> list[str]:
        """Return the command of a load."""
        return [
            "fio",
            "--name=load",
            "--thread",
            "--ioengine=nbd",
            f"--uri={server.url}",
            f"--rw={load.mix}",
            f"--bs={load.size}",
            f"--iodepth={load.depth}",
            f"--size={size}",
            "--norandommap",
            "--randrepeat=0",
            "--time_based",
            f"--runtime={round(seconds * 1000)}ms",
            "--output-format=json",
        ]


class Nbdkit(Nbd):
    """``nbdkit file``."""

    name = "nbdkit"

    @contextmanager
    def serve(self, image: Path, load: Load) -> Iterator[Server]:
        """Serve ``image`` for the time of a block."""
        port = free_port()
        log, ready = image.with_suffix(".log"), image.with_name(f"nbdkit-{port}.pid")
        command = ["nbdkit", "--foreground", "--exit-with-parent", "--newstyle"]
        command += ["-i", ADDRESS, "-p", str(port), "--pidfile", str(ready), "file", str(image)]
        with running(placed(command, load.pinned), log) as process:
            await_file(ready, process, log)
            yield Server(process.pid, f"nbd://{ADDRESS}:{port}/")


def await_file(path: Path, process: subprocess.Popen[str], log: Path) -> None:
    """Wait until a server made the file that says that it is ready."""
    deadline = time.monotonic() + START_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args[0]} does not start\n{log.read_text()}")
        time.sleep(0.01)


@cache
def aio() -> str:
    """Return how qemu-storage-daemon reads fastest here: ``io_uring`` where the kernel has it."""
    parameters = ctypes.create_string_buffer(IO_URING_PARAMS)
    fd = ctypes.CDLL(None).syscall(SYS_IO_URING_SETUP, 1, parameters)
    if fd < 0:
        return "threads"
    os.close(fd)
    return "io_uring"


@contextmanager
def daemon(image: Path, pinned: bool, *words: str) -> Iterator[int]:
    """Run qemu-storage-daemon with ``image`` as its node ``disk``; yields its process id."""
    log, ready = image.with_name("daemon.log"), image.with_name("daemon.pid")
    command = ["qemu-storage-daemon", "--pidfile", str(ready)]
    command += ["--blockdev", f"driver=file,node-name=file,filename={image},aio={aio()}"]
    command += ["--blockdev", "driver=raw,node-name=disk,file=file", *words]
    ready.unlink(missing_ok=True)  # of one that was killed
    with running(placed(command, pinned), log) as process:
        await_file(ready, process, log)
        yield process.pid


EXPORT = "id=it,node-name=disk,writable=on"


class DaemonNbd(Nbd):
    """qemu-storage-daemon's own NBD export."""

    name = "nbd of qemu-storage-daemon"

    @contextmanager
    def serve(self, image: Path, load: Load) -> Iterator[Server]:
        """Serve ``image`` for the time of a block."""
        port = free_port()
        words = ["--nbd-server", f"addr.type=inet,addr.host={ADDRESS},addr.port={port}"]
        words += ["--export", f"type=nbd,name=it,{EXPORT}"]
        with daemon(image, load.pinned, *words) as pid:
            yield Server(pid, f"nbd://{ADDRESS}:{port}/it")


def fio_figure(text: str, load: Load) -> Figure:
    """Read fio's JSON; lines of other kinds may stand before it."""
    [job] = json.loads(text[text.index("{") :])["jobs"]
    if job["error"]:
        raise SystemExit(f"fio: error {job['error']}")
    way = job["write" if load.mix == "write" else "read"]
    busy_us = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000
    times = way["clat_ns"]["percentile"]
    return Figure(
        way["total_ios"],
        way["iops"],
        way["bw_bytes"],
        busy_us / way["total_ios"],
        times["50.000000"] / 1000,
        times["99.000000"] / 1000,
    )


class Vof:
    """``vof target``, loaded by ``vof bench``."""

    name = "vof"

    @contextmanager
    def serve(self, image: Path, load: Load) -> Iterator[Server]:
        """Serve ``image`` for the time of a block."""
        with self.target(image, load, "--blk", f"{image},queues={load.connections}") as server:
            yield server

    @staticmethod
    @contextmanager
    def target(image: Path, load: Load, *device: str) -> Iterator[Server]:
        """Run a target of one device."""
        command = ["target", "--listen", f"vof+tcp://{ADDRESS}:0", "--admin", "none", *device]
        with announced(placed([str(VOF), *command], load.pinned), image) as [server]:
            yield server

    def load(self, server: Server, load: Load, seconds: float, size: int) -> Figure:
        """Load a server; the figure has the load's own processor time."""
        command = [str(VOF), "bench", server.url, "--json", f"--seconds={seconds}"]
        command += [f"--mix={load.mix}", f"--size={load.size}", f"--depth={load.depth}"]
        command += [f"--queues={load.connections}"] + ["--await"] * load.awaited
        return vof_figure(output(placed(command, load.pinned), seconds))


def vof_figure(text: str) -> Figure:
    """Read the JSON of ``vof bench``."""
    found = json.loads(text)
    times = found["latency_us"]
    return Figure(
        found["requests"],
        found["iops"],
        found["bytes_per_second"],
        found["cpu_us_per_request"],
        times["p50"],
        times["p99"],
    )


class Bridged(Vof):
    """The same in front of qemu-storage-daemon's vhost-user-blk export."""

    name = "vof, bridged"

    @contextmanager
    def serve(self, image: Path, load: Load) -> Iterator[Server]:
        """Serve ``image`` for the time of a block."""
        path = image.with_name("vhost.sock")
        export = f"type=vhost-user-blk,addr.type=unix,addr.path={path},{EXPORT}"
        export += f",num-queues={load.connections}"
        with daemon(image, load.pinned, "--export", export) as pid:
            with self.target(image, load, "--vhost-user", str(path)) as server:
                yield server._replace(others=(pid,))


Side = Nbdkit | DaemonNbd | Vof
NBDKIT, MINE, DAEMON_NBD, BRIDGED = Nbdkit(), Vof(), DaemonNbd(), Bridged()


def measure(side: Side, load: Load, image: Path, seconds: float) -> Figure:
    """Start a server, load it, stop it."""
    with side.serve(image, load) as server:
        before = server.cpu_seconds()
        figure = side.load(server, load, seconds, image.stat().st_size)
        used = server.cpu_seconds() - before
    if load.mix == "write":
        with image.open("rb") as file:
            os.fsync(file.fileno())  # so that no later figure pays for it
    return figure._replace(cpu_us=figure.cpu_us + used * 1e6 / figure.total)
