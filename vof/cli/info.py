# SPDX-License-Identifier: BSD-3-Clause
"""``vof info``: what a remote device is."""

import argparse

from vof.cli.output import human_bytes, print_json, table

MOST_QUEUES = 64


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("url", help="vof+tcp://host[:port]/TVQN, or another form")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Connect, ask, print."""
    import trio

    facts = trio.run(_ask, args.url)
    if args.json:
        print_json("info", facts)
    else:
        _show(facts)
    return 0


async def _ask(url: str) -> dict[str, object]:
    """Return everything there is to know without starting the device."""
    import vof
    from vof.virtio import blk, console, fs, net, rng
    from vof.virtio.constants import (
        DEVICE_NAMES,
        VIRTIO_ID_BLOCK,
        VIRTIO_ID_CONSOLE,
        VIRTIO_ID_FS,
        VIRTIO_ID_NET,
        VIRTIO_ID_RNG,
        feature_names,
    )

    names = {
        VIRTIO_ID_BLOCK: blk.FEATURES,
        VIRTIO_ID_CONSOLE: console.FEATURES,
        VIRTIO_ID_FS: fs.FEATURES,
        VIRTIO_ID_NET: net.FEATURES,
        VIRTIO_ID_RNG: rng.FEATURES,
    }
    async with vof.connect(url) as device:
        features = await device.get_features()
        sizes: list[int] = []
        while len(sizes) < MOST_QUEUES and (size := await device.get_vq_size(len(sizes))):
            sizes.append(size)
        config: dict[str, object] = {}
        if device.device_id == VIRTIO_ID_BLOCK:
            data = await device.read_config(0, blk.CONFIG.size)
            config = blk.BlkConfig.unpack(data)._asdict()
        elif device.device_id == VIRTIO_ID_NET:
            data = await device.read_config(0, net.CONFIG.size)
            shown = net.NetConfig.unpack(data)
            config = {**shown._asdict(), "mac": net.format_mac(shown.mac)}
        elif device.device_id == VIRTIO_ID_CONSOLE:
            data = await device.read_config(0, console.CONFIG.size)
            config = console.ConsoleConfig.unpack(data)._asdict()
        elif device.device_id == VIRTIO_ID_FS:
            data = await device.read_config(0, fs.CONFIG.size)
            config = fs.FsConfig.unpack(data)._asdict()
        return {
            "url": str(device.url),
            "transport": device.carrier._asdict(),
            "device_id": device.device_id,
            "device": DEVICE_NAMES.get(device.device_id, "unknown"),
            "vendor_id": device.vendor_id,
            "instance_id": device.instance_id,
            "features": features,
            "feature_names": feature_names(features, names.get(device.device_id, {})),
            "queue_sizes": sizes,
            "config": config,
        }


def _way(carrier: dict[str, object]) -> str:
    """Return how a device is reached."""
    words = [f"{carrier['scheme']} to {carrier['peer']}", f"dialect {carrier['dialect']}"]
    if carrier["adapter"]:
        words.append(f"RDMA device {carrier['adapter']}")
    if carrier["mapping"] == "keyed":
        words.append(f"up to {carrier['descs'] or 2} keyed descriptors a request")
        words.append("eager buffers" if carrier["eager"] else "no eager buffers")
    return ", ".join(words)


def _show(facts: dict[str, object]) -> None:
    sizes, names, config = facts["queue_sizes"], facts["feature_names"], facts["config"]
    carrier = facts["transport"]
    assert isinstance(carrier, dict)
    assert isinstance(sizes, list)
    assert isinstance(names, list)
    assert isinstance(config, dict)
    rows = [
        ("device", f"{facts['device']} (type {facts['device_id']})"),
        ("vendor", f"0x{facts['vendor_id']:08x}"),
        ("transport", _way(carrier)),
        ("queues", f"{len(sizes)}, of sizes {', '.join(map(str, sizes))}"),
        ("features", f"0x{facts['features']:x}"),
        *(("", name) for name in names),
    ]
    if "capacity" in config:
        rows.append(("capacity", human_bytes(config["capacity"] * 512)))
    rows += [(key, str(value)) for key, value in config.items()]
    print(facts["url"])
    print(table(rows))
