# SPDX-License-Identifier: BSD-3-Clause
"""Random lives of a queue of the fabric agree with the model of plain lists."""

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conformance.fabric import fabric
from tests.conformance.machine import VirtqueueMachine

SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)


class FabricMachine(VirtqueueMachine):
    make = staticmethod(fabric("vof+loopback://machine"))


def test_lives_of_a_fabric_queue():
    run_state_machine_as_test(FabricMachine, settings=SETTINGS)
