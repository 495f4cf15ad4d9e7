# SPDX-License-Identifier: BSD-3-Clause
"""What is behind the rings: a disk in an image file."""

import os

from vof.virtio import blk
from vof.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    bit,
)

FEATURES = bit(
    blk.VIRTIO_BLK_F_SEG_MAX,
    blk.VIRTIO_BLK_F_FLUSH,
    blk.VIRTIO_BLK_F_MQ,
    blk.VIRTIO_BLK_F_CONFIG_WCE,
    blk.VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
)
WRITEBACK_AT = 32
"""The only part of the configuration that a driver may write."""


class Disk:
    """What is behind the rings: an image file, by pread and pwrite."""

    def __init__(self, path, size, queues):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(self.fd).st_size < size:
            os.ftruncate(self.fd, size)
        self.config = blk.BlkConfig(
            seg_max=126, writeback=1, num_queues=queues, max_write_zeroes_sectors=2048
        )
        self.look()

    def look(self):
        """Learn the size of the file."""
        self.size = os.fstat(self.fd).st_size
        self.config = self.config._replace(capacity=self.size // blk.SECTOR)

    def serve(self, chain):
        """Do what a chain asks for; return the used length."""
        data = b"".join(chain.readable)
        kind, _, sector = blk.REQUEST.unpack_from(data)
        body, at = data[blk.REQUEST.size :], sector * blk.SECTOR
        room = sum(map(len, chain.writable)) - 1
        answer, status = b"", blk.VIRTIO_BLK_S_OK
        if kind == blk.VIRTIO_BLK_T_IN and at + room <= self.size:
            answer = os.pread(self.fd, room, at)
        elif kind == blk.VIRTIO_BLK_T_OUT and at + len(body) <= self.size:
            os.pwrite(self.fd, body, at)
        elif kind == blk.VIRTIO_BLK_T_FLUSH:
            os.fdatasync(self.fd)
        elif kind == blk.VIRTIO_BLK_T_GET_ID:
            answer = b"tests".ljust(blk.VIRTIO_BLK_ID_BYTES, b"\0")
        elif kind == blk.VIRTIO_BLK_T_WRITE_ZEROES:
            sector, count, _ = blk.RANGE.unpack(body)
            os.pwrite(self.fd, bytes(count * blk.SECTOR), sector * blk.SECTOR)
        else:
            status = blk.VIRTIO_BLK_S_IOERR
        return fill(chain, answer.ljust(room, b"\0") + bytes([status]))


def fill(chain, data):
    """Write into a chain from its front; return how much that is."""
    at = 0
    for segment in chain.writable:
        segment[:] = data[at : at + len(segment)]
        at += len(segment)
    return at
