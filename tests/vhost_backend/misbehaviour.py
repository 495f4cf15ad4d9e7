# SPDX-License-Identifier: BSD-3-Clause
"""What a misbehaviour is."""

from collections.abc import Callable
from typing import NamedTuple


class Misbehaviour(NamedTuple):
    """Where a backend can behave otherwise: at each request, and with chains.

    ``message`` returns whether the request is dealt with. All do what is right, by default.
    """

    message: Callable = lambda backend, name, message: False
    chains: Callable = lambda backend, ring, chains: backend.serve(ring, chains)
