"""The few shapes that a bar chart takes, as SVG text."""

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

FONT = "Helvetica, Arial, sans-serif"
INK, MUTED, LINE = "#1f2933", "#616e7c", "#d9dee4"


def text(
    x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", color: str = INK, bold: bool = False
):
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}>'
        f"{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, color: str, hint: str = "") -> str:
    """A rectangle; `hint` is shown where the pointer rests on it."""
    shape = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}" fill="{color}"'
    )
    return f"{shape}><title>{escape(hint)}</title></rect>" if hint else f"{shape}/>"


def line(x1: float, y1: float, x2: float, y2: float, color: str = LINE, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dash}/>'


def legend(x: float, y: float, entries: Sequence[tuple[str, str]], step: float) -> list[str]:
    """Colors with their names, from left to right, `step` apart."""
    found = []
    for i, (name, color) in enumerate(entries):
        found += [box(x + i * step, y - 9, 10, 10, color), text(x + i * step + 15, y, name, size=11, color=MUTED)]
    return found


def document(width: int, height: int, title: str, shapes: Sequence[str]) -> str:
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f"font-family={quoteattr(FONT)}>\n<title>{escape(title)}</title>\n"
        f"{box(0, 0, width, height, '#ffffff')}\n{body}\n</svg>\n"
    )
