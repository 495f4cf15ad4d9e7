# SPDX-License-Identifier: BSD-3-Clause
"""``vof net``: what a remote network device is, what goes through it, and whether frames survive.

A test frame is numbered, carries the number of the run, and is filled by a pattern that its number
shifts, so each frame that comes back is compared whole.
"""

import argparse
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vof.cli.output import human_bytes, print_json, table

if TYPE_CHECKING:
    from vof.initiator.drivers import Net

ETHERTYPE = 0x88B5
"""For experiments on a local network (IEEE 802)."""
HEAD = struct.Struct("!6s6sHII")
"""Destination, source, type, run, number."""
PERIOD = 251
PATTERN = bytes(range(PERIOD)) * (65536 // PERIOD + 2)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("url", help="of a device of type net")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--watch", action="store_true", help="receive, and show counters as they grow"
    )
    what.add_argument(
        "--ping", type=int, metavar="N", help="send N numbered frames and check what comes back"
    )
    what.add_argument("--send", type=int, metavar="N", help="send N numbered frames")
    parser.add_argument("--size", type=int, default=64, help="bytes of each frame (64)")
    parser.add_argument(
        "--depth", type=int, help="frames on their way (half as many as there are buffers for)"
    )
    parser.add_argument(
        "--to", metavar="MAC", help="where frames go (ping: the device itself; send: everybody)"
    )
    parser.add_argument(
        "--wait", type=float, default=1.0, help="seconds until a frame counts as lost (1)"
    )
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between lines (1)")
    parser.add_argument("--seconds", type=float, help="how long to watch (until interrupted)")
    parser.add_argument("--json", action="store_true", help="print JSON, once it is over")


