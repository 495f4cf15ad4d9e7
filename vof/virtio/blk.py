# SPDX-License-Identifier: BSD-3-Clause
"""Block device: numbers and layouts, used by the device and by the driver (virtio 1.2, 5.2)."""

import struct
from typing import NamedTuple

from vof.errors import RemoteProtocolError

SECTOR = 512

VIRTIO_BLK_F_SIZE_MAX = 1
VIRTIO_BLK_F_SEG_MAX = 2
VIRTIO_BLK_F_GEOMETRY = 4
VIRTIO_BLK_F_RO = 5
VIRTIO_BLK_F_BLK_SIZE = 6
VIRTIO_BLK_F_FLUSH = 9
VIRTIO_BLK_F_TOPOLOGY = 10
VIRTIO_BLK_F_CONFIG_WCE = 11
VIRTIO_BLK_F_MQ = 12
VIRTIO_BLK_F_DISCARD = 13
VIRTIO_BLK_F_WRITE_ZEROES = 14
VIRTIO_BLK_F_LIFETIME = 15
VIRTIO_BLK_F_SECURE_ERASE = 16

FEATURES = {
    VIRTIO_BLK_F_SIZE_MAX: "VIRTIO_BLK_F_SIZE_MAX",
    VIRTIO_BLK_F_SEG_MAX: "VIRTIO_BLK_F_SEG_MAX",
    VIRTIO_BLK_F_GEOMETRY: "VIRTIO_BLK_F_GEOMETRY",
    VIRTIO_BLK_F_RO: "VIRTIO_BLK_F_RO",
    VIRTIO_BLK_F_BLK_SIZE: "VIRTIO_BLK_F_BLK_SIZE",
    VIRTIO_BLK_F_FLUSH: "VIRTIO_BLK_F_FLUSH",
    VIRTIO_BLK_F_TOPOLOGY: "VIRTIO_BLK_F_TOPOLOGY",
    VIRTIO_BLK_F_CONFIG_WCE: "VIRTIO_BLK_F_CONFIG_WCE",
    VIRTIO_BLK_F_MQ: "VIRTIO_BLK_F_MQ",
    VIRTIO_BLK_F_DISCARD: "VIRTIO_BLK_F_DISCARD",
    VIRTIO_BLK_F_WRITE_ZEROES: "VIRTIO_BLK_F_WRITE_ZEROES",
    VIRTIO_BLK_F_LIFETIME: "VIRTIO_BLK_F_LIFETIME",
    VIRTIO_BLK_F_SECURE_ERASE: "VIRTIO_BLK_F_SECURE_ERASE",
}

VIRTIO_BLK_T_IN = 0
VIRTIO_BLK_T_OUT = 1
VIRTIO_BLK_T_FLUSH = 4
VIRTIO_BLK_T_GET_ID = 8
VIRTIO_BLK_T_DISCARD = 11
VIRTIO_BLK_T_WRITE_ZEROES = 13

VIRTIO_BLK_S_OK = 0
VIRTIO_BLK_S_IOERR = 1
VIRTIO_BLK_S_UNSUPP = 2

VIRTIO_BLK_ID_BYTES = 20
VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1

REQUEST = struct.Struct("<IIQ")
"""struct virtio_blk_req, device-readable head: type, reserved, sector."""

RANGE = struct.Struct("<QII")
"""struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags."""


class BlkConfig(NamedTuple):
    """struct virtio_blk_config up to write_zeroes: 60 bytes, by its field names (5.2.4)."""

    capacity: int = 0
    size_max: int = 0
    seg_max: int = 0
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    blk_size: int = 0
    physical_block_exp: int = 0
    alignment_offset: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    writeback: int = 0
    num_queues: int = 0
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0

    def pack(self) -> bytes:
        """Return the configuration space."""
        return CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "BlkConfig":
        """Read a configuration space; what a shorter one lacks is 0."""
        return cls(*CONFIG.unpack(data[: CONFIG.size].ljust(CONFIG.size, b"\0")))


CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
assert CONFIG.size == 60


def status_of(data: int) -> str:
    """Name a status byte."""
    try:
        return ("VIRTIO_BLK_S_OK", "VIRTIO_BLK_S_IOERR", "VIRTIO_BLK_S_UNSUPP")[data]
    except IndexError:
        raise RemoteProtocolError(f"status byte {data} is none of virtio-blk's") from None
