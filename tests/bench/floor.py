# SPDX-License-Identifier: BSD-3-Clause
"""What the verbs alone cost for what a 4 KiB read is made of: the floor under it.

One turn: the client SENDs 80 bytes, the server WRITEs 4 KiB and SENDs 16 bytes, both posted at
once, and the client has these. Two processes, each with one queue pair, brought up as those of vof,
and from there nothing but pyverbs: work requests that were made beforehand, one post for a chain,
a receive posted again for each that was used, a completion asked for of every 32nd post. With more
turns under way at a time, all that came at once are answered by one post.

    python -m tests.bench.floor serve ADDRESS STYLE
    python -m tests.bench.floor load URL STYLE SECONDS DEPTH

The server prints its URL. Styles say how either side waits: "busy" asks the completion queue again
and again, "events" sleeps until it is told.
"""

import json
import resource
import select
import struct
import sys
import time

import trio

from vof.cli.histogram import Histogram
from vof.transport import connect, listen, parse_url
from vof.transport.queue_pair import KeyedConnection
from vof.transport.verbs import pyverbs
from vof.transport.verbs_pair import SEND_SIGNALED, WR_RDMA_WRITE, WR_SEND

ASK, ANSWER, PAYLOAD, END = 80, 16, 4096, 1
"""Bytes of the messages; of what is written; of the message that ends it."""
PLACE = struct.Struct("<QI")
"""Where the client wants the payload: address and key, told by a first message."""
EVERY = DEEPEST = 32
MOST = 2 * DEEPEST
WC_RECV = 1 << 7
STYLES = ("busy", "events")


class Bare:
    """A queue pair that was brought up, and what is posted to it.

    Attributes:
        place: of the payload: address, local key, remote key.
    """

    def __init__(self, connection: KeyedConnection, style: str) -> None:
        self.endpoint = endpoint = connection._pair
        self._pair, self._queue, self._channel = endpoint._pair, endpoint._queue, endpoint._channel
        self._memory = connection.pool.alloc(PAYLOAD + ASK + ANSWER + ASK)
        address, at = connection.pool.find(self._memory)
        self.place = address, at.local, at.write
        self._key, self._out, self._in = at.local, address + PAYLOAD, address + PAYLOAD + ASK
        work = pyverbs("wr")
        entry = work.SGE(self._in, ASK, self._key)
        self._receive = work.RecvWR(num_sge=1, sg=[entry])
        self._ready = select.poll()
        self._ready.register(endpoint.fd, select.POLLIN)
        self.messages = self._busy if style == "busy" else self._events
        self._count = 0
        self._kept: list[object] = []  # a request does not keep the next one
        endpoint.arm()

    def send(self, size: int, write: tuple[int, int] | None = None) -> list[list[object]]:
        """Make SENDs, with a write in front of each if there is one.

        Returns:
            Two chains, without a signal and with one at its end; to post some, post as many from
            the end as there are to be.
        """
        work = pyverbs("wr")
        made = []
        for flags in (0, SEND_SIGNALED):
            chain: list[object] = []
            following = None
            for _ in range(DEEPEST):
                entry = work.SGE(self._out, size, self._key)
                following = work.SendWR(
                    opcode=WR_SEND,
                    num_sge=1,
                    sg=[entry],
                    send_flags=0 if chain else flags,
                    next_wr=following,
                )
                self._kept.append(following)
                if write:
                    address, key = write
                    entry = work.SGE(self.place[0], PAYLOAD, self._key)
                    following = work.SendWR(
                        opcode=WR_RDMA_WRITE,
                        num_sge=1,
                        sg=[entry],
                        send_flags=0,
                        next_wr=following,
                    )
                    following.set_wr_rdma(key, address)
                chain.append(following)
            made.append(chain)
        return made

    def post(self, made: list[list[object]], count: int) -> None:
        """Post what was made, so many times."""
        before = self._count // EVERY
        self._count += count
        self._pair.post_send(made[self._count // EVERY != before][count - 1])

    def ready(self, count: int) -> None:
        """Post receives."""
        for _ in range(count):
            self._pair.post_recv(self._receive)

    def _busy(self) -> list[int]:
        """Wait for messages; return their sizes."""
        poll = self._queue.poll
        while True:
            count, completions = poll(MOST)
            if count and (sizes := received(completions)):
                return sizes

    def _events(self) -> list[int]:
        """Wait for messages; return their sizes."""
        queue = self._queue
        while True:
            count, completions = queue.poll(MOST)
            if count:
                if sizes := received(completions):
                    return sizes
                continue
            self._ready.poll()
            self._channel.get_cq_event(queue)
            queue.ack_events(1)
            queue.req_notify()


def received(completions: list[object]) -> list[int]:
    """Return the sizes of the messages among completions."""
    sizes = []
    for completion in completions:
        if completion.status:
            raise SystemExit(f"a completion with status {completion.status}")
        if completion.opcode & WC_RECV:
            sizes.append(completion.byte_len)
    return sizes


async def first(connection: KeyedConnection, message: bytes) -> bytes:
    """Exchange the first messages, by vof."""
    pair = connection._pair
    if message:
        pair.post([message])
    while True:
        _, messages = pair.poll()
        if messages:
            return messages[0]
        await trio.sleep(0.001)


async def serve(address: str, style: str) -> None:
    """Serve one client after the other."""
    [listener] = await listen(parse_url(f"vof+rdma://{address}:0"))
    print(listener.url, flush=True)
    while True:
        connection = await listener.accept()
        bare = Bare(connection, style)
        address, key = PLACE.unpack(await first(connection, b""))
        answer = bare.send(ANSWER, (address, key))
        bare.ready(DEEPEST + 1)
        bare.endpoint.post([b"go"])
        while (sizes := bare.messages())[-1] != END:
            bare.ready(len(sizes))
            bare.post(answer, len(sizes))
        connection.close()


async def load(url: str, style: str, seconds: float, depth: int) -> None:
    """Take turns, and print what was measured in the form of ``vof bench --json``."""
    connection = await connect(parse_url(url))
    bare = Bare(connection, style)
    bare.ready(depth)
    await first(connection, PLACE.pack(bare.place[0], bare.place[2]))
    bare.ready(1)
    ask, latency = bare.send(ASK), Histogram()
    clock, turns = time.perf_counter_ns, 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    begin = now = clock()
    bare.post(ask, depth)
    while True:
        count = len(bare.messages())
        then, now = now, clock()
        latency.add(now - then)
        turns += count
        if now - begin > seconds * 1e9:
            break
        bare.ready(count)
        bare.post(ask, count)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    rate = turns / (now - begin) * 1e9
    bare.endpoint.post([b"!"])
    await trio.sleep(0.1)  # for that to be there
    connection.close()
    found = {
        "requests": turns,
        "iops": rate,
        "bytes_per_second": rate * PAYLOAD,
        "cpu_us_per_request": cpu / turns * 1e6,
        "latency_us": {f"p{p}": latency.percentile(p) / 1000 for p in (50, 99)},
    }
    print(json.dumps(found))


def main() -> None:
    """Read the command line."""
    match sys.argv[1:]:
        case ["serve", address, style] if style in STYLES:
            trio.run(serve, address, style)
        case ["load", url, style, seconds, depth] if style in STYLES:
            trio.run(load, url, style, float(seconds), int(depth))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
