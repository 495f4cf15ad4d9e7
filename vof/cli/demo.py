# SPDX-License-Identifier: BSD-3-Clause
"""``vof demo``: the whole system once: a target process, and a client that checks every byte.

With ``--vhost-user`` the disk is one of qemu-storage-daemon: its rings are in shared memory, and
the target bridges them to the fabric. With ``--rdma`` the fabric is an RDMA device of this machine.
"""

import argparse
import hashlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vof.cli.output import human_bytes, table
from vof.errors import ConfigError, VofError
from vof.sizes import parse_size

DISK = 64 << 20
PIECE = 1 << 20
LEAST = 8 * PIECE
SOCKET = "vhost.sock"
START_S = 60.0
STOP_S = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    parser.add_argument("--size", default=f"{DISK >> 20}M", help="of the disk (%(default)s)")
    parser.add_argument(
        "--vhost-user", action="store_true", help="the disk is served by qemu-storage-daemon"
    )
    parser.add_argument(
        "--rdma",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="over RDMA, at this address or the first that has such a device",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the target running, and say what to try"
    )


def run(args: argparse.Namespace) -> int:
    """Show everything; clean up whatever happens."""
    import trio

    size = parse_size("--size", args.size)
    if size < LEAST or size % PIECE:
        raise ConfigError("command line", "--size", "expected MiB, 8 or more")
    listen = "vof+tcp://127.0.0.1" if args.rdma is None else rdma(args.rdma)
    folder = tempfile.mkdtemp(prefix="vof-demo-")
    image = Path(folder, "disk.img")
    log = Path(folder, "target.log")
    kept = False
    target: subprocess.Popen[bytes] | None = None
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with image.open("wb") as file:
            file.truncate(size)
        say(f"made a disk image of {human_bytes(size)}: {image}")
        if args.vhost_user:
            say("its disk is a vhost-user device of qemu-storage-daemon, which the target runs")
        target = start(image, log, bridge(image) if args.vhost_user else embedded(image), listen)
        disk, rng = urls(target, log)
        say(f"started a target, process {target.pid}; it announces:", disk, rng)
        serial = "vhost_user_blk" if args.vhost_user else "vof-demo"
        trio.run(tour, disk, rng, image, args.seconds, serial)
        if args.keep:
            kept = True
            keep(target, folder, disk, rng)
        else:
            say("all done; stopping the target")
    finally:
        signal.signal(signal.SIGTERM, before)
        if not kept:
            code = stop(target) if target is not None else 0
            for path in (image, log, image.with_name(SOCKET)):
                path.unlink(missing_ok=True)
            os.rmdir(folder)
    if not kept and code:
        raise VofError(f"the target ended with exit code {code}")
    return 0


def say(line: str, *more: str) -> None:
    """Print a step at once."""
    print(f"* {line}", *(f"    {text}" for text in more), sep="\n", flush=True)


def rdma(address: str) -> str:
    """Return where to listen for RDMA, without a port. Raises VofError: there is none here."""
    from vof.cli.checks import rdma_addresses
    from vof.cli.machine import Machine

    found = [address] if address else rdma_addresses(Machine())
    if not found:
        raise VofError(
            "no RDMA device shows an IP address: vof doctor says what is missing; "
            "that of iWARP is to be named, as --rdma ADDRESS; "
            "without hardware, from vof's sources: tests/lab/run vof demo --rdma --size 8M"
        )
    host = found[0]
    return f"vof+rdma://[{host}]" if ":" in host else f"vof+rdma://{host}"


def embedded(image: Path) -> list[str]:
    """Return the option for a disk of the target itself."""
    return ["--blk", f"{image},tvqn=demo/disk,serial=vof-demo,queues=2"]


def bridge(image: Path) -> list[str]:
    """Return the option for a disk of qemu-storage-daemon. Raises VofError: it is not there."""
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        text = "qemu-storage-daemon is not installed (Debian: qemu-system-common or qemu-utils)"
        raise VofError(f"{text}; without --vhost-user the demo needs nothing else")
    socket = image.with_name(SOCKET)
    export = "type=vhost-user-blk,id=e,node-name=d,writable=on,logical-block-size=512,num-queues=2"
    command = [
        program,
        *("--blockdev", f"driver=file,node-name=f,filename={image},discard=unmap"),
        *("--blockdev", "driver=raw,node-name=d,file=f,discard=unmap"),
        *("--export", f"{export},addr.type=unix,addr.path={socket}"),
    ]
    words = shlex.join(command).replace(",", ",,")
    return ["--vhost-user", f"{socket},tvqn=demo/disk,command={words}"]


def start(image: Path, log: Path, disk: list[str], listen: str) -> "subprocess.Popen[bytes]":
    """Start a target on a port that is free."""
    command = [sys.executable, "-m", "vof", "target", "--listen", f"{listen}:0"]
    command += ["--admin", "none"]
    command += [*disk, "--rng", "tvqn=demo/rng"]
    with log.open("w") as stderr:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )


