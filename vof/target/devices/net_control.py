# SPDX-License-Identifier: BSD-3-Clause
"""What a driver says on the control queue of a network device, and what it wants to receive for it.

Until it says something else, it wants everything. A command that is not understood, or is not
whole, is answered VIRTIO_NET_ERR and changes nothing.
"""

import struct
from collections.abc import Callable

from vof.memory import Buffer
from vof.virtio.net import (
    BROADCAST,
    CTRL,
    CTRL_ENTRIES,
    ETH_ALEN,
    VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET,
    VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI,
    VIRTIO_NET_CTRL_RX_NOBCAST,
    VIRTIO_NET_CTRL_RX_NOMULTI,
    VIRTIO_NET_CTRL_RX_NOUNI,
    VIRTIO_NET_CTRL_RX_PROMISC,
    VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_OK,
    is_station,
)

MOST_ADDRESSES = 1024
"""A table with more is taken for "all of this kind"."""


class Reception:
    """Which frames a driver receives. Pure.

    Attributes:
        mac: the device's address now.
        promiscuous: it wants all.
    """

    def __init__(self, mac: bytes) -> None:
        self.mac = mac
        self.promiscuous = True
        self._modes: dict[int, bool] = {}
        self._unicast: set[bytes] | None = set()
        self._multicast: set[bytes] | None = set()

    def wants(self, frame: Buffer) -> bool:
        """Whether the driver wants a frame, which has a whole header."""
        if self.promiscuous:
            return True
        mode, to = self._modes.get, bytes(frame[:ETH_ALEN])
        if to == BROADCAST:
            return not mode(VIRTIO_NET_CTRL_RX_NOBCAST)
        if to[0] & 1:
            table, none, all_ = (
                self._multicast,
                VIRTIO_NET_CTRL_RX_NOMULTI,
                VIRTIO_NET_CTRL_RX_ALLMULTI,
            )
        else:
            table, none, all_ = self._unicast, VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_ALLUNI
        if mode(none):
            return False
        return bool(mode(all_)) or table is None or to in table or to == self.mac

    def command(self, data: bytes, features: int) -> int:
        """Carry out a command with its data, and return the ack (5.1.6.5)."""
        if len(data) < CTRL.size:
            return VIRTIO_NET_ERR
        kind = CTRL.unpack_from(data)
        feature, handler = COMMANDS.get(kind, (0, None))
        if handler is None or not features >> feature & 1:
            return VIRTIO_NET_ERR
        done = handler(self, kind[1], data[CTRL.size :])
        return VIRTIO_NET_OK if done else VIRTIO_NET_ERR

    def _set_mode(self, command: int, data: bytes) -> bool:
        if len(data) != 1 or data[0] > 1:
            return False
        self._modes[command] = bool(data[0])
        if command == VIRTIO_NET_CTRL_RX_PROMISC:
            self.promiscuous = bool(data[0])
        return True

    def _set_address(self, command: int, data: bytes) -> bool:
        if len(data) != ETH_ALEN or not is_station(data):
            return False
        self.mac = data
        return True

    def _set_table(self, command: int, data: bytes) -> bool:
        """Two tables: of stations, then of groups."""
        tables: list[set[bytes] | None] = []
        for _ in range(2):
            try:
                (count,) = CTRL_ENTRIES.unpack_from(data)
            except struct.error:
                return False
            rest = data[CTRL_ENTRIES.size :]
            if len(rest) < count * ETH_ALEN:
                return False
            places = range(0, count * ETH_ALEN, ETH_ALEN)
            few = count <= MOST_ADDRESSES
            tables.append({rest[at : at + ETH_ALEN] for at in places} if few else None)
            data = rest[count * ETH_ALEN :]
        if data:
            return False
        self._unicast, self._multicast = tables
        return True


Handler = Callable[[Reception, int, bytes], bool]

COMMANDS: dict[tuple[int, int], tuple[int, Handler]] = {
    (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC): (VIRTIO_NET_F_CTRL_RX, Reception._set_mode),
    (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI): (VIRTIO_NET_F_CTRL_RX, Reception._set_mode),
    **{
        (VIRTIO_NET_CTRL_RX, mode): (VIRTIO_NET_F_CTRL_RX_EXTRA, Reception._set_mode)
        for mode in (
            VIRTIO_NET_CTRL_RX_ALLUNI,
            VIRTIO_NET_CTRL_RX_NOMULTI,
            VIRTIO_NET_CTRL_RX_NOUNI,
            VIRTIO_NET_CTRL_RX_NOBCAST,
        )
    },
    (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET): (
        VIRTIO_NET_F_CTRL_RX,
        Reception._set_table,
    ),
    (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET): (
        VIRTIO_NET_F_CTRL_MAC_ADDR,
        Reception._set_address,
    ),
}
"""By class and command: the feature that must be negotiated, and what carries it out."""
