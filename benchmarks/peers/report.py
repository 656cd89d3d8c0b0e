"""The tables, in Markdown, and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from peers.reach import LIMIT_SHARE, lines
from peers.turns import median_ratio

NAMES = {
    "hydrax": "Hydrax",
    "hydrax shared": "Hydrax, shared sampling",
    "hydrax few": "Hydrax, fewer heads",
    "vmap": "JAX by hand: vmap + scan",
    "chunks": "JAX by hand: chunks, all devices",
    "vmap shared": "JAX by hand: vmap + scan, shared rows",
    "chunks shared": "JAX by hand: chunks, shared rows",
    "one by one": "JAX, one jitted model after the other",
    "torch vmap": "torch.func vmap",
    "torch one by one": "PyTorch, one model after the other",
    "sklearn": "scikit-learn MLPClassifier in joblib",
}


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cut = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, cut, *rows)).replace("| --- ", "|---")


def number(value: float) -> str:
    """Formats a number with three digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def of_case(case: dict[str, Any], micro: bool) -> str:
    """Makes the table of a case: opponent, time, ratio and losses."""
    unit, scale = ("µs", 1e6) if micro else ("ms", 1e3)
    ours, rows = case["results"][0]["secs"], []
    for result in case["results"]:
        ratio, low, high = median_ratio(ours, result["secs"])
        first, last = result["losses"]
        rows.append(
            (
                NAMES[result["name"]],
                number(scale * statistics.median(result["secs"])),
                number(ratio),
                f"{number(low)} .. {number(high)}",
                f"{len(result['secs'])} x {result['turn_steps']}",
                f"{result['first_secs']:.1f}",
                f"{first:.3f}, {last:.3f} ({result['warm_steps']})",
                result["note"] or "-",
            )
        )
    rows += [(NAMES[name], why, *["-"] * 6) for name, why in case["missing"].items()]
    head = (
        *("who", f"{unit} a{'n' if case['unit'] == 'epoch' else ''} {case['unit']}", "Hydrax to it"),
        *("least and most", "turns x steps", "first call, s", "loss: first, after (steps)", "chosen"),
    )
    epoch = f"; an epoch is {case['steps_per_unit']} steps" if case["unit"] == "epoch" else ""
    few = f"; fewer heads: {case['few']:,}" if case["few"] else ""
    title = (
        f"### ({case['letter']}) {case['title']}\n\n{case['heads']:,} heads, B = {case['batch_size']}, supersteps of "
        f"K = {case['steps_per_call']}, {case['devices']} devices of {case['backend']}{epoch}{few}.\n\n"
    )
    return title + table(head, rows)


def of_growth(case: dict[str, Any]) -> str:
    parts = []
    for name, word in (("heads", "heads"), ("length", "rows in each slice")):
        rows = [
            (
                f"{point[name]:,}",
                number(1e3 * statistics.median(point["secs"])),
                number(1e6 * statistics.median(point["secs"]) / point["heads"]),
                f"{point['first_secs']:.1f}",
                number(point["peak_bytes"] / 1e6),
                number(point["peak_bytes"] / point["heads"] / 1e3),
            )
            for point in case[f"by {name}"]
        ]
        first = case[f"by {name}"][0]
        rest = f"slices of {first['length']:,} rows" if name == "heads" else f"{first['heads']:,} heads"
        head = (word, "ms a step", "µs a head-step", "first call, s", "peak MB", "kB a head")
        parts.append(f"{rest} of {first['rows']:,} rows:\n\n" + table(head, rows))
    return "### (g) growth: Hydrax, linear 64-10, B = 32, AdamW\n\n" + "\n\n".join(parts)


def of_limits(found: dict[str, Any], limits: dict[str, float], on_gpu: bool) -> str:
    """Compares the FLOP/s and bytes/s that Hydrax achieves, counted from shapes, with those of the machine."""
    rows = []
    for letter, case in found.items():
        if letter == "g":
            continue
        result = case["results"][0]
        secs = statistics.median(result["secs"]) / case["steps_per_unit"]
        flops, size = (case["heads"] * one / secs for one in case["counted"])
        shares = {"FLOP/s": flops / limits["flops"], "bytes/s": size / limits["bytes"]}
        binding = max(shares, key=lambda name: shares[name])
        verdict = f"{shares[binding]:.2f} of {binding}"
        if on_gpu:
            verdict += ", reached" if shares[binding] >= LIMIT_SHARE else f", wanted {LIMIT_SHARE}"
        rows.append((letter, number(1e6 * secs), number(flops / 1e9), number(size / 1e9), verdict))
    text = (
        f"### Against the machine's limits\n\nA big matrix product ran at {number(limits['flops'] / 1e9)} GFLOP/s, a "
        f"big copy at {number(limits['bytes'] / 1e9)} GB/s (read and written). What a step needs is counted from its "
        "shapes (`peers/count.py`). "
    )
    if not on_gpu:
        text += (
            "Not run on a GPU. On a CPU a chunk's arrays may stay in the cache, so more than 1 of bytes/s is possible."
        )
    return text + "\n\n" + table(("case", "µs a step", "GFLOP/s", "GB/s", "share of the binding limit"), rows)


def of_reach(found: dict[str, Any]) -> str:
    rows = [
        (line.letter, line.what, "-" if line.ratio is None else number(line.ratio), line.wanted, line.verdict())
        for line in lines(found)
    ]
    return "### What was wanted\n\n" + table(("case", "time of", "ratio", "wanted, at most", "verdict"), rows)


def plot(found: dict[str, Any], path: Path) -> None:
    """Draws bars for each case, with times relative to Hydrax, and the two growth curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [case for letter, case in found.items() if letter != "g"]
    curves = [(found["g"], name) for name in ("heads", "length") if "g" in found]
    count = len(cases) + len(curves)
    figure, grid = pyplot.subplots(-(-count // 2), min(count, 2), figsize=(14, 3.2 * -(-count // 2)), squeeze=False)
    axes = list(grid.ravel())
    for axis, case in zip(axes, cases, strict=False):
        ours = statistics.median(case["results"][0]["secs"])
        names = [NAMES[result["name"]] for result in case["results"]][::-1]
        times = [statistics.median(result["secs"]) / ours for result in case["results"]][::-1]
        bars = axis.barh(names, times, color=["#c44" if name.startswith("Hydrax") else "#88a" for name in names])
        axis.bar_label(bars, [f" {number(time)}" for time in times], fontsize=8)
        axis.set(title=f"({case['letter']}) {case['title']}", xscale="log", xlabel="time to Hydrax's")
        axis.axvline(1, color="black", linewidth=0.5)
        axis.margins(x=0.15)
    for axis, (case, name) in zip(axes[len(cases) :], curves, strict=False):
        points = case[f"by {name}"]
        costs = [1e6 * statistics.median(point["secs"]) / point["heads"] for point in points]
        axis.plot([point[name] for point in points], costs, "o-", color="#c44")
        axis.set(xscale="log", ylim=(0, None), xlabel=name, ylabel="µs a head-step", title=f"(g) growth by {name}")
    for axis in axes[count:]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
