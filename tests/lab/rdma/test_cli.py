# SPDX-License-Identifier: BSD-3-Clause
"""Commands over RDMA, with the access that a device has by itself: this machine.

The demo is run by ``tests/lab/test_run.py``.
"""

import json
import os

import pytest

from tests.lab.rdma.forked import program
from tests.lab.rdma.test_pair import IWARP
from vof.cli import checks, main
from vof.cli.machine import Machine


@pytest.fixture
def disk(address: str, run) -> str:
    """The URL of a disk whose target was told nothing about access."""
    words = ("--listen", f"vof+rdma://{address}:0", "--admin", "none", "--mem", "1M,tvqn=disk")
    return run(program, "target", *words).line()


def test_the_address_is_known(address: str):
    assert checks.rdma_addresses(Machine())[:1] == ([] if IWARP else [address])


def test_info_and_bench(disk: str, address: str, capsys):
    assert main(["info", disk, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["transport"]
    adapter = found.pop("adapter")
    assert adapter in os.listdir("/sys/class/infiniband")
    assert found.pop("descs") >= 2
    wanted = {"scheme": "vof+rdma", "peer": address, "dialect": "v5"}
    assert found == {**wanted, "mapping": "keyed", "eager": True}
    assert main(["info", disk]) == 0
    assert f"vof+rdma to {address}, dialect v5, RDMA device {adapter}" in capsys.readouterr().out
    assert main(["info", f"{disk}?dialect=v0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["transport"]
    assert (found["dialect"], found["descs"], found["eager"]) == ("v0", 0, False)
    assert main(["bench", disk, "--json", "--requests", "20", "--depth", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["errors"]) == (20, 0)
    assert found["latency_us"]["p50"] > 0
