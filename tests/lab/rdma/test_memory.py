# SPDX-License-Identifier: BSD-3-Clause
"""Memory of a program's own over RDMA, names with and without RDMA, and little memory to lock."""

import mmap
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

import vof
from tests.lab.conftest import ADDRESSES
from tests.lab.rdma.test_pair import HOSTS, LIMIT
from tests.models import Echo
from tests.wire_keyed import serving
from vof.errors import InvalidArgument
from vof.initiator.requests import RequestQueue
from vof.transport import listen, parse_url
from vof.virtio.device import VirtqueueInfo

ROOT = Path(__file__).parents[3]
KIB = 1024


async def started(device) -> RequestQueue:
    await device.initialize(0)
    [vq] = await device.find_vqs([VirtqueueInfo("q", None, 8)])
    await device.ready()
    return RequestQueue(vq)


async def test_an_array_and_a_mapped_file_are_used_where_they_are(flat):
    question = bytearray(os.urandom(256 * KIB))
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(256 * KIB)
        answer = mmap.mmap(file.fileno(), 256 * KIB)
        async with serving(Echo, url=f"vof+rdma://{HOSTS[0]}:0") as target:
            async with vof.connect(str(target.url)) as device:
                queue = await started(device)
                with (
                    device.pool.register(question, writable=False) as here,
                    device.pool.register(answer, readable=False) as there,
                    trio.fail_after(LIMIT),
                ):
                    for start in range(0, 256 * KIB, 64 * KIB):
                        part = slice(start, start + 64 * KIB)
                        assert await queue.request([here.view[part], there.view[part]], 1, 1)
                    with pytest.raises(InvalidArgument, match="registered already"):
                        device.pool.register(answer)
                file.seek(0)
                assert file.read() == question
                answer.close()
                assert await queue.request([b"still there", bytearray(11)], 1, 1) == 11


async def test_a_name_of_several_addresses_is_listened_on_where_there_is_rdma(flat, monkeypatch):
    get = trio.socket.getaddrinfo

    async def both(host, *args, **more):
        found = [await get(one, *args, **more) for one in ("192.0.2.1", HOSTS[0])]
        return [row for rows in found for row in rows]

    monkeypatch.setattr(trio.socket, "getaddrinfo", both)
    [listener] = await listen(parse_url("vof+rdma://both:0"))
    assert listener.url.host == HOSTS[0]
    listener.close()


async def test_a_queue_as_large_as_can_be(flat):
    """There is room for it once the target knows that its device has one."""
    sizes = (2048, 16)
    async with serving(lambda: Echo(queue_sizes=sizes), url=f"vof+rdma://{HOSTS[0]}:0") as target:
        async with vof.connect(str(target.url)) as device:
            assert await device.get_vq_size(0) == 1024
            await device.initialize(0)
            [vq] = await device.find_vqs([VirtqueueInfo("q")])
            await device.ready()
            answers = [bytearray(4) for _ in range(1024)]
            for number, answer in enumerate(answers):
                vq.add_sgs([number.to_bytes(4, "little"), answer], 1, 1, number)
            assert vq.num_free == 0
            vq.kick()
            used = set()
            with trio.fail_after(LIMIT):
                while len(used) < len(answers):
                    await vq.wait_used()
                    while (found := vq.get_buf()) is not None:
                        used.add(found)
            assert used == {(number, 4) for number in range(1024)}
            assert [int.from_bytes(each, "little") for each in answers] == list(range(1024))


def link_local() -> tuple[str, str]:
    """Return a link-local address of an interface that has RDMA, and its zone."""
    rows = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    known = {socket.inet_pton(socket.AF_INET6, one).hex() for one in ADDRESSES if ":" in one}
    zone = next(row[-1] for row in rows if row[0] in known)
    raw = next(row[0] for row in rows if row[-1] == zone and row[0].startswith("fe80"))
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(raw)), zone


async def test_a_link_local_address_keeps_its_zone(flat):
    address, zone = link_local()
    async with serving(Echo, url=f"vof+rdma://[{address}%25{zone}]:0") as target:
        assert target.url.host == f"{address}%{zone}"
        async with vof.connect(str(target.url)) as device:
            assert device.device_id == Echo.device_id


LITTLE = """
import sys, trio, vof
from vof.errors import VofError
async def main():
    try:
        async with vof.connect(sys.argv[1]):
            pass
    except VofError as error:
        print(error)
trio.run(main)
"""


def poor() -> None:
    """Become somebody for whom the limit counts."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * KIB, 64 * KIB))
    os.setuid(65534)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
async def test_an_initiator_that_may_lock_little_is_told_so(flat):
    async with serving(Echo, url=f"vof+rdma://{HOSTS[0]}:0") as target:
        with trio.fail_after(3 * LIMIT):
            done = await trio.run_process(
                [sys.executable, "-c", LITTLE, str(target.url)],
                cwd=ROOT,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                preexec_fn=poor,
            )
        [line] = done.stdout.decode().splitlines()
        assert "65536 bytes may be locked in memory (ulimit -l" in line
        async with vof.connect(str(target.url)) as device:
            assert device.device_id == Echo.device_id
