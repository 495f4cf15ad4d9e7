# SPDX-License-Identifier: BSD-3-Clause
"""Numbers that every device type shares (virtio 1.2, 2.1, 2.2, 5, 6)."""

# Device status bits (2.1).
VIRTIO_CONFIG_S_ACKNOWLEDGE = 1
VIRTIO_CONFIG_S_DRIVER = 2
VIRTIO_CONFIG_S_DRIVER_OK = 4
VIRTIO_CONFIG_S_FEATURES_OK = 8
VIRTIO_CONFIG_S_NEEDS_RESET = 0x40
VIRTIO_CONFIG_S_FAILED = 0x80

STATUS_NAMES = {
    VIRTIO_CONFIG_S_ACKNOWLEDGE: "ACKNOWLEDGE",
    VIRTIO_CONFIG_S_DRIVER: "DRIVER",
    VIRTIO_CONFIG_S_FEATURES_OK: "FEATURES_OK",
    VIRTIO_CONFIG_S_DRIVER_OK: "DRIVER_OK",
    VIRTIO_CONFIG_S_NEEDS_RESET: "DEVICE_NEEDS_RESET",
    VIRTIO_CONFIG_S_FAILED: "FAILED",
}

# Reserved feature bits (6), by number.
VIRTIO_F_NOTIFY_ON_EMPTY = 24
VIRTIO_F_ANY_LAYOUT = 27
VIRTIO_F_INDIRECT_DESC = 28
VIRTIO_F_EVENT_IDX = 29
VIRTIO_F_VERSION_1 = 32
VIRTIO_F_ACCESS_PLATFORM = 33
VIRTIO_F_RING_PACKED = 34
VIRTIO_F_IN_ORDER = 35
VIRTIO_F_ORDER_PLATFORM = 36
VIRTIO_F_SR_IOV = 37
VIRTIO_F_NOTIFICATION_DATA = 38
VIRTIO_F_NOTIF_CONFIG_DATA = 39
VIRTIO_F_RING_RESET = 40

RESERVED_FEATURES = {
    VIRTIO_F_NOTIFY_ON_EMPTY: "VIRTIO_F_NOTIFY_ON_EMPTY",
    VIRTIO_F_ANY_LAYOUT: "VIRTIO_F_ANY_LAYOUT",
    VIRTIO_F_INDIRECT_DESC: "VIRTIO_F_INDIRECT_DESC",
    VIRTIO_F_EVENT_IDX: "VIRTIO_F_EVENT_IDX",
    VIRTIO_F_VERSION_1: "VIRTIO_F_VERSION_1",
    VIRTIO_F_ACCESS_PLATFORM: "VIRTIO_F_ACCESS_PLATFORM",
    VIRTIO_F_RING_PACKED: "VIRTIO_F_RING_PACKED",
    VIRTIO_F_IN_ORDER: "VIRTIO_F_IN_ORDER",
    VIRTIO_F_ORDER_PLATFORM: "VIRTIO_F_ORDER_PLATFORM",
    VIRTIO_F_SR_IOV: "VIRTIO_F_SR_IOV",
    VIRTIO_F_NOTIFICATION_DATA: "VIRTIO_F_NOTIFICATION_DATA",
    VIRTIO_F_NOTIF_CONFIG_DATA: "VIRTIO_F_NOTIF_CONFIG_DATA",
    VIRTIO_F_RING_RESET: "VIRTIO_F_RING_RESET",
}

# Device ids (5).
VIRTIO_ID_NET = 1
VIRTIO_ID_BLOCK = 2
VIRTIO_ID_CONSOLE = 3
VIRTIO_ID_RNG = 4
VIRTIO_ID_FS = 26

DEVICE_NAMES = {
    1: "net",
    2: "blk",
    3: "console",
    4: "rng",
    5: "balloon",
    8: "scsi",
    9: "9p",
    16: "gpu",
    18: "input",
    19: "vsock",
    20: "crypto",
    25: "sound",
    26: "fs",
    27: "pmem",
    34: "i2c",
    41: "gpio",
}


RING_FEATURES = sum(1 << number for number in range(24, 42) if number != VIRTIO_F_VERSION_1)
"""Feature bits of queues and their negotiation (virtio 1.2, 2.2): they end where the ring does."""


def bit(*numbers: int) -> int:
    """Return the feature word with these bit numbers set."""
    word = 0
    for number in numbers:
        word |= 1 << number
    return word


def feature_names(features: int, names: dict[int, str]) -> list[str]:
    """Name the bits of ``features``: the device type's names, the reserved ones, else ``bit N``."""
    return [
        names.get(number) or RESERVED_FEATURES.get(number) or f"bit {number}"
        for number in range(features.bit_length())
        if features >> number & 1
    ]
