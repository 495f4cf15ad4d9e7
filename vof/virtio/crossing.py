# SPDX-License-Identifier: BSD-3-Clause
"""Which devices of others can cross a fabric, and how: a table by device type, one of features.

A bridge needs no more than this of a type: it moves buffers, whatever is in them.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from vof.virtio import constants as c
from vof.virtio import net
from vof.virtio.blk import VIRTIO_BLK_S_IOERR
from vof.virtio.device import Refusal

Replay = Literal["resubmit", "fail", "reset"]
REPLAYS: tuple[Replay, ...] = "resubmit", "fail", "reset"


class Crossing(NamedTuple):
    """How a type crosses.

    Attributes:
        replay: what happens to requests in flight when the device is lost and comes back. They
            may have been carried out. "resubmit": once more, which is right where that makes no
            difference; "fail": completed as failed; "reset": the driver is told that the device
            needs a reset, since it knows nothing any more of what it was told before.
        front: the device fills its buffers from the front: what is beyond the used length is
            nothing. Other devices may report less than they wrote.
        held: which queues have buffers that the device keeps until it has something for them:
            those whose index leaves a remainder of the second number, divided by the first.
        failure: see ``DeviceModel.failure``.
        masked: features that stay here, and why.
        unserved: features that a vhost-user backend leaves to its frontend, in part, and that this
            one does not serve, and why.
        names: of the features of this type.
    """

    replay: Replay = "reset"
    front: bool = False
    held: tuple[int, tuple[int, ...]] = (1, ())
    failure: bytes = b""
    masked: Mapping[int, str] = {}
    unserved: Mapping[int, str] = {}
    names: Mapping[int, str] = {}

    def held_queues(self, count: int) -> list[int]:
        """Return which of ``count`` queues are held."""
        every, rest = self.held
        return [index for index in range(count) if index % every in rest]


_NO_CONTROL = "its commands go through a control queue, which a local backend does not have"

CROSSINGS: dict[int, Crossing] = {
    c.VIRTIO_ID_NET: Crossing(
        "resubmit",
        front=True,
        held=(2, (0,)),
        masked={
            net.VIRTIO_NET_F_MRG_RXBUF: "all buffers of a frame are to be used at once, and a "
            "fabric brings them back one by one",
            net.VIRTIO_NET_F_STANDBY: "the device that it stands by for is one of this machine",
        },
        unserved=dict.fromkeys(
            (
                net.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
                net.VIRTIO_NET_F_CTRL_VQ,
                net.VIRTIO_NET_F_CTRL_RX,
                net.VIRTIO_NET_F_CTRL_VLAN,
                net.VIRTIO_NET_F_CTRL_RX_EXTRA,
                net.VIRTIO_NET_F_GUEST_ANNOUNCE,
                net.VIRTIO_NET_F_MQ,
                net.VIRTIO_NET_F_CTRL_MAC_ADDR,
                net.VIRTIO_NET_F_VQ_NOTF_COAL,
                net.VIRTIO_NET_F_NOTF_COAL,
                net.VIRTIO_NET_F_HASH_REPORT,
                net.VIRTIO_NET_F_RSS,
            ),
            _NO_CONTROL,
        ),
        names=net.FEATURES,
    ),
    c.VIRTIO_ID_BLOCK: Crossing("resubmit", failure=bytes((VIRTIO_BLK_S_IOERR,))),
    c.VIRTIO_ID_CONSOLE: Crossing(front=True, held=(2, (0,))),
    c.VIRTIO_ID_RNG: Crossing("resubmit", front=True),
    8: Crossing(held=(1 << 16, (1,))),  # scsi: control, events, requests
    18: Crossing(front=True, held=(1 << 16, (0,))),  # input: events, status
    19: Crossing(front=True, held=(1 << 16, (0, 2))),  # vsock: receive, transmit, events
    25: Crossing(held=(1 << 16, (1,))),  # sound: control, events, transmit, receive
    41: Crossing(held=(1 << 16, (1,))),  # gpio: requests, events
}
"""Types of which something is known; of others, nothing is assumed."""
UNKNOWN = Crossing()

IMPOSSIBLE = {
    5: "a balloon takes memory from its own machine",
    16: "its commands name memory of their own machine by address, and blobs are shared memory",
    23: "an IOMMU translates addresses of its own machine",
    24: "it gives memory to its own machine",
    27: "persistent memory is shared memory, which cannot cross a fabric",
}
"""Device types that are refused, and why."""

_RING = "it belongs to the ring, which ends here"
MASKED: dict[int, str] = {
    **dict.fromkeys(range(24, 42), _RING),
    c.VIRTIO_F_ACCESS_PLATFORM: "the backend sees memory of this process, by its own addresses",
    c.VIRTIO_F_ORDER_PLATFORM: "the backend sees memory of this process, as other processes do",
    c.VIRTIO_F_SR_IOV: "it belongs to PCI",
    c.VIRTIO_F_NOTIFICATION_DATA: "notifications do not cross the fabric",
    c.VIRTIO_F_NOTIF_CONFIG_DATA: "notifications do not cross the fabric",
}
"""Features of every type that stay here, and why."""
del MASKED[c.VIRTIO_F_VERSION_1]


def refusals(device_id: int, offered: int) -> list[Refusal]:
    """Return the offered features that stay here."""
    return _refusals(device_id, offered, {**MASKED, **CROSSINGS.get(device_id, UNKNOWN).masked})


def unserved(device_id: int, offered: int) -> list[Refusal]:
    """Return the features that a vhost-user backend offers in vain."""
    return _refusals(device_id, offered, CROSSINGS.get(device_id, UNKNOWN).unserved)


def _refusals(device_id: int, offered: int, reasons: Mapping[int, str]) -> list[Refusal]:
    names = dict(CROSSINGS.get(device_id, UNKNOWN).names)
    return [
        Refusal(number, c.feature_names(c.bit(number), names)[0], why)
        for number, why in reasons.items()
        if offered >> number & 1
    ]
