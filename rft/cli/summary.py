"""What a run came to: gain, checkpoints, answers before and after, the curve, what to do next."""

import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rft.cli.curve import Point, draw_curve
from rft.cli.text import decimal, indented, shorten, signed
from rft.errors import RunError
from rft.runs.compare import Comparison, RowChange, compare_evaluations
from rft.runs.layout import RUNS_FOLDER
from rft.runs.reader import Run, RunStatus

NUM_ANSWERS = 4


def summary_lines(run: Run, width: int = 100, is_unicode: bool = True) -> list[str]:
    """The story of a run, read from its folder; parts that are not there yet are left out."""
    status = run.status()
    comparison = start_to_best(run)
    sections = [
        _head(run, status),
        _result(run, comparison),
        curve_lines(run, width, is_unicode),
        _checkpoints(run),
        answer_lines(comparison.most_changed(NUM_ANSWERS), width) if comparison else [],
        _next_commands(run, status),
    ]
    present = [section for section in sections if section]
    return [line for section in present for line in (*section, "")][:-1]


def start_to_best(run: Run) -> Comparison | None:
    """The evaluation at the start against that of the best checkpoint, where both are kept."""
    best = run.best_evaluation_step()
    if not best or 0 not in run.evaluation_steps():
        return None
    try:
        return compare_evaluations(run.evaluation(0), run.evaluation(best))
    except RunError:
        return None


def curve_lines(run: Run, width: int, is_unicode: bool) -> list[str]:
    """The rewards of a run over its steps."""
    rows = run.metrics()
    train = _points(rows, "train_reward_mean")
    valid = _points(rows, "valid_reward_mean")
    return draw_curve(train, valid, min(width, 80), is_unicode=is_unicode)


def answer_lines(changes: Sequence[RowChange], width: int) -> list[str]:
    """Answers before and after, one row of the validation file after the other."""
    if not changes:
        return []
    lines = ["answers that changed most"]
    for change in changes:
        before, after = change.pairs[0].before, change.pairs[0].after
        lines.append(f"  row {change.row}: {shorten(last_message(before), width - 12)}")
        lines += _answer("before", change.reward_before, before, width)
        lines += _answer("after", change.reward_after, after, width)
    return lines


def last_message(entry: dict[str, Any] | Any) -> str:
    """What the person said last, as text."""
    messages = entry.get("messages") or []
    content = messages[-1].get("content") if messages and isinstance(messages[-1], dict) else ""
    return content if isinstance(content, str) else str(content)


def shown_name(run: Run) -> str:
    """How to name the run in a command typed in the current folder."""
    root = run.folder.root
    is_below_runs = root.resolve().parent == Path(RUNS_FOLDER).resolve()
    return shlex.quote(run.name if is_below_runs else str(root))


def _head(run: Run, status: RunStatus) -> list[str]:
    total = f"/{status.total_steps}" if status.total_steps else ""
    lines = [f"{run.folder.root}: {status}, step {status.step}{total}"]
    if status.message:
        lines.append(f"  {_reason(status)}")
    if status.error:
        lines.append(f"  error: {status.error.get('message', status.error)}")
    return lines


def _result(run: Run, comparison: Comparison | None) -> list[str]:
    rewards = dict(_points(run.metrics(), "valid_reward_mean"))
    best = run.best_checkpoint()
    lines = []
    if 0 in rewards:
        lines.append(f"baseline  {decimal(rewards[0])}  valid reward before training")
    if best is not None and best.step != 0:
        gain = ""
        if 0 in rewards and best.valid_reward_mean is not None:
            gain = f"  gain {signed(best.valid_reward_mean - rewards[0])}"
        if gain and comparison is not None and comparison.standard_error is not None:
            gain += f" ± {decimal(comparison.standard_error)}"
        lines.append(f"best      {decimal(best.valid_reward_mean)}  at step {best.step}{gain}")
        if 0 in rewards and (best.valid_reward_mean or 0.0) <= rewards[0]:
            lines.append("          no checkpoint beats the model it started from")
    if comparison is not None and comparison.rows:
        lines.append(
            f"          {comparison.num_better} rows better, {comparison.num_worse} worse, "
            f"{comparison.num_same} the same"
        )
    return lines


def _checkpoints(run: Run) -> list[str]:
    best = run.best_checkpoint()
    if best is None:
        return []
    return ["checkpoints"] + [
        f"  {checkpoint.folder}  valid reward {decimal(checkpoint.valid_reward_mean)}"
        + ("  best" if checkpoint.step == best.step else "")
        for checkpoint in run.checkpoints()
    ]


def _answer(word: str, reward: float, entry: Any, width: int) -> list[str]:
    label = f"    {word:<6} {decimal(reward, 2):>5}  "
    first, *rest = indented(entry["output_text"] or "", " " * len(label), width, 3) or [""]
    return [(label + first.lstrip()).rstrip(), *rest]


def _next_commands(run: Run, status: RunStatus) -> list[str]:
    name = shown_name(run)
    commands = []
    if "grades failed" in _reason(status):
        commands.append(f"rft runs errors {name}")
    if status.status in ("paused", "failed"):
        commands.append(f"rft runs resume {name}" + _larger_budget(status))
    if run.best_checkpoint() is not None:
        prompt = _example_prompt(run)
        mark = "-- " if prompt.startswith("-") else ""
        commands.append(f"rft generate {mark}{name} {shlex.quote(prompt)}")
        if start_to_best(run) is not None:
            commands.append(f"rft runs compare {name}@0 {name}@best")
        commands.append(f"rft export {name} {shlex.quote(run.name + '-adapter')} --format peft")
    if not commands:
        return []
    return ["next", *(f"  {program()}{command.removeprefix('rft')}" for command in commands)]


def _reason(status: RunStatus) -> str:
    """Why the run stands where it does, without the cases that may follow."""
    return (status.message or "").partition("\n")[0]


def _larger_budget(status: RunStatus) -> str:
    """What takes away the budget that a run paused on."""
    if "budget" not in _reason(status):
        return ""
    return " engine.budget.steps=null engine.budget.hours=null"


def program() -> str:
    """How this program was started, so that a printed command can be pasted."""
    if shutil.which("rft"):
        return "rft"
    interpreter = os.path.relpath(sys.executable)
    return f"{sys.executable if interpreter.startswith('..') else interpreter} -m rft"


def _example_prompt(run: Run) -> str:
    """A short prompt of the validation file."""
    steps = run.evaluation_steps()
    try:
        prompts = [last_message(entry) for entry in run.evaluation(steps[-1])] if steps else []
    except RunError:
        prompts = []
    short = [prompt for prompt in prompts if 0 < len(prompt) <= 80 and prompt.isprintable()]
    return short[0] if short else "Hello"


def _points(rows: Sequence[dict[str, Any]], key: str) -> list[Point]:
    return [
        (int(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get("step"), int)
        and isinstance(row.get(key), int | float)
        and math.isfinite(row[key])
    ]
