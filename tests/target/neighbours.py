# SPDX-License-Identifier: BSD-3-Clause
"""A target with addresses of its own, an initiator on the same machine, and one on the next.

Run in a network namespace of its own, and another is the next machine. Prints what came of asking,
from the one and from the other, by IPv4 and by IPv6: the exit code of ``vof info``, and why.
"""

import subprocess
import sys

import trio

from vof.target import Export, Server
from vof.target.devices import RngModel
from vof.transport import listen, parse_url

HERE = "10.9.0.1", "fd09::1"
LINKS = (
    "link set lo up",
    "link add name v0 type veth peer name v1 netns {pid}",
    "address add 10.9.0.1/24 dev v0",
    "address add fd09::1/64 dev v0 nodad",
    "link set v0 up",
)
NEXT = (
    "address add 10.9.0.2/24 dev v1",
    "address add fd09::2/64 dev v1 nodad",
    "link set v1 up",
)


async def ask(there: list[str]) -> None:
    """Serve at each address; ask from here and from there, and print what came of it."""
    async with trio.open_nursery() as nursery:
        for host in HERE:
            listeners = await listen(parse_url("vof+tcp://host:0")._replace(host=host))
            await nursery.start(Server({"rng": Export("rng", RngModel)}).serve, listeners)
            url = str(listeners[0].url.with_tvqn("rng"))
            for prefix in ([], there):
                command = [*prefix, sys.executable, "-m", "vof", "info", url]
                done = await trio.run_process(
                    command, check=False, capture_stdout=True, capture_stderr=True
                )
                print(done.returncode, "EACLREJECTED" * (b"EACLREJECTED" in done.stderr))
        nursery.cancel_scope.cancel()


def main() -> None:
    """Set up both machines, and ask."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()  # it is there
        there = ["nsenter", "--net", f"--target={other.pid}"]
        for prefix, rows in (([], LINKS), (there, NEXT)):
            for row in rows:
                words = row.format(pid=other.pid).split()
                subprocess.run([*prefix, "ip", *words], check=True)
        trio.run(ask, there)
        other.stdin.close()


if __name__ == "__main__":
    main()
