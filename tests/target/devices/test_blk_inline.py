# SPDX-License-Identifier: BSD-3-Clause
"""The block model: what is done inline, what goes to threads, and that both do the same."""

import errno
import os
import random

import pytest

from tests.target.devices.fakes import answer, blk, written_data
from vof.target.devices import BlkModel, FileBacking, backing
from vof.target.devices import blk as module
from vof.virtio.blk import (
    RANGE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from vof.virtio.constants import bit

SIZE = 256 * 1024
PATTERN = random.Random(1).randbytes(SIZE)
IN, OUT, ZEROES = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES
OK = 0


def content(disk):
    return os.pread(disk.fd, SIZE, 0)


def refuse(monkeypatch, name, number=errno.EAGAIN, part=0):
    """Let inline attempts fail, or transfer ``part`` bytes only; return the flags that came."""
    real, seen = getattr(os, name), []

    def call(fd, views, offset, flags=0):
        seen.append(flags)
        if flags & os.RWF_NOWAIT:
            if part:
                return real(fd, [views[0][:part]], offset, 0)
            raise OSError(number, os.strerror(number))
        return real(fd, views, offset, flags)

    monkeypatch.setattr(module.os, name, call)
    return seen


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(PATTERN)
    made = FileBacking(path)
    made.read_flags = made.write_flags = os.RWF_NOWAIT  # as on a disk, wherever the test runs
    yield made
    made.close()


@pytest.mark.parametrize("part", [0, 512])
@pytest.mark.parametrize("cuts", [(), (700,)])
def test_cold_reads(file, monkeypatch, part, cuts):
    seen = refuse(monkeypatch, "preadv", part=part)
    chains = [blk(IN, n, into=1024, in_cuts=cuts) for n in range(50)]
    assert answer(BlkModel(file), chains) == [1025] * 50
    assert [written_data(chain) for chain in chains] == [
        (PATTERN[n * 512 :][:1024], OK) for n in range(50)
    ]
    assert sorted(seen) == [0] * 50 + [os.RWF_NOWAIT] * 50
    assert file.read_flags == os.RWF_NOWAIT


@pytest.mark.parametrize("cuts", [(), (700,)])
def test_where_reads_cannot_be_tried(file, monkeypatch, cuts):
    seen = refuse(monkeypatch, "preadv", errno.EOPNOTSUPP)
    chains = [blk(IN, n, into=1024, in_cuts=cuts) for n in range(9)]
    answer(BlkModel(file), chains)
    assert written_data(chains[8]) == (PATTERN[8 * 512 :][:1024], OK)
    assert sorted(seen) == [0] * 9 + [os.RWF_NOWAIT]
    assert file.read_flags == backing.NEVER


@pytest.mark.parametrize("part", [0, 512])
def test_writes_that_would_block(file, monkeypatch, part):
    seen = refuse(monkeypatch, "pwritev", part=part)
    chains = [blk(OUT, 2 * n, bytes([n]) * 1024) for n in range(100)]
    assert answer(BlkModel(file), chains) == [1] * 100
    assert content(file) == b"".join(bytes([n]) * 1024 for n in range(100)) + PATTERN[102400:]
    assert seen.count(os.RWF_NOWAIT) == 100
    assert 1 <= seen.count(0) <= 100  # adjacent ones go together


def test_where_writes_cannot_be_tried(file, monkeypatch):
    seen = refuse(monkeypatch, "pwritev", errno.EOPNOTSUPP)
    chains = [blk(OUT, 2 * n, bytes([n]) * 512) for n in range(9)]  # with gaps: none is joined
    answer(BlkModel(file), chains)
    assert sorted(seen) == [0] * 9 + [os.RWF_NOWAIT]


def test_adjacent_writes_are_one_and_each_keeps_its_own_status(file, monkeypatch):
    real, lengths = os.pwritev, []

    def call(fd, views, offset, flags=0):
        length = sum(map(len, views))
        lengths.append(length)
        if offset <= 5 * 512 < offset + length:  # one sector is bad
            raise OSError(errno.EIO, "no")
        return real(fd, views, offset, flags)

    monkeypatch.setattr(module.os, "pwritev", call)
    file.write_flags = backing.NEVER
    good = [blk(OUT, 100 + n, bytes([n]) * 512) for n in range(9)]
    answer(BlkModel(file), good)
    assert lengths == [9 * 512]
    bad = [blk(OUT, n, bytes([n]) * 512) for n in range(9)]
    assert answer(BlkModel(file), bad) == [1] * 9
    assert [written_data(chain)[1] for chain in bad] == [OK] * 5 + [1] + [OK] * 3
    assert lengths[1:] == [9 * 512] + [512] * 9
    assert content(file)[: 9 * 512] == b"".join(
        PATTERN[n * 512 :][:512] if n == 5 else bytes([n]) * 512 for n in range(9)
    )


def test_without_flush_a_write_is_stable_when_it_completes(file, monkeypatch):
    seen = refuse(monkeypatch, "pwritev")
    flushes = []
    monkeypatch.setattr(os, "fdatasync", flushes.append)
    model = BlkModel(file)
    model.features = model.device_features & ~bit(VIRTIO_BLK_F_FLUSH)
    chains = [blk(OUT, 0, bytes(512)), blk(ZEROES, 0, RANGE.pack(8, 1, 1))]
    answer(model, chains, negotiate=False)
    assert seen == [os.RWF_DSYNC]
    assert flushes == [file.fd]
    assert [written_data(chain)[1] for chain in chains] == [OK, OK]
