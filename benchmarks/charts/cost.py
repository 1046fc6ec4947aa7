"""Draw README's chart of what a ref costs: `python benchmarks/charts/cost.py` writes cost.svg beside this file.

The figures are those of the table of `benchmarks/peers.py` at the commit that the chart names.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WHERE = "refs/s through put + get + ack, 1,000 pending, one process, tmpfs, 2 CPUs (AMD EPYC), commit e721a90316"
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
SINGLE, BATCH = "#a9c9ec", "#1f5fa8"

WIDTH, LEFT, RIGHT = 900, 250, 820
FIRST_ROW, ROW, BAR = 92, 56, 19


class Row(NamedTuple):
    name: str
    remark: str
    one: int
    sixty_four: int


ROWS = (
    Row("fsqueue", "a shared filesystem or one host", 9_324, 19_580),
    Row("bare file operations", "the floor: no checks, no leases", 34_424, 34_012),
    Row("dirq", "a shared filesystem, no order", 16_829, 16_517),
    Row("SQLite, tuned", "one host only", 13_091, 55_277),
    Row("SQLite, plain", "one host; slower with a backlog", 1_620, 27_730),
)


def chart() -> str:
    """Return the chart as SVG."""
    height = FIRST_ROW + ROW * len(ROWS) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-label="Throughput of five queues, one ref at a time and in batches of 64">',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{PAPER}"/>',
        text(20, 34, "Refs a second", size=18, weight="bold"),
        f'<rect x="{LEFT}" y="50" width="14" height="14" fill="{SINGLE}"/>',
        text(LEFT + 22, 62, "one ref a call"),
        f'<rect x="{LEFT + 150}" y="50" width="14" height="14" fill="{BATCH}"/>',
        text(LEFT + 172, 62, "64 refs a call"),
    ]
    for number, row in enumerate(ROWS):
        y = FIRST_ROW + ROW * number
        parts += [
            text(LEFT - 14, y + 17, row.name, anchor="end", size=15, weight="normal" if number else "bold"),
            text(LEFT - 14, y + 34, row.remark, anchor="end", size=11, colour=FAINT),
            *bar(y, row.one, SINGLE),
            *bar(y + BAR + 1, row.sixty_four, BATCH),
        ]
    parts += [text(20, height - 16, WHERE, size=11, colour=FAINT), "</svg>"]
    return "\n".join(parts) + "\n"


def bar(y: int, value: int, colour: str) -> tuple[str, str]:
    length = round((RIGHT - LEFT) * value / max(max(row.one, row.sixty_four) for row in ROWS))
    return (
        f'<rect x="{LEFT}" y="{y}" width="{length}" height="{BAR}" fill="{colour}"/>',
        text(LEFT + length + 8, y + 14, f"{value:,}", size=12),
    )


def text(
    x: int, y: int, words: str, *, anchor: str = "start", size: int = 13, colour: str = INK, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'font-family="system-ui, DejaVu Sans, sans-serif" fill="{colour}">{escape(words)}</text>'
    )


if __name__ == "__main__":
    target = Path(__file__).with_suffix(".svg")
    target.write_text(chart(), encoding="utf-8")
    print(target)
