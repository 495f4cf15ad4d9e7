# SPDX-License-Identifier: BSD-3-Clause
"""Random lives of rings: both sides honest, and either side a liar.

The first machine is the one that fabric queues go through, on the same device models. The second
has no event loop, begins near the wrap of its indexes, and looks at more.
"""

from itertools import product
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from trio.testing import MockClock

from tests.conformance.machine import VirtqueueMachine
from tests.conformance.memory_device import maker
from tests.conformance.vring_device import Packed, Split, VringDevice
from tests.virtio.rings import KINDS, PACKED, SPLIT, Ring
from vof.errors import InvalidArgument, QueueFull, RingError

SETTINGS = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
VARIANTS = list(product((Split, Packed), ((False, False), (True, True))))


@pytest.mark.parametrize(("kind", "features"), VARIANTS, ids=str)
def test_lives_agree_with_those_of_a_fabric_queue(kind, features):
    indirect, event_idx = features
    make = maker(VringDevice, kind=kind, indirect=indirect, event_idx=event_idx)
    options = {"make": staticmethod(make), "clock": lambda: MockClock(autojump_threshold=0.01)}
    machine = type("Machine", (VirtqueueMachine,), options)
    run_state_machine_as_test(machine, settings=SETTINGS)


# -- both sides honest ----------------------------------------------------------------------------

SEGMENTS = st.lists(st.binary(max_size=70), max_size=4)
ROOMS = st.lists(st.integers(0, 70), max_size=4)


class RingMachine(RuleBasedStateMachine):
    """Every chain comes back exactly once, with its bytes, as the device used it."""

    kind = SPLIT

    @initialize(
        num=st.sampled_from([1, 2, 4, 8, 16]),
        odd=st.booleans(),
        behind=st.integers(0, 40),
        indirect=st.booleans(),
        event_idx=st.booleans(),
    )
    def start(self, num, odd, behind, indirect, event_idx):
        if self.kind is PACKED and odd:
            num = num * 3 // 2
        base = (1 << 16) - behind if self.kind is SPLIT else 2 * num - behind % num
        self.calls = 0
        self.ring = Ring(
            self.kind,
            num,
            indirect=indirect,
            event_idx=event_idx,
            base=base,
            callback=self.called,
        )
        self.vq, self.device, self.num, self.indirect = (
            self.ring.vq,
            self.ring.device,
            num,
            indirect,
        )
        self.cost = {}
        self.added, self.offered, self.held, self.used = [], [], [], []
        self.serial = 0
        self.asleep = None  # used buffers are announced: how many there were

    def called(self, vq):
        self.calls += 1

    @rule(out=SEGMENTS, rooms=ROOMS, inside=st.booleans(), kick=st.booleans())
    def add(self, out, rooms, inside, kick):
        make = self.ring.filled if inside else bytearray
        buffers = [make(data) for data in out] + [make(b"\xa5" * room) for room in rooms]
        count = sum(map(bool, buffers))
        cost = min(count, 1) if self.indirect else count
        token = self.serial, b"".join(out), buffers[len(out) :]
        free = self.vq.num_free
        try:
            self.vq.add_sgs(buffers, len(out), len(rooms), token, ctx=self.serial)
        except QueueFull:
            assert cost > free
        except InvalidArgument:
            assert not 0 < count <= (1024 if self.indirect else self.num)
        else:
            self.cost[self.serial] = cost
            self.added.append(token)
            self.serial += 1
        if kick:
            self.kick()

    @rule()
    def kick(self):
        rings, news = self.ring.bell.rings, bool(self.added)
        assert self.vq.kick()
        self.offered += self.added
        self.added = []
        if news and self.armed:
            assert self.ring.bell.rings > rings
            self.armed = False

    armed = False  # the device sleeps until it is told

    @rule()
    def device_sleeps(self):
        idle = self.device.notify_enable()
        assert idle == (not self.offered)
        self.armed = idle

    @rule()
    def device_polls(self):
        self.device.notify_disable()
        self.armed = False

    @rule()
    def receive(self):
        chains = self.device.receive()
        assert len(chains) == len(self.offered)
        for chain, token in zip(chains, self.offered, strict=True):
            _, question, buffers = token
            assert b"".join(chain.readable) == question
            assert list(map(len, chain.writable)) == [len(b) for b in buffers if len(b)]
            self.held.append((chain, token))
        self.offered = []

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def use(self, data):
        for _ in range(data.draw(st.integers(1, len(self.held)))):
            chain, token = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            room = sum(map(len, chain.writable))
            answer = data.draw(st.binary(max_size=room)).ljust(room, b"!")
            at = 0
            for segment in chain.writable:
                segment[:] = answer[at : at + len(segment)]
                at += len(segment)
            written = data.draw(st.integers(0, room))
            self.device.push(chain, written, room)
            self.used.append((token, answer, written))
            assert self.vq.num_free <= self.num
        wanted = self.device.flush()
        if wanted:
            self.asleep = None
        assert self.asleep is None or len(self.used) <= self.asleep
        calls = self.calls
        self.vq.interrupt()
        assert self.calls - calls <= 1

    @rule(take=st.integers(1, 5))
    def get_buf(self, take):
        self.asleep = None
        for _ in range(take):
            found = self.vq.get_buf_ctx()
            if not self.used:
                assert found is None
                return
            token, answer, written = self.used.pop(0)
            assert found == (token, written, token[0])
            assert b"".join(token[2]) == answer
            del self.cost[token[0]]

    @rule()
    def enable(self):
        assert self.vq.enable_cb() == (not self.used)
        self.asleep = None if self.used else 0

    @rule()
    def disable(self):
        self.vq.disable_cb()
        self.asleep = None

    @rule()
    def enable_delayed(self):
        flying = len(self.offered) + len(self.held)
        pending = len(self.used)
        self.asleep = None
        if self.vq.enable_cb_delayed() and not self.added:
            self.asleep = pending + flying - 1 if flying else None
        elif not self.added:
            assert pending

    @invariant()
    def places_are_conserved(self):
        if hasattr(self, "vq"):
            assert self.vq.num_free == self.num - sum(self.cost.values())
            assert not self.vq.is_broken
            assert self.device.inflight == len(self.held)
            assert self.device.errors == 0

    def teardown(self):
        if not hasattr(self, "vq"):
            return
        self.vq.break_()
        left = []
        while (token := self.vq.detach_unused_buf()) is not None:
            left.append(token[0])
        assert sorted(left) == sorted(self.cost)
        assert self.vq.num_free == self.num


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_lives_of_a_ring(kind):
    machine = type("Machine", (RingMachine,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=150))


