# SPDX-License-Identifier: BSD-3-Clause
"""``vof bench``: that it counts what happened, and stops."""

import argparse
import json
import xml.etree.ElementTree as ET
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import Echo
from vof.cli import bench, load, main
from vof.cli.histogram import SUB, Histogram
from vof.cli.plot import BOTTOM, LEFT, RIGHT, TOP, distribution
from vof.errors import ConfigError
from vof.target.devices import BlkModel, MemoryBacking
from vof.virtio.blk import REQUEST, VIRTIO_BLK_T_IN, BlkConfig
from vof.virtio.constants import VIRTIO_ID_BLOCK
from vof.virtio.model import DeviceModel

# -- the histogram --------------------------------------------------------------------------------

VALUES = st.lists(st.integers(0, 1 << 40) | st.integers(0, 200), min_size=1, max_size=50)


def histogram(values):
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(VALUES, st.floats(0, 100))
def test_a_percentile_is_close_to_the_exact_one(values, percent):
    exact = sorted(values)[max(ceil(len(values) * percent / 100), 1) - 1]
    assert abs(histogram(values).percentile(percent) - exact) <= exact / SUB


@given(VALUES)
def test_what_is_exact(values):
    made = histogram(values)
    assert (made.least, made.largest, made.weight) == (min(values), max(values), len(values))
    assert made.mean() == sum(values) / len(values)
    assert made.percentile(100) <= max(values)
    assert made.percentile(0) >= min(values)


@given(st.lists(st.integers(0, 2 * SUB - 1), min_size=1))
def test_small_values_are_kept_as_they_are(values):
    steps = histogram(values).steps()
    assert [value for value, _ in steps] == sorted(set(values))
    assert [round(share * len(values) / 100) for _, share in steps] == [
        sum(value <= limit for value in values) for limit in sorted(set(values))
    ]


@given(VALUES, VALUES)
def test_merged_is_as_if_counted_together(one, two):
    merged, together = histogram(one), histogram(one + two)
    merged.merge(Histogram())
    merged.merge(histogram(two))
    empty = Histogram()
    empty.merge(together)
    for name in Histogram.__slots__:
        assert getattr(merged, name) == getattr(together, name) == getattr(empty, name)


def test_times_count():
    made = Histogram()
    made.add(5, 3)
    made.add(7)
    assert (made.weight, made.mean(), made.percentile(75), made.percentile(76)) == (4, 5.5, 5, 7)


def test_an_empty_one_says_nothing():
    assert (Histogram().mean(), Histogram().percentile(50), Histogram().steps()) == (0, 0, [])


# -- the picture ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1 << 40)))
def test_any_distribution_is_a_picture(values):
    text = distribution(histogram(values), "4k <&> \u00b5s")
    root = ET.fromstring(text)
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in points)
    assert "4k <&> \u00b5s" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


# -- options --------------------------------------------------------------------------------------


def job(*words):
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    return bench._job(parser.parse_args(["URL", *words]))


@pytest.mark.parametrize(
    ("mix", "reads", "at_random"),
    [
        ("randread", 100, True),
        ("randwrite", 0, True),
        ("read", 100, False),
        ("write", 0, False),
        ("randrw:70", 70, True),
        ("randrw:0", 0, True),
        ("randrw:100", 100, True),
    ],
)
def test_mixes(mix, reads, at_random):
    made = job("--mix", mix)
    assert (made.reads, made.random) == (reads, at_random)


@pytest.mark.parametrize(
    "words",
    [
        "--mix rand",
        "--mix randrw",
        "--mix randrw:",
        "--mix randrw:101",
        "--mix randrw:-1",
        "--mix randread:50",
        "--size 0",
        "--size 17M",
        "--size many",
        "--depth 0",
        "--depth 40000",
        "--queues 0",
        "--connections 0",
        "--seconds 0",
        "--seconds nan",
        "--seconds inf",
        "--requests 0",
    ],
)
def test_options_that_make_no_sense(words):
    option = words.split()[0]
    with pytest.raises(ConfigError) as caught:
        job(*words.split())
    assert option in (caught.value.path, caught.value.key)


# -- the load -------------------------------------------------------------------------------------


