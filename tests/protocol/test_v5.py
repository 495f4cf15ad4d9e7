# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v5 against the golden vectors, which were not made by this encoder."""

import pytest

from tests.protocol.vectors import each, encoded, expected, load, never_set, unroll, whole
from vof.errors import CommandError
from vof.memory import HEAP
from vof.protocol import v5
from vof.protocol.target_stream import Message
from vof.protocol.v5_initiator import V5Initiator
from vof.protocol.v5_target import V5Target

FILES, SINGLE, EXCHANGES, EVERY = load("v5")
MOST = 1 << 20

each_vector = each(EVERY)
each_exchange = pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda e: e["name"])


# -- vectors ------------------------------------------------------------------------------------


@each_vector
def test_a_vector_encodes(vector):
    assert encoded(v5.LAYOUTS[vector["layout"]], vector) == unroll(vector["hex"])


@each_vector
def test_a_vector_decodes(vector):
    layout, data = v5.LAYOUTS[vector["layout"]], unroll(vector["hex"])
    assert len(data) == layout.codec.size
    assert layout.decode(data) == expected(layout, vector)


@each_vector
def test_what_follows_is_as_long_as_the_message_says(vector):
    layout, fields = vector["layout"], vector["fields"]
    length = 0
    if layout == "CONNECT command":
        length = fields["length"]
    elif layout == "VQ command":
        length = fields["out_length"]
    elif layout == "VQ completion" and not fields["status"]:
        length = fields["in_length"]
    assert len(unroll(vector.get("payload", ""))) == length


def test_every_layout_has_a_vector_and_every_field_one_where_it_is_not_0():
    assert {vector["layout"] for vector in SINGLE} == set(v5.LAYOUTS)
    zero = never_set(v5.LAYOUTS, SINGLE)
    # CONNECT is opcode 0; statuses.json has the plain completion with every status
    with_status = {name for name in v5.LAYOUTS if name.endswith((" completion", "event"))}
    assert zero == {("CONNECT command", "opcode"), *((name, "status") for name in with_status)}


def test_every_status_has_a_vector_that_names_it():
    found = {
        v["fields"]["status"]: v["meaning"].split(":")[0] for v in FILES["statuses"]["vectors"]
    }
    assert found == {code: name for code, (name, _) in v5.STATUS.items()}


def test_vectors_are_told_apart():
    assert all(file["dialect"] == "v5" for file in FILES.values())
    assert all(vector["meaning"].endswith(".") for vector in EVERY)
    for vector in EVERY:
        opcode = vector["fields"].get("opcode")
        if opcode is not None:
            assert vector["layout"] == f"{v5.COMMANDS[opcode].name} command"


# -- exchanges, through both streams -------------------------------------------------------------


def feed(inbox, data: bytes) -> None:
    """Let an inbox receive ``data``, all of it."""
    while data:
        space = inbox.target or inbox.space()
        count = min(len(space), len(data))
        space[:count] = data[:count]
        data = data[count:]
        inbox.received(count)


@each_exchange
def test_the_target_reads_what_the_initiator_says(exchange):
    stream = V5Target(MOST, 4 * MOST)
    expected, requests = [], []
    for step in exchange["steps"]:
        if step["from"] == "target":
            continue
        feed(stream.inbox, whole(step))
        fields = step["fields"]
        if step["layout"] == "VQ command":
            if fields["in_length"] <= MOST:
                requests.append((unroll(step["payload"]), fields["in_length"]))
            continue
        expected.append((fields["opcode"], fields["command_id"], fields))
        stream.inbox.advance()
        if fields["opcode"] == v5.CONNECT and fields["device_instance_id"] != v5.NEW_INSTANCE:
            stream.bind(fields["queue_size"], HEAP)
    assert [message[:3] for message in stream.messages] == expected
    assert [
        (b"".join(chain.readable), sum(map(len, chain.writable))) for chain in stream.chains
    ] == requests


