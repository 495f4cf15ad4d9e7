# SPDX-License-Identifier: BSD-3-Clause
"""A model that somebody else wrote: found, checked, made.

All that can be known to be wrong is said before a target announces anything: one instance is made,
asked, and closed again. Each error names the class, what is wrong, and the line of it that failed.
"""

import difflib
import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vof.errors import ConfigError, VofError
from vof.memory import Pool
from vof.virtio.constants import RESERVED_FEATURES, VIRTIO_F_VERSION_1, bit
from vof.virtio.model import DeviceModel

NOT_THEIRS = ("<frozen", sysconfig.get_path("stdlib"), __file__)
"""How names of files begin that hold nobody else's code."""

NO_DEVICE = {
    5: "memory at a distance is nothing that a balloon could give back",
    13: "memory at a distance is nothing that a balloon could give back",
    23: "an IOMMU translates addresses of its own machine's memory",
    24: "memory cannot be plugged in over a fabric",
    27: "pmem is memory that driver and device share, and a fabric shares none",
}
"""Device types that cannot be used over a fabric, and why."""

NO_FEATURE = {
    (16, 3): "blob resources are memory that driver and device share, and a fabric shares none",
}
"""The same for features: device type and bit."""


class Rule(NamedTuple):
    """What must hold for an attribute of a model.

    Attributes:
        name: of the attribute.
        holds: tells whether a value is good.
        expected: what is, in words.
    """

    name: str
    holds: Callable[[Any], bool]
    expected: str


def _integer(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


RULES = (
    Rule(
        "device_id",
        lambda value: _integer(value, 1, 0xFFFFFFFF),
        "the number of a device type (virtio 1.2, chapter 5), or one of your own from 64 on",
    ),
    Rule("vendor_id", lambda value: _integer(value, 0, 0xFFFFFFFF), "a number of 32 bits"),
    Rule(
        "device_features",
        lambda value: _integer(value, 0, (1 << 64) - 1) and bool(value & bit(VIRTIO_F_VERSION_1)),
        "feature bits 0 to 63, VIRTIO_F_VERSION_1 (bit 32) among them",
    ),
    Rule(
        "queue_sizes",
        lambda value: (
            isinstance(value, Sequence)
            and 1 <= len(value) <= 0x10000
            and all(_integer(size, 1, 0x8000) for size in value)
        ),
        "a tuple with the size of each queue, 1 to 32768, such as (128,)",
    ),
    Rule(
        "held_queues",
        lambda value: isinstance(value, Collection),
        "the indexes of queues whose buffers are kept to receive into, or ()",
    ),
    Rule("pool", lambda value: isinstance(value, Pool), "a Pool"),
    Rule("serve", inspect.iscoroutinefunction, "async def serve(self, index, queue)"),
    Rule("config", callable, "def config(self) that returns bytes"),
    Rule("write_config", callable, "def write_config(self, offset, value)"),
    Rule("status_changed", callable, "def status_changed(self, status)"),
    Rule("close", callable, "def close(self)"),
)


def explain(error: BaseException) -> str:
    """Return what an exception in somebody else's code says, and which line of it was the last."""
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}, line {error.lineno})"
    lines = traceback.extract_tb(error.__traceback__)
    own = [line for line in lines if not line.filename.startswith(NOT_THEIRS)]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


def find(name: str, directory: str = "") -> type[DeviceModel]:
    """Import a model.

    Args:
        name: ``module:Class``.
        directory: where its module is looked for, after everything that is installed: what lies
            there cannot come in place of a module that the target itself needs. Stays in
            ``sys.path``.

    Raises:
        ConfigError: there is none of that name, or it is no model.
    """
    module_name, _, class_name = name.partition(":")
    place = ""
    if directory:
        if not Path(directory).is_dir():
            raise ConfigError(name, "", f"{directory} is no directory; python_path names one")
        place = str(Path(directory).resolve())
        if place not in sys.path:
            sys.path.append(place)
            importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(name, "", f"importing it failed: {explain(error)}") from error
        where = f"in {place} or " if place else ""
        advice = "" if place else "; python_path names the directory that it lies in"
        message = f"no module {error.name} {where}where Python looks{advice}"
        raise ConfigError(name, "", message) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(name, "", f"importing it failed: {explain(error)}") from error
    found = getattr(module, class_name, None)
    if found is None:
        near = difflib.get_close_matches(class_name, dir(module), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        file = getattr(module, "__file__", None) or module_name
        raise ConfigError(name, "", f"{file} has no {class_name}{hint}")
    if not isinstance(found, type) or not issubclass(found, DeviceModel):
        raise ConfigError(name, "", f"{class_name} is no subclass of vof.target.DeviceModel")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(name, "", f"{class_name} lacks what a model must have: {missing}")
    return found


def maker(name: str, directory: str, options: Mapping[str, Any]) -> Callable[[], DeviceModel]:
    """Return what makes models of a class, which were checked by one that is closed again.

    Raises:
        ConfigError: see ``find``; or a model cannot be made, or is not fit for a fabric.
    """
    model = find(name, directory)
    signature = inspect.signature(model)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise ConfigError(name, "options", f"{error}; the class takes: {known}") from None

    def make() -> DeviceModel:
        try:
            return model(**options)
        except Exception as error:
            raise VofError(f"{name}: making one failed: {explain(error)}") from error

    try:
        one = make()
    except VofError as error:
        raise ConfigError(name, "", str(error).removeprefix(f"{name}: ")) from error
    try:
        check(name, one)
    finally:
        failure = _failure(one.close)
    if failure is not None:
        raise ConfigError(name, "", f"close() failed: {explain(failure)}") from failure
    return make


def _failure(call: Callable[[], object]) -> Exception | None:
    """Call; return the exception, if there is one."""
    try:
        call()
    except Exception as error:
        return error
    return None


def check(name: str, model: DeviceModel) -> None:
    """See whether a model describes a device that can be used over a fabric.

    Raises:
        ConfigError: in which attribute it does not.
    """
    for rule in RULES:
        if not hasattr(model, rule.name):
            raise ConfigError(name, rule.name, f"missing; expected {rule.expected}")
        value = getattr(model, rule.name)
        if not rule.holds(value):
            raise ConfigError(name, rule.name, f"expected {rule.expected}, not {value!r:.80}")
    try:
        first, second = model.config(), model.config()
    except Exception as error:
        raise ConfigError(name, "config", f"failed: {explain(error)}") from error
    if not isinstance(first, bytes) or not isinstance(second, bytes):
        raise ConfigError(name, "config", f"expected bytes, not {first!r:.80}")
    if len(first) != len(second):
        raise ConfigError(name, "config", f"its length changed: {len(first)}, then {len(second)}")
    if reason := NO_DEVICE.get(model.device_id):
        raise ConfigError(name, "device_id", f"{model.device_id} cannot cross a fabric: {reason}")
    for number in range(model.device_features.bit_length()):
        if not model.device_features >> number & 1 or number == VIRTIO_F_VERSION_1:
            continue
        reason = NO_FEATURE.get((model.device_id, number))
        if reason is None and number in RESERVED_FEATURES:
            reason = f"{RESERVED_FEATURES[number]} belongs to rings in memory, or to a bus"
        if reason:
            message = f"bit {number} cannot cross a fabric: {reason}"
            raise ConfigError(name, "device_features", message)
