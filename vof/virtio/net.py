# SPDX-License-Identifier: BSD-3-Clause
"""Network device: numbers and layouts, used by the device and by the driver (virtio 1.2, 5.1)."""

import hashlib
import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

from vof.errors import InvalidArgument

VIRTIO_NET_F_CSUM = 0
VIRTIO_NET_F_GUEST_CSUM = 1
VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 2
VIRTIO_NET_F_MTU = 3
VIRTIO_NET_F_MAC = 5
VIRTIO_NET_F_GSO = 6
VIRTIO_NET_F_GUEST_TSO4 = 7
VIRTIO_NET_F_GUEST_TSO6 = 8
VIRTIO_NET_F_GUEST_ECN = 9
VIRTIO_NET_F_GUEST_UFO = 10
VIRTIO_NET_F_HOST_TSO4 = 11
VIRTIO_NET_F_HOST_TSO6 = 12
VIRTIO_NET_F_HOST_ECN = 13
VIRTIO_NET_F_HOST_UFO = 14
VIRTIO_NET_F_MRG_RXBUF = 15
VIRTIO_NET_F_STATUS = 16
VIRTIO_NET_F_CTRL_VQ = 17
VIRTIO_NET_F_CTRL_RX = 18
VIRTIO_NET_F_CTRL_VLAN = 19
VIRTIO_NET_F_CTRL_RX_EXTRA = 20
VIRTIO_NET_F_GUEST_ANNOUNCE = 21
VIRTIO_NET_F_MQ = 22
VIRTIO_NET_F_CTRL_MAC_ADDR = 23
VIRTIO_NET_F_VQ_NOTF_COAL = 52
VIRTIO_NET_F_NOTF_COAL = 53
VIRTIO_NET_F_GUEST_USO4 = 54
VIRTIO_NET_F_GUEST_USO6 = 55
VIRTIO_NET_F_HOST_USO = 56
VIRTIO_NET_F_HASH_REPORT = 57
VIRTIO_NET_F_GUEST_HDRLEN = 59
VIRTIO_NET_F_RSS = 60
VIRTIO_NET_F_RSC_EXT = 61
VIRTIO_NET_F_STANDBY = 62
VIRTIO_NET_F_SPEED_DUPLEX = 63

FEATURES = {
    number: name for name, number in list(globals().items()) if name.startswith("VIRTIO_NET_F_")
}

RECEIVEQ = 0
TRANSMITQ = 1
CONTROLQ = 2

VIRTIO_NET_S_LINK_UP = 1

VIRTIO_NET_HDR_GSO_NONE = 0

HEADER = struct.Struct("<BBHHHHH")
"""struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.

The last is there for every driver of VIRTIO_F_VERSION_1 (5.1.6.1).
"""
assert HEADER.size == 12
RECEIVED = HEADER.pack(0, VIRTIO_NET_HDR_GSO_NONE, 0, 0, 0, 0, 1)
"""The header of each received frame: no offload, one buffer."""
TRANSMITTED = bytes(HEADER.size)
"""The header of each transmitted frame."""

ETH_ALEN = 6
ETH_HLEN = 14
"""The smallest frame, in bytes: two addresses and a type."""
VLAN_HLEN = 4
MOST_MTU = 65535
LEAST_MTU = 68
DEFAULT_MTU = 1500
LEAST_BUFFER = 1526
"""A receive buffer has room for a frame of 1514 bytes at least (5.1.6.3.1)."""

CTRL = struct.Struct("<BB")
"""struct virtio_net_ctrl_hdr: class, command. The command's data follow; then the ack byte."""
CTRL_ENTRIES = struct.Struct("<I")
"""struct virtio_net_ctrl_mac: how many addresses follow."""

VIRTIO_NET_OK = 0
VIRTIO_NET_ERR = 1

VIRTIO_NET_CTRL_RX = 0
VIRTIO_NET_CTRL_RX_PROMISC = 0
VIRTIO_NET_CTRL_RX_ALLMULTI = 1
VIRTIO_NET_CTRL_RX_ALLUNI = 2
VIRTIO_NET_CTRL_RX_NOMULTI = 3
VIRTIO_NET_CTRL_RX_NOUNI = 4
VIRTIO_NET_CTRL_RX_NOBCAST = 5

VIRTIO_NET_CTRL_MAC = 1
VIRTIO_NET_CTRL_MAC_TABLE_SET = 0
VIRTIO_NET_CTRL_MAC_ADDR_SET = 1

_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
BROADCAST = b"\xff" * ETH_ALEN


def most_frame(mtu: int) -> int:
    """Return the bytes of the largest frame: its header, a VLAN tag, ``mtu`` bytes."""
    return ETH_HLEN + VLAN_HLEN + mtu


def parse_mac(text: str) -> bytes:
    """Read the address of one station, such as 02:00:00:00:00:01.

    Raises:
        InvalidArgument: it is none.
    """
    mac = bytes.fromhex(text.replace(":", "")) if _MAC.fullmatch(text) else bytes(ETH_ALEN)
    if not is_station(mac):
        raise InvalidArgument(f"{text!r} is no address of a station, such as 02:00:00:00:00:01")
    return mac


def format_mac(mac: bytes) -> str:
    """Write an address the way people do."""
    return mac.hex(":")


def is_station(mac: bytes) -> bool:
    """Whether an address is one station's: not a group's, not zero."""
    return not mac[0] & 1 and any(mac)


def station(name: str) -> bytes:
    """Return the address of a device that was given none: always the same for one name."""
    digest = hashlib.sha256(name.encode()).digest()
    return bytes((digest[0] & 0xFC | 2,)) + digest[1:6]  # locally administered, one station


class NetConfig(NamedTuple):
    """struct virtio_net_config up to mtu: 12 bytes, by its field names (5.1.4)."""

    mac: bytes = bytes(ETH_ALEN)
    status: int = 0
    max_virtqueue_pairs: int = 0
    mtu: int = 0

    def pack(self) -> bytes:
        """Return the configuration space."""
        return CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "NetConfig":
        """Read a configuration space; what a shorter one lacks is 0."""
        return cls(*CONFIG.unpack(data[: CONFIG.size].ljust(CONFIG.size, b"\0")))


CONFIG = struct.Struct("<6sHHH")
assert CONFIG.size == 12


@dataclass(slots=True)
class Counters:
    """What went through one end of a device, by the driver's view: rx is what it receives.

    Attributes:
        rx_frames: received whole.
        rx_bytes: of these frames.
        rx_dropped: frames for which there was no buffer, or one too small.
        rx_errors: what was no frame at all: too short, too long or torn.
        rx_filtered: frames for others, which the driver did not ask for.
        tx_frames: transmitted whole.
        tx_bytes: of these frames.
        tx_dropped: frames that the link did not take.
        tx_errors: what was no frame at all: too short, too long, or without a valid header.
    """

    rx_frames: int = 0
    rx_bytes: int = 0
    rx_dropped: int = 0
    rx_errors: int = 0
    rx_filtered: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0
    tx_dropped: int = 0
    tx_errors: int = 0
