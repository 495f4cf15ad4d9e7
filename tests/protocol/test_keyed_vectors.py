# SPDX-License-Identifier: BSD-3-Clause
"""Keyed conversations of both dialects against the golden vectors, which no encoder here made."""

import pytest

from tests.protocol.keyed import BOTH, Alone
from tests.protocol.pipe import MIB
from tests.protocol.vectors import load, unroll, whole
from vof.memory import HEAP
from vof.protocol import v0, v5
from vof.protocol.dialects import DIALECTS
from vof.protocol.v0_commands import PLANS
from vof.protocol.v5_keyed import to_fields

LAYOUTS = {"v5": v5.LAYOUTS, "v0": v0.LAYOUTS}
DESC = {"v5": v5.KEYED_DESC, "v0": v0.DESC}
EXCHANGES = [
    (dialect, exchange)
    for dialect in DIALECTS
    for exchange in load(dialect).files["keyed"]["keyed"]
]
EAGER = (0x7F0000001000, 4 * 4352, 0x9ABC)
EAGERLY = "VQ_KEYED_EAGER_BUF"
DATA = ("VQ", EAGERLY, "v0 VRING")

each = pytest.mark.parametrize(
    ("dialect", "exchange"), EXCHANGES, ids=[f"{name} {e['name']}" for name, e in EXCHANGES]
)


@each
def test_every_message_encodes_and_decodes(dialect, exchange):
    for step in [s for s in exchange["steps"] if "layout" in s]:
        layout = LAYOUTS[dialect][step["layout"]]
        assert layout.encode(step["fields"]) == unroll(step["hex"])
        assert layout.decode(unroll(step["hex"])) == step["fields"]
        if step["from"] == "initiator":
            descs = step["descs"]
            assert b"".join(map(DESC[dialect].encode, descs)) == unroll(step["payload"])
            assert step["fields"].get("ndesc", len(descs)) == len(descs)


def test_every_keyed_message_has_one():
    found = {step["layout"] for _, e in EXCHANGES for step in e["steps"] if "layout" in step}
    wanted = {
        f"{row.name} {end}" for row in v5.COMMANDS.values() for end in ("command", "completion")
    }
    keyed = {name for name in wanted if "KEYED" in name or name.startswith(("CONNECT", "VQ "))}
    assert keyed | {"v0 CONNECT command", "v0 VRING command", "v0 VRING completion"} <= found


# -- the target -----------------------------------------------------------------------------------


def transfers(chain, steps):
    """Fill a chain as the steps say that its writable part is written."""
    data = b"".join(unroll(s["payload"]) for s in steps if s.get("transfer") == "write")
    for segment in chain.writable:
        segment[: len(data)] = data[: len(segment)]


class Playing:
    """A target that a conversation is played to."""

    def __init__(self, dialect, exchange):
        self.steps, self.eager = exchange["steps"], exchange["name"].startswith("eager")
        self.alone = Alone(DIALECTS[dialect].keyed.target(MIB, 8 * MIB))
        self.stream = self.alone.stream
        self.stream.advance()
        self.posted = []

    def more(self):
        """Return what is posted next, of all that is under way."""
        self.posted = self.posted or self.alone.posts()
        return self.posted.pop(0)

    def play(self, number):
        """Do one step."""
        step = self.steps[number]
        data = unroll(step.get("payload", ""))
        if "layout" in step and step["from"] == "initiator":
            assert not self.posted
            self.stream.received(whole(step))
        elif step["from"] == "initiator":
            there = step["addr"] - EAGER[0]
            self.stream._eager[there : there + len(data)] = data
        else:
            self.see(step, self.more(), data)
            self.stream.completed(1)
        self.act(self.steps[number + 1 :])

    def see(self, step, post, data):
        """Compare what is posted with what stands there."""
        if "layout" in step:
            assert post == unroll(step["hex"])
            return
        assert post[:2] == (step["transfer"], (step["addr"], step["length"], step["key"]))
        if step["transfer"] == "read":
            post.here[:] = data
        assert post.here == data

    def act(self, rest):
        """Do what the layers above do, by the next completion that stands there."""
        done = next((s for s in rest if s["from"] == "target" and "layout" in s), {"fields": {}})
        fields = {k: v for k, v in done["fields"].items() if k not in ("command_id", "ndesc")}
        while self.stream.messages:
            message = self.stream.messages.pop()
            if message.opcode == v5.CONNECT:
                new = message.fields["device_instance_id"] == v5.NEW_INSTANCE
                self.stream.bind(0 if new else 4, HEAP, b"\1")
                assert bool(self.eager and self.stream.eager_buffer(1)["descs"]) == self.eager
            elif message.opcode == v5.GET_KEYED_EAGER_BUF:
                fields |= to_fields([(EAGER[0], 557056, EAGER[2])])
            self.stream.answer(message, **fields)
            self.stream.advance()
        for chain in self.stream.chains:
            transfers(chain, rest[: rest.index(done)])
            self.stream.push(chain, fields["length"], fields.get("in_length"))
        self.stream.chains.clear()