def urls(target: "subprocess.Popen[bytes]", log: Path) -> list[str]:
    """Read the announced URLs, in the order of names; raise VofError: none in time."""
    assert target.stdout is not None
    text = b""
    deadline = time.monotonic() + START_S
    while text.count(b"\n") < 2:
        left = max(deadline - time.monotonic(), 0)
        ready, _, _ = select.select([target.stdout], [], [], left)
        more = os.read(target.stdout.fileno(), 4096) if ready else b""
        if not more:
            raise VofError(f"the target did not start: {log.read_text().strip() or 'no output'}")
        text += more
    return sorted(text.decode().split())


def stop(target: "subprocess.Popen[bytes]") -> int:
    """End the target; return its exit code."""
    target.send_signal(signal.SIGTERM)
    try:
        return target.wait(STOP_S)
    except subprocess.TimeoutExpired:
        target.kill()
        return target.wait()
    finally:
        if target.stdout is not None:
            target.stdout.close()


def keep(target: "subprocess.Popen[bytes]", folder: str, disk: str, rng: str) -> None:
    """Say how to go on."""
    vof = f"{Path(sys.executable).parent}/vof"
    if not Path(vof).exists():
        vof = f"{sys.executable} -m vof"
    say(
        "the target keeps running; try:",
        f"{vof} info {disk}",
        f"echo hello | {vof} blk write {disk} -",
        f"{vof} blk read {disk} - --length 512 | head -c 5",
        f"{vof} rng {rng} 16 --hex",
        f"{vof} bench {disk} --depth 32",
    )
    say("end it and remove its files with:", f"kill {target.pid}; rm -r {folder}")


def pattern(number: int) -> bytes:
    """Return piece ``number`` of the pattern: no two pieces, nor their parts, are alike."""
    return hashlib.shake_128(number.to_bytes(8, "little")).digest(PIECE)


async def tour(disk_url: str, rng_url: str, image: Path, seconds: float, serial: str) -> None:
    """Use everything, and check it. Raises VofError."""
    import vof
    from vof.cli import load
    from vof.initiator.drivers import Blk, Rng

    async with vof.connect(disk_url) as device, Blk(device, queues=2) as disk:
        say(
            f"connected: a disk of {human_bytes(disk.capacity)}, {disk.num_queues} queues, over "
            + (f"RDMA by {device.carrier.adapter}" if device.carrier.adapter else "TCP")
        )
        check(await disk.get_id() == serial, "get-id")
        say(f"get-id answers {serial}")
        pieces = range(disk.capacity // PIECE)
        begin = time.perf_counter()
        for number in pieces:
            await disk.write(number * PIECE, pattern(number))
        took = time.perf_counter() - begin
        rate = disk.capacity / took / 1e6
        say(f"wrote a pattern over all of it ({rate:,.0f} MB/s, with its making)")
        await disk.flush()
        say("flushed")
        for number in pieces:
            data = await disk.read(number * PIECE, PIECE)
            check(data == pattern(number), f"bytes from {number * PIECE} on")
        say("read it back through the fabric: every byte is right")
        with image.open("rb") as file:
            for number in pieces:
                check(file.read(PIECE) == pattern(number), f"the image from {number * PIECE} on")
        say("and the image holds it")
        await disk.write_zeroes(PIECE, PIECE)
        await disk.discard(4 * PIECE, PIECE)
        check(not any(await disk.read(PIECE, PIECE)), "zeroes after write-zeroes")
        check(await disk.read(2 * PIECE, PIECE) == pattern(2), "the neighbour of what was zeroed")
        say("write-zeroes and discard: zeroes where they belong, and nowhere else")
    async with vof.connect(rng_url) as device, Rng(device) as rng:
        one, two = await rng.read(4096), await rng.read(4096)
        check(one != two and len(set(one)) > 200, "random bytes")
        say(f"random bytes: {one[:16].hex()} …")
    rows = []
    for depth in (1, 32):
        job = load.Job(
            size=4096,
            depth=depth,
            queues=1,
            seconds=seconds,
            requests=1 << 62,
            reads=100,
            random=True,
            awaited=False,
        )
        result = await load.measure(disk_url, job)
        check(not result.errors, "the measured requests")
        say(f"measured 4 KiB random reads, depth {depth}, for {result.seconds:.1f} s")
        rows.append(
            (
                depth,
                f"{result.rate:,.0f}",
                f"{result.bytes / result.seconds / 1e6:,.0f}",
                f"{result.latency.percentile(50) / 1000:,.0f}",
                f"{result.latency.percentile(99) / 1000:,.0f}",
                f"{result.cpu_us:.1f}",
            )
        )
    headers = ("depth", "IOPS", "MB/s", "p50 µs", "p99 µs", "client CPU µs")
    print("\n" + table(rows, headers) + "\n", flush=True)


def check(right: bool, what: str) -> None:
    """Raise VofError when something is not as it must be."""
    if not right:
        raise VofError(f"the demo found an error: {what}")
