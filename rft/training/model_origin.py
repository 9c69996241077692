"""The weights that a run begins with and never changes: found again, and known again, when it goes on."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rft.errors import ModelError
from rft.models import ModelSource, find_model
from rft.runs import disk
from rft.runs.documents import json_bytes
from rft.runs.folders import verify_folder, write_folder
from rft.runs.layout import RunFolder, steps_in

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
VALUES_DIGESTED = 1024
"""About so many of each matrix say whether it is the same."""


def find_job_model(name: str, runs_folder: Path, begun: RunFolder | None) -> ModelSource:
    """A job's model; for a run that has begun from an adapter, the copy of it that the run keeps, if that is
    whole."""
    kept = begun.start_adapter if begun and steps_in(begun.states) else None
    if kept is None or not kept.is_dir() or verify_folder(kept):
        return find_model(name, runs_folder=runs_folder)
    return replace(find_model(str(kept), runs_folder=runs_folder), name=name)


def keep_start_adapter(source: ModelSource, folder: RunFolder) -> None:
    """See that a run's folder has a whole copy of the adapter that it continues from, or none if from none.

    Raises DiskError, and ModelError when the adapter has gone.
    """
    if source.adapter is None:
        if folder.start_adapter.is_dir():
            disk.remove_folder(folder.start_adapter)
        return
    if source.adapter == folder.start_adapter.absolute():
        return
    try:
        config = json.loads((source.adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        weights = (source.adapter / ADAPTER_WEIGHTS).read_bytes()
    except OSError as error:
        raise ModelError(
            f"the adapter went while it was loaded: {error.strerror}",
            where=str(source.adapter),
            remedy="start again: its run may have dropped the checkpoint for a better one",
        ) from None
    config["base_model_name_or_path"] = source.base_name  # it may have been relative to the adapter
    files = {ADAPTER_CONFIG: json_bytes(config, indent=2), ADAPTER_WEIGHTS: weights}
    write_folder(folder.start_adapter, files)


def start_adapter_faults(folder: RunFolder) -> list[str]:
    """What is wrong with the copy of the adapter that a run continues from, if it has one."""
    faults = verify_folder(folder.start_adapter) if folder.start_adapter.is_dir() else []
    return [f"{folder.start_adapter.name} is damaged: {'; '.join(faults)}"] if faults else []


def adapter_digest(adapter: Path | None) -> str:
    """SHA-256 of the weights of the adapter that a policy continues from; empty for none."""
    if adapter is None:
        return ""
    with (adapter / ADAPTER_WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_digest(base: PreTrainedModel) -> str:
    """SHA-256 over name, type, shape and some thousand values of each matrix of a whole base.

    Any further training of it changes nearly all of its numbers; reading all of a large one would take as
    long as loading it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(base.named_parameters()):
        flat = parameter.detach().flatten()
        some = flat[:: max(1, len(flat) // VALUES_DIGESTED)].cpu().contiguous()
        digest.update(f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
        digest.update(some.view(torch.uint8).numpy().data)
    return digest.hexdigest()