@each
def test_the_target_does_what_stands_there(dialect, exchange):
    playing = Playing(dialect, exchange)
    for number in range(len(exchange["steps"])):
        playing.play(number)
    assert not playing.posted
    assert not playing.stream.transferring
    assert not playing.stream.inflight


# -- the initiator --------------------------------------------------------------------------------


def said_by(stream, dialect, step, body):
    """Let the initiator say a command of the conversation; return whether it ever would."""
    fields, name = step["fields"], step["layout"].removesuffix(" command")
    if name in DATA:
        sizes = [desc["length"] for desc in step["descs"]]
        out, count = fields.get("out_length", fields.get("length")), 0
        while name != EAGERLY and sum(sizes[:count]) < out:
            count += 1
        if name == EAGERLY:
            sizes, count = [out, *sizes], 1
        if stream._control or sum(sizes) > MIB:
            return False
        stream.free.remove(fields["command_id"])
        stream.free.append(fields["command_id"])
        buffers = [bytearray(size) for size in sizes or [0]]
        stream.add(buffers, count, fields["command_id"], None)
        return True
    opcode = v0.COMMON.get(fields["opcode"]) if dialect == "v0" else fields["opcode"]
    if opcode is None or opcode in PLANS:
        return opcode == v5.CONNECT and bool(body) and not stream.command(opcode, fields, body, 0)
    known = {k: v for k, v in fields.items() if k not in ("opcode", "command_id")}
    stream.command(opcode, known, body, 0)
    return True


@each
def test_the_initiator_says_and_reads_what_stands_there(dialect, exchange):
    stream = DIALECTS[dialect].keyed.initiator(5 if dialect == "v0" else 6, is_control(exchange))
    alone = Alone(stream, BOTH)
    if exchange["name"].startswith("eager"):
        stream.allow(8, to_fields([EAGER]))
        stream._piece, stream._first, stream._heads = 4352, 0, None
    answered = set()
    for number, step in enumerate(exchange["steps"]):
        fields, raw = step.get("fields"), unroll(step.get("hex", ""))
        if "transfer" in step:
            continue
        if step["from"] == "initiator":
            body = read_next(exchange["steps"][number + 1 :])
            if said_by(stream, dialect, step, body):
                message = alone.posts()[-1]
                assert message[:2] + message[4:16] == raw[:2] + raw[4:], step["meaning"]
                assert (len(message) > 16) == bool(step["descs"])
                answered.add((fields["command_id"], message[2:4]))
            continue
        for ident, own in [pair for pair in answered if pair[0] == fields["command_id"]]:
            answered.discard((ident, own))
            stream.received(raw[:2] + own + raw[4:])
            alone.posts()
            if stream.used:
                assert stream.used.popleft()[1] == fields["length"]
            else:
                answer = stream.answers.popleft()
                assert answer.status == fields["status"]
                shared = answer.fields.keys() & fields.keys() - {"command_id"}
                assert {k: answer.fields[k] for k in shared} == {k: fields[k] for k in shared}
    assert not answered


def read_next(steps):
    """Return what the target reads next, if that is a CONNECT body."""
    data = unroll(steps[0]["payload"]) if steps and "transfer" in steps[0] else b""
    return data if len(data) == v5.BODY_BYTES else b""


def is_control(exchange):
    return exchange["name"] == "control queue"
