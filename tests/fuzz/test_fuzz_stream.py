# SPDX-License-Identifier: BSD-3-Clause
"""The corpus, a little of the fuzzer, and proof that it can find something."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import fuzz_stream
from tests.fuzz.fuzz_stream import SIDES
from vof.protocol import dialects, v0_target, v5_keyed_target
from vof.protocol.keyed_target import KeyedTarget
from vof.protocol.v0_initiator import V0Initiator
from vof.protocol.v0_keyed_initiator import V0KeyedInitiator
from vof.protocol.v0_keyed_target import V0KeyedTarget
from vof.protocol.v0_target import V0Target
from vof.protocol.v5_initiator import V5Initiator
from vof.protocol.v5_keyed_initiator import V5KeyedInitiator
from vof.protocol.v5_keyed_target import V5KeyedTarget
from vof.protocol.v5_target import V5Target

CASES = [(side, name) for side in SIDES for name in fuzz_stream.corpus(side)]


@pytest.mark.parametrize(("side", "name"), CASES)
def test_corpus(side, name):
    data = fuzz_stream.corpus(side)[name]
    assert data
    fuzz_stream.check(side, data, random.Random(1))


@pytest.mark.parametrize("side", SIDES)
@given(data=st.binary(max_size=2000), seed=st.integers(0, 1 << 32))
def test_random_bytes(side, data, seed):
    fuzz_stream.check(side, data, random.Random(seed))


def test_random_lives():
    assert fuzz_stream.fuzz(random.Random(5), rounds=40) == 40


def test_one_side_alone(monkeypatch):
    monkeypatch.delitem(SIDES, "v0-target")
    assert fuzz_stream.fuzz(random.Random(5), rounds=1, names=["opening"]) == 1


# -- planted faults -----------------------------------------------------------------------------


def before(monkeypatch, owner, name, action):
    """Make a method of a parser go wrong."""
    right = getattr(owner, name)

    def wrong(self, *args, **fields):
        action(self)
        return right(self, *args, **fields)

    monkeypatch.setattr(owner, name, wrong)


def out_of_step(stream):
    stream.inbox.pos += stream.inbox.end == stream.inbox.pos + 16


def crash(stream):
    raise KeyError("a bug")


def forget_a_byte(stream):
    stream.inbox.pos += 1


def hold_more(stream):
    stream._queue_size += stream._queue_size > 0


def forget_what_was_changed(stream):
    stream._asked = stream._asked[1:]


def ask_by_itself(stream):
    stream.outbox.tail += b"?"


@pytest.mark.parametrize(
    ("side", "owner", "name", "action"),
    [
        ("v5-target", V5Target, "_request", out_of_step),
        ("v5-target", V5Target, "_complete", crash),
        ("v5-initiator", V5Initiator, "_payload", out_of_step),
        ("v5-initiator", V5Initiator, "_notice", crash),
        ("v0-target", V0Target, "_request", hold_more),
        ("v0-target", V0Target, "_complete", crash),
        ("v0-target", V0Target, "_connect", out_of_step),
        ("v0-target", V0Target, "notice", forget_what_was_changed),
        ("v0-initiator", V0Initiator, "_request", forget_a_byte),
        ("v0-initiator", V0Initiator, "_returned", crash),
        ("v0-initiator", V0Initiator, "_news", ask_by_itself),
        ("opening", dialects.ByteOpening, "_head", crash),
        ("v5-keyed-target", V5KeyedTarget, "_refusal", hold_more),
        ("v5-keyed-target", V5KeyedTarget, "_other", crash),
        ("v0-keyed-target", V0KeyedTarget, "_request", hold_more),
        ("v0-keyed-target", V0KeyedTarget, "_refuse", crash),
        ("v5-keyed-initiator", V5KeyedInitiator, "_take_back", crash),
        ("v0-keyed-initiator", V0KeyedInitiator, "_take_back", crash),
    ],
)
def test_the_fuzzer_finds(monkeypatch, side, owner, name, action):
    before(monkeypatch, owner, name, action)
    with pytest.raises(AssertionError, match=f"{side}: .* for "):
        fuzz_stream.fuzz(random.Random(5), rounds=300, names=[side])


@pytest.mark.parametrize(
    ("side", "owner", "name", "wrong"),
    [
        ("v0-target", v0_target, "_shorten", lambda slab, start, stop, filled: filled),
        ("v0-target", V0Target, "_afford", lambda self, size: iter(())),
        ("v0-initiator", V0Initiator, "_fill", lambda self, pieces, size: self.inbox.discard(size)),
        ("opening", dialects, "recognise", lambda head: dialects.DIALECTS["v5"]),
        (
            "v5-keyed-target",
            v5_keyed_target,
            "split",
            lambda descs, out, into: (descs[:1], descs[1:]),
        ),
        ("v5-keyed-target", KeyedTarget, "_read", lambda self, request, descs: None),
        ("v0-keyed-target", KeyedTarget, "_deliver", lambda self: None),
    ],
)
def test_the_fuzzer_finds_what_is_left_out(monkeypatch, side, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError, match=f"{side}: .* for "):
        fuzz_stream.fuzz(random.Random(5), rounds=300, names=[side])


# -- hex files ----------------------------------------------------------------------------------


def test_hex_files():
    assert fuzz_stream.parse("# what\n0102 ff*3\n0a # end\n") == b"\x01\x02\xff\xff\xff\x0a"


@given(st.lists(st.tuples(st.binary(max_size=3), st.integers(1, 20))))
def test_a_finding_can_be_read_back(parts):
    data = b"".join(part * times for part, times in parts)
    assert fuzz_stream.parse(fuzz_stream.written(data)) == data
