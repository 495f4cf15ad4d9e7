# SPDX-License-Identifier: BSD-3-Clause
"""Random lives of a queue of the fabric agree with the model of plain lists."""

import pytest
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


class KeyedMachine(VirtqueueMachine):
    make = staticmethod(fabric("vof+loopback+keyed://machine"))


@pytest.mark.parametrize("machine", [FabricMachine, KeyedMachine])
def test_lives_of_a_fabric_queue(machine):
    run_state_machine_as_test(machine, settings=SETTINGS)
