# SPDX-License-Identifier: BSD-3-Clause
"""A distribution of latencies as SVG."""

from html import escape
from math import log10

from vof.cli.histogram import Histogram

WIDTH, HEIGHT, LEFT, TOP = 720, 360, 60, 40
RIGHT, BOTTOM = WIDTH - 20, HEIGHT - 40


def distribution(latency: Histogram, title: str) -> str:
    """Return an SVG: percent of the requests over latency, on a logarithmic scale."""
    steps = latency.steps()
    least = max(latency.least, 1)
    low, high = log10(least), log10(max(latency.largest, least + 1))
    span = max(high - low, 0.01)

    def across(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (log10(max(value, 1)) - low) / span

    def down(percent: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * percent / 100

    points = [(across(latency.least), down(0))]
    for value, percent in steps:
        points += [(across(value), points[-1][1]), (across(value), down(percent))]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        "<style>text{font:12px sans-serif}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" style="font-size:15px">{escape(title)}</text>',
    ]
    for percent in (0, 25, 50, 75, 100):
        y = down(percent)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}%</text>')
    for power in range(int(low), int(high) + 2):
        for digit in (1, 2, 5):
            value = digit * 10**power
            if least <= value <= latency.largest:
                x = across(value)
                parts.append(f'<path d="M{x:.1f} {TOP}V{BOTTOM}" stroke="#eee"/>')
                parts.append(
                    f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">'
                    f"{value / 1000:g} µs</text>"
                )
    parts += [
        f'<polyline points="{line}" fill="none" stroke="#1b6ca8" stroke-width="2"/>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
