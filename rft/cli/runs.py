"""`rft runs`: look at runs, finished or not, and stop or take them up."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from rft.cli.control import RunName, cancel, pause, resume
from rft.cli.grading_errors import errors
from rft.cli.output import Json, Reply, stdout_screen
from rft.cli.summary import answer_lines, last_message, summary_lines
from rft.cli.text import decimal, indented, shorten, signed, table
from rft.errors import RunError
from rft.runs.compare import Comparison, compare_evaluations
from rft.runs.layout import RUNS_FOLDER
from rft.runs.reader import Checkpoint, Run, list_runs, open_run

RunAtStep = Annotated[
    str, typer.Argument(metavar="RUN[@STEP]", help="A run and one of its evaluations, or @best.")
]


def commands() -> typer.Typer:
    """The commands below `rft runs`."""
    app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
    app.callback()(_root)
    app.command("list")(list_all)
    app.command("show")(show)
    app.command("checkpoints")(checkpoints)
    app.command("events")(events)
    app.command("samples")(samples)
    app.command("errors")(errors)
    app.command("compare")(compare)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("cancel")(cancel)
    return app


def _root(context: typer.Context) -> None:
    """Look at runs: what they came to, their checkpoints, events, samples and answers.

    \b
    Example:
      rft runs list
      rft runs compare capitals-1@0 capitals-1@best
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def list_all(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = RUNS_FOLDER,
    as_json: Json = False,
) -> Reply:
    """List the runs of a folder.

    \b
    Example:
      rft runs list
    """
    if folder != RUNS_FOLDER and not folder.is_dir():
        raise RunError("there is no such folder", where=str(folder), remedy="name one with runs")
    runs = list_runs(folder)
    rows = [_list_row(run) for run in runs]
    header = ("run", "status", "step", "baseline", "best", "at step", "created")
    lines = table(header, rows) if rows else [f"no runs in {folder}"]
    return Reply(_page([_run_document(run) for run in runs]), lines, as_json)


def show(name: RunName, as_json: Json = False) -> Reply:
    """Show what a run came to: gain, curve, checkpoints, answers, next commands.

    \b
    Example:
      rft runs show capitals-1
    """
    run = open_run(name, RUNS_FOLDER)
    screen = stdout_screen(as_json)
    lines = [] if as_json else summary_lines(run, screen.width, screen.is_unicode)
    document = {
        **_run_document(run),
        "checkpoints": [_checkpoint_document(run, entry) for entry in run.checkpoints()],
        "metrics": run.metrics(),
        "evaluation_steps": run.evaluation_steps(),
        "sample_steps": run.sample_steps(),
    }
    return Reply(document, lines, as_json)


def checkpoints(name: RunName, as_json: Json = False) -> Reply:
    """List the checkpoints a run keeps.

    \b
    Example:
      rft runs checkpoints capitals-1
    """
    run = open_run(name, RUNS_FOLDER)
    best = run.best_checkpoint()
    rows = [
        (
            str(checkpoint.step),
            decimal(checkpoint.valid_reward_mean),
            "best" if checkpoint == best else "paused here" if checkpoint.is_pause else "",
            str(checkpoint.folder),
        )
        for checkpoint in run.checkpoints()
    ]
    lines = table(("step", "valid reward", "", "folder"), rows) if rows else ["no checkpoint yet"]
    documents = [_checkpoint_document(run, checkpoint) for checkpoint in run.checkpoints()]
    return Reply(_page(documents), lines, as_json)


def events(
    name: RunName,
    level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="Only info, warn or error.")
    ] = None,
    as_json: Json = False,
) -> Reply:
    """Print what happened in a run, oldest first.

    \b
    Example:
      rft runs events capitals-1 --level warn
    """
    found = [
        event
        for event in open_run(name, RUNS_FOLDER).events()
        if level is None or event.get("level") == level
    ]
    lines = [line for event in found for line in _event_lines(event)]
    return Reply(_page(found), lines or ["no events"], as_json)


def samples(
    name: RunName,
    step: Annotated[
        int | None, typer.Option(min=0, help="The training step; by default the newest kept.")
    ] = None,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="The evaluation at that step instead.")
    ] = False,
    worst: Annotated[bool, typer.Option("--worst", help="Lowest rewards first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many to print.")] = 8,
    as_json: Json = False,
) -> Reply:
    """Read the completions of a step with their rewards.

    \b
    Example:
      rft runs samples capitals-1 --step 10 --worst
      rft runs samples capitals-1 --evaluation
    """
    run = open_run(name, RUNS_FOLDER)
    steps = run.evaluation_steps() if evaluation else run.sample_steps()
    chosen = (
        step if step is not None else run.step if run.step is not None else max(steps, default=0)
    )
    found = run.evaluation(chosen) if evaluation else run.samples(chosen)
    if worst:
        found.sort(key=lambda entry: float("-inf") if entry["reward"] is None else entry["reward"])
    shown = found[:limit]
    width = stdout_screen(as_json).width
    lines = [f"step {chosen}: {len(shown)} of {len(found)} completions"]
    for entry in shown:
        lines += ["", *_sample_lines(entry, width)]
    return Reply(_page(shown, has_more=len(found) > limit), lines, as_json)


