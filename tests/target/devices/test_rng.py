# SPDX-License-Identifier: BSD-3-Clause
"""The entropy model."""

from tests.target.devices.fakes import OLD, answer, segments
from vof.target.devices import RngModel
from vof.target.devices.rng import MAX_BYTES
from vof.virtio import Chain
from vof.virtio.constants import VIRTIO_ID_RNG


def want(size, cuts=()):
    return Chain((), segments(bytes([OLD]) * size, cuts), None)


def test_fills_every_segment():
    chain = want(3000, (0, 1, 1000))
    assert answer(RngModel(), [chain]) == [3000]
    assert all(len(set(view)) > 100 for view in chain.writable[2:])


def test_no_two_answers_are_equal():
    chains = [want(64) for _ in range(8)]
    answer(RngModel(), chains[:4], chains[4:])
    assert len({bytes(chain.writable[0]) for chain in chains}) == 8


def test_what_is_too_long_is_filled_in_part():
    chain = want(MAX_BYTES + 100, (MAX_BYTES - 10, MAX_BYTES + 50))
    assert answer(RngModel(), [chain]) == [MAX_BYTES]
    data = b"".join(chain.writable)
    assert data[MAX_BYTES:] == bytes([OLD]) * 100
    assert data[:MAX_BYTES].count(OLD) < MAX_BYTES // 64


def test_no_room():
    assert answer(RngModel(), [Chain(segments(b"x"), (), None), want(0), want(1)]) == [0, 0, 1]


def test_device():
    model = RngModel(8)
    assert (model.device_id, model.queue_sizes, model.config()) == (VIRTIO_ID_RNG, (8,), b"")
