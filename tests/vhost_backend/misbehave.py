# SPDX-License-Identifier: BSD-3-Clause
"""Misbehaviours by name: ``--misbehave NAME[:ARGUMENT…]``; ``ROWS`` is what the tests walk."""

from functools import partial

from tests.vhost_backend.misbehave_requests import (
    AT,
    FLOODS,
    at,
    config,
    flood,
    inflight,
    shrink,
    value,
)
from tests.vhost_backend.misbehave_rings import RINGS

OTHERS = {
    "value": value,
    "config": config,
    "inflight": inflight,
    "shrink": shrink,
    "flood": flood,
}


def find(text):
    """The misbehaviour of a name with its arguments. Raises KeyError."""
    name, *more = text.split(":")
    if name in RINGS:
        return RINGS[name]
    return (partial(at, AT[name]) if name in AT else OTHERS[name])(*more)


def each(name, *requests):
    return [f"{name}:{request}" for request in requests]


HANDSHAKE = (
    "GET_FEATURES",
    "GET_PROTOCOL_FEATURES",
    "SET_OWNER",
    "GET_QUEUE_NUM",
    "GET_CONFIG",
    "SET_BACKEND_REQ_FD",
)
SETTING_UP = (
    "RESET_DEVICE",
    "SET_STATUS",
    "SET_FEATURES",
    "GET_STATUS",
    "ADD_MEM_REG",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "SET_VRING_NUM",
    "SET_VRING_BASE",
    "SET_VRING_ADDR",
    "SET_VRING_ERR",
    "SET_VRING_CALL",
    "SET_VRING_KICK",
    "SET_VRING_ENABLE",
)
NO_ANSWERS = ("version", "giant", "large", "empty", "other", "request", "half", "garbage", "twice")

REFUSED = [
    *each("hang", *HANDSHAKE),
    *each("close", "GET_FEATURES", "SET_BACKEND_REQ_FD"),
    *each("refuse", "GET_FEATURES", "SET_OWNER", "GET_CONFIG", "SET_BACKEND_REQ_FD"),
    *(f"{name}:GET_CONFIG" for name in NO_ANSWERS),
    *each("empty", "GET_FEATURES", "GET_QUEUE_NUM"),
    *each("large", "GET_PROTOCOL_FEATURES"),
    *each("fds", "GET_FEATURES"),
    *each("many_fds", "GET_FEATURES"),
    *each("value:GET_FEATURES", "0", "0x40000000"),
    *each("value:GET_PROTOCOL_FEATURES", "0"),
    *each("value:GET_QUEUE_NUM", "0", "0x10000000000"),
    *each("config", "0", "59", "61", "256", "4000"),
]
"""The device cannot be opened."""

FAILING = [
    *each("hang", "SET_FEATURES", "ADD_MEM_REG", "GET_INFLIGHT_FD", "SET_VRING_KICK"),
    *each("close", "SET_STATUS", "SET_INFLIGHT_FD", "SET_VRING_ENABLE"),
    *each("refuse", *SETTING_UP),
    *each("large", "ADD_MEM_REG", "GET_INFLIGHT_FD"),
    *each("twice", "ADD_MEM_REG", "GET_INFLIGHT_FD"),
    *each("empty", "GET_STATUS", "GET_INFLIGHT_FD"),
    *each("version", "ADD_MEM_REG"),
    *each("fds", "GET_CONFIG", "GET_INFLIGHT_FD"),
    *each("many_fds", "GET_CONFIG", "GET_INFLIGHT_FD"),
    *each("value:GET_STATUS", "0"),
    *each("value:GET_FEATURES", "0xffffffffffffffff"),
    *each("config", "1"),
    *each("inflight", "0", "0xffffffffffffffff:0xffffffffffffffff", "4096:0:null", "4096:0:none"),
    "never",
    "other_id",
    "free_id",
    "length",
    "longer",
    "shorter",
    "twice_used",
    "ahead",
    "no_end",
    "everywhere",
    "poison",
    "ghost",
    "wrong_status",
    "error",
    "die",
    "stuck_kick",
    "only_bells",
    "steal_bells",
]
"""It can, and then no request succeeds, or only some do."""

HARMLESS = [
    *each("hang", "GET_VRING_BASE"),
    *each("close", "GET_VRING_BASE"),
    *each("refuse", "GET_VRING_BASE"),
    *each("version", "GET_VRING_BASE"),
    *each("empty", "GET_VRING_BASE"),
    *each("twice", "GET_VRING_BASE"),
    *each("fds", "GET_VRING_BASE"),
    *each("value:GET_PROTOCOL_FEATURES", "0xffffffffffffffff"),
    *each("value:GET_STATUS", "0xff"),
    *each("flood", *FLOODS),
    "shrink",
    "descriptors",
    "ring_bells",
    "fill_bells",
]
"""All requests succeed."""
