# SPDX-License-Identifier: BSD-3-Clause
"""Streams of connections that are over keep no memory, without help of the garbage collector."""

import gc
import tracemalloc
import weakref

import pytest

from tests.protocol.pipe import bound, feed, taken, vq
from vof.protocol.dialects import ByteOpening

LEFT = 4096
"""Bytes: what is left are a few small objects."""


def unread():
    stream = bound()
    feed(stream.inbox, vq(1, bytes(100), 100) + vq(2, bytes(50_000), 9)[:30_000])
    stream.release()


def unsent():
    stream = bound()
    feed(stream.inbox, vq(1, bytes(100), 100) + vq(2, b"", 200_000))
    for chain in taken(stream):
        stream.push(chain, 100)
    stream.release()


def half_a_greeting():
    opening = ByteOpening()
    feed(opening.inbox, bytes(7))
    opening.release()


@pytest.mark.parametrize("life", [unread, unsent, half_a_greeting])
def test_a_released_stream_holds_no_memory(life):
    life()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        life()
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert peak > 250_000
    assert left < LEFT


def test_a_released_program_ends():
    stream = bound()
    gone = weakref.ref(stream)
    gc.disable()
    try:
        stream.release()
        del stream
        assert gone() is None
    finally:
        gc.enable()
