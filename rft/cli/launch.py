"""`rft train --processes N`: the same command started once per process, by accelerate."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft.errors import JobFailedError, MachineError
from rft.runs.documents import read_document
from rft.runs.environment import available_cores
from rft.runs.layout import RUNS_FOLDER, RunFolder, newest_run

if TYPE_CHECKING:
    from rft.job import Job

STATUS_CODES = {"succeeded": 0, "cancelled": 0, "paused": 75}
SAID_BY_THE_RANK = frozenset({2, 3, 4, 75, 130})
"""Exit codes with which a process has already told what happened."""

PAUSE_SECONDS = "600"
"""How long the launcher waits for its processes to pause before it kills them."""


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    size = os.environ.get("WORLD_SIZE", "1")
    return size.isdigit() and int(size) > 1


def launch(
    job: "Job", arguments: Sequence[str], processes: int, run_dir: Path | None, resume: bool
) -> int:
    """Run `rft <arguments>` in that many processes; the exit code of the first that failed.

    Where the launcher swallows it, state.json of the run says how the job ended. Raises
    MachineError when there are fewer GPUs than processes.
    """
    _prepare_environment(job, processes)
    before = newest_run(job.suffix, RUNS_FOLDER)
    failure = _accelerate(arguments, processes)
    if failure is None:
        return 0
    rank, code = failure
    if code in SAID_BY_THE_RANK and rank == 0:
        return code
    newest = newest_run(job.suffix, RUNS_FOLDER)
    folder = run_dir or (newest if resume or newest != before else None)
    status = read_document(RunFolder(folder).state).get("status") if folder else None
    if status in STATUS_CODES:
        return STATUS_CODES[status]
    if code == 2:
        return code
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    raise JobFailedError(
        f"the process of rank {rank} {how}",
        where=str(folder or ""),
        remedy="see what it printed above; --resume goes on from the last state",
    )


def _prepare_environment(job: "Job", processes: int) -> None:
    """Choose CPU or GPUs and share the cores, for the processes to inherit."""
    import torch

    if job.engine.model.device == "cpu" or not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif torch.cuda.device_count() < processes:
        raise MachineError(
            f"{processes} processes need as many GPUs, but there are {torch.cuda.device_count()}",
            where="--processes",
            remedy=f"use --processes {torch.cuda.device_count()}",
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", PAUSE_SECONDS)


def _accelerate(arguments: Sequence[str], processes: int) -> tuple[int, int] | None:
    """`accelerate launch`, without its traceback: rank and exit code of the first failure."""
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # the launcher logs each failure with a box of its own; this process has nothing else to log
    logging.disable(logging.ERROR)
    options = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(processes)]
    quiet = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    parser: Any = accelerate_launch.launch_command_parser()
    try:
        accelerate_launch.launch_command(
            parser.parse_args([*options, *quiet, "-m", "rft", *arguments])
        )
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return rank, failure.exitcode
    except SignalException as error:
        return -1, -int(error.sigval)
    return None
