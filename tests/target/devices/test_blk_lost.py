# SPDX-License-Identifier: BSD-3-Clause
"""The block model: storage that loses writes is told to each initiator."""

import errno
import os

import pytest

from tests.target.devices.fakes import answer, blk, written_data
from vof.target.devices import BlkModel, FileBacking
from vof.virtio.blk import (
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_OUT,
)
from vof.virtio.constants import bit

FLUSH, OUT = VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT
OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(65536))
    made = FileBacking(path)
    yield made
    made.close()


def flush(*models):
    """Flush each; return what they say."""
    statuses = []
    for model in models:
        chain = blk(FLUSH)
        answer(model, [chain])
        statuses.append(written_data(chain)[1])
    return statuses


def test_a_flush_that_fails_is_told_to_each_initiator_once(disk, monkeypatch, caplog):
    def fdatasync(fd):
        if failures:
            raise OSError(failures.pop(), "lost")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    failures = []
    one, other = BlkModel(disk), BlkModel(disk)
    assert flush(one, other) == [OK, OK]
    failures.append(errno.EIO)
    assert flush(one) == [IOERR]
    late = BlkModel(disk)
    assert flush(other, other, one, late) == [IOERR, OK, OK, OK]
    assert disk.lost == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{disk.path}: flush failed: lost",
    ]
    failures += [errno.EIO, errno.ENOSPC]
    assert flush(one, other, one, late) == [IOERR, IOERR, IOERR, IOERR]
    assert flush(one, other, late) == [OK, OK, OK]


def test_a_stable_write_that_fails_is_told_to_who_flushes(disk):
    flusher, writer = BlkModel(disk), BlkModel(disk)
    full, kept = os.open("/dev/full", os.O_RDWR), os.dup(disk.fd)
    os.dup2(full, disk.fd)
    os.close(full)
    chain = blk(OUT, 0, bytes(512))
    writer.features = writer.device_features & ~bit(VIRTIO_BLK_F_FLUSH)
    answer(writer, [chain], negotiate=False)
    assert written_data(chain)[1] == IOERR
    os.dup2(kept, disk.fd)
    os.close(kept)
    assert flush(flusher, flusher) == [IOERR, OK]