class Counting(DeviceModel):
    """A disk without a medium: notes each request, answers all with one status byte."""

    device_id = VIRTIO_ID_BLOCK
    sectors = 4096

    def __init__(self, queues=1, status=0):
        super().__init__()
        self.queue_sizes = (64,) * queues
        self.device_features |= 1 << 12
        self.status = status
        self.requests = []
        self.queues = set()

    def config(self):
        return BlkConfig(capacity=self.sectors, num_queues=len(self.queue_sizes)).pack()

    async def serve(self, index, queue):
        self.queues.add(index)
        while True:
            for chain in await queue.receive():
                request = b"".join(chain.readable)
                total = sum(map(len, chain.writable))
                kind, _, sector = REQUEST.unpack_from(request)
                self.requests.append((kind, sector, len(request) - 16 + total - 1))
                for segment in chain.writable:
                    segment[:] = bytes(len(segment))
                chain.writable[-1][-1] = self.status
                queue.push(chain, total)
            queue.flush()


def measured(capsys, *words, code=0):
    assert main(["bench", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("way", [[], ["--await"]], ids=["queue", "await"])
@pytest.mark.parametrize("count", [1, 7, 8, 100])
def test_exactly_so_many_requests(serve, capsys, way, count):
    served = serve(it=Counting)
    words = ["--requests", str(count), "--depth", "8", "--size", "1k", *way]
    said = measured(capsys, served["it"], *words)
    (model,) = served.models
    assert said["requests"] == len(model.requests) == count
    assert {(kind, size) for kind, _, size in model.requests} == {(VIRTIO_BLK_T_IN, 1024)}
    assert said["errors"] == 0


@pytest.mark.parametrize("way", [[], ["--await"]], ids=["queue", "await"])
@pytest.mark.parametrize("depth", ["1", "16"])
def test_a_mix_is_one_of_requests(serve, capsys, way, depth):
    served = serve(it=Counting)
    words = ["--mix", "randrw:70", "--requests", "2000", "--depth", depth, "--size", "2k", *way]
    measured(capsys, served["it"], *words)
    (model,) = served.models
    reads = sum(kind == VIRTIO_BLK_T_IN for kind, _, _ in model.requests)
    assert 1200 < reads < 1600
    assert {size for _, _, size in model.requests} == {2048}
    sectors = [sector for _, sector, _ in model.requests]
    assert all(0 <= sector <= 4096 - 4 and sector % 4 == 0 for sector in sectors)
    assert len(set(sectors)) > 500


@pytest.mark.parametrize("mix", ["read", "write"])
def test_front_to_back_and_again(serve, capsys, mix):
    served = serve(it=Counting)
    words = ["--mix", mix, "--requests", "20", "--depth", "1", "--size", "192k"]
    measured(capsys, served["it"], *words)
    sectors = [sector for _, sector, _ in served.models[0].requests]
    assert sectors == [number % 10 * 384 for number in range(20)]


def test_queues_and_connections(serve, capsys):
    served = serve(it=lambda: Counting(queues=3))
    words = ["--queues", "3", "--connections", "4", "--requests", "500", "--depth", "2"]
    said = measured(capsys, served["it"], *words)
    assert (said["queues"], said["connections"], said["requests"]) == (3, 4, 500)
    assert [model.queues for model in served.models] == [{0, 1, 2}] * 4
    assert sum(len(model.requests) for model in served.models) == 500


def test_it_stops_in_time(world, capsys):
    said = measured(capsys, world["disk"], "--seconds", "0.1")
    assert 0.1 <= said["seconds"] < 5
    assert said["requests"] > 0


def test_what_is_said(world, capsys):
    said = measured(capsys, world["disk"], "--requests", "200", "--size", "4k")
    assert (said["schema"], said["command"], said["url"]) == (1, "bench", world["disk"])
    assert said["iops"] == pytest.approx(200 / said["seconds"], rel=0.01)
    assert said["bytes_per_second"] == pytest.approx(4096 * said["iops"], rel=0.01)
    latency = said["latency_us"]
    assert list(latency) == ["min", "mean", "p50", "p90", "p99", "p99.9", "max"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"]
    assert said["cpu_us_per_request"] > 0


@pytest.mark.parametrize("way", [[], ["--await"]], ids=["queue", "await"])
def test_writes_land_on_the_disk(world, capsys, way):
    measured(capsys, world["small"], "--mix", "write", "--requests", "4", "--size", "16k", *way)
    assert main(["bench", world["small"], "--mix", "randwrite", "--requests", "40"]) == 0
    assert "IOPS" in capsys.readouterr().out


@pytest.mark.parametrize("way", [[], ["--await"]], ids=["queue", "await"])
def test_random_bytes(world, capsys, way):
    said = measured(capsys, world["rng"], "--requests", "50", "--size", "100", *way)
    assert said["requests"] == 50
    assert said["bytes_per_second"] == pytest.approx(100 * said["iops"], rel=0.01)


def test_a_picture(world, tmp_path, capsys):
    path = tmp_path / "p.svg"
    assert main(["bench", world["disk"], "--requests", "100", "--plot", str(path)]) == 0
    assert ET.parse(path).getroot().tag.endswith("svg")
    assert "IOPS" in capsys.readouterr().out


def test_a_picture_that_cannot_be_written_costs_no_result(world, capsys):
    assert main(["bench", world["disk"], "--requests", "10", "--plot", "/no/p.svg"]) == 1
    out, err = capsys.readouterr()
    assert "IOPS" in out
    assert "/no/p.svg" in err


@pytest.mark.parametrize("way", [[], ["--await"]], ids=["queue", "await"])
def test_raw_requests_go_to_a_device_of_any_type(serve, capsys, way):
    class Seen(Echo):
        async def serve(self, index, queue):
            while True:
                for chain in await queue.receive():
                    seen.append((index, b"".join(chain.readable), len(chain.writable[0])))
                    queue.push(chain, 3)
                queue.flush()

    seen = []
    words = ["--raw", "--size", "20", "--queues", "2", "--requests", "50", "--json"]
    assert main(["bench", serve(it=Seen)["it"], *words, *way]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["requests"], facts["errors"], facts["raw"]) == (50, 0, True)
    assert {index for index, _, _ in seen} <= {0, 1}
    assert {(data, room) for _, data, room in seen} == {(bytes(16), 20)}
    assert len(seen) == 50


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [[], ["--await"]], ids=["queue", "await"])
def test_requests_that_the_device_fails_are_counted(serve, capsys, way):
    served = serve(it=lambda: Counting(status=1))
    assert main(["bench", served["it"], "--requests", "30", "--json", *way]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["errors"] == 30
    assert err == "vof: the device failed 30 requests\n"


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("disk", ["--queues", "3"], "2 queues, not 3"),
        ("disk", ["--depth", "129"], "holds 128 requests"),
        ("disk", ["--size", "1000"], "multiples of 512"),
        ("disk", ["--size", "2M"], "less than one request"),
        ("rng", ["--queues", "2"], "1 queues, not 2"),
        ("rng", ["--mix", "randwrite"], "only read"),
        ("echo", [], "type 42; --raw sends"),
        ("echo", ["--raw", "--queues", "3"], "queue"),
        ("echo", ["--raw", "--depth", "65"], "holds 64 requests"),
        ("echo", ["--raw", "--mix", "write"], "only read"),
        ("read_only", ["--mix", "randrw:99"], "read-only"),
    ],
)
def test_what_the_device_cannot_do(world, serve, disk, capsys, name, words, said):
    served = serve(echo=Echo, read_only=disk(read_only=True)[0])
    url = world[name] if name in {"disk", "rng"} else served[name]
    assert main(["bench", url, *words]) == 2
    assert said in capsys.readouterr().err


class Stuck(Counting):
    """Never answers."""

    async def serve(self, index, queue):
        while True:
            await queue.receive()


@pytest.mark.parametrize("way", [[], ["--await"]], ids=["queue", "await"])
def test_a_device_that_does_not_answer(serve, capsys, monkeypatch, way):
    monkeypatch.setattr(load, "GRACE_S", 0.05)
    served = serve(it=Stuck)
    assert main(["bench", served["it"], "--seconds", "0.05", *way]) == 1
    assert "unanswered" in capsys.readouterr().err


@pytest.mark.parametrize("way", [[], ["--await"]], ids=["queue", "await"])
def test_a_connection_that_is_lost_is_one_line(serve, capsys, way):
    backing = MemoryBacking(1 << 20)

    class Cut(BlkModel):
        async def serve(self, index, queue):
            self._batch(await queue.receive(), queue.push)
            queue.flush()
            await queue.receive()
            served.scope.cancel()

    served = serve(it=lambda: Cut(backing, queues=2))
    assert main(["bench", served["it"], "--queues", "2", "--depth", "8", *way]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    served.stop()
    backing.close()
