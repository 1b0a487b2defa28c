"""A bar for each peer: how late half, and all but one in a hundred, of its jobs were; on a logarithmic scale."""

from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from statistics import median
from typing import Any

LEFT, WIDTH, ROW = 230, 520, 34
FROM_MS, TO_MS = 1.0, 100_000.0


def chart(found: Mapping[str, Sequence[Any] | str]) -> str:
    rows = [(peer, results) for peer, results in found.items() if not isinstance(results, str)]
    height = ROW * (len(rows) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 90}" height="{height}" '
        'font-family="sans-serif" font-size="13">'
    ]
    for power in range(6):
        x = at(10**power)
        parts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{height - ROW + 8}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{height - 8}" text-anchor="middle">{10**power:,} ms</text>')
    for n, (peer, results) in enumerate(rows):
        y = n * ROW + 8
        p50, p99 = (1_000 * median(getattr(each, what) for each in results) for what in ("p50", "p99"))
        parts.append(f'<text x="{LEFT - 10}" y="{y + 14}" text-anchor="end">{escape(peer)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{at(p99) - LEFT}" height="20" fill="#9ecae1"/>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{at(p50) - LEFT}" height="20" fill="#3182bd"/>')
        parts.append(f'<text x="{at(p99) + 6}" y="{y + 14}">{shown(p50)} / {shown(p99)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def at(milliseconds: float) -> float:
    share = log10(min(max(milliseconds, FROM_MS), TO_MS) / FROM_MS) / log10(TO_MS / FROM_MS)
    return round(LEFT + WIDTH * share, 1)


def shown(milliseconds: float) -> str:
    """Three digits that count."""
    return f"{float(f'{milliseconds:.3g}'):,g}"
