# SPDX-License-Identifier: BSD-3-Clause
"""The corpus, a little of the fuzzer, and proof that it can find something."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import fuzz_stream
from vof.protocol.v5_initiator import V5Initiator
from vof.protocol.v5_target import V5Target

CASES = [(side, name) for side in fuzz_stream.SIDES for name in fuzz_stream.corpus(side)]


@pytest.mark.parametrize(("side", "name"), CASES)
def test_corpus(side, name):
    data = fuzz_stream.corpus(side)[name]
    assert data
    fuzz_stream.check(fuzz_stream.SIDES[side], data, random.Random(1))


@pytest.mark.parametrize("side", fuzz_stream.SIDES.values(), ids=fuzz_stream.SIDES)
@given(data=st.binary(max_size=2000), seed=st.integers(0, 1 << 32))
def test_random_bytes(side, data, seed):
    fuzz_stream.check(side, data, random.Random(seed))


def test_random_lives():
    assert fuzz_stream.fuzz(random.Random(5), rounds=60) == 60


def breaks_at(monkeypatch, owner, name, action):
    """Make a method of a parser go wrong."""
    right = getattr(owner, name)

    def wrong(self, *args):
        action(self)
        return right(self, *args)

    monkeypatch.setattr(owner, name, wrong)


def out_of_step(stream):
    stream.inbox.pos += stream.inbox.end == stream.inbox.pos + 16


def crash(stream):
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("owner", "name", "action"),
    [
        (V5Target, "_request", out_of_step),
        (V5Target, "_complete", crash),
        (V5Initiator, "_payload", out_of_step),
        (V5Initiator, "_notice", crash),
    ],
)
def test_the_fuzzer_finds(monkeypatch, owner, name, action):
    breaks_at(monkeypatch, owner, name, action)
    with pytest.raises(AssertionError, match="for "):
        fuzz_stream.fuzz(random.Random(5), rounds=300)


def test_hex_files():
    assert fuzz_stream.parse("# what\n0102 ff*3\n0a # end\n") == b"\x01\x02\xff\xff\xff\x0a"


@given(st.lists(st.tuples(st.binary(max_size=3), st.integers(1, 20))))
def test_a_finding_can_be_read_back(parts):
    data = b"".join(part * times for part, times in parts)
    assert fuzz_stream.parse(fuzz_stream.written(data)) == data
