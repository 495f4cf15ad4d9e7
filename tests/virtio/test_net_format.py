# SPDX-License-Identifier: BSD-3-Clause
"""Numbers and layouts of network devices, against virtio 1.2 and Linux's interface."""

import pytest

from vof.errors import InvalidArgument
from vof.virtio import net
from vof.virtio.net import NetConfig, format_mac, parse_mac, station

BITS = {
    0: "CSUM",
    1: "GUEST_CSUM",
    2: "CTRL_GUEST_OFFLOADS",
    3: "MTU",
    5: "MAC",
    6: "GSO",
    7: "GUEST_TSO4",
    8: "GUEST_TSO6",
    9: "GUEST_ECN",
    10: "GUEST_UFO",
    11: "HOST_TSO4",
    12: "HOST_TSO6",
    13: "HOST_ECN",
    14: "HOST_UFO",
    15: "MRG_RXBUF",
    16: "STATUS",
    17: "CTRL_VQ",
    18: "CTRL_RX",
    19: "CTRL_VLAN",
    20: "CTRL_RX_EXTRA",
    21: "GUEST_ANNOUNCE",
    22: "MQ",
    23: "CTRL_MAC_ADDR",
    52: "VQ_NOTF_COAL",
    53: "NOTF_COAL",
    54: "GUEST_USO4",
    55: "GUEST_USO6",
    56: "HOST_USO",
    57: "HASH_REPORT",
    59: "GUEST_HDRLEN",
    60: "RSS",
    61: "RSC_EXT",
    62: "STANDBY",
    63: "SPEED_DUPLEX",
}
"""linux/virtio_net.h."""


def test_numbers():
    names = {number: name.removeprefix("VIRTIO_NET_F_") for number, name in net.FEATURES.items()}
    assert names == BITS


def test_what_a_configuration_lacks_is_0():
    config = NetConfig(bytes(range(6)), 1, 2, 9000)
    assert config.pack() == b"\0\1\2\3\4\5" + b"\1\0" + b"\2\0" + b"\x28\x23"
    assert NetConfig.unpack(config.pack() + bytes(8)) == config
    assert NetConfig.unpack(config.pack()[:8]) == config._replace(max_virtqueue_pairs=0, mtu=0)


def test_addresses_of_stations():
    assert parse_mac("02:00:00:00:00:0A").hex() == "02000000000a"
    assert format_mac(parse_mac("02:00:00:00:00:0A")) == "02:00:00:00:00:0a"
    for text in ("", "02:00:00:00:00", "0200000000001", "03:00:00:00:00:01", "00:00:00:00:00:00"):
        with pytest.raises(InvalidArgument, match="no address of a station"):
            parse_mac(text)


def test_a_made_address_is_of_one_station_and_always_the_same():
    made = {station(f"net{number}") for number in range(100)}
    assert len(made) == 100
    assert all(mac[0] & 3 == 2 for mac in made)
    assert station("net0").hex() == "9604eea3257e"
