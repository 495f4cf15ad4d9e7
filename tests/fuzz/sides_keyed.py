# SPDX-License-Identifier: BSD-3-Clause
"""Keyed streams of both dialects under the fuzzer.

An input is messages, each behind its length in two bytes. Where a byte stream is cut, so many posts
complete at a time.
"""

import struct

from tests.fuzz import reference_keyed
from tests.fuzz.side import LENGTHS, NUMBERS, QUEUE_SIZE, REQUEST_BYTES, Side, kind, no_cuts
from tests.protocol.keyed import BOTH, Alone
from vof.errors import CommandError, RemoteProtocolError
from vof.memory import HEAP
from vof.protocol import v0, v5
from vof.protocol.session import State
from vof.protocol.v0_keyed_initiator import V0KeyedInitiator
from vof.protocol.v0_keyed_target import V0KeyedTarget
from vof.protocol.v5_keyed import to_fields
from vof.protocol.v5_keyed_initiator import V5KeyedInitiator
from vof.protocol.v5_keyed_target import V5KeyedTarget

MOST = 4095


def messages(data):
    """Return the messages that an input stands for."""
    found = []
    while len(data) >= 2:
        size = int.from_bytes(data[:2], "little") & MOST
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    return found


def framed(message):
    return len(message).to_bytes(2, "little") + message


class Playing:
    """A target that gets messages, and whose posts complete."""

    def __init__(self, stream, queue_size):
        self.alone = Alone(stream, reads=3)
        self.stream = stream
        self.kept, self.sent, self.read = [], [], []
        stream.advance()
        self.eager = 0
        if queue_size >= 0:
            stream.bind(queue_size, HEAP, b"\1")
        if queue_size > 0 and stream.eager_buffer(1)["descs"]:
            self.eager = len(stream._eager)

    def go_on(self, count):
        """Complete so many posts, and hand out what can be."""
        posts = self.alone.posts(count)
        for post in posts:
            if type(post) is bytes:
                self.sent.append(post)
            elif post.kind == "read":
                self.read.append(post.there)
        self.stream.completed(len(posts))
        while self.stream.messages:
            self.kept.append(self.stream.messages.pop())
            self.stream.advance()
        return bool(posts)

    def play(self, data, cut):
        """Return the error, if there is one."""
        try:
            for message in messages(data):
                self.stream.received(message)
                self.go_on(cut())
            while self.go_on(1000):
                pass
        except RemoteProtocolError as error:
            self.sent += [post for post in self.stream._sends if type(post) is bytes]
            self.read += [post[4:5] + post[2:3] + post[5:] for post, _ in self.stream._reads]
            return repr(error)
        return None

    def chains(self):
        """Return all requests, those that are not whole among them."""
        found = [*self.stream.chains, *[chain for _, chain in self.stream._arriving]]
        return [
            (c.token.command_id, sum(map(len, c.readable)), sum(map(len, c.writable)))
            for c in found
        ]

    def memory(self):
        return sum(region.used for region in self.alone.memory._own)


def sizes():
    """Before CONNECT, as a control queue, as a virtqueue."""
    return (-1, 0, QUEUE_SIZE)


BOUND = 3 * 256 * 1024 + 4 * QUEUE_SIZE * REQUEST_BYTES


def v5_target(data, cut=no_cuts):
    results = []
    for size in sizes():
        playing = Playing(V5KeyedTarget(REQUEST_BYTES, 1 << 40), size)
        error = playing.play(data, cut)
        found = reference_keyed.v5_commands(messages(data), size, REQUEST_BYTES, playing.eager)
        assert kind(error) == found.error
        assert playing.chains() == found.chains
        if not error:  # else some wait for what was not read yet
            assert [(m.opcode, m.command_id) for m in playing.kept] == found.messages
        assert playing.sent == found.sent
        assert playing.read == found.read
        assert playing.memory() <= BOUND
        results.append((error, playing.chains(), playing.sent, playing.read))
        if not error:
            finish(playing)
    return results


def v0_target(data, cut=no_cuts):
    results = []
    for size in (0, QUEUE_SIZE):
        playing = Playing(V0KeyedTarget(REQUEST_BYTES, 1 << 40), size)
        error = playing.play(data, cut)
        found = reference_keyed.v0_requests(messages(data), size, REQUEST_BYTES)
        assert kind(error) == found.error
        assert playing.chains() == found.chains
        answers = iter(playing.sent)  # those to other commands among them
        assert all(sent in answers for sent in found.sent)
        assert playing.read == found.read
        assert playing.stream.paused == (found.stuck and not error)
        assert playing.memory() <= BOUND
        results.append((error, playing.chains(), playing.sent, playing.read))
        if not error:
            finish(playing)
    opening = Playing(V0KeyedTarget(REQUEST_BYTES, 1 << 40), -1)
    error = opening.play(data, cut)
    results.append((error, len(opening.kept), opening.sent, opening.read))
    return results


