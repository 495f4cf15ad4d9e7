# SPDX-License-Identifier: BSD-3-Clause
"""The rules of the spin, on a clock that only it advances."""

import os
import socket
import subprocess
import sys
import threading
from select import EPOLLIN, EPOLLOUT

import pytest

from vof.transport import polling
from vof.transport.polling import MOST_SKIPS, SHORT_SLEEP, TURN_NS, Spin

TICK = 1_000
BUDGET = 100_000


class Clock:
    """Advances by one tick a look; things may happen at a certain time."""

    def __init__(self):
        self.now = 5 * TURN_NS
        self.plan = {}
        self.yields = 0
        self.on_yield = None

    def __call__(self):
        self.now += TICK
        for when in [when for when in self.plan if when <= self.now]:
            self.plan.pop(when)()
        return self.now

    def sched_yield(self):
        self.yields += 1
        if self.on_yield:
            self.on_yield()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(polling, "_shared", polling._Shared())
    monkeypatch.setattr(polling, "perf_counter_ns", clock)
    monkeypatch.setattr(polling, "sched_yield", clock.sched_yield)
    polling.configure(BUDGET // 1000)
    return clock


class Line:
    """A pipe with a spin at its end."""

    def __init__(self):
        self.end, self.start = os.pipe()
        self.spin = Spin(self.end)

    def ring(self):
        os.write(self.start, b"x")

    def hush(self):
        os.read(self.end, 100)

    def close(self):
        self.spin.close()
        os.close(self.start)
        os.close(self.end)


@pytest.fixture
def lines(clock):
    lines = [Line(), Line()]
    yield lines
    for line in lines:
        line.close()


@pytest.fixture
def line(lines):
    return lines[0]


def tries():
    return polling.statistics()["tries"]


def nap(line, ns=0):
    """One wait that ends in a sleep."""
    assert not line.spin()
    polling.perf_counter_ns.now += ns
    line.spin.slept()


def test_an_idle_process_gives_no_tries(line):
    for _ in range(50):
        nap(line, SHORT_SLEEP * BUDGET + TICK)
    assert tries() == 0


def test_a_short_sleep_brings_the_budget_and_a_spin_that_fails_takes_it(line, clock):
    nap(line)
    assert tries() == 0
    before = clock.now
    assert not line.spin()
    assert tries() == 1
    assert BUDGET <= clock.now - before <= BUDGET + 3 * TICK
    line.spin.slept()
    assert not line.spin()
    assert tries() == 1


def test_each_failure_doubles_the_sleeps_until_the_next_try(line):
    gaps = []
    while len(gaps) < 12:
        before, naps = tries(), 0
        while tries() == before:
            nap(line)
            naps += 1
        gaps.append(naps - 1)
    assert gaps == [1, *(min(2**n - 1, MOST_SKIPS) for n in range(1, 12))]


def test_success_keeps_the_budget_near_what_was_needed(line, clock):
    nap(line)
    for after, kept in ((90_000, BUDGET), (10_000, 4 * 10_000), (3 * TICK, BUDGET // 4)):
        clock.plan[clock.now + after] = line.ring
        assert line.spin()
        assert abs(line.spin._budget - kept) <= 8 * TICK
        line.hush()
        line.spin.slept()  # however short
        assert abs(line.spin._budget - kept) <= 8 * TICK
    assert polling.statistics()["hits"] == tries() == 3


def test_success_makes_the_next_failure_the_first(line, clock):
    for _ in range(20):
        nap(line)
    while not line.spin._budget:
        nap(line)
    clock.plan[clock.now + 5 * TICK] = line.ring
    assert line.spin()
    line.hush()
    line.spin.slept()
    before = tries()
    for _ in range(3):
        nap(line)
    assert tries() == before + 2  # one sleep without, as after the first failure of all


def test_what_is_ready_needs_no_try(line):
    nap(line)
    line.ring()
    assert line.spin()
    assert tries() == 0


def test_another_that_is_ready_ends_the_spin(lines, clock):
    one, other = lines
    nap(one)
    clock.plan[clock.now + 10 * TICK] = other.ring
    before = clock.now
    assert not one.spin()
    assert clock.now - before < 15 * TICK
    one.ring()
    assert not one.spin()  # both: the loop takes its turn
    assert not other.spin()
    other.hush()
    assert one.spin()


def test_without_a_budget_the_cpu_is_offered_once(line, clock):
    nap(line, SHORT_SLEEP * BUDGET + TICK)  # the first wait of all gives the loop its turn
    yields = clock.yields
    nap(line, SHORT_SLEEP * BUDGET + TICK)
    assert clock.yields == yields + 1
    clock.on_yield = line.ring
    assert line.spin()
    assert tries() == 0


def test_the_loop_gets_its_turn(line, clock):
    nap(line)
    line.ring()
    assert line.spin()
    clock.now += TURN_NS
    assert not line.spin()
    line.spin.slept()
    assert line.spin()


def test_work_in_threads_forbids_spinning(line, clock):
    nap(line)
    yields = clock.yields
    with polling.offloading():
        with polling.offloading():
            pass
        assert not line.spin()
        assert clock.yields == yields
        assert tries() == 0
        line.ring()
        assert line.spin()
        line.hush()
    assert not line.spin()
    assert tries() == 1


def test_room_to_send_ends_a_spin_while_somebody_waits_for_it(line, clock):
    near, far = socket.socketpair()
    sender = Spin(near.fileno())
    nap(line)
    line.ring()
    assert line.spin()
    sender.watch(EPOLLOUT, True)
    assert not line.spin()
    far.send(b"x")
    line.hush()
    assert not sender()  # the writer must have its turn
    sender.watch(EPOLLOUT, False)
    assert sender()
    sender.close()
    near.close()
    far.close()


def test_what_nobody_reads_disturbs_nobody(lines):
    line, unread = lines
    nap(line)
    line.ring()
    unread.ring()
    assert not line.spin()
    unread.spin.watch(EPOLLIN, False)
    assert line.spin()
    unread.spin.watch(EPOLLIN, True)
    assert not line.spin()
    unread.spin.close()
    unread.spin.watch(EPOLLIN, True)  # its number may be another's by now
    assert line.spin()


def test_polling_can_be_turned_off(line):
    polling.configure(0)
    for _ in range(20):
        nap(line)
    assert polling.statistics() == {"tries": 0, "hits": 0, "budget_us": 0}


def test_the_environment_sets_the_budget(monkeypatch):
    monkeypatch.setenv("VOF_POLL_US", "7")
    assert polling._Shared().budget_ns == 7_000


def test_a_closed_spin_ends_no_other(lines):
    one, other = lines
    nap(one)
    other.ring()
    other.spin.close()
    other.spin.close()
    one.ring()
    assert one.spin()


class Memory:
    """Where something may be found at a look, which costs no time."""

    def __init__(self):
        self.full, self.looks = False, 0

    def look(self):
        self.looks += 1
        found, self.full = self.full, False
        return found

    def fill(self):
        self.full = True


@pytest.fixture
def ring(clock):
    ring = Memory()
    polling.attend(ring.look)
    polling.attend(ring.look)  # no second time
    return ring


def test_a_ring_is_looked_at_until_it_is_left(line, ring):
    nap(line)
    line.ring()
    assert line.spin()
    assert ring.looks == 1
    polling.leave(ring.look)
    polling.leave(ring.look)
    assert line.spin()
    assert ring.looks == 1


def test_a_ring_may_change_who_is_attended(line, ring):
    polling.attend(lambda: polling.leave(ring.look))
    nap(line)
    line.ring()
    assert line.spin()
    assert line.spin()
    assert ring.looks == 1


def test_without_a_budget_a_ring_is_seen_after_the_cpu_was_offered(line, clock, ring):
    nap(line, SHORT_SLEEP * BUDGET + TICK)  # the loop has its turn
    clock.on_yield = ring.fill
    nap(line, SHORT_SLEEP * BUDGET + TICK)
    assert clock.yields
    assert not ring.full


def test_what_a_ring_had_begins_the_spin_anew(line, clock, ring):
    nap(line)
    clock.plan[clock.now + BUDGET - 5 * TICK] = ring.fill
    clock.plan[clock.now + 2 * BUDGET - 10 * TICK] = line.ring
    assert line.spin()
    assert tries() == 1


def test_rings_without_end_leave_the_loop_its_turn(line, clock, ring):
    nap(line)
    for late in range(0, 3 * TURN_NS, BUDGET // 2):
        clock.plan[clock.now + late] = ring.fill
    before = clock.now
    assert not line.spin()
    assert TURN_NS - BUDGET < clock.now - before < TURN_NS + BUDGET
    assert line.spin._budget == BUDGET  # nothing failed


def test_each_thread_has_its_own(line, clock):
    polling.configure(33)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(polling.statistics()))
    thread.start()
    thread.join()
    assert seen[0]["budget_us"] != 33
    assert polling.statistics()["budget_us"] == 33


def test_a_budget_that_is_no_number_is_named():
    done = subprocess.run(
        [sys.executable, "-m", "vof", "info", "vof+tcp://127.0.0.1:1/x"],
        env={**os.environ, "VOF_POLL_US": "fast"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "VOF_POLL_US" in done.stderr
    assert "Traceback" not in done.stderr
