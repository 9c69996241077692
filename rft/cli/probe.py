"""`rft validate`, `rft evaluate` and `rft generate`: look before and after training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rft.cli.baseline import baseline_lines
from rft.cli.estimate import estimate_lines
from rft.cli.output import Json, Reply, stdout_screen
from rft.cli.text import outline
from rft.runs.layout import RUNS_FOLDER

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job document.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Fields to change: engine.lora.rank=32 …"),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A built-in name, folder, hub id, RUN (its best) or RUN@STEP."
    ),
]


def validate(
    job_file: JobFile,
    overrides: Overrides = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Sample that many completions per prompt of the untrained model, and judge what they earn.",
        ),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Estimate time and memory of the job.")
    ] = False,
    as_json: Json = False,
) -> Reply:
    """Check the job, its data and its grader before any training.

    \b
    Example:
      rft validate job.yaml --samples 8
      rft validate job.yaml --estimate
    """
    from rft.data import load_sound_job

    job = load_sound_job(job_file, overrides or ())
    from rft.training import probes

    document = probes.validate(job, samples, estimate)
    return Reply(document, validation_lines(document, stdout_screen(as_json).width), as_json)


def validation_lines(document: Mapping[str, Any], width: int) -> list[str]:
    """What was found in a job, what its model earns last."""
    rest = {key: value for key, value in document.items() if key not in ("samples", "estimate")}
    lines = outline(rest)
    if "estimate" in document:
        lines += ["", *estimate_lines(document["estimate"], width)]
    if "samples" in document:
        lines += ["", *baseline_lines(document["samples"], width)]
    return lines


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="`base`, a model name or folder, RUN (its best) or RUN@STEP."
        ),
    ],
    job_file: JobFile,
    overrides: Overrides = None,
    as_json: Json = False,
) -> Reply:
    """Measure a model's mean reward on the job's validation file.

    \b
    Example:
      rft evaluate base job.yaml
      rft evaluate capitals-1@best job.yaml
    """
    from rft.data import load_sound_job

    job = load_sound_job(job_file, overrides or ())
    from rft.training import probes

    document = probes.evaluate(model, job, RUNS_FOLDER)
    return Reply(document, outline(document), as_json)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to say to it.")],
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the likeliest token each time.")
    ] = False,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="0 is the same as --greedy.")
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to answer with.")] = 256,
    seed: Annotated[
        int, typer.Option(min=0, max=2147483647, help="Another seed, another answer.")
    ] = 0,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message.")] = None,
    as_json: Json = False,
) -> Reply:
    """Talk to a model: a base model, a run's best checkpoint, or one of its steps.

    \b
    Example:
      rft generate capitals-1 "What is the capital of France?" --greedy
    """
    from rft.training import probes

    text = probes.generate(
        model,
        prompt,
        greedy=greedy,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        system=system,
        runs_folder=RUNS_FOLDER,
    )
    return Reply({"model": model, "prompt": prompt, "text": text}, [text], as_json)
