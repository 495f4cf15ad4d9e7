# SPDX-License-Identifier: BSD-3-Clause
"""Transport features: what initiator and target agree on about the carrier."""

from vof.errors import CommandError
from vof.initiator.control import ControlQueue
from vof.protocol import v5
from vof.protocol.initiator_stream import InitiatorStream
from vof.virtio.constants import bit

PIECES = 8
"""Of an eager buffer that there is room for in an answer."""


class Transport:
    """What is used of the transport features of one target.

    Attributes:
        features: that are on.
        descs: keyed descriptors of one command that the target takes; 0: it does not say.
    """

    def __init__(self, control: ControlQueue, wanted: int) -> None:
        """Begin with none.

        Args:
            control: where the target is asked.
            wanted: features that are of use here; where there are none, it is not asked.
        """
        self.features = 0
        self._control = control
        self._wanted = wanted
        self.descs = 0

    async def negotiate(self) -> None:
        """Turn on what both sides have. Suspends; raises as ``ControlQueue.commands``."""
        if not self._wanted:
            return
        offered = (await self._command(v5.GET_FEATURE, select=0))["feature"]
        self.features = offered & self._wanted
        if self.features:
            await self._command(v5.SET_FEATURE, select=0, feature=self.features)
        if self.features & bit(v5.F_KEYED_NUM_DESCS):
            self.descs = (await self._command(v5.GET_KEYED_NUM_DESCS))["descs"]

    async def prepare(self, stream: InitiatorStream, index: int) -> None:
        """Let a virtqueue that is connected use them. Suspends.

        Raises:
            VofError: as ``ControlQueue.commands``. A target that refuses its eager buffer has none.
        """
        if not self.features:
            return
        eager = None
        if self.features & bit(v5.F_KEYED_EAGER_BUF):
            try:
                eager = await self._command(v5.GET_KEYED_EAGER_BUF, vq_index=index, descs=PIECES)
            except CommandError:
                pass
        stream.allow(self.descs, eager)

    async def _command(self, opcode: int, **fields: int) -> dict[str, int]:
        return (await self._control.commands([(opcode, fields)]))[0]
