# SPDX-License-Identifier: BSD-3-Clause
"""What people see of a status."""

import json
from pathlib import Path

import pytest

from vof.cli import status

GOLDEN = json.loads((Path(__file__).parents[1] / "target" / "status.json").read_text())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "-"),
        (0.00123, "1.23 ms"),
        (1.5, "1.5 s"),
        (119.9, "119.9 s"),
        (600, "10 min"),
        (7200, "2 h"),
        (1e6, "278 h"),
    ],
)
def test_a_time(seconds, words):
    assert status.duration(seconds) == words


def reply(**more):
    known = {"vof_version": "1.2", "state": "serving", "limits": {}, "polling": {}, "listeners": []}
    return {**GOLDEN, **known, **more}


def row(text, first):
    """The cells of the row of which the first cell is this, in the last such table."""
    return [line.split() for line in text.splitlines() if line.split()[:1] == [first]][-1]


def test_the_tables():
    text = status.text(reply())
    assert row(text, "it") == ["it", "blk", "serving", "1", "disk.img", "(read-only)"]
    assert row(text, "0") == [
        "0",
        "0",
        "16",
        "2",
        "0",
        "ms",
        "device",
        "3",
        "1",
        "92",
        "B",
        "58",
        "B",
    ]
    assert row(text, "ENOTGT") == ["ENOTGT", "1"]
    assert "3 requests, 2 errors" in text


def test_a_peer_that_takes_nothing_and_a_limit():
    [association] = GOLDEN["associations"]
    queue = association["queues"][0] | {"waits": "peer", "stuck_seconds": 90, "paused": True}
    text = status.text(reply(associations=[association | {"queues": [queue]}]))
    assert row(text, "0")[4:7] == ["90.0", "s", "peer*"]


def test_a_target_that_does_nothing():
    text = status.text(reply(associations=[], refusals={}))
    assert "QUEUE" not in text
    assert "REFUSED" not in text


def test_a_name_does_nothing_to_a_terminal():
    [association] = GOLDEN["associations"]
    text = status.plain(status.text(reply(associations=[association | {"ivqn": "a\nb\x1b[2J"}])))
    assert "a\nb" not in text
    assert "\x1b" not in text
    assert status.plain("\x1b[2Jx\ny") == "?[2Jx\ny"
