# SPDX-License-Identifier: BSD-3-Clause
"""Rings between processes: torn or reordered stores, and races, do not show within one."""

import os
import random
import select
from time import monotonic

import pytest

from tests.ring_peer import Peer, answer
from tests.virtio.rings import KINDS, Ring
from vof.errors import QueueFull, RingError

REQUESTS = 0x10000 + 4000
"""More than any 16-bit index counts."""
SECONDS = 0.5
FINDS = 30
LIMIT_MS = 20_000
ALONE = 80
"""Of 100 requests, how many are published alone: a torn index is there for a nanosecond."""


@pytest.mark.slow
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_requests_through_another_process(kind, event_idx):
    """Each comes back once, with the checksum of its bytes; nobody sleeps for ever."""
    ring = Ring(kind, 32, size=1 << 20, event_idx=event_idx, indirect=event_idx, num_max=32)
    vq, rng, sleeps = ring.vq, random.Random(1), 0
    with Peer("device", ring) as peer:
        ring.bell.ring = lambda: os.eventfd_write(peer.kick, 1)
        poller = select.poll()
        poller.register(peer.call, select.POLLIN)
        free = [
            (ring.region.alloc(8), ring.region.alloc(24), ring.region.alloc(36)) for _ in range(32)
        ]
        flying = {}
        sent = done = 0
        while done < REQUESTS:
            for _ in range(rng.randrange(40)):
                if not free or sent == REQUESTS:
                    break
                buffers = free.pop()
                buffers[0][:] = (sent * 0x9E3779B97F4A7C15 & (1 << 64) - 1).to_bytes(8, "little")
                buffers[1][:8] = buffers[0]
                try:
                    vq.add_sgs(buffers, 2, 1, sent)
                except QueueFull:
                    free.append(buffers)
                    break
                flying[sent] = buffers
                sent += 1
                if sent % 100 < ALONE:
                    vq.kick()
            vq.kick()
            taken = done
            while found := vq.get_buf():
                buffers = flying.pop(found[0])
                question = bytes(buffers[0]) + bytes(buffers[1])
                assert found[1] == 36
                assert bytes(buffers[2]) == answer(question, 36), f"request {found[0]}"
                buffers[2][:] = bytes(36)
                free.append(buffers)
                done += 1
            if taken == done and flying and vq.enable_cb():
                sleeps += 1
                assert poller.poll(LIMIT_MS), f"nothing used after {done}, {len(flying)} in flight"
                os.eventfd_read(peer.call)
                vq.disable_cb()
            assert vq.broken_by is None, vq.broken_by
    assert not flying
    assert vq.num_free == 32
    assert sleeps


def turns(lies):
    """Go on for a while, and until something was found: the liar may have little of the CPU."""
    end = monotonic() + SECONDS
    while monotonic() < end or len(lies) < FINDS:
        assert monotonic() < end + LIMIT_MS / 1000, f"{len(lies)} lies were found"
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_device_beside_a_liar(kind):
    """It gets chains of the region, or RingError, however the ring changes while it is read."""
    ring = Ring(kind, 8, event_idx=True)
    lies = []
    with Peer("liar", ring):
        for _ in turns(lies):
            device = kind.device(ring.layout, ring.translate, True)
            for _ in range(20):
                try:
                    batch = device.receive()
                except RingError as error:
                    lies.append(error)
                    break
                assert device.inflight <= 8
                for chain in batch:
                    for segment in filter(len, chain.writable):
                        assert ring.region.offset_of(segment) is not None
                    device.push(chain, sum(map(len, chain.writable)))
                device.flush()
                device.notify_enable()
            if device.errors:
                lies.append(device.last_error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_driver_beside_a_liar(kind):
    """It gets its tokens back, each once, by get_buf or from the broken queue."""
    ring = Ring(kind, 8, event_idx=True, callback=lambda vq: None)
    vq, lies = ring.vq, []
    with Peer("liar", ring):
        for _ in turns(lies):
            vq._begin(8, 0)  # the same memory: the liar knows no other
            vq._broken = vq._lost = False
            vq._cause, vq._detached = None, []
            tokens, taken = [], []
            for _ in range(50):
                while vq.num_free > 1 and not vq.is_broken:
                    vq.add_sgs([b"abc", bytearray(4)], 1, 1, len(tokens))
                    tokens.append(len(tokens))
                    if len(tokens) % 8 == 0:
                        break
                vq.kick()
                vq.enable_cb()
                vq.interrupt()
                vq.enable_cb_delayed()
                while found := vq.get_buf():
                    assert found[1] <= 4
                    taken.append(found[0])
                if vq.is_broken:
                    assert isinstance(vq.broken_by, RingError)
                    lies.append(vq.broken_by)
                    break
            vq.break_()
            while (token := vq.detach_unused_buf()) is not None:
                taken.append(token)
            assert sorted(taken) == tokens
