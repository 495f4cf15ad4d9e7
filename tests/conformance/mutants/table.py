# SPDX-License-Identifier: BSD-3-Clause
"""The table of wrong implementations: each breaks one rule, and names checks that see it."""

from tests.conformance.memory_device import MemoryDevice, MemoryEnd, MemoryQueue, maker

MUTANTS = {}
"""Name -> (make, names of checks that must fail)."""


def mutant(*checks):
    """Enter a broken queue, device's end, device, or ``make``."""

    def enter(broken):
        make = broken
        for base, option in ((MemoryQueue, "queue"), (MemoryEnd, "end")):
            if isinstance(broken, type) and issubclass(broken, base):
                make = maker(MemoryDevice, **{option: broken})
        if isinstance(broken, type) and issubclass(broken, MemoryDevice):
            make = maker(broken)
        MUTANTS[broken.__name__] = make, checks
        return broken

    return enter
