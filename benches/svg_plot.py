"""Small plots as SVG text: dots with a whisker, several panels in one picture."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP = 420, 260, 56, 44, 34
INK, FAINT, MAIN, WHISKER, TARGET = "#222", "#ddd", "#0b6e4f", "#7fb8a3", "#c0392b"


class Panel:
    """One plot: categories along x, a logarithmic axis (or a linear one from 0) along y."""

    def __init__(self, title: str, unit: str = "ms", target: float = None, linear: bool = False):
        self.title, self.unit, self.target, self.linear = title, unit, target, linear
        self.points: list = []

    def point(self, label: str, middle: float, high: float, low: float = None) -> None:
        """`middle` is drawn as a dot, `high` and `low` as the ends of a whisker."""
        low = middle if low is None else low
        self.points.append((label, max(middle, 1e-3), max(high, middle, 1e-3), max(min(low, middle), 1e-3)))

    def axis(self) -> list:
        """The values that get a line across, the least first."""
        values = [v for _, *point in self.points for v in point] + ([self.target] if self.target else [])
        if self.linear:
            step = 0.25 if max(values) < 1.6 else 0.5 if max(values) < 4 else 10 ** math.floor(math.log10(max(values)))
            return [step * n for n in range(math.ceil(max(values) * 1.02 / step) + 1)]
        low, high = math.floor(math.log10(min(values) * 0.9)), math.ceil(math.log10(max(values) * 1.1))
        return [10.0 ** n for n in range(low, high + 1)]

    def draw(self, left: int, top: int) -> list:
        x0, x1 = left + MARGIN_LEFT, left + WIDTH - 16
        y0, y1 = top + HEIGHT - MARGIN_BOTTOM, top + MARGIN_TOP
        ticks = self.axis()
        scale = (lambda v: v) if self.linear else math.log10

        def y(value: float) -> float:
            return y0 - (scale(value) - scale(ticks[0])) / (scale(ticks[-1]) - scale(ticks[0])) * (y0 - y1)

        out = [text(left + WIDTH / 2, top + 18, self.title, "middle", 13, bold=True)]
        for tick in ticks:
            out.append(line(x0, y(tick), x1, y(tick), FAINT))
            out.append(text(x0 - 6, y(tick) + 4, f"{tick:g} {self.unit}", "end", 10))
        if self.target:
            out.append(line(x0, y(self.target), x1, y(self.target), TARGET, dashed=True))
        step = (x1 - x0) / max(1, len(self.points))
        for index, (label, middle, high, low) in enumerate(self.points):
            x = x0 + step * (index + 0.5)
            out.append(line(x, y(low), x, y(high), WHISKER, 3))
            for end in {high, low} - {middle}:
                out.append(line(x - 6, y(end), x + 6, y(end), WHISKER, 2))
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
