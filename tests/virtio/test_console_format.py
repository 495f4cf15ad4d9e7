# SPDX-License-Identifier: BSD-3-Clause
"""The layouts of virtio-console, against virtio 1.2."""

from hypothesis import given
from hypothesis import strategies as st

from vof.virtio import console
from vof.virtio.console import ConsoleConfig

WORD = st.integers(0, (1 << 32) - 1)
HALF = st.integers(0, (1 << 16) - 1)


def test_the_numbers_of_the_specification():
    names = {"SIZE": 0, "MULTIPORT": 1, "EMERG_WRITE": 2}
    assert {
        number: f"VIRTIO_CONSOLE_F_{name}" for name, number in names.items()
    } == console.FEATURES
    for number, name in console.FEATURES.items():
        assert getattr(console, name) == number
    assert (console.RECEIVEQ, console.TRANSMITQ) == (0, 1)


def test_the_configuration_byte_by_byte():
    packed = bytes.fromhex("5000 1900 01000000 21000000")
    assert ConsoleConfig(80, 25, 1, 0x21).pack() == packed
    assert ConsoleConfig.unpack(packed) == (80, 25, 1, 0x21)
    assert packed[console.EMERG_WR :] == console.EMERGENCY.pack(0x21)


def test_a_shorter_configuration_lacks_what_is_0():
    assert ConsoleConfig.unpack(bytes.fromhex("5000 1900")) == (80, 25, 0, 0)
    assert ConsoleConfig.unpack(b"") == (0, 0, 0, 0)


@given(st.tuples(HALF, HALF, WORD, WORD))
def test_the_configuration_round_trips(fields):
    assert ConsoleConfig.unpack(ConsoleConfig(*fields).pack() + b"more") == fields
