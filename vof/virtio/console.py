# SPDX-License-Identifier: BSD-3-Clause
"""Console device: numbers and layouts, used by the device and by the driver (virtio 1.2, 5.3)."""

import struct
from typing import NamedTuple

VIRTIO_CONSOLE_F_SIZE = 0
VIRTIO_CONSOLE_F_MULTIPORT = 1
VIRTIO_CONSOLE_F_EMERG_WRITE = 2

FEATURES = {
    VIRTIO_CONSOLE_F_SIZE: "VIRTIO_CONSOLE_F_SIZE",
    VIRTIO_CONSOLE_F_MULTIPORT: "VIRTIO_CONSOLE_F_MULTIPORT",
    VIRTIO_CONSOLE_F_EMERG_WRITE: "VIRTIO_CONSOLE_F_EMERG_WRITE",
}

RECEIVEQ = 0
TRANSMITQ = 1
"""Of port 0, the only one without VIRTIO_CONSOLE_F_MULTIPORT; buffers hold bytes, no header."""


class ConsoleConfig(NamedTuple):
    """struct virtio_console_config: 12 bytes, by its field names (5.3.4)."""

    cols: int = 0
    rows: int = 0
    max_nr_ports: int = 0
    emerg_wr: int = 0

    def pack(self) -> bytes:
        """Return the configuration space."""
        return CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "ConsoleConfig":
        """Read a configuration space; what a shorter one lacks is 0."""
        return cls(*CONFIG.unpack(data[: CONFIG.size].ljust(CONFIG.size, b"\0")))


CONFIG = struct.Struct("<HHII")
assert CONFIG.size == 12

EMERG_WR = 8
"""Where ``emerg_wr`` lies; its low byte is a character (5.3.4)."""
EMERGENCY = struct.Struct("<I")
