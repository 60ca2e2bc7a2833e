"""Ratios to the reference of the same round, and what is written of them."""

from __future__ import annotations

import html
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


def stolen(by_workload: dict) -> str:
    """How much of the processors' time a hypervisor gave to others: such rounds say little."""
    shares = [share for by_side in by_workload.values() for rounds in by_side.values() for share in rounds]
    if not shares:
        return ""
    many = sum(share >= 0.05 for share in shares)
    return (f"Processor time given to others by the hypervisor: {statistics.median(shares):.1%} of a slice in the median, "
            f"{max(shares):.1%} at most, 5 % or more in {many} of {len(shares)} slices.\n")


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


def space(own: dict, branches: dict) -> dict:
    """Per side: bytes on the disk that are its own, bytes of pages dirtied, and the one per the other.

    What cowfs counts as dirtied on one side is taken for the peers of the same history, which do not count.
    """
    dirtied = {name: branch["owned_bytes"] for name, branch in branches.items() if branch.get("owned_bytes")}
    elsewhere = dirtied.get("fork") or next(iter(dirtied.values()), None)
    out = {}
    for name, disk in own.items():
        pages = dirtied.get(name, elsewhere)
        if disk is not None:
            out[name] = {"disk_bytes": disk, "dirtied_bytes": pages, "counted_on_this_side": name in dirtied,
                         "amplification": round(disk / pages, 3) if pages else None}
    return out


def per_transaction(serving: dict) -> dict:
    """Per workload and side: requests and microseconds of processor time of the serving process per transaction."""
    out: dict = {}
    for workload, by_side in serving.items():
        for side, used in by_side.items():
            if count := used.get("transactions"):
                kinds = {kind: round(number / count, 3) for kind, number in used["requests"].items() if number / count >= 0.001}
                out.setdefault(workload, {})[side] = {"requests": round(sum(used["requests"].values()) / count, 3),
                                                      "cpu_us": round(used["cpu_s"] * 1e6 / count, 1), "kinds": kinds}
    return out


def copies(cached: dict) -> dict:
    """How often a page that the mount holds in the page cache lies there, the host's copies included."""
    return {side: round((c["mount"] + c["below"]) / c["mount"], 2) for side, c in cached.items() if c["mount"]}


def resources(results: dict, titles: dict) -> str:
    """Plots of what the sides cost beside time."""
    panels = []
    for figure, unit, title in (("requests", "", "requests per transaction"), ("cpu_us", "us", "processor time per transaction")):
        for workload, by_side in per_transaction(results["serving"]).items():
            panel = Panel(f"{workload} {titles.get(workload, '')}: {title}", unit, linear=True)
            for side, used in by_side.items():
                if used[figure]:
                    panel.point(side, used[figure], used[figure])
            panels.append(panel)
    memory = Panel("resident memory of the serving process, the most", "MiB", linear=True)
    for side in sorted({side for by_side in results["serving"].values() for side in by_side}):
        most = max(by_side[side]["resident_bytes"] for by_side in results["serving"].values() if side in by_side)
        memory.point(side, most / 2**20, most / 2**20)
    cache = Panel("copies of a page in the page cache", "", linear=True)
    for side, number in copies(results["cached_bytes"]).items():
        cache.point(side, number, number)
    amplification = Panel("bytes on the disk per byte dirtied", "", 1.1, linear=True)
    for side, found in results["space"].items():
        if found["amplification"]:
            amplification.point(side, found["amplification"], found["amplification"])
    return picture([*panels, memory, cache, amplification], "of the whole run; dashed: wanted, at most")


def rows(head: list, body: list) -> str:
    """A table in HTML; a cell is text, or text and a class."""
    def cell(content, tag: str = "td") -> str:
        text, kind = content if isinstance(content, tuple) else (content, "")
        return f"<{tag}{f' class={kind}' if kind else ''}>{html.escape(str(text))}</{tag}>"
    lines = ["<tr>" + "".join(cell(c, "th") for c in head) + "</tr>"]
    lines += ["<tr>" + "".join(cell(c) for c in row) + "</tr>" for row in body]
    return "<table>\n" + "\n".join(lines) + "\n</table>\n"


