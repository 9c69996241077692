"""The paths in a job, made absolute from the folder of its file."""

import os
from pathlib import Path
from typing import Any

from rft.job.document import Job


def with_absolute_paths(job: Job, folder: Path) -> Job:
    """The job with the paths that are relative to its file made absolute."""
    model, grading = job.engine.model, job.engine.grading
    template = model.chat_template
    if template is not None and not any(mark in template for mark in ("{{", "{%", "\n")):
        model = model.model_copy(update={"chat_template": _absolute(template, folder)})
    if grading.similarity_model is not None:
        name = _absolute_model(grading.similarity_model, folder)
        grading = grading.model_copy(update={"similarity_model": name})
    changed: dict[str, Any] = {
        "model": _absolute_model(job.model, folder),
        "training_file": _absolute_source(job.training_file, folder),
        "validation_file": _absolute_source(job.validation_file, folder),
        "engine": job.engine.model_copy(update={"model": model, "grading": grading}),
    }
    return job.model_copy(update=changed)


def with_home(path: str) -> str:
    """The path with `~` and `~name` replaced by that home; as it is where nobody has one."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # a NUL, which no name holds; whoever opens the path says so
        return path


def _absolute_model(name: str, folder: Path) -> str:
    """A path when there is one, or when it can be nothing else; names of models and runs stay."""
    is_path = name.startswith((".", "~", "/"))
    return _absolute(name, folder) if is_path or os.path.exists(folder / name) else name


def _absolute_source(source: str, folder: Path) -> str:
    return source if source.startswith("hf://") else _absolute(source, folder)


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder / with_home(path))
