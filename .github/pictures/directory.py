"""Draw a queue's directories and the renames between them: `python .github/pictures/directory.py` writes the SVG."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 910, 420
INK, FAINT, PAPER, FILL = "#1f2933", "#7b8794", "#ffffff", "#eef4fb"
BLUE, RED = "#1f5fa8", "#b3362b"

BOX_WIDTH, BOX_HEIGHT = 210, 74
LEFT, MIDDLE, RIGHT = 100, 390, 680
TOP, BOTTOM = 110, 250
BESIDE = (
    ("fsqueue.json", "the queue's settings"),
    ("order.lock", "the lock, and the order as a hint"),
    ("owners/", "who leases, with heartbeats"),
    ("stream/", "producers and consumers"),
)


def box(x: int, y: int, name: str, lines: tuple[str, str]) -> str:
    """Return one directory: its name, what it means, and a file in it."""
    meaning, file = lines
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="{FILL}" stroke="{BLUE}"/>'
        + text(x + 12, y + 22, name, weight="bold", size=16)
        + text(x + 12, y + 42, meaning, colour=FAINT)
        + text(x + 12, y + 61, file, mono=True, size=11)
    )


def text(
    x: int,
    y: int,
    words: str,
    *,
    anchor: str = "start",
    size: int = 13,
    colour: str = INK,
    weight: str = "normal",
    mono: bool = False,
) -> str:
    family = "ui-monospace, Menlo, DejaVu Sans Mono, monospace" if mono else "system-ui, DejaVu Sans, sans-serif"
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'font-family="{family}" fill="{colour}">{escape(words)}</text>'
    )


def arrow(path: str, colour: str = INK, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    mark = "red" if colour == RED else "ink"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" marker-end="url(#{mark})"{dash}/>'


def marker(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
    )


def picture() -> str:
    """Return the whole picture as SVG."""
    middle = TOP + BOX_HEIGHT // 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-label="The directories of a queue and the renames between them">',
        f"<defs>{marker('ink', INK)}{marker('red', RED)}</defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{PAPER}"/>',
        text(20, 34, "queue/", weight="bold", size=18, mono=True),
        box(LEFT, TOP, "pending/", ("waiting, oldest first", "page-1.json")),
        box(MIDDLE, TOP, "leased/", ("one owner works on it", "page-0@ann.4711.9f3a01+1.json")),
        box(RIGHT, TOP, "done/", ("acknowledged, at step 400", "page-3@400.json")),
        box(MIDDLE, BOTTOM, "failed/", ("dead letters, with reasons", "page-4.json")),
        # The way of a ref.
        arrow(f"M{20} {middle} H{LEFT - 2}"),
        text(24, middle - 10, "put", weight="bold"),
        text(24, middle + 18, "written in", size=11, colour=FAINT),
        text(24, middle + 32, "tmp/ first", size=11, colour=FAINT),
        arrow(f"M{LEFT + BOX_WIDTH} {TOP + 24} H{MIDDLE - 2}"),
        text((LEFT + BOX_WIDTH + MIDDLE) // 2, TOP + 17, "get", anchor="middle", weight="bold"),
        arrow(f"M{MIDDLE + BOX_WIDTH} {TOP + 24} H{RIGHT - 2}"),
        text((MIDDLE + BOX_WIDTH + RIGHT) // 2, TOP + 17, "ack", anchor="middle", weight="bold"),
        # Back to the tail.
        arrow(f"M{MIDDLE} {TOP + 54} H{LEFT + BOX_WIDTH + 2}", RED),
        text(LEFT + BOX_WIDTH + 4, TOP + 92, "lease expires", size=11, colour=RED),
        text(LEFT + BOX_WIDTH + 4, TOP + 107, "fail, retryable", size=11, colour=RED),
        text(LEFT + BOX_WIDTH + 4, TOP + 122, "release", size=11, colour=RED),
        # Dead letters.
        arrow(f"M{MIDDLE + BOX_WIDTH // 2} {TOP + BOX_HEIGHT} V{BOTTOM - 2}", RED),
        text(MIDDLE + BOX_WIDTH // 2 + 8, TOP + BOX_HEIGHT + 28, "fail, for good", size=11, colour=RED),
        text(MIDDLE + BOX_WIDTH // 2 + 8, TOP + BOX_HEIGHT + 43, "or after max_attempts", size=11, colour=RED),
        # By hand, and by a controller.
        arrow(f"M{MIDDLE} {BOTTOM + 37} H{LEFT + 60} V{TOP + BOX_HEIGHT + 2}", dashed=True),
        text(LEFT + 70, BOTTOM + 30, "requeue", weight="bold"),
        arrow(f"M{RIGHT + 105} {TOP} V70 H{LEFT + 105} V{TOP - 2}", dashed=True),
        text(MIDDLE + 105, 62, "rewind to a checkpoint's step", anchor="middle", weight="bold"),
        text(RIGHT, TOP + BOX_HEIGHT + 20, "pack: up to 10,000 of them", size=11, colour=FAINT),
        text(RIGHT, TOP + BOX_HEIGHT + 35, "in one file, done/packed-….jsonl", size=11, colour=FAINT),
        # What lies beside.
        text(20, 362, "Files move by rename(2), and a rename has one winner. Beside these directories lie:"),
        *(
            text(20 + column * 215, 384, name, size=11, mono=True)
            + text(20 + column * 215, 400, use, size=11, colour=FAINT)
            for column, (name, use) in enumerate(BESIDE)
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    target = Path(__file__).with_suffix(".svg")
    target.write_text(picture(), encoding="utf-8")
    print(target)
