# SPDX-License-Identifier: BSD-3-Clause
"""What the backend remembers of what is in flight: killed at any line, the next one knows it."""

import random
import sys

import pytest

from tests.vhost_backend import inflight
from tests.vhost_backend.inflight import TrackedPacked, TrackedSplit
from tests.virtio.rings import PACKED, SPLIT, Ring

TRACKED = {SPLIT: TrackedSplit, PACKED: TrackedPacked}
NUM = 16
LINES = 700


class Killed(BaseException):
    """Ends a device between two lines."""


def until(line, run):
    """Run, and kill at a line; return whether it came so far."""

    def local(frame, event, argument):
        nonlocal line
        if event == "line":
            line -= 1
            if not line:
                raise Killed
        return local

    def anywhere(frame, event, argument):
        return local if "vringh" in frame.f_code.co_filename or tracked(frame) else None

    def tracked(frame):
        return frame.f_code.co_filename == inflight.__file__

    sys.settrace(anywhere)
    try:
        run()
    except Killed:
        return True
    finally:
        sys.settrace(None)
    return False


class Disk:
    """A device that lives and dies on one ring; each chain tells its number and gets it back."""

    def __init__(self, ring, base):
        self.ring, self.base = ring, base
        self.state = memoryview(bytearray(inflight.bytes_of(NUM)))
        self.rng = random.Random(1)

    def live(self, keep=2):
        """Begin, finish what another left, and serve; some chains stay in flight."""
        ring = self.ring
        device = TRACKED[ring.kind](
            ring.layout, ring.translate, ring.event_idx, self.base, self.state
        )
        kept = self.work(device, device.resubmitted(), keep)
        for _ in range(2):
            kept = self.work(device, kept + device.receive(), keep)

    def work(self, device, chains, keep):
        """Use all but some chains, in any order; return those."""
        self.rng.shuffle(chains)
        for chain in chains[keep:]:
            chain.writable[0][:] = bytes(chain.readable[0])
            device.push(chain, 1)
            if self.rng.random() < 0.2:
                device.flush()
        device.flush()
        return chains[:keep]


def drive(ring, back, want):
    """Take what is used, and add until the ring is full or ``want`` were added in all."""
    while (used := ring.vq.get_buf()) is not None:
        (number, answer), written = used
        assert written == 1
        assert answer[0] == number & 0xFF
        back.append(number)
    assert not ring.vq.is_broken, ring.vq.broken_by
    ring.added = getattr(ring, "added", 0)
    while ring.added < want and ring.vq.num_free >= 3:
        question, answer = bytes([ring.added & 0xFF]), ring.filled(b"\xee")
        more = [ring.filled(b"\0")] if ring.added % 3 == 0 else []
        sgs = [ring.filled(question), *more, answer]
        ring.vq.add_sgs(sgs, len(sgs) - 1, 1, (ring.added, answer))
        ring.added += 1
    ring.vq.kick()


@pytest.mark.parametrize("kind", TRACKED, ids=lambda kind: kind.name)
def test_killed_anywhere_every_chain_comes_back_once(kind):
    base = 65530  # positions wrap soon
    ring = Ring(kind, NUM, base=base, size=1 << 17)
    disk, back, deaths = Disk(ring, base), [], 0
    for line in list(range(1, LINES)) * 2:
        drive(ring, back, 1 << 30)
        deaths += until(line, disk.live)
    while len(back) < ring.added:
        disk.live(keep=0)
        drive(ring, back, 0)
    assert sorted(back) == list(range(ring.added))
    assert deaths > LINES


@pytest.mark.parametrize("kind", TRACKED, ids=lambda kind: kind.name)
def test_what_ended_well_leaves_nothing(kind):
    ring = Ring(kind, NUM)
    disk = Disk(ring, 0)
    device = TRACKED[kind](ring.layout, ring.translate, False, 0, disk.state)
    drive(ring, [], 2)
    chains = device.receive()
    device.clean()
    assert any(disk.state)  # two are in flight
    for chain in chains:
        device.push(chain, 1)
    device.flush()
    device.clean()
    assert not any(disk.state)