@each_exchange
def test_the_target_says_what_stands_there(exchange):
    stream = V5Target(MOST, 4 * MOST)
    stream.bind(8, HEAP)
    chains, expected = {}, b""
    for step in exchange["steps"]:
        fields, ident = step["fields"], step["fields"]["command_id"]
        if step["from"] == "initiator":
            if step["layout"] == "VQ command":
                feed(stream.inbox, whole(step))
                chains.update((chain.token[0], chain) for chain in stream.chains)
                stream.chains.clear()
            continue
        expected += whole(step)
        if step["layout"] != "VQ completion":
            rest = {k: v for k, v in fields.items() if k not in ("status", "command_id")}
            name = step["layout"].removesuffix(" completion")
            if ident in (v5.ID_CONFIG_CHANGE, v5.ID_KEEPALIVE):
                stream.notice(ident, **rest)
            else:
                opcode = next((o for o, row in v5.COMMANDS.items() if row.name == name), -1)
                stream.answer(Message(opcode, ident, {}, b"", ""), fields["status"], **rest)
        elif not fields["status"]:
            chain, payload = chains.pop(ident), unroll(step["payload"])
            for segment in chain.writable:
                segment[: len(payload)] = payload
            stream.push(chain, fields["length"], fields["in_length"])
    assert b"".join(stream.seal()) == expected
    assert not stream.inflight


@each_exchange
def test_the_initiator_says_and_reads_what_stands_there(exchange):
    stream = V5Initiator(8, control=exchange["name"] == "control queue")
    spaces: dict[int, bytearray] = {}
    for step in exchange["steps"]:
        fields, ident = step["fields"], step["fields"]["command_id"]
        payload = unroll(step.get("payload", ""))
        if step["from"] == "initiator":
            if step["layout"] == "VQ command":
                spaces[ident] = bytearray(fields["in_length"])
                stream.add([payload, spaces[ident]], 1, ident, None)
            else:
                rest = {k: v for k, v in fields.items() if k not in ("opcode", "command_id")}
                stream.command(fields["opcode"], rest, payload, ident)
            assert b"".join(stream.seal()) == whole(step), step["meaning"]
            stream.outbox.pieces.clear()
        elif step["layout"] == "VQ completion" and fields["status"]:
            with pytest.raises(CommandError, match="EINVQBUF"):
                feed(stream.inbox, whole(step))
        elif step["layout"] == "VQ completion":
            feed(stream.inbox, whole(step))
            assert stream.used.popleft() == (ident, fields["length"], None)
            assert spaces.pop(ident)[: len(payload)] == payload
        elif step["layout"].endswith("event"):
            feed(stream.inbox, whole(step))
            got, values = stream.notices.popleft()
            assert got == ident
            assert values["generation"] == fields.get("generation", 0)
        else:
            feed(stream.inbox, whole(step))
            answer = stream.answers.popleft()
            assert (answer.data, answer.status) == (ident, fields["status"])
            assert answer.fields == fields
    assert not [*stream.answers, *stream.used, *stream.notices]


# -- the tables ----------------------------------------------------------------------------------


def test_a_status_is_told_with_its_meaning():
    assert v5.status_text(v5.EQUEUEBUSY) == "EQUEUEBUSY (the queue is connected already)"
    assert v5.status_text(0x7777) == "0x7777 (unknown status code)"


def test_the_numbers_are_the_names():
    codes = {name: value for value, (name, _) in v5.STATUS.items()}
    assert codes == {name: getattr(v5, name) for name in codes}
    for opcode, row in v5.COMMANDS.items():
        assert getattr(v5, row.name) == opcode == row.opcode
        assert row.command is v5.LAYOUTS[f"{row.name} command"]
        assert row.completion is v5.LAYOUTS[f"{row.name} completion"]
        assert row.command.names[:2] == ("opcode", "command_id")
        assert row.completion.names[:2] == ("status", "command_id")
        assert set(row.queues) <= {"c", "v"}
