# SPDX-License-Identifier: BSD-3-Clause
"""How a target is: everything that counts, waits or limits, as one document.

Nothing here is called on the data path; what that counts, it counts by batches.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable
from time import monotonic

from vof.target.association import Association
from vof.target.bridges.backend import Backend
from vof.target.running import Entry
from vof.target.server import Server
from vof.transport import polling
from vof.virtio.constants import DEVICE_NAMES

PLACES = ("path", "tap", "socket", "pty", "class")
"""Keys of devices that say what is behind them."""


def status(server: Server, entries: Iterable[Entry]) -> dict[str, object]:
    """Return how a server is, and the devices that it serves. Changes nothing.

    Every value is text, a number, a boolean, None, or a list or map by text of such. Ages are in
    seconds, sizes in bytes. See specs/json.md.
    """
    associations = list(server.associations.values())
    busy = Counter(one.tvqn for one in associations)
    return {
        "pid": os.getpid(),
        "uptime_seconds": monotonic() - server.since,
        "listeners": [str(listener.url) for listener in server.listeners],
        "devices": [_device(entry, busy) for entry in entries],
        "associations": [_association(one) for one in associations],
        "totals": _totals(server),
        "shared_bytes": server.budget.used,
        "refusals": dict(server.refusals),
        "limits": dataclasses.asdict(server.limits),
        "polling": polling.statistics(),
    }


def _device(entry: Entry, busy: Counter[str]) -> dict[str, object]:
    values, backing = entry.device.values, entry.opened.backing
    return {
        "tvqn": entry.device.tvqn,
        "type": entry.device.type,
        "path": next((str(values[key]) for key in PLACES if values.get(key)), ""),
        "read_only": bool(values.get("read_only", False)),
        "state": "draining" if entry.draining else "serving",
        "associations": busy[entry.device.tvqn],
        "bridge": backing.facts() if isinstance(backing, Backend) else None,
    }


def _association(one: Association) -> dict[str, object]:
    return {
        "id": one.ident,
        "tvqn": one.tvqn,
        "ivqn": one.ivqn,
        "peer": one.peer,
        "dialect": one.dialect,
        "device": DEVICE_NAMES.get(one.instance.model.device_id, "unknown"),
        "status": one.instance.status,
        "features": one.instance.features,
        "age_seconds": monotonic() - one.since,
        "shared_bytes": one.budget.used,
        "shared_waits": one.budget.waits,
        "queues": [
            {
                "index": index,
                "size": served.size,
                **served.queue.facts(one.where(index))._asdict(),
            }
            for index, served in sorted(one.queues.items())
        ],
    }


def _totals(server: Server) -> dict[str, int]:
    """Return what was done since the start."""
    ended = server.ended
    streams = [stream for stream in server.connections.values() if stream is not None]
    requests = sum(
        one.requests + sum(served.queue.requests for served in one.queues.values())
        for one in server.associations.values()
    )
    return {
        "connections": len(server.connections),
        "connections_ended": ended.connections,
        "requests": ended.requests + requests,
        "errors": ended.errors + sum(stream.errors for stream in streams),
        "bytes_in": ended.bytes_in + sum(one.bytes_in for one in server.connections),
        "bytes_out": ended.bytes_out + sum(one.bytes_out for one in server.connections),
    }
