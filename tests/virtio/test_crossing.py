# SPDX-License-Identifier: BSD-3-Clause
"""What is known of device types that cross a fabric."""

from vof.virtio import constants as c
from vof.virtio import net
from vof.virtio.crossing import CROSSINGS, IMPOSSIBLE, MASKED, REPLAYS, UNKNOWN, refusals, unserved


def test_every_row_is_possible():
    for kind, row in CROSSINGS.items():
        assert kind in c.DEVICE_NAMES
        assert kind not in IMPOSSIBLE
        assert row.replay in REPLAYS
        assert not row.masked.keys() & MASKED.keys()
        assert not row.unserved.keys() & (MASKED.keys() | row.masked.keys())
        for text in (
            *row.masked.values(),
            *row.unserved.values(),
            *MASKED.values(),
            *IMPOSSIBLE.values(),
        ):
            assert text
            assert text[-1] not in ".!"


def test_all_of_the_rings_stays():
    assert c.bit(*MASKED) == c.RING_FEATURES


def test_queues_that_hold_buffers():
    assert CROSSINGS[c.VIRTIO_ID_NET].held_queues(6) == [0, 2, 4]
    assert CROSSINGS[c.VIRTIO_ID_BLOCK].held_queues(4) == []
    assert CROSSINGS[19].held_queues(3) == [0, 2]
    assert UNKNOWN.held_queues(2) == []


def test_each_refusal_names_its_feature():
    offered = c.bit(
        net.VIRTIO_NET_F_MAC, net.VIRTIO_NET_F_CTRL_VQ, c.VIRTIO_F_VERSION_1, c.VIRTIO_F_RING_PACKED
    )
    assert refusals(c.VIRTIO_ID_NET, offered) == [
        (34, "VIRTIO_F_RING_PACKED", "it belongs to the ring, which ends here"),
    ]
    assert unserved(c.VIRTIO_ID_NET, offered) == [
        (
            17,
            "VIRTIO_NET_F_CTRL_VQ",
            "its commands go through a control queue, which a local backend does not have",
        ),
    ]
    assert [number for number, _, _ in refusals(99, offered)] == [34]
    assert unserved(99, offered) == []
