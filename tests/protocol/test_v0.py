# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0 against the golden vectors, which were not made by this encoder."""

import pytest

from tests.protocol.vectors import each, encoded, expected, load, never_set, unroll, whole
from tests.wire_v0 import serving
from vof.protocol import v0
from vof.target.devices import BlkModel, MemoryBacking

FILES, SINGLE, EXCHANGES, EVERY = load("v0")
DESC_BYTES = 24
TARGET_ID = 513

each_vector = each(EVERY)


@each_vector
def test_a_vector_encodes(vector):
    assert encoded(v0.LAYOUTS[vector["layout"]], vector) == unroll(vector["hex"])


@each_vector
def test_a_vector_decodes(vector):
    layout, data = v0.LAYOUTS[vector["layout"]], unroll(vector["hex"])
    assert len(data) == layout.codec.size
    assert layout.decode(data) == expected(layout, vector)


@each_vector
def test_what_follows_is_as_long_as_its_descriptors_say(vector):
    """Of a command, what is to be read; of a completion, what was written."""
    payload, fields = unroll(vector.get("payload", "")), vector["fields"]
    count = fields.get("ndesc", 0)
    descs = [
        v0.DESC.decode(payload, DESC_BYTES * number)
        for number in range(count)
        if len(payload) >= DESC_BYTES * count
    ]
    assert len(descs) == count
    answer = vector["layout"].endswith("completion")
    length = sum(
        desc["length"] for desc in descs if bool(desc["flags"] & v0.VRING_DESC_F_WRITE) == answer
    )
    remote = any(desc["key"] for desc in descs)  # the bytes stay in the initiator's memory
    assert len(payload) == DESC_BYTES * count + (0 if remote else length)


def test_every_layout_has_a_vector_and_every_field_one_where_it_is_not_0():
    assert {vector["layout"] for vector in SINGLE} == set(v0.LAYOUTS)
    zero = never_set(v0.LAYOUTS, SINGLE)
    # CONNECT is opcode 0; only its completions show every status, only VRING's have descriptors
    plain = {name for name in v0.LAYOUTS if name.endswith("completion")}
    plain.discard("v0 VRING completion")
    assert zero == {
        ("v0 CONNECT command", "opcode"),
        *((name, "status") for name in plain - {"v0 CONNECT completion"}),
        *((name, "ndesc") for name in plain),
    }


def test_every_status_has_a_vector():
    statuses = {vector["fields"]["status"] for vector in FILES["statuses"]["vectors"]}
    assert statuses == set(v0.ERRNO.values())


def test_vectors_are_told_apart():
    assert all(file["dialect"] == "v0" for file in FILES.values())
    assert all(vector["meaning"][-1] in ".," for vector in EVERY)
    for vector in EVERY:
        opcode = vector["fields"].get("opcode")
        if opcode is not None:
            assert vector["layout"] == f"v0 {v0.COMMANDS[opcode].name} command"


class Disk(BlkModel):
    """The disk of the exchanges."""

    device_features = 0

    def __init__(self, backing: MemoryBacking) -> None:
        super().__init__(backing)
        self.device_features = 1 << 32 | 1 << 2 | 1 << 9


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange["name"])
async def test_the_target_says_what_stands_there(exchange):
    """But for the target id, which it draws."""
    backing = MemoryBacking(1 << 16)
    async with serving(lambda: Disk(backing)) as target:
        peer, ident = await target.peer(), TARGET_ID
        if exchange["name"] == "virtqueue":
            first = next(e for e in EXCHANGES if e["name"] == "control queue")["steps"][0]
            control = await target.peer()
            ident = await control.get(whole(first))
        for step in exchange["steps"]:
            layout, data = step["layout"], whole(step)
            if step["from"] == "initiator":
                if step["fields"].get("device_instance_id") == TARGET_ID:
                    data = data[:4] + ident.to_bytes(2, "little") + data[6:]
                await peer.send(data)
                continue
            got = await peer.take(len(data))
            if layout == "v0 CONNECT completion" and step["fields"]["device_instance_id"]:
                assert got[8:10] != b"\xff\xff"
                got = got[:8] + data[8:10] + got[10:]
            assert got == data, step["meaning"]
    backing.close()
