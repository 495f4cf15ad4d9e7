# SPDX-License-Identifier: BSD-3-Clause
"""What one driver negotiates with its device: status, features, configuration, sizes of queues.

Each command of the control queue that concerns the device is a method here; ``HANDLERS`` is the
table. What travels, and what serves the queues, is the association's.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

import trio

from vof.errors import InvalidArgument, LocalProtocolError, VofError
from vof.protocol import v5
from vof.protocol.target_stream import GET_GENERATION, GET_NUM_QUEUES, SET_VQ_SIZE
from vof.protocol.v5_keyed import DESCS
from vof.target.seldom import Seldom
from vof.virtio.constants import (
    RING_FEATURES,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    bit,
)
from vof.virtio.model import DeviceModel
from vof.virtio.status import next_status

WORD = (1 << 64) - 1
CONFIG_WIDTHS = (1, 2, 4, 8)


log = logging.getLogger("vof.target")
seldom = Seldom(log)


class Refused(VofError):
    """A command is answered with this status; carries no blame.

    Attributes:
        status: the status code.
        reason: what it is counted as: the name of the code, or the key of the configuration.
    """

    def __init__(self, status: int, reason: str = "", text: str = "") -> None:
        super().__init__(f"{v5.status_name(status)}: {text}" if text else v5.status_text(status))
        self.status = status
        self.reason = reason or v5.status_name(status)


class Instance:
    """A model, and what one driver agreed on with it.

    Attributes:
        model: the device.
        status: the device status byte.
        features: what was negotiated, or is being.
        live: set from DRIVER_OK on; another event after a reset.
        touched: the driver wrote the status at least once.
        transport_features: that the initiator turned on.
    """

    def __init__(
        self,
        model: DeviceModel,
        tvqn: str,
        stop_queues: Callable[[], Awaitable[None]],
        is_connected: Callable[[int], bool],
        tell: Callable[[int], bool],
        offered: Callable[[], int],
        eager_buffer: Callable[[int, int], dict[str, int] | None],
        largest: int,
    ) -> None:
        """Begin, reset.

        Args:
            model: the device; its ``config_changed`` is ours from here on.
            tvqn: its name, for messages.
            stop_queues: stops all virtqueues, for a reset. Suspends.
            is_connected: whether the virtqueue of an index is connected.
            tell: sends the config-change event, with the generation; returns whether the driver
                must look before it is told again.
            offered: returns the transport features of the control queue.
            eager_buffer: returns the answer to GET_KEYED_EAGER_BUF for the virtqueue of an index,
                of so many pieces at most, or None: it is not connected.
            largest: size of a queue that the carrier can have.
        """
        self.model = model
        self.status = 0
        self.features = 0
        self.live = trio.Event()
        self.touched = False
        self._tvqn = tvqn
        self._stop_queues = stop_queues
        self._is_connected = is_connected
        self._tell = tell
        self._transport_offered = offered
        self._eager_buffer = eager_buffer
        self._largest = largest
        self.transport_features = 0
        self._generation = 0
        self._config = model.config()
        self._offered = model.device_features & ~RING_FEATURES
        self._sizes: dict[int, int] = {}
        self._armed = True
        self._changed = False
        model.config_changed = self._config_changed

    async def answer(self, opcode: int, fields: Mapping[str, int]) -> tuple[int, dict[str, int]]:
        """Carry out a command; return status and fields of its answer. Suspends for a reset.

        After the answer was sent, ``looked`` must be told.
        """
        handler = HANDLERS.get(opcode)
        if handler is None:
            return v5.ENOCMD, {}
        try:
            return v5.OK, await handler(self, fields)
        except Refused as refusal:
            return refusal.status, {}

    def looked(self, opcode: int) -> None:
        """Note that a command was answered: after GET_CONFIG, news that was kept back follows."""
        if opcode == v5.GET_CONFIG and self._changed:
            self._changed = False
            self._event()

    async def _nothing(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {}

    async def _get_feature(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"feature": 0 if fields["select"] else self._transport_offered()}

    async def _set_feature(self, fields: Mapping[str, int]) -> dict[str, int]:
        select, features = fields["select"], fields["feature"]
        if features & ~(0 if select else self._transport_offered()):
            raise Refused(v5.EFEATURE)
        if not select:
            self.transport_features = features
        return {}

    def _needs(self, feature: int) -> None:
        """Refuse a command whose transport feature is not on."""
        if not self.transport_features & bit(feature):
            raise Refused(v5.ENOCMD)

    async def _get_keyed_num_descs(self, fields: Mapping[str, int]) -> dict[str, int]:
        self._needs(v5.F_KEYED_NUM_DESCS)
        return {"descs": DESCS}

    async def _get_keyed_eager_buf(self, fields: Mapping[str, int]) -> dict[str, int]:
        self._needs(v5.F_KEYED_EAGER_BUF)
        found = self._eager_buffer(fields["vq_index"], fields["descs"])
        if found is None:
            raise Refused(v5.EQUEUEQUOT)
        return found

    async def _get_vendor_id(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"vendor_id": self.model.vendor_id}

    async def _get_device_id(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"device_id": self.model.device_id}

    async def _get_status(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"device_status": self.status}

    async def _set_status(self, fields: Mapping[str, int]) -> dict[str, int]:
        self.touched = True
        try:
            status = next_status(self.status, fields["device_status"])
        except LocalProtocolError:
            raise Refused(v5.ESTATUS) from None
        if not status:
            return await self._reset_device(fields)
        fresh = status & ~self.status
        if fresh & VIRTIO_CONFIG_S_FEATURES_OK:
            if self.features & bit(VIRTIO_F_VERSION_1):
                self.model.features = self.features
            else:
                status &= ~VIRTIO_CONFIG_S_FEATURES_OK  # the driver reads it back: refused
        self.status = status
        self.tell_status(status)
        if fresh & VIRTIO_CONFIG_S_DRIVER_OK:
            self.live.set()
        return {}

    async def _reset_device(self, fields: Mapping[str, int]) -> dict[str, int]:
        await self._stop_queues()
        self.status = self.features = self.model.features = 0
        self.live = trio.Event()
        self._sizes.clear()
        self.tell_status(0)
        return {}

    def tell_status(self, status: int) -> None:
        """Tell the model about the status; that it fails is no reason to keep anything."""
        try:
            self.model.status_changed(status)
        except Exception as error:
            what = "%s: the model's status_changed(%d) failed"
            seldom.error((self._tvqn, "status"), what, self._tvqn, status, trace=error)

    async def _get_device_feature(self, fields: Mapping[str, int]) -> dict[str, int]:
        select = fields["select"]
        return {"feature": 0 if select else self._offered & WORD}

    async def _set_driver_feature(self, fields: Mapping[str, int]) -> dict[str, int]:
        select, features = fields["select"], fields["feature"]
        late = self.status & VIRTIO_CONFIG_S_FEATURES_OK
        offered = 0 if select else self._offered
        if late or features & ~offered:
            raise Refused(v5.EDEVFEATURE)
        if not select:
            self.features = features
        return {}

    async def _get_vq_size(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"size": self.queue_size(fields["vq_index"], 0)}

    async def _set_vq_size(self, fields: Mapping[str, int]) -> dict[str, int]:
        index, size = fields["vq_index"], fields["size"]
        if self._is_connected(index) or not size:
            raise Refused(v5.EQSIZEQUOT)
        self._sizes[index] = self.queue_size(index, size)
        return {}

    async def _get_num_queues(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"num_queues": len(self.model.queue_sizes)}

    async def _get_generation(self, fields: Mapping[str, int]) -> dict[str, int]:
        self._refresh()
        return {"generation": self._generation}

    def _place(self, fields: Mapping[str, int]) -> slice:
        """Check a configuration access and return the place."""
        offset, width = fields["offset"], fields["bytes"]
        if width not in CONFIG_WIDTHS:
            raise Refused(v5.ECONFBYTES)
        if offset + width > len(self._config):
            raise Refused(v5.ECONFOFF)
        return slice(offset, offset + width)

    async def _get_config(self, fields: Mapping[str, int]) -> dict[str, int]:
        self._armed = True
        place = self._place(fields)
        self._refresh()
        value = int.from_bytes(self._config[place], "little")
        return {"generation": self._generation, "value": value}

    async def _set_config(self, fields: Mapping[str, int]) -> dict[str, int]:
        place = self._place(fields)
        value = (fields["value"] & WORD).to_bytes(8, "little")[: fields["bytes"]]
        try:
            self.model.write_config(place.start, value)
        except InvalidArgument:
            raise Refused(v5.ECONFOFF) from None
        self._config = self.model.config()  # the driver's own change is no news to it
        return {}

    # -- configuration change -----------------------------------------------------------------

    def _refresh(self) -> bool:
        """Read the model's configuration; return whether it changed."""
        config = self.model.config()
        if config == self._config:
            return False
        self._config = config
        self._generation = (self._generation + 1) & 0xFFFFFFFF
        return True

    def _config_changed(self) -> None:
        """The model changed its configuration: tell the driver, once until it looked."""
        if self._refresh():
            self._event()

    def needs_reset(self) -> None:
        """The device cannot go on: say so, by the status and the event that makes drivers look."""
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET
        self._event()

    def _event(self) -> None:
        if not self._armed:
            self._changed = True
            return
        self._armed = not self._tell(self._generation)

    # -- sizes --------------------------------------------------------------------------------

    def queue_size(self, index: int, wanted: int) -> int:
        """Return the size that a queue gets; ``wanted`` 0: as set, or the largest.

        Raises:
            Refused: there is no such queue, or it cannot be so large.
        """
        if index >= len(self.model.queue_sizes):
            raise Refused(v5.EQUEUEQUOT)
        most = min(self.model.queue_sizes[index], self._largest)
        if wanted > most:
            raise Refused(v5.EQSIZEQUOT)
        return wanted or self._sizes.get(index, most)


