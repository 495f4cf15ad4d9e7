# SPDX-License-Identifier: BSD-3-Clause
"""Numbers that every device type shares, against virtio 1.2, and their names."""

import pytest

from vof.virtio import blk, constants, rng
from vof.virtio.constants import bit, feature_names

STATUS = {
    "ACKNOWLEDGE": 1,
    "DRIVER": 2,
    "DRIVER_OK": 4,
    "FEATURES_OK": 8,
    "NEEDS_RESET": 64,
    "FAILED": 128,
}
FEATURES = {
    "NOTIFY_ON_EMPTY": 24,
    "ANY_LAYOUT": 27,
    "INDIRECT_DESC": 28,
    "EVENT_IDX": 29,
    "VERSION_1": 32,
    "ACCESS_PLATFORM": 33,
    "RING_PACKED": 34,
    "IN_ORDER": 35,
    "ORDER_PLATFORM": 36,
    "SR_IOV": 37,
    "NOTIFICATION_DATA": 38,
    "NOTIF_CONFIG_DATA": 39,
    "RING_RESET": 40,
}
DEVICES = {"NET": 1, "BLOCK": 2, "CONSOLE": 3, "RNG": 4, "FS": 26}


@pytest.mark.parametrize(
    ("prefix", "numbers"),
    [
        ("VIRTIO_CONFIG_S_", STATUS),
        ("VIRTIO_F_", FEATURES),
        ("VIRTIO_ID_", DEVICES),
    ],
)
def test_the_numbers_of_the_specification(prefix, numbers):
    found = {k: v for k, v in vars(constants).items() if k.startswith(prefix)}
    assert found == {prefix + name: number for name, number in numbers.items()}


def test_every_reserved_feature_and_status_bit_has_its_name():
    assert {name: f"VIRTIO_F_{short}" for short, name in FEATURES.items()} == (
        constants.RESERVED_FEATURES
    )
    assert set(constants.STATUS_NAMES) == set(STATUS.values())
    assert constants.STATUS_NAMES[64] == "DEVICE_NEEDS_RESET"
    assert constants.DEVICE_NAMES[2] == "blk"
    assert constants.DEVICE_NAMES[4] == "rng"


def test_bit():
    assert bit() == 0
    assert bit(0, 5, 5, 64) == 1 | 32 | 1 << 64


def test_feature_names_by_type_then_reserved_then_number():
    features = bit(5, 9, 32, 50, 127)
    assert feature_names(features, blk.FEATURES) == [
        "VIRTIO_BLK_F_RO",
        "VIRTIO_BLK_F_FLUSH",
        "VIRTIO_F_VERSION_1",
        "bit 50",
        "bit 127",
    ]
    assert feature_names(features, rng.FEATURES) == [
        "bit 5",
        "bit 9",
        "VIRTIO_F_VERSION_1",
        "bit 50",
        "bit 127",
    ]
    assert feature_names(0, blk.FEATURES) == []


def test_a_type_may_give_a_reserved_bit_its_own_name():
    assert feature_names(bit(24), {24: "OWN"}) == ["OWN"]
