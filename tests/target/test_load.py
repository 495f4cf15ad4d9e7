# SPDX-License-Identifier: BSD-3-Clause
"""Models that somebody else wrote: each way to be wrong, and what is said about it."""

import itertools
import sys

import pytest

from vof.errors import ConfigError, VofError
from vof.target import load
from vof.virtio.constants import RESERVED_FEATURES, VIRTIO_F_VERSION_1
from vof.virtio.model import DeviceModel

NUMBERS = itertools.count()

GOOD = """
from vof.target import RequestModel

class Upper(RequestModel):
    device_id = 1000

    def __init__(self, mark="", fail=False):
        super().__init__()
        if fail:
            raise ValueError("it was\\nasked for")
        self.mark = mark

    def handle(self, request, room):
        return request.upper()
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return ``write(text)``, which returns the name of a new module with that text."""
    monkeypatch.setattr(sys, "path", sys.path[:])

    def write(text):
        name = f"own_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def refusal(name, directory, options=None):
    with pytest.raises(ConfigError) as caught:
        load.maker(name, str(directory), options or {})
    return str(caught.value)


def test_a_model_is_made_with_its_options(write, tmp_path):
    make = load.maker(f"{write(GOOD)}:Upper", str(tmp_path), {"mark": 7})
    one, other = make(), make()
    assert one is not other
    assert isinstance(one, DeviceModel)
    assert one.mark == 7


def test_one_is_made_and_closed_before(write, tmp_path):
    text = GOOD + "    made, closed = [], []\n    def close(self): self.closed.append(self)\n"
    name = write(text)
    make = load.maker(f"{name}:Upper", str(tmp_path), {})
    closed = sys.modules[name].Upper.closed
    assert len(closed) == 1
    assert make() not in closed


def test_a_directory_comes_after_what_is_installed(tmp_path, write):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError")
    assert "colorsys.py has no Model" in refusal("colorsys:Model", tmp_path)
    load.find(f"{write(GOOD)}:Upper", str(tmp_path))
    load.find(f"{write(GOOD)}:Upper", f"{tmp_path}/../{tmp_path.name}")
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[-1] == str(tmp_path)


# -- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import trio.nothing", "importing it failed: ModuleNotFoundError: No module named 'tr"),
        ("import not_there", "importing it failed: ModuleNotFoundError: No module named 'not_the"),
        ("\n1 / 0", "importing it failed: ZeroDivisionError: division by zero ("),
        ("import json\n\njson.loads('x')", "importing it failed: json.decoder.JSONDecodeError:"),
        ("\n\nclass X(:", "importing it failed: SyntaxError: invalid syntax ("),
        ("import sys; sys.exit(3)", "importing it failed: SystemExit: 3 ("),
    ],
)
def test_a_module_that_does_not_import(write, tmp_path, text, said):
    name = write(text)
    message = refusal(f"{name}:Upper", tmp_path)
    assert message.startswith(f"{name}:Upper: {said}")
    assert message.endswith(f"({tmp_path}/{name}.py, line {len(text.splitlines())})")


def test_a_module_that_is_not_there(tmp_path):
    assert refusal("no_such_module:X", tmp_path) == (
        f"no_such_module:X: no module no_such_module in {tmp_path} or where Python looks"
    )
    assert refusal("no_such.module:X", "") == (
        "no_such.module:X: no module no_such where Python looks; "
        "python_path names the directory that it lies in"
    )
    assert "none is no directory" in refusal("a:X", tmp_path / "none")


def test_a_class_that_is_not_there(write, tmp_path):
    name = write(GOOD)
    assert refusal(f"{name}:Uper", tmp_path) == (
        f"{name}:Uper: {tmp_path}/{name}.py has no Uper; did you mean Upper?"
    )
    assert refusal(f"{name}:Zzz", tmp_path).endswith(f"{name}.py has no Zzz")
    assert "sys has no Model" in refusal("sys:Model", tmp_path)


@pytest.mark.parametrize("text", ["class Upper: pass", "Upper = 3", "def Upper(): pass"])
def test_what_is_no_model(write, tmp_path, text):
    said = refusal(f"{write(text)}:Upper", tmp_path)
    assert said.endswith("Upper is no subclass of vof.target.DeviceModel")


def test_a_model_without_what_it_must_have(write, tmp_path):
    name = write("from vof.target import DeviceModel, RequestModel\nclass A(DeviceModel): pass\n")
    assert refusal(f"{name}:A", tmp_path).endswith("A lacks what a model must have: serve")
    assert refusal(f"{name}:RequestModel", tmp_path).endswith("must have: handle")


# -- what is made ---------------------------------------------------------------------------------


