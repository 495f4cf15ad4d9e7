# SPDX-License-Identifier: BSD-3-Clause
"""``vof net``."""

import json
import random

import pytest
import trio

from vof.cli import main, net
from vof.target.devices import NetModel


class Bad(NetModel):
    """Treats each frame by its number, which is ``frame[21]``, as ``fate`` says."""

    def __init__(self, fate):
        super().__init__()
        self.fate = fate

    def _echo(self, frame):
        for answer in self.fate(frame[21], bytes(frame)):
            self._arrive(memoryview(answer))
        return True


def facts(capsys, *words, code=0):
    assert main(["net", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("size", ["22", "64", "1514", "1518"])
def test_frames_come_back(world, capsys, size):
    found = facts(capsys, world["net"], "--ping", "1000", "--size", size)
    ping = found["ping"]
    assert (ping["sent"], ping["back"], ping["size"]) == (1000, 1000, int(size))
    assert [ping[key] for key in ("lost", "reordered", "duplicated", "torn", "others")] == [0] * 5
    assert ping["frames_per_second"] > 0
    assert found["counters"]["tx_frames"] == found["counters"]["rx_frames"] == 1001
    assert found["counters"]["rx_bytes"] == 1001 * int(size)


def swapped(kept=[]):  # noqa: B006 - what is kept is what is meant
    def fate(number, frame):
        if number % 2 == 0:
            kept.append(frame)
            return []
        return [frame, kept.pop()]

    return fate


@pytest.mark.parametrize(
    ("fate", "changed", "code"),
    [
        (lambda n, f: [] if n == 3 else [f], {"back": 19, "lost": 1}, 1),
        (lambda n, f: [f, f], {"duplicated": 19}, 0),
        (lambda n, f: [f[:-1]] if n == 3 else [f], {"back": 19, "lost": 1, "torn": 1}, 1),
        (lambda n, f: [f + b"x"] if n == 3 else [f], {"back": 19, "lost": 1, "torn": 1}, 1),
        (lambda n, f: [f[:40] + b"x" + f[41:], f] if n == 3 else [f], {"torn": 1}, 1),
        (lambda n, f: [f[:18] + b"\xff" + f[19:], f] if n == 3 else [f], {"torn": 1}, 1),
        (lambda n, f: [bytes(60), bytes(14), f] if n == 3 else [f], {"others": 2}, 0),
        (swapped(), {"reordered": 10}, 0),
        (lambda n, f: [], {"back": 0, "lost": 20}, 1),
    ],
)
def test_what_happens_to_frames_is_told(serve, capsys, fate, changed, code):
    served = serve(bad=lambda: Bad(fate))
    found = facts(capsys, served["bad"], "--ping", "20", "--wait", "0.3", code=code)["ping"]
    plain = {"sent": 20, "back": 20, "lost": 0, "reordered": 0, "duplicated": 0, "torn": 0}
    wanted = {**plain, "others": 0, **changed}
    if "duplicated" in changed:
        assert found["duplicated"] >= 19  # the last copy may come too late
        wanted["duplicated"] = found["duplicated"]
    assert {key: found[key] for key in wanted} == wanted


class Wire(NetModel):
    """Drops a frame at once when there is no buffer, as a switch does."""

    def __init__(self, queue_size):
        super().__init__(queue_size=queue_size)

    def _echo(self, frame):
        return super()._echo(frame) if self._buffers else True


@pytest.mark.parametrize("size", [2, 16])
def test_there_are_buffers_for_all_that_is_on_its_way(serve, capsys, size):
    served = serve(wire=lambda: Wire(size))
    assert facts(capsys, served["wire"], "--ping", "300")["ping"]["back"] == 300
    lost = facts(capsys, served["wire"], "--ping", "300", "--depth", "64", "--wait", "0.3", code=1)
    assert lost["ping"]["lost"] > 0


class Late(NetModel):
    """Drops what comes before its link is there."""

    def __init__(self):
        super().__init__()
        self.dropped = 0

    def _echo(self, frame):
        if self.dropped == 3:
            return super()._echo(frame)
        self.dropped += 1
        return True


def test_what_is_lost_before_the_first_frame_is_back_does_not_count(serve, capsys):
    served = serve(late=Late)
    found = facts(capsys, served["late"], "--ping", "200", "--wait", "4")
    assert found["ping"]["back"] == 200
    assert found["ping"]["others"] == 0
    assert found["counters"]["tx_frames"] == 204


def test_for_people(world, capsys):
    assert main(["net", world["net"], "--ping", "10"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(world["net"] + "\nmac")
    assert "10 frames of 64 bytes sent, 10 back whole, 0 lost" in out
    assert main(["net", world["net"]]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["link", "up"] in lines
    assert ["mtu", "1500"] in lines
    assert ["rx", "frames", "0"] in lines


def test_sending_waits_for_the_device(world, capsys):
    found = facts(capsys, world["net"], "--send", "300", "--to", "02:00:00:00:00:09")
    assert found["counters"]["tx_frames"] == 300
    assert found["ping"] == {}
    assert world.models[-1].counters.tx_frames == 300


class Talking(NetModel):
    """Gives a frame for each buffer."""

    async def serve(self, index, queue):
        if index == 0:
            while True:
                for chain in await queue.receive():
                    self._buffers.append(chain)
                    self._put(queue, random.randbytes(60))
                queue.flush()
                await trio.sleep(0.001)
        await super().serve(index, queue)


def test_watching_shows_counters_that_grow(serve, capsys):
    served = serve(it=Talking)
    assert main(["net", served["it"], "--watch", "--interval", "0.02", "--seconds", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("received")]
    counts = [int(line.split()[1]) for line in lines]
    assert len(counts) > 1
    assert counts == sorted(counts)
    assert counts[-1] > 0
    found = facts(capsys, served["it"], "--watch", "--interval", "0.02", "--seconds", "0.5")
    assert found["counters"]["rx_frames"] > 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["net", "--ping", "0"], 2, "--ping: at least 1"),
        (["net", "--send", "-1"], 2, "--send: at least 1"),
        (["net", "--size", "21"], 2, "--size: at least 22"),
        (["net", "--ping", "1", "--size", "1519"], 2, "14 to 1518"),
        (["net", "--wait", "nan"], 2, "--wait: seconds"),
        (["net", "--to", "1:2"], 2, "no address"),
        (["rng"], 2, "network device"),
        (["gone"], 1, "no such target"),
    ],
)
def test_what_cannot_be(world, capsys, words, code, says):
    assert main(["net", world[words[0]], *words[1:]]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_info_knows_the_device(world, capsys):
    assert main(["info", world["net"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "net"
    assert "VIRTIO_NET_F_MAC" in found["feature_names"]
    assert found["config"] == {
        "mac": "02:76:6f:66:6e:01",
        "status": 1,
        "max_virtqueue_pairs": 1,
        "mtu": 1500,
    }
    assert main(["info", world["net"]]) == 0
    assert "02:76:6f:66:6e:01" in capsys.readouterr().out


def test_a_test_frame_is_as_long_as_asked_for():
    assert len(net.PATTERN) >= 65553 + net.PERIOD
