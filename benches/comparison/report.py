"""Ratios to the reference of the same round, and what is written of them."""

from __future__ import annotations

import statistics

from svg_plot import Panel, picture

#: Workload and figure to what is wanted: at least (rates), or at most (times), against plain ext4.
TARGETS = {("W1", "tps"): 0.95, ("W1o", "tps"): 0.95, ("W2", "tps"): 0.95, ("W3", "tps"): 0.97, ("W4", "tps"): 0.90,
           ("W5", "bytes_per_s"): 0.95, ("W5f", "bytes_per_s"): 0.90, ("W6", "load_s"): 1 / 0.95,
           ("W2", "checkpoint_s"): 1.1, ("W9", "initdb_s"): 1.5, ("W10", "tps"): 0.90}


def is_time(figure: str) -> bool:
    return figure.endswith("_s") and not figure.endswith("per_s")


def ratios(samples: dict, sides: list) -> dict:
    """Per workload, figure and side: median, least and greatest ratio to the reference of its group, and the medians.

    `samples` maps workload to figure to side to one value per round.
    """
    reference = {}
    for side in sides:
        reference.setdefault(side.group, side.name)
    out: dict = {}
    for workload, figures in samples.items():
        for figure, by_side in figures.items():
            row = out.setdefault(workload, {}).setdefault(figure, {})
            for side in sides:
                mine, theirs = by_side.get(side.name, []), by_side.get(reference[side.group], [])
                paired = [a / b for a, b in zip(mine, theirs)]
                if paired:
                    row[side.name] = {"median": round(statistics.median(paired), 3), "least": round(min(paired), 3),
                                      "greatest": round(max(paired), 3), "rounds": len(paired),
                                      "value": float(f"{statistics.median(mine):.5g}"), "reference": reference[side.group]}
    return out


def targets(found: dict, side: str) -> list:
    """What was wanted of a side, and what it showed."""
    out = []
    for (workload, figure), wanted in TARGETS.items():
        cell = found.get(workload, {}).get(figure, {}).get(side)
        if cell:
            met = cell["median"] <= wanted if is_time(figure) else cell["median"] >= wanted
            out.append({"workload": workload, "figure": figure, "side": side, "wanted": round(wanted, 3),
                        "got": cell["median"], "met": met})
    return out


def table(found: dict, sides: list, titles: dict) -> str:
    """A table in Markdown: a row per figure, a column per side; a time says `x` after its ratio."""
    names = [side.name for side in sides if side.name not in ("native", "loop-ext4")]
    lines = ["| workload | figure | " + " | ".join(names) + " |", "| --- | --- |" + " --- |" * len(names)]
    for workload, figures in found.items():
        for figure, row in figures.items():
            cells = []
            for name in names:
                cell = row.get(name)
                mark = " x" if is_time(figure) else ""
                cells.append(f"{cell['median']:.2f}{mark} [{cell['least']:.2f}, {cell['greatest']:.2f}]" if cell else "")
            lines.append(f"| {workload} {titles.get(workload, '')} | {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(found: dict, sides: list, titles: dict) -> str:
    panels = []
    for workload, figures in found.items():
        for figure, row in figures.items():
            if (workload, figure) not in TARGETS:
                continue
            unit = "x" if is_time(figure) else ""
            panel = Panel(f"{workload} {titles.get(workload, '')}: {figure}", unit, TARGETS[workload, figure], linear=True)
            for side in sides:
                cell = row.get(side.name)
                if cell and side.name != cell["reference"]:
                    panel.point(side.name, cell["median"], cell["greatest"], cell["least"])
            panels.append(panel)
    return picture(panels, "ratio to plain ext4 on the same disk, paired by round; dot: median; whisker: least and greatest;"
                   " dashed: wanted (times: at most)")
