# SPDX-License-Identifier: BSD-3-Clause
"""``vof blk``: what arrives where, and what is refused before anything moves."""

import io
import json
import os
import random
import sys
import threading

import pytest

from vof.cli import blk, main
from vof.target.devices import BlkModel, MemoryBacking
from vof.virtio.blk import VIRTIO_BLK_F_WRITE_ZEROES
from vof.virtio.constants import bit

K, M = 1 << 10, 1 << 20


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    """Many steps for few bytes."""
    monkeypatch.setattr(blk, "STEP", 64 * K)
    monkeypatch.setattr(blk, "ZERO_STEP", 256 * K)


@pytest.fixture
def content(world):
    """What the disk holds."""
    data = random.Random(3).randbytes(M)
    world.image.write_bytes(data)
    return data


class Streams:
    """Standard streams that are files in memory."""

    def __init__(self, monkeypatch, data=b""):
        self.out = io.BytesIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(self.out, write_through=True))


# -- what arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", ["1", "2"])
def test_read_all_into_a_file(world, content, tmp_path, queues):
    path = tmp_path / "out"
    assert main(["blk", "read", world["disk"], str(path), "--queues", queues]) == 0
    assert path.read_bytes() == content


def test_a_longer_file_keeps_no_tail(world, content, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"old" * M)
    assert main(["blk", "read", world["disk"], str(path), "--length", "96k"]) == 0
    assert path.read_bytes() == content[: 96 * K]


@pytest.mark.parametrize(
    ("words", "start", "stop"),
    [
        ([], 0, M),
        (["--offset", "512"], 512, M),
        (["--offset", "200k", "--length", "300k"], 200 * K, 500 * K),
        (["--length", "0"], 0, 0),
        (["--offset", "1M"], M, M),
    ],
)
def test_read_to_stdout_is_in_order(world, content, monkeypatch, words, start, stop):
    streams = Streams(monkeypatch)
    assert main(["blk", "read", world["disk"], "-", *words]) == 0
    assert streams.out.getvalue() == content[start:stop]


@pytest.mark.parametrize("source", ["file", "stdin"])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 700, 64 * K, 200 * K + 5, M])
def test_write(world, content, tmp_path, monkeypatch, source, size):
    data = random.Random(size).randbytes(size)
    path = tmp_path / "in"
    path.write_bytes(data)
    if source == "stdin":
        Streams(monkeypatch, data)
    name = "-" if source == "stdin" else str(path)
    assert main(["blk", "write", world["disk"], name]) == 0
    padded = data + bytes(-size % 512)
    assert world.image.read_bytes() == padded + content[len(padded) :]


def test_write_somewhere(world, content, tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"ab" * 512)
    words = ["--offset", "4k", "--length", "512"]
    assert main(["blk", "write", world["disk"], str(path), *words]) == 0
    assert world.image.read_bytes() == content[: 4 * K] + b"ab" * 256 + content[4 * K + 512 :]


