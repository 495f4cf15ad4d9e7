# SPDX-License-Identifier: BSD-3-Clause
"""The RDMA device of this machine itself, hard or soft."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.errors import LabError

DEVICES = Path("/sys/class/infiniband")
LOCAL = "link"
"""Scope of addresses that need the name of an interface beside them."""


def _interfaces() -> set[str]:
    """Return the network interfaces that RDMA devices are on."""
    found = set()
    for file in DEVICES.glob("*/ports/*/gid_attrs/ndevs/*"):
        try:
            found.add(file.read_text().strip())
        except OSError:
            pass  # an entry without one
    return found


def addresses() -> list[str]:
    """Return addresses that have an RDMA device, IPv4 first. Raises LabError: there is none."""
    found = []
    for interface in sorted(_interfaces()):
        command = ["ip", "-json", "address", "show", "up", "dev", interface]
        shown = subprocess.run(command, check=True, capture_output=True).stdout
        found += [one for row in json.loads(shown) for one in row.get("addr_info", ())]
    usable = [one["local"] for one in found if one["scope"] != LOCAL]
    if usable:
        return sorted(usable, key=lambda address: ":" in address)
    raise LabError(
        "this machine has no RDMA device with an address; "
        "without hardware: rdma link add rxe0 type rxe netdev NAME, or leave --native out"
    )


def run(command: Sequence[str]) -> int:
    """Run a command on this machine. Returns its exit status; raises LabError."""
    environ = os.environ | {"VOF_RDMA_ADDRESSES": " ".join(addresses())}
    if len(command) == 1:
        command = ("sh", "-c", *command)
    return subprocess.run(command, env=environ).returncode
