"""The rows of a job, checked against its grader; and a job whose every fault is told at once."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rft.data.examples import data_warnings, readable_examples, row_place
from rft.errors import DataError, JobError, NotYetError, Problem, UserError
from rft.graders import (
    grader_parts,
    grader_warnings,
    output_json_problems,
    output_json_warnings,
    output_tools_warnings,
    template_problems,
)
from rft.graders.json_schema import schema_warnings
from rft.job import Job, Reading, read_job
from rft.types import Example

GRADER = "method.reinforcement.grader"
MIN_ROWS = {"training_file": 10, "validation_file": 1}


def load_sound_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """The job a file describes, as `load_job` gives it.

    Where it has faults, its data are read too as far as it says how, so that the error tells what is
    wrong with the document, with the rows, and between rows and templates.
    """
    reading = read_job(path, overrides)
    if reading.error is None:
        assert reading.job is not None
        return reading.job
    faults: list[UserError] = [reading.error, *faults_beside(reading)]
    problems = _problems_of(faults)
    is_all_unbuilt = all(isinstance(fault, NotYetError) for fault in faults)
    raise (NotYetError if is_all_unbuilt else JobError)(problems)


def faults_beside(reading: Reading) -> list[UserError]:
    """What is wrong with the data of a faulty document, as far as it can be told."""
    if reading.job is None or not reading.says("engine", "data"):
        return []
    return data_faults(reading.job, [field for field in MIN_ROWS if reading.says(field)])[1]


def load_all_rows(job: Job) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The examples of the training and of the validation file; raises UserError with all faults."""
    rows, faults = data_faults(job, MIN_ROWS)
    if faults:
        raise type(faults[0])(_problems_of(faults))
    train, valid = rows
    return train, valid


def _problems_of(faults: Iterable[UserError]) -> list[Problem]:
    """All problems, each once: both files have the job's templates in common, and may be the same file."""
    return list(dict.fromkeys(problem for fault in faults for problem in fault.problems))


def data_faults(
    job: Job, fields: Iterable[str]
) -> tuple[list[tuple[Example, ...]], list[UserError]]:
    """The good rows of the named files; and what is wrong with the files, or with templates in them."""
    loaded: list[tuple[Example, ...]] = []
    faults: list[UserError] = []
    if problems := output_json_problems(
        job.grader, GRADER, has_json=job.completion_schema is not None
    ):
        faults.append(JobError(problems))
    for field in fields:
        source: str = getattr(job, field)
        try:
            rows, error = readable_examples(
                source, job.engine.data, field=field, minimum=MIN_ROWS[field]
            )
        except UserError as unreadable:
            faults.append(unreadable)
            continue
        if job.completion_schema is not None and (problems := tool_problems(source, rows)):
            faults.append(DataError(problems))
        loaded.append(tuple(rows))
        faults += [error] if error else []
        items = [(row_place(source, row), row.item) for row in rows]
        if problems := template_problems(job.grader, items, GRADER):
            faults.append(DataError(problems))
    return loaded, faults


def tool_problems(source: str, rows: Sequence[Example]) -> list[Problem]:
    """Rows with tools, where a schema leaves no room for a call."""
    with_tools = [example for example in rows if example.tools]
    if not with_tools:
        return []
    what = (
        f"tools in {len(with_tools)} of {len(rows)} rows, and a response_format that allows no call"
    )
    return [Problem(what, row_place(source, with_tools[0]), "remove one of the two")]


def job_warnings(job: Job, train: Sequence[Example], valid: Sequence[Example]) -> list[str]:
    """What is legal in a job's rows and in its grader but likely a mistake."""
    examples = (*train, *valid)
    has_tools = any(example.tools for example in examples)
    return [
        *data_warnings(train, valid),
        *grader_warnings(job.grader, [example.item for example in examples]),
        *output_json_warnings(job.grader, has_json=job.completion_schema is not None),
        *output_tools_warnings(job.grader, has_tools=has_tools),
        *sandbox_warnings(job),
        *format_warnings(job),
    ]


def format_warnings(job: Job) -> list[str]:
    """The keywords of the job's schema that restrict nothing."""
    response_format = job.method.reinforcement.response_format
    settings = response_format.json_schema if response_format else None
    return schema_warnings(settings.schema_) if settings else []


def sandbox_warnings(job: Job) -> list[str]:
    """That nothing keeps the job's python graders from the machine, if the job asked for that."""
    graders = [name for name, kind in grader_parts(job.grader) if kind == "python"]
    if not graders or job.grading_settings.sandbox != "unsafe-local":
        return []
    return [
        f"engine.grading.python.sandbox is unsafe-local: {', '.join(graders)}, and any completion "
        "that it executes, can read and change your files and use the network"
    ]
