# SPDX-License-Identifier: BSD-3-Clause
"""Random lives of a queue agree with a model of plain lists: each token comes back exactly once."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from trio.testing import MockClock

from tests.conformance.machine import VirtqueueMachine
from tests.conformance.memory_device import Entry, MemoryQueue, maker

SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)

HUNT = settings(SETTINGS, max_examples=1000, derandomize=True, phases=[Phase.generate])

MAKES = {
    "plain": maker(),
    "ring-like": maker(count_buffers=True),
    "late": maker(late=2),
}


def run(make, settings=SETTINGS):
    options = {"make": staticmethod(make), "clock": lambda: MockClock(autojump_threshold=0.01)}
    machine = type("Machine", (VirtqueueMachine,), options)
    run_state_machine_as_test(machine, settings=settings)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_lives_of_a_queue(make):
    run(make)


class LosesTheSecond(MemoryQueue):
    def complete(self, end, batch):
        super().complete(end, batch[:1])


class TurnsAroundWhenBroken(MemoryQueue):
    def break_(self, cause=None):
        super().break_(cause)
        self.used.reverse()


class ForgetsToCall(MemoryQueue):
    def enable_cb_prepare(self):
        position = super().enable_cb_prepare()
        self.callbacks = len(self.entries) < 2
        return position


class DetachesTwice(MemoryQueue):
    def forget(self, entry):
        super().forget(entry)
        if self.is_broken and entry.written:
            self.entries.insert(0, Entry(entry.token, None, [], [], 0))


@pytest.mark.parametrize(
    "broken", [LosesTheSecond, TurnsAroundWhenBroken, ForgetsToCall, DetachesTwice]
)
def test_machine_finds(broken):
    with pytest.raises((AssertionError, ExceptionGroup)):
        run(maker(queue=broken), HUNT)
