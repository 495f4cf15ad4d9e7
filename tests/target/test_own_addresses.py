# SPDX-License-Identifier: BSD-3-Clause
"""Which addresses are this machine, and that no neighbour passes for it."""

import subprocess
import sys

import pytest

from vof.target.access import is_own


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("198.51.100.1", False),
        ("2001:db8::1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("255.255.255.255", False),
        ("fe80::1%nowhere", False),
    ],
)
def test_addresses_of_this_machine(address, own):
    assert is_own(address) is own


def test_its_own_addresses_are_this_machine_and_its_neighbours_are_not(require):
    for program, package in (("unshare", "util-linux"), ("ip", "iproute2")):
        require(program, package)
    inside = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for users here")
    command = [*inside, sys.executable, "-m", "tests.target.neighbours"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 ", "1 EACLREJECTED"] * 2