def run(args: argparse.Namespace) -> int:
    """Connect, do it, print."""
    import trio

    from vof.errors import ConfigError
    from vof.virtio.net import parse_mac

    for name, least in (("ping", 1), ("send", 1), ("depth", 1), ("size", HEAD.size)):
        value = getattr(args, name)
        if value is not None and not least <= value < 1 << 32:
            raise ConfigError("command line", f"--{name}", f"at least {least}, not {value}")
    for name in ("wait", "interval", "seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError("command line", f"--{name}", f"seconds, more than 0, not {value}")
    to = parse_mac(args.to) if args.to else None
    facts = trio.run(_do, args, to)
    if args.json:
        print_json("net", facts)
    else:
        _show(facts)
    found = facts["ping"]
    return int(bool(found and (found["lost"] or found["torn"])))


async def _do(args: argparse.Namespace, to: bytes | None) -> dict[str, Any]:
    """Return what is to be shown."""
    from dataclasses import asdict
    from time import perf_counter

    import vof
    from vof.initiator.drivers import Net
    from vof.virtio.net import BROADCAST, format_mac

    found: dict[str, Any] = {}
    async with vof.connect(args.url) as device, Net(device) as net:
        # While half the buffers are filled, the other half is on its way to the device again.
        depth = args.depth or max(net.room // 2, 1)
        begun = perf_counter()
        if args.watch:
            await _watch(net, args.interval, args.seconds, quiet=args.json)
        elif args.ping:
            ping = Ping(net, args.ping, args.size, to or net.mac)
            await ping.begin(args.wait)
            await ping.run(depth, args.wait)
            found = ping.result()
        elif args.send:
            ping = Ping(net, args.send, args.size, to or BROADCAST)
            for first in range(0, args.send, depth):
                await net.send_batch(ping.frames(first, min(first + depth, args.send)))
            await net.flush()
        seconds = perf_counter() - begun
        await net.refresh()
        return {
            "url": str(device.url),
            "mac": format_mac(net.mac),
            "mtu": net.mtu,
            "link_up": net.link_up,
            "seconds": seconds,
            "counters": asdict(net.counters),
            "ping": found,
        }


async def _watch(net: "Net", interval: float, seconds: float | None, quiet: bool) -> None:
    """Receive and count until the time is up; print a line each interval."""
    import trio

    async def receive() -> None:
        while True:
            await net.receive_batch()

    with trio.move_on_after(float("inf") if seconds is None else seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            frames = size = 0
            while True:
                await trio.sleep(interval)
                now = net.counters
                rate, volume = now.rx_frames - frames, now.rx_bytes - size
                frames, size = now.rx_frames, now.rx_bytes
                if not quiet:
                    print(
                        f"received {frames} frames, {human_bytes(size)}; "
                        f"{rate / interval:.0f} frames/s, {human_bytes(volume / interval)}/s; "
                        f"{now.rx_errors} errors",
                        flush=True,
                    )


class Ping:
    """Numbered frames, and what became of them.

    Attributes:
        sent: how many were sent.
        back: how many came back whole, each counted once.
    """

    def __init__(self, net: "Net", count: int, size: int, to: bytes) -> None:
        import secrets

        self.sent = self.back = 0
        self._net = net
        self._count = count
        self._size = size
        self._run = secrets.randbits(32)
        self._to = to
        self._first = HEAD.pack(to, net.mac, ETHERTYPE, self._run ^ 1, 0).ljust(size, b"\0")
        self._begun = False
        self._seen = bytearray(count)
        self._next = 0
        self._torn = self._twice = self._late = self._others = 0
        self._seconds = 0.0

    def frames(self, first: int, last: int) -> list[bytes]:
        """Return the frames of these numbers."""
        return [self._frame(number) for number in range(first, last)]

    def _frame(self, number: int) -> bytes:
        start = number % PERIOD
        head = HEAD.pack(self._to, self._net.mac, ETHERTYPE, self._run, number)
        return head + PATTERN[start : start + self._size - HEAD.size]

    async def begin(self, wait: float) -> None:
        """Send a frame that does not count until it comes back, for ``wait`` seconds at most.

        Where something else begins with the driver, such as a switch, the first ones are lost.
        """
        import trio

        with trio.move_on_after(wait):
            while not self._begun:
                await self._net.send(self._first)
                with trio.move_on_after(wait / 8):
                    while not self._begun:
                        self._check(await self._net.receive_batch())

    async def run(self, depth: int, wait: float) -> None:
        """Send them, ``depth`` at a time, until all came back or none came for ``wait`` seconds."""
        from time import perf_counter

        import trio

        begun = perf_counter()
        lost = 0  # for now: they do not hold up the others
        while self.back + lost < self._count:
            room = min(depth - (self.sent - self.back - lost), self._count - self.sent)
            if room > 0:
                await self._net.send_batch(self.frames(self.sent, self.sent + room))
                self.sent += room
            before = self.back
            with trio.move_on_after(wait):
                while self.back == before:
                    self._check(await self._net.receive_batch())
            missing = self.sent - self.back
            lost = missing if self.back == before else min(lost, missing)
        self._seconds = perf_counter() - begun

    def _check(self, frames: Iterable[bytes]) -> None:
        """Compare frames that came with those that were sent."""
        for frame in frames:
            if len(frame) < HEAD.size:
                self._others += 1
                continue
            _, _, kind, run, number = HEAD.unpack_from(frame)
            if frame == self._first:
                self._begun = True
            elif kind != ETHERTYPE or run != self._run:
                self._others += 1
            elif number >= self.sent or frame != self._frame(number):
                self._torn += 1
            elif self._seen[number]:
                self._twice += 1
            else:
                self._seen[number] = 1
                self.back += 1
                self._late += number < self._next
                self._next = max(self._next, number + 1)

    def result(self) -> dict[str, object]:
        """Return what became of them."""
        return {
            "size": self._size,
            "sent": self.sent,
            "back": self.back,
            "lost": self.sent - self.back,
            "reordered": self._late,
            "duplicated": self._twice,
            "torn": self._torn,
            "others": self._others,
            "frames_per_second": self.back / self._seconds,
            "bytes_per_second": self.back * self._size / self._seconds,
        }


def _show(facts: dict[str, Any]) -> None:
    counters, found = facts["counters"], facts["ping"]
    print(facts["url"])
    rows = [
        ("mac", facts["mac"]),
        ("mtu", facts["mtu"]),
        ("link", "up" if facts["link_up"] else "down"),
        *((name.replace("_", " "), value) for name, value in counters.items()),
    ]
    print(table([(name, str(value)) for name, value in rows]))
    if found:
        print(
            f"{found['sent']} frames of {found['size']} bytes sent, {found['back']} back whole, "
            f"{found['lost']} lost, {found['reordered']} reordered, "
            f"{found['duplicated']} duplicated, {found['torn']} torn\n"
            f"{found['frames_per_second']:.0f} frames/s, "
            f"{human_bytes(found['bytes_per_second'])}/s each way"
        )