STYLE = """body { font: 15px sans-serif; color: #222; max-width: 1300px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px } th, td { border: 1px solid #ddd; padding: 3px 8px; text-align: left }
.met { color: #0b6e4f } .missed { color: #c0392b; font-weight: bold } svg { max-width: 100%; height: auto }"""


def mebibytes(count) -> str:
    return "" if count is None else f"{count / 2**20:.1f} MiB"


def page(results: dict, sides: list, titles: dict) -> str:
    """Everything in one file of HTML that needs no other."""
    names, machine = [side.name for side in sides], results["machine"]
    cells = []
    for workload, figures in results["ratios"].items():
        for figure, row in figures.items():
            line = [f"{workload} {titles.get(workload, '')}", figure]
            for name in names:
                cell = row.get(name)
                line.append(f"{cell['median']:.2f} [{cell['least']:.2f}, {cell['greatest']:.2f}] {cell['value']:.4g}" if cell else "")
            cells.append(line)
    judged = [[t["workload"], t["figure"], t["side"], t["wanted"], t["got"], ("met", "met") if t["met"] else ("missed", "missed")]
              for t in results["targets"]]
    each, served = per_transaction(results["serving"]), []
    for workload, by_side in results["serving"].items():
        for side, used in by_side.items():
            one = each.get(workload, {}).get(side, {})
            kinds = ", ".join(f"{kind} {number:g}" for kind, number in sorted(one.get("kinds", {}).items(), key=lambda k: -k[1]))
            served.append([workload, side, f"{used['cpu_s'] / max(used['seconds'], 0.01):.2f}", one.get("cpu_us", ""),
                           one.get("requests", ""), kinds, mebibytes(used["resident_bytes"])])
    cached = [[side, mebibytes(c["mount"]), mebibytes(c["below"]), copies({side: c}).get(side, "")]
              for side, c in results["cached_bytes"].items()]
    disk = [[side, mebibytes(s["disk_bytes"]), mebibytes(s["dirtied_bytes"]) + ("" if s["counted_on_this_side"] else " (as on the fork)"),
             s["amplification"] or ""] for side, s in results["space"].items()]
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    run = f"scale {results['scale']}, {results['rounds']} rounds of {results['seconds']} s{', quick' if results['quick'] else ''}"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>cowfs beside plain ext4 and its peers</title><style>{STYLE}</style></head><body>
<h1>cowfs beside plain ext4 and its peers</h1>
<p>{html.escape(facts)}; {html.escape(run)}.</p>
<h2>What was wanted</h2>
{rows(["workload", "figure", "side", "wanted", "got", ""], judged)}
<h2>Ratios to plain ext4 on the same disk</h2>
{plot(results["ratios"], sides, titles)}
<p>Median [least, greatest] of the ratios paired by round, and the median itself. The reference of a loop device is loop-ext4.</p>
{rows(["workload", "figure", *names], cells)}
<p>{html.escape(stolen(results["stolen"]))}</p>
<h2>What it costs</h2>
{resources(results, titles)}
<h3>Serving process</h3>
<p>Processors in use, and per transaction; what a slice does around its transactions (a warm-up, a checkpoint) is in it.</p>
{rows(["workload", "side", "processors", "us per transaction", "requests per transaction", "of these", "resident"], served)}
<h3>Page cache after {html.escape(titles.get("W3", "W3"))}</h3>
<p>Branches of one store share what the host holds: its bytes are those of all of them.</p>
{rows(["side", "held by the mount", "held by the host below", "copies of a page"], cached)}
<h3>Space at the end of the run</h3>
{rows(["side", "its own on the disk", "dirtied", "per byte dirtied"], disk)}
</body></html>
"""
