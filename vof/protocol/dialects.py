# SPDX-License-Identifier: BSD-3-Clause
"""The table of dialects: which mappings onto a byte stream a name stands for.

The rest of the program speaks one vocabulary, that of v5: opcodes, field names, status codes. A
dialect's mappings translate between it and what stands on its wire.
"""

from typing import NamedTuple

from vof.protocol import v5
from vof.protocol.v5_initiator import InitiatorStream
from vof.protocol.v5_target import TargetStream


class Dialect(NamedTuple):
    """One row.

    Attributes:
        port: default TCP port.
        target: the target's mapping.
        initiator: the initiator's mapping.
    """

    port: int
    target: type[TargetStream]
    initiator: type[InitiatorStream]


DIALECTS = {"v5": Dialect(v5.PORT, TargetStream, InitiatorStream)}
NATIVE = "v5"