def finish(playing):
    """Whatever came, it can be answered, and then nothing is held."""
    try:
        for _ in range(1000):
            for chain in playing.stream.chains:
                playing.stream.push(chain, 0)
            playing.stream.chains.clear()
            if playing.go_on(1000) or playing.stream.chains:
                continue
            if not playing.stream.paused:
                break
            playing.stream.advance()
    except RemoteProtocolError:
        return  # in what was not looked at before
    assert not playing.stream.paused
    assert (playing.stream.inflight, playing.stream._held) == (0, 0)
    assert not playing.stream.transferring


def v5_initiator(data, cut=no_cuts):
    results = []
    for eager in (False, True):
        alone = Alone(V5KeyedInitiator(6, False), BOTH)
        if eager:
            alone.stream.allow(8, to_fields([(0x10000, 600, 9)]))
        results.append(initiator(alone, data, reference_keyed.v5_completions))
    return results


def v0_initiator(data, cut=no_cuts):
    alone = Alone(V0KeyedInitiator(6, False), BOTH)
    return initiator(alone, data, reference_keyed.v0_completions)


def initiator(alone, data, reference):
    """Give completions to an initiator with requests in flight; return all that came of it."""
    stream = alone.stream
    stream.session.state = State.LIVE
    spaces, inflight = {}, {}
    for out, into in ((5, 0), (500, 16), (5, 40_000), (1, 3)):
        ident = stream.free[-1]
        spaces[ident] = bytearray(into)
        inflight[ident] = (ident + 1, into)
        stream.add([bytes(out), spaces[ident]], 1, ident + 1, None)
    alone.posts()
    early = {ident for ident, lent in stream._lent.items() if lent.eager}
    error, used = reference(messages(data), inflight, early)
    found = None
    try:
        for message in messages(data):
            stream.received(message)
    except (RemoteProtocolError, CommandError) as caught:
        found = repr(caught)
    assert kind(found) == error
    assert [one[:2] for one in stream.used] == used
    assert not any(map(any, spaces.values()))
    assert len(stream.free) == 2 + len(used)
    return found, list(stream.used)


# -- inputs ---------------------------------------------------------------------------------------


def v5_message(rng):
    """Return one message, mostly of a correct form."""
    opcode = rng.choice((v5.VQ, v5.VQ, v5.VQ_KEYED_EAGER_BUF, *v5.COMMANDS, rng.choice(NUMBERS)))
    lengths = [rng.choice((LENGTHS, range(1, 40), range(1, 40))) for _ in range(rng.randrange(5))]
    lengths = [rng.choice(some) for some in lengths]
    border = rng.randint(0, len(lengths))
    out, into = sum(lengths[:border]) & 0xFFFFFFFF, sum(lengths[border:]) & 0xFFFFFFFF
    first = 0
    if opcode == v5.VQ_KEYED_EAGER_BUF:
        first, lengths = rng.choice((0, 5, 16_000, *NUMBERS)), lengths[border:]
    if opcode == v5.CONNECT:
        out, lengths = rng.choice(((0, []), (1024, [1024]), (out, lengths)))
    message = reference_keyed.V5.pack(opcode, rng.randrange(9), first, out, into)
    return framed(message + b"".join(reference_keyed.V5_DESC.pack(64, n, 7) for n in lengths))


def v0_message(rng):
    opcode = rng.choice((v0.VRING, v0.VRING, v0.VRING, *v0.COMMANDS, rng.choice(NUMBERS)))
    count = rng.randrange(6) if opcode in (v0.VRING, v0.CONNECT) else 0
    descs = [
        reference_keyed.V0_DESC.pack(
            64,
            rng.choice(rng.choice((LENGTHS, range(40), (1024,)))),
            n,
            rng.choice((0, 1, 2, 3)),
            7,
        )
        for n in range(count)
    ]
    head = reference_keyed.V0.pack(opcode, rng.randrange(9), rng.choice(LENGTHS), count)
    return framed(head[:10] + bytes([rng.choice((1, 1, 0))]) + head[11:] + b"".join(descs))


def completion(form):
    """Return what makes completions."""

    def message(rng):
        status = rng.choice((0, 0, 0, rng.choice(NUMBERS)))
        numbers = [rng.choice((0, 1, 3, 16, *LENGTHS)) for _ in range(3)]
        if form is reference_keyed.V0_DONE:
            return framed(form.pack(status, rng.randrange(7), 0, 0, numbers[0]))
        return framed(struct.pack("<HHIII", status, rng.randrange(7), *numbers))

    return message


SIDES = {
    "v5-keyed-target": Side(v5_target, v5_message),
    "v0-keyed-target": Side(v0_target, v0_message),
    "v5-keyed-initiator": Side(v5_initiator, completion(reference_keyed.V5)),
    "v0-keyed-initiator": Side(v0_initiator, completion(reference_keyed.V0_DONE)),
}
