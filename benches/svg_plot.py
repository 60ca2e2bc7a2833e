"""Small plots as SVG text: dots with a whisker on a logarithmic axis, several panels in one picture."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP = 420, 260, 56, 44, 34
INK, FAINT, MAIN, WHISKER, TARGET = "#222", "#ddd", "#0b6e4f", "#7fb8a3", "#c0392b"


class Panel:
    """One plot: categories along x, milliseconds (log) along y."""

    def __init__(self, title: str, unit: str = "ms", target: float = None):
        self.title, self.unit, self.target = title, unit, target
        self.points: list = []

    def point(self, label: str, middle: float, high: float) -> None:
        """`middle` is drawn as a dot, `high` as the end of a whisker above it."""
        self.points.append((label, max(middle, 1e-3), max(high, middle, 1e-3)))

    def draw(self, left: int, top: int) -> list:
        values = [v for _, middle, high in self.points for v in (middle, high)] + ([self.target] if self.target else [])
        low = 10 ** math.floor(math.log10(min(values) * 0.9))
        high = 10 ** math.ceil(math.log10(max(values) * 1.1))
        x0, x1 = left + MARGIN_LEFT, left + WIDTH - 16
        y0, y1 = top + HEIGHT - MARGIN_BOTTOM, top + MARGIN_TOP

        def y(value: float) -> float:
            return y0 - (math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low)) * (y0 - y1)

        out = [text(left + WIDTH / 2, top + 18, self.title, "middle", 13, bold=True)]
        tick = low
        while tick <= high * 1.001:
            out.append(line(x0, y(tick), x1, y(tick), FAINT))
            out.append(text(x0 - 6, y(tick) + 4, f"{tick:g} {self.unit}", "end", 10))
            tick *= 10
        if self.target:
            out.append(line(x0, y(self.target), x1, y(self.target), TARGET, dashed=True))
        step = (x1 - x0) / max(1, len(self.points))
        for index, (label, middle, top_value) in enumerate(self.points):
            x = x0 + step * (index + 0.5)
            out.append(line(x, y(middle), x, y(top_value), WHISKER, 3))
            out.append(line(x - 6, y(top_value), x + 6, y(top_value), WHISKER, 2))
            out.append(f'<circle cx="{x:.1f}" cy="{y(middle):.1f}" r="4.5" fill="{MAIN}"/>')
            out.append(text(x + 9, y(middle) + 4, f"{middle:.3g}", "start", 10))
            out.append(text(x, y0 + 16, label, "middle", 10))
        return out


def text(x: float, y: float, content: str, anchor: str, size: int, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}"{weight}>'
            f"{escape(content)}</text>")


def line(x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}"'
            f' stroke-width="{width}"{dash}/>')


def picture(panels: list, caption: str, columns: int = 2) -> str:
    """All panels that have points, in a grid, with one line of caption below."""
    panels = [p for p in panels if p.points]
    rows = -(-len(panels) // columns)
    width, height = WIDTH * min(columns, max(1, len(panels))), HEIGHT * rows + 26
    body = []
    for index, panel in enumerate(panels):
        body += panel.draw(index % columns * WIDTH, index // columns * HEIGHT)
    body.append(text(12, height - 9, caption, "start", 10))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
            ' font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n")