def compare(
    before: RunAtStep,
    after: RunAtStep,
    limit: Annotated[int, typer.Option(min=0, help="How many changed rows to print.")] = 8,
    as_json: Json = False,
) -> Reply:
    """Compare two evaluations answer by answer.

    \b
    Example:
      rft runs compare capitals-1@0 capitals-1@best
    """
    comparison = compare_evaluations(_evaluation(before), _evaluation(after))
    if not comparison.rows:
        raise RunError(
            "the two evaluations have no graded answer to the same prompt in common",
            where=f"{before} and {after}",
            remedy="compare evaluations over the same validation file",
        )
    width = stdout_screen(as_json).width
    lines = _comparison_lines(comparison)
    if changes := answer_lines(comparison.most_changed(limit), width):
        lines += ["", *changes]
    return Reply({"before": before, "after": after, **asdict(comparison)}, lines, as_json)


def _evaluation(reference: str) -> list[dict[str, Any]]:
    run = open_run(reference, RUNS_FOLDER)
    step = run.best_evaluation_step() if run.step is None else run.step
    return run.evaluation(0 if step is None else step)


def _list_row(run: Run) -> tuple[str, ...]:
    status = run.status()
    baseline = next(
        (row.get("valid_reward_mean") for row in run.metrics() if row.get("step") == 0), None
    )
    best = run.best_checkpoint()
    total = f"/{status.total_steps}" if status.total_steps else ""
    return (
        run.name,
        str(status),
        f"{status.step}{total}",
        decimal(baseline),
        decimal(best.valid_reward_mean if best else None),
        str(best.step) if best else "–",
        _time(status.created_at),
    )


def _run_document(run: Run) -> dict[str, Any]:
    status = run.status()
    best = run.best_checkpoint()
    return {
        "run": run.name,
        "folder": str(run.folder.root),
        **asdict(status),
        "best": {"step": best.step, "valid_reward_mean": best.valid_reward_mean} if best else None,
    }


def _checkpoint_document(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint in the product's shape, and its folder."""
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"ftckpt_{run.name}_{checkpoint.step}",
        "created_at": checkpoint.created_at,
        "fine_tuning_job_id": run.name,
        "fine_tuned_model_checkpoint": f"{run.name}@{checkpoint.step}",
        "step_number": checkpoint.step,
        "metrics": dict(checkpoint.metrics),
        "valid_reward_mean": checkpoint.valid_reward_mean,
        "folder": str(checkpoint.folder),
    }


def _page(documents: list[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": documents, "has_more": has_more}


def _event_lines(event: dict[str, Any]) -> list[str]:
    first, *more = str(event.get("message", "")).split("\n")
    head = f"{_time(event.get('created_at'))}  {event.get('level', ''):<5}  "
    return [head + first, *(" " * len(head) + line for line in more)]


def _comparison_lines(comparison: Comparison) -> list[str]:
    error = comparison.standard_error
    lines = [
        f"reward  {decimal(comparison.mean_before)} → {decimal(comparison.mean_after)}"
        f"  difference {signed(comparison.mean_difference)}"
        + (f" ± {decimal(error)}" if error is not None else ""),
        f"rows    {comparison.num_better} better, {comparison.num_worse} worse, "
        f"{comparison.num_same} the same",
    ]
    left_out = {
        "without a reward": comparison.num_ungraded,
        "with different prompts": comparison.num_different_prompts,
        "in one evaluation only": comparison.num_unpaired,
    }
    lines += [f"left out: {count} {why}" for why, count in left_out.items() if count]
    return lines


def _sample_lines(entry: dict[str, Any], width: int) -> list[str]:
    reward = "ungraded" if entry["reward"] is None else f"reward {entry['reward']:.3f}"
    advantage = entry.get("advantage")
    head = f"row {entry['row']} sample {entry['sample']}  {reward}"
    if advantage is not None:
        head += f"  advantage {signed(advantage)}"
    head += f"  {entry['num_tokens']} tokens, {entry['finish_reason']}"
    parts = [f"{key} {decimal(value)}" for key, value in (entry["sub_rewards"] or {}).items()]
    lines = ["  ".join([head, *parts])]
    lines.append(f"  prompt  {shorten(last_message(entry), width - 10)}")
    lines += indented(entry["output_text"] or "", "  │ ", width, 12)
    lines += [
        f"  {grader}: {kind}: {shorten(str(details), width)}"
        for grader, raised in (entry["errors"] or {}).items()
        for kind, details in raised.items()
    ]
    return lines


def _time(created_at: Any) -> str:
    if not isinstance(created_at, int | float):
        return "–"
    return datetime.fromtimestamp(created_at).strftime("%Y-%m-%d %H:%M:%S")
