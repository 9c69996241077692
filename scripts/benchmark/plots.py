"""Draws the curves and the scaling; runs where matplotlib is: `python -m scripts.benchmark.plots KIND DATA PNG`."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"rft": "tab:blue", "trl": "tab:orange"}
AXES = {
    "group": "completions of a prompt (64 a step)",
    "completion": "tokens of a completion",
    "prompt": "tokens of a prompt",
    "rows": "rows in flight",
}


def draw_curves(data: dict[str, Any]) -> None:
    """A thin line for each seed, a thick one for their mean."""
    _, axis = pyplot.subplots(figsize=(7, 4.5))
    for side, seeds in data["curves"].items():
        for curve in seeds.values():
            axis.plot(range(1, len(curve) + 1), curve, color=COLOURS[side], alpha=0.3, linewidth=1)
        shortest = min(map(len, seeds.values()), default=0)
        mean = [statistics.mean(curve[i] for curve in seeds.values()) for i in range(shortest)]
        label = f"{side}, mean of {len(seeds)} seeds"
        axis.plot(range(1, shortest + 1), mean, color=COLOURS[side], linewidth=2.5, label=label)
    axis.axvspan(20, 30, color="grey", alpha=0.1)
    axis.set(xlabel="step", ylabel="mean training reward", title="Equal hyperparameters")
    axis.legend()


def draw_scaling(data: dict[str, Any]) -> None:
    """Cost against each size, both axes logarithmic."""
    points = {name: rows for name, rows in data["points"].items() if name in AXES}
    _, axes = pyplot.subplots(1, len(points), figsize=(4.2 * len(points), 3.8), squeeze=False)
    for axis, (name, rows) in zip(axes[0], points.items(), strict=True):
        values = [row["value"] for row in rows]
        for key in [key for key in rows[0] if key.endswith(("per_token", "per_completion"))]:
            if all(row[key] for row in rows):
                costs = [1000 * row[key] for row in rows]
                axis.plot(values, costs, marker="o", label=key.replace("_", " "))
        axis.set(xscale="log", yscale="log", xlabel=AXES[name], ylabel="milliseconds")
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        axis.legend(fontsize="x-small")


def main() -> None:
    kind, source, target = sys.argv[1:]
    data = json.loads(Path(source).read_text(encoding="utf-8"))
    {"curves": draw_curves, "scaling": draw_scaling}[kind](data)
    pyplot.tight_layout()
    pyplot.savefig(target, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