def test_options_that_the_class_does_not_take(write, tmp_path):
    name = f"{write(GOOD)}:Upper"
    assert refusal(name, tmp_path, {"marc": 1}) == (
        f"{name}: options: got an unexpected keyword argument 'marc'; the class takes: mark, fail"
    )
    plain = write(GOOD.replace('mark="", fail=False', "mark").replace("if fail", "if 0"))
    assert refusal(f"{plain}:Upper", tmp_path) == (
        f"{plain}:Upper: options: missing a required argument: 'mark'; the class takes: mark"
    )


def test_a_model_that_cannot_be_made(write, tmp_path):
    name = write(GOOD)
    said = refusal(f"{name}:Upper", tmp_path, {"fail": True})
    assert said == (f"{name}:Upper: making one failed: asked for ({tmp_path}/{name}.py, line 10)")


def test_a_model_that_cannot_be_made_any_more(write, tmp_path):
    text = GOOD.replace("if fail", "if self.spent").replace(
        "self.mark = mark", "type(self).spent=1"
    )
    name = f"{write(text + '    spent = 0')}:Upper"
    make = load.maker(name, str(tmp_path), {})
    with pytest.raises(VofError, match=f"{name}: making one failed: "):
        make()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("device_id = 0", "device_id: expected the number of a device type"),
        ("device_id = 'x'", "device_id: expected the number of a device type"),
        ("device_id = True", "device_id: expected the number of a device type"),
        ("device_id = 1 << 32", "device_id: expected the number of a device type"),
        ("vendor_id = -1", "vendor_id: expected a number of 32 bits, not -1"),
        ("device_features = 0", "device_features: expected feature bits 0 to 63, VIRTIO_F_VERSIO"),
        ("device_features = 1 << 64 | 1 << 32", "device_features: expected feature bits 0 to 63"),
        ("queue_sizes = ()", "queue_sizes: expected a tuple with the size of each queue"),
        ("queue_sizes = (0,)", "queue_sizes: expected a tuple with the size of each queue"),
        ("queue_sizes = (32769,)", "queue_sizes: expected a tuple with the size of each queue"),
        ("queue_sizes = 128", "queue_sizes: expected a tuple with the size of each queue"),
        ("queue_sizes = (1 << 20,) * 65537", "queue_sizes: expected a tuple with the size of each"),
        ("held_queues = 0", "held_queues: expected the indexes of queues"),
        ("pool = None", "pool: expected a Pool, not None"),
        ("def serve(self, index, queue): pass", "serve: expected async def serve(self, index, qu"),
        ("close = 1", "close: expected def close(self), not 1"),
        ("config = b''", "config: expected def config(self) that returns bytes, not b''"),
        ("def config(self): return 'x'", "config: expected bytes, not 'x'"),
        ("def config(self): 1 / 0", "config: failed: ZeroDivisionError: division by zero ("),
        (
            "size = 0\n    def config(self): self.size += 1; return bytes(self.size)",
            "config: its length changed: 1, then 2",
        ),
        ("def close(self): 1 / 0", "close() failed: ZeroDivisionError: division by zero ("),
        ("device_id = 5", "device_id: 5 cannot cross a fabric: memory at a distance is nothing th"),
        ("device_id = 27", "device_id: 27 cannot cross a fabric: pmem is memory that driver and"),
        (
            "device_id = 16; device_features = 1 << 32 | 1 << 3",
            "device_features: bit 3 cannot cross a fabric: blob resources are memory that driver",
        ),
    ],
)
def test_a_model_that_is_not_fit(write, tmp_path, line, said):
    name = f"{write(f'{GOOD}    {line}')}:Upper"
    assert refusal(name, tmp_path).startswith(f"{name}: {said}")


def test_a_model_without_a_type(write, tmp_path):
    name = f"{write(GOOD.replace('device_id = 1000', ''))}:Upper"
    assert refusal(name, tmp_path).startswith(f"{name}: device_id: missing; expected the number")


@pytest.mark.parametrize("number", sorted(RESERVED_FEATURES))
def test_features_of_rings_and_buses_stay_there(write, tmp_path, number):
    name = f"{write(f'{GOOD}    device_features = 1 << 32 | 1 << {number}')}:Upper"
    if number == VIRTIO_F_VERSION_1:
        load.maker(name, str(tmp_path), {})
        return
    assert refusal(name, tmp_path) == (
        f"{name}: device_features: bit {number} cannot cross a fabric: "
        f"{RESERVED_FEATURES[number]} belongs to rings in memory, or to a bus"
    )


def test_a_probe_that_fails_is_closed(write, tmp_path):
    name = write(
        f"{GOOD}    device_id = 0\n    closed = []\n    def close(self): self.closed.append(1)"
    )
    refusal(f"{name}:Upper", tmp_path)
    assert sys.modules[name].Upper.closed == [1]
