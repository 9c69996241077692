"""The run folder: one writer, many readers, everything in formats others read."""

from rft.runs.compare import Comparison, compare_evaluations, standard_error
from rft.runs.environment import available_cores, describe_environment
from rft.runs.folders import (
    adopt,
    remove_folder,
    sweep,
    temporary_folder,
    verify_folder,
    write_folder,
)
from rft.runs.layout import (
    RUNS_FOLDER,
    RunChoice,
    RunFolder,
    choose_run_folder,
    new_run_folder,
    newest_run,
)
from rft.runs.reader import Checkpoint, Run, RunStatus, adapter_folder, list_runs, open_run
from rft.runs.results import error_kinds, results_columns
from rft.runs.writer import RunWriter

__all__ = [
    "RUNS_FOLDER",
    "Checkpoint",
    "Comparison",
    "Run",
    "RunChoice",
    "RunFolder",
    "RunStatus",
    "RunWriter",
    "adapter_folder",
    "adopt",
    "available_cores",
    "choose_run_folder",
    "compare_evaluations",
    "describe_environment",
    "error_kinds",
    "list_runs",
    "new_run_folder",
    "newest_run",
    "open_run",
    "remove_folder",
    "results_columns",
    "standard_error",
    "sweep",
    "temporary_folder",
    "verify_folder",
    "write_folder",
]
