# SPDX-License-Identifier: BSD-3-Clause
"""Frames through a real switch of DPDK, by a packed ring, behind a real target over TCP."""

import json
import os
import re
import select
import subprocess
import sys
from collections import deque
from contextlib import contextmanager
from itertools import count

import trio

import vof
from tests.daemon import ANY, ROOT, Daemon
from vof.initiator.drivers import Net
from vof.virtio.constants import VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED

MANY = 100_000
OUT = 64
"""Frames on their way. A switch drops what it has no buffer for: as many again must be there."""
LONGEST_S = 60
NEXT_TRY_S = 0.2
MAC = bytes.fromhex("02000000000a")
HEADER = bytes.fromhex("02000000000b") + MAC + b"\x88\xb5"
CONTENT = bytes(number * number % 251 for number in range(4096))
EAL = (
    *("-m", "64", "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry"),
    *("--lcores", "(0-1)@(0-1)"),  # two threads, wherever there is room
)
FORWARD = (
    *("--auto-start", "--forward-mode=io", "--port-topology=loop", "--total-num-mbufs=4096"),
    *("--no-lsc-interrupt", "--disable-link-check"),
)


class Switch:
    """dpdk-testpmd, which sends back on its only port what it receives there."""

    def __init__(self, program, path):
        port = f"net_vhost0,iface={path},queues=1"
        words = [program, *EAL, "--vdev", port, "--", *FORWARD]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        self.said = b""

    def ready(self):
        """Wait until it listens. It never sleeps: from now on, what runs beside it comes first."""
        while b"binding succeeded" not in self.said:
            assert select.select([self.process.stdout], [], [], LONGEST_S)[0], self.said
            more = os.read(self.process.stdout.fileno(), 4096)
            assert more, self.said
            self.said += more
        os.setpriority(os.PRIO_PGRP, self.process.pid, 19)

    def end(self):
        """End it the way a person does, and return what it said."""
        out, _ = self.process.communicate(b"\n", timeout=LONGEST_S)
        assert self.process.returncode == 0, out.decode()
        return out.decode()


@contextmanager
def switch(require, path):
    one = Switch(require("dpdk-testpmd", "dpdk-dev"), path)
    try:
        one.ready()
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


@contextmanager
def target(path):
    option = f"{path},device=net,tvqn=net0,queue_size=256,mac={MAC.hex(':')}"
    daemon = Daemon((*ANY, "--vhost-user", option))
    try:
        yield daemon.line()
        daemon.signal()
        code, _, log = daemon.end()
        assert code == 0
        for name in ("RING_PACKED", "IN_ORDER"):
            assert f"VIRTIO_F_{name} stays here: it belongs to the ring" in log
        for name in ("CTRL_VQ", "GUEST_ANNOUNCE", "MQ"):
            assert f"VIRTIO_NET_F_{name} stays here: its commands go through a control queue" in log
        assert "VIRTIO_NET_F_MRG_RXBUF stays here" in log
    finally:
        daemon.process.kill()
        daemon.process.communicate()


def frame(number):
    """The frame of a number: its size and content tell it from all others near it."""
    start = number * 97 % 2048
    return HEADER + number.to_bytes(4) + CONTENT[start : start + 42 + number * 31 % 1455]


async def begun(net):
    """Wait until a frame comes back: the switch drops what comes before all its queues run."""
    for number in count():
        await net.send(probe := frame(number))
        with trio.move_on_after(NEXT_TRY_S):
            while await net.receive() != probe:
                pass
            return


async def looped(net, many):
    """Send frames of all sizes; each that comes back must be the oldest that is out."""
    out = deque()
    sent = 0
    while sent < many or out:
        frames = [frame(number) for number in range(sent, min(sent + OUT - len(out), many))]
        sent += len(frames)
        out += frames
        await net.send_batch(frames)
        for back in await net.receive_batch():
            assert back == out.popleft()


def counted(said):
    """What the switch counted in the end: received, sent back, dropped."""
    total = said.rpartition("Accumulated forward statistics")[2]
    return [
        int(re.search(rf"{name}: (\d+)", total)[1])
        for name in ("RX-packets", "TX-packets", "TX-dropped")
    ]


async def test_frames_come_back_whole_and_in_order(require, tmp_path):
    path = tmp_path / "s"
    with switch(require, path) as dpdk, target(path) as url, trio.fail_after(LONGEST_S):
        for dialect, many in (("v5", MANY), ("v0", MANY // 10)):
            async with vof.connect(f"{url}?dialect={dialect}") as device, Net(device) as net:
                assert (net.mac, net.mtu, net.link_up) == (MAC, 1500, True)
                await begun(net)
                await looped(net, many)
                assert net.counters.rx_errors == 0
        said = dpdk.end()
    chosen = [
        int(word, 16) for word in re.findall("negotiated Virtio features: (0x[0-9a-f]+)", said)
    ]
    assert len(chosen) >= 2
    for features in chosen:
        assert features >> VIRTIO_F_RING_PACKED & 1
        assert not features >> VIRTIO_F_IN_ORDER & 1
    received, returned, dropped = counted(said)
    assert received == returned + dropped
    assert returned >= MANY + MANY // 10


async def test_a_switch_may_start_anew(require, tmp_path):
    path = tmp_path / "s"
    with switch(require, path) as first, target(path) as url, trio.fail_after(LONGEST_S):
        async with vof.connect(url) as device, Net(device) as net:
            await begun(net)
            await looped(net, 1000)
            first.process.kill()
            first.process.wait()
            path.unlink(missing_ok=True)
            with switch(require, path) as second:
                await begun(net)
                await looped(net, 1000)
                assert counted(second.end())[1] >= 1000


def test_ping(require, tmp_path):
    path = tmp_path / "s"
    with switch(require, path), target(path) as url:
        words = [sys.executable, "-m", "vof", "net", url, "--ping", "2000", "--json"]
        done = subprocess.run(words, capture_output=True, cwd=ROOT, timeout=LONGEST_S)
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout)["ping"]["back"] == 2000
