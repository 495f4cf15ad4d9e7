# SPDX-License-Identifier: BSD-3-Clause
"""What a status says, key by key, and that specs/json.md says the same."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import trio

from tests.models import Hoard
from tests.wire import command, connect_control, names, request, serving
from vof.protocol import v5
from vof.target.config import Device
from vof.target.exports import Opened
from vof.target.limits import Limits
from vof.target.running import Entry
from vof.target.status import status

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((Path(__file__).parent / "status.json").read_text())
VARYING = {
    "pid",
    "uptime_seconds",
    "age_seconds",
    "oldest_seconds",
    "id",
    "listeners",
    "limits",
    "polling",
}


def steady(value):
    """Return a document with zero for what no two runs have in common."""
    if isinstance(value, dict):
        return {key: 0 if key in VARYING else steady(one) for key, one in value.items()}
    return [steady(one) for one in value] if isinstance(value, list) else value


async def test_golden():
    model = Hoard()
    async with serving(lambda: model, Limits(connections=50)) as target:
        _, vq = await target.queue(size=16)
        for number in range(3):
            await vq.send(request(number, b"abcd", 10))
        await model.holds(3)
        model.use(written=10)
        await vq.used()
        assert await vq.status(command(v5.GET_STATUS)) == v5.ENOCMD
        stranger = await target.peer()
        assert await stranger.status(connect_control(body=names(tvqn=b"no"))) == v5.ENOTGT
        silent = await target.peer()
        await silent.send(b"\xff" * 16)
        await silent.take(100)
        device = Device("blk", "it", {"path": "disk.img", "read_only": True}, ("", ""))
        with trio.fail_after(5):
            while target.server.ended.connections < 1:
                await trio.lowlevel.checkpoint()
        found = status(target.server, [Entry(device, Opened(None, None))])
        assert found == json.loads(json.dumps(found)), "plain data alone"
        assert steady(found) == GOLDEN
        assert found["limits"] == dataclasses.asdict(target.server.limits)
        assert found["limits"]["connections"] == 50
        [one] = found["associations"]
        assert one["queues"][0]["oldest_seconds"] >= 0
        assert found["listeners"] == [str(target.url.with_tvqn(""))]


@pytest.mark.parametrize("what", ["device", "association", "queue"])
def test_what_lists_hold_is_documented(what):
    text = (ROOT / "specs" / "json.md").read_text()
    table = text.partition(f"| key of a{'n' * (what[0] == 'a')} {what} |")[2].partition("\n\n")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    [association], [device] = GOLDEN["associations"], GOLDEN["devices"]
    rows = {"device": device, "association": association, "queue": association["queues"][0]}
    assert documented == [*rows[what]]