def test_copy_between_disks_and_back(world, content, tmp_path):
    words = ["--offset", "128k", "--length", "64k"]
    assert main(["blk", "copy", world["disk"], world["small"], *words]) == 0
    assert main(["blk", "copy", world["small"], str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == content[128 * K : 192 * K]


def test_copy_from_a_pipe_and_from_a_device_without_end(world, content, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"p" * 100_000,))
    writer.start()
    assert main(["blk", "copy", str(pipe), world["disk"]]) == 0
    writer.join()
    assert world.image.read_bytes()[:100_352] == b"p" * 100_000 + bytes(352)
    assert main(["blk", "copy", "/dev/zero", world["disk"], "--length", "512k"]) == 0
    assert world.image.read_bytes() == bytes(512 * K) + content[512 * K :]


@pytest.mark.parametrize("words", [[], ["--unmap"]])
@pytest.mark.parametrize("offered", [True, False])
def test_zero(serve, disk, words, offered):
    make, path = disk()
    data = random.Random(1).randbytes(M)
    path.write_bytes(data)

    def made():
        model = make()
        if not offered:
            model.device_features &= ~bit(VIRTIO_BLK_F_WRITE_ZEROES)
        return model

    url = serve(it=made)["it"]
    assert main(["blk", "zero", url, "--offset", "100k", "--length", "700k", *words]) == 0
    assert path.read_bytes() == data[: 100 * K] + bytes(700 * K) + data[800 * K :]
    assert main(["blk", "zero", url, *words]) == 0
    assert path.read_bytes() == bytes(M)


def test_json_says_what_was_done(world, content, tmp_path, capsys):
    path = tmp_path / "out"
    words = ["--offset", "512", "--length", "1k", "--json"]
    assert main(["blk", "read", world["disk"], str(path), *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.pop("seconds") > 0
    assert said == {"schema": 1, "command": "blk", "action": "read", "bytes": 1024}
    assert main(["blk", "zero", world["disk"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == M


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(world, content, tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert main(["blk", "read", world["disk"], str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert not out
    assert ("100%" in err) is terminal
    assert bool(err) is terminal


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["read", "disk", "OUT", "--offset", "2M"], "only 1048576 bytes"),
        (["read", "disk", "OUT", "--offset", "512k", "--length", "513k"], "only 1048576 bytes"),
        (["read", "disk", "OUT", "--offset", "100"], "multiples of 512"),
        (["read", "disk", "OUT", "--length", "100"], "multiples of 512"),
        (["read", "disk", "OUT", "--length", "x"], "--length"),
        (["write", "disk", "IN", "--offset", "900k"], "only room for 1048576 bytes"),
        (["write", "disk", "IN", "--offset", "2M"], "only room for 1048576 bytes"),
        (["write", "disk", "IN", "--length", "400k"], "only 204800 bytes"),
        (["copy", "disk", "small"], "only room for 65536 bytes"),
        (["copy", "/dev/zero", "small", "--length", "65k"], "only room for 65536 bytes"),
        (["copy", "-", "disk", "--offset", "512"], "is a stream"),
        (["zero", "disk", "--offset", "2M"], "only 1048576 bytes"),
        (["zero", "disk", "--length", "2M"], "only 1048576 bytes"),
        (["read", "rng", "OUT"], "no block device"),
        (["read", "disk", "-", "--json"], "stdout is taken"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_moves(
    world, content, tmp_path, capsys, words, said
):
    (tmp_path / "IN").write_bytes(b"x" * 200 * K)
    names = {"disk", "small", "rng"}
    words = [world[word] if word in names else word for word in words]
    words = [str(tmp_path / word) if word in {"IN", "OUT"} else word for word in words]
    assert main(["blk", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert not out
    assert world.image.read_bytes() == content


@pytest.mark.parametrize("action", ["write", "zero"])
def test_a_read_only_disk(serve, disk, tmp_path, capsys, action):
    make, path = disk(read_only=True)
    url = serve(it=make)["it"]
    (tmp_path / "in").write_bytes(b"x" * 512)
    source = [str(tmp_path / "in")] if action == "write" else []
    assert main(["blk", action, url, *source]) == 2
    assert "read-only" in capsys.readouterr().err
    assert not any(path.read_bytes())


# -- what fails -----------------------------------------------------------------------------------


def test_more_on_stdin_than_fits(world, monkeypatch, capsys):
    Streams(monkeypatch, b"x" * 80 * K)
    assert main(["blk", "write", world["small"], "-"]) == 2
    err = capsys.readouterr().err
    assert "the disk has 65536 bytes" in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there(world, capsys):
    assert main(["blk", "write", world["disk"], "/no/such/file"]) == 1
    assert "/no/such/file" in capsys.readouterr().err


class Cut(BlkModel):
    """Ends the server at the third batch."""

    async def serve(self, index, queue):
        for _ in range(2):
            self._batch(await queue.receive(), queue.push)
            queue.flush()
        await queue.receive()
        self.cut()


@pytest.mark.parametrize("words", [["read", "URL", "/dev/null"], ["copy", "/dev/zero", "URL"]])
def test_a_connection_that_is_lost_is_one_line(serve, capsys, words):
    backing = MemoryBacking(64 * M)
    served = serve(it=lambda: Cut(backing, queue_size=4))
    Cut.cut = staticmethod(lambda: served.scope.cancel())
    words = [served["it"] if word == "URL" else word for word in words]
    assert main(["blk", *words]) == 1
    err = capsys.readouterr().err
    assert "lost" in err or "closed" in err
    assert err.count("\n") == 1
    served.stop()
    backing.close()


def test_a_file_in_the_place_of_the_disk_is_not_overwritten(world, content, tmp_path, capsys):
    """Arguments in the wrong order: both could be opened."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious" * 64)
    for words in (["write", str(precious), world["disk"]], ["read", str(precious), world["disk"]]):
        assert main(["blk", *words]) == 2
        assert "expected a URL" in capsys.readouterr().err
    assert precious.read_bytes() == b"precious" * 64
    assert world.image.read_bytes() == content