# -- a liar on one side ---------------------------------------------------------------------------


PLACES = st.integers(0, 1 << 12)
WORDS = st.one_of(st.integers(0, 9), st.sampled_from([0x80, 0x8000, 0x8080, 0xFFFF]))


class Lies(NamedTuple):
    """One turn of a liar.

    Attributes:
        honest: do something right before.
        bytes: what to write anywhere.
        words: what to write, aligned, where it hurts most.
        count: how much of what there is to take.
    """

    honest: bool
    bytes: list[tuple[int, bytes]]
    words: list[tuple[int, int]]
    count: int

    def write(self, memory):
        for place, data in self.bytes:
            at = place % (len(memory) - len(data))
            memory[at : at + len(data)] = data
        words = memory[: len(memory) & ~1].cast("H")
        for place, word in self.words:
            words[place % len(words)] = word


# All is drawn beforehand: what becomes of a lie depends on where the region is mapped.
LIES = st.builds(
    Lies,
    st.booleans(),
    st.lists(st.tuples(PLACES, st.binary(min_size=1, max_size=24)), max_size=4),
    st.lists(st.tuples(PLACES, WORDS), max_size=2),
    st.integers(0, 8),
)
LIVES = given(
    lies=st.lists(LIES, min_size=1, max_size=6), indirect=st.booleans(), event_idx=st.booleans()
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@LIVES
@settings(SETTINGS, max_examples=300)
def test_a_driver_that_writes_anything(kind, lies, indirect, event_idx):
    """The device gets chains of the region, or RingError; it never has more than a ring of them."""
    ring = Ring(kind, 4, indirect=indirect, event_idx=event_idx)
    region, device, held = ring.region, ring.device, []
    for lie in lies:
        if lie.honest and ring.vq.num_free >= 2:
            ring.vq.add_sgs([b"abc", bytearray(5)], 1, 1, "it")
            ring.vq.kick()
        lie.write(ring.vq.memory)
        try:
            held += device.receive()
        except RingError:
            return
        assert len(held) == device.inflight <= ring.layout.num
        for chain in held:
            for segment in (*chain.readable, *chain.writable):
                assert len(segment) <= region.size
            for segment in filter(len, chain.writable):
                assert region.offset_of(segment) is not None
                segment[:1] = b"x"
        for chain in held[: lie.count]:
            device.push(chain, sum(map(len, chain.writable)))
        del held[: lie.count]
        device.flush()
        device.notify_enable()
        device.notify_disable()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@LIVES
@settings(SETTINGS, max_examples=300)
def test_a_device_that_writes_anything(kind, lies, indirect, event_idx):
    """The driver gets each of its tokens once at most, or a broken queue and the rest of them."""
    ring = Ring(kind, 4, indirect=indirect, event_idx=event_idx, callback=lambda vq: None)
    given, taken = [], []
    for lie in lies:
        while ring.vq.num_free >= 2 and not ring.vq.is_broken:
            token = len(given)
            ring.vq.add_sgs([b"abc", bytearray(5)], 1, 1, token)
            given.append(token)
            if len(given) % 8 == 0:
                break
        ring.vq.kick()
        if lie.honest:
            try:
                for chain in ring.device.receive():
                    ring.use(chain, b"!"[: sum(map(len, chain.writable))])
            except RingError:
                pass  # by what was written before
        lie.write(ring.vq.memory)
        position = ring.vq.enable_cb_prepare()
        ring.vq.poll(position)
        ring.vq.interrupt()
        ring.vq.enable_cb_delayed()
        for _ in range(9):
            if found := ring.vq.get_buf():
                assert found[1] <= 5
                taken.append(found[0])
        ring.vq.disable_cb()
        assert ring.vq.is_broken == isinstance(ring.vq.broken_by, RingError)
    ring.vq.break_()
    while (token := ring.vq.detach_unused_buf()) is not None:
        taken.append(token)
    assert sorted(taken) == given
    assert ring.vq.num_free == 4