Handler = Callable[[Instance, Mapping[str, int]], Awaitable[dict[str, int]]]

HANDLERS: dict[int, Handler] = {
    v5.KEEPALIVE: Instance._nothing,
    v5.GET_FEATURE: Instance._get_feature,
    v5.SET_FEATURE: Instance._set_feature,
    v5.GET_KEYED_NUM_DESCS: Instance._get_keyed_num_descs,
    v5.GET_KEYED_EAGER_BUF: Instance._get_keyed_eager_buf,
    v5.GET_VENDOR_ID: Instance._get_vendor_id,
    v5.GET_DEVICE_ID: Instance._get_device_id,
    v5.RESET_DEVICE: Instance._reset_device,
    v5.GET_STATUS: Instance._get_status,
    v5.SET_STATUS: Instance._set_status,
    v5.GET_DEVICE_FEATURE: Instance._get_device_feature,
    v5.SET_DRIVER_FEATURE: Instance._set_driver_feature,
    v5.GET_VQ_SIZE: Instance._get_vq_size,
    v5.GET_CONFIG: Instance._get_config,
    v5.SET_CONFIG: Instance._set_config,
    GET_GENERATION: Instance._get_generation,
    GET_NUM_QUEUES: Instance._get_num_queues,
    SET_VQ_SIZE: Instance._set_vq_size,
}
"""Commands of the control queue and what answers them; the rest is answered ENOCMD."""
