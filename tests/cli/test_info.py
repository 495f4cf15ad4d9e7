# SPDX-License-Identifier: BSD-3-Clause
"""``vof info``."""

import json
import os

import pytest

from tests.models import Echo
from vof.cli import main
from vof.virtio.blk import BlkConfig


def facts(capsys, url):
    assert main(["info", url, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_disk(world, capsys):
    found = facts(capsys, world["disk"])
    assert (found["schema"], found["command"], found["url"]) == (1, "info", world["disk"])
    assert (found["device_id"], found["device"]) == (2, "blk")
    assert found["queue_sizes"] == [128, 128]
    assert found["features"] >> 32 & 1
    assert found["transport"] == {
        "scheme": "vof+unix",
        "peer": f"unix:{os.getuid()}",
        "dialect": "v5",
        "mapping": "stream",
        "adapter": "",
        "descs": 0,
        "eager": False,
    }
    assert {"VIRTIO_BLK_F_FLUSH", "VIRTIO_F_VERSION_1"} <= set(found["feature_names"])
    assert found["config"].keys() == BlkConfig()._asdict().keys()
    assert found["config"]["capacity"] == 2048
    assert found["config"]["num_queues"] == 2


def test_a_source_of_random_bytes(world, capsys):
    found = facts(capsys, world["rng"])
    assert (found["device_id"], found["device"], found["queue_sizes"]) == (4, "rng", [64])
    assert found["feature_names"] == ["VIRTIO_F_VERSION_1"]
    assert found["config"] == {}


def test_for_people(world, capsys):
    assert main(["info", world["disk"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == world["disk"]
    rows = [line.split(maxsplit=1) for line in lines[1:]]
    assert ["device", "blk (type 2)"] in rows
    assert ["transport", f"vof+unix to unix:{os.getuid()}, dialect v5"] in rows
    assert ["queues", "2, of sizes 128, 128"] in rows
    assert ["capacity", "1 MiB"] in rows
    assert ["VIRTIO_BLK_F_DISCARD"] in rows


def test_a_device_that_nobody_knows(serve, capsys):
    served = serve(it=lambda: Echo(queue_sizes=(3, 4, 5)))
    found = facts(capsys, served["it"])
    assert (found["device_id"], found["device"], found["queue_sizes"]) == (42, "unknown", [3, 4, 5])
    assert main(["info", served["it"]]) == 0
    assert "unknown (type 42)" in capsys.readouterr().out


def test_asking_does_not_start_the_device(world, capsys):
    facts(capsys, world["disk"])
    assert [model.features for model in world.models] == [0]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("vof+unix:///nowhere/at/all?tvqn=x", 1),
        ("vof+tcp://127.0.0.1:1/x", 1),
        ("what://is/this", 2),
        ("disk", 2),
    ],
)
def test_who_is_not_there(url, code, capsys):
    assert main(["info", url, "--json"]) == code
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("vof: ")
    assert err.count("\n") == 1


def test_a_name_that_is_not_exported(world, capsys):
    assert main(["info", world["nothing"]]) == 1
    assert "nothing" in capsys.readouterr().err
