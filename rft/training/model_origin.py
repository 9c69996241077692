"""The weights that a run begins with and never changes: found again, and known again, when it goes on."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rft.models import ModelSource, find_model
from rft.runs.folders import verify_folder, write_folder
from rft.runs.layout import RunFolder, steps_in

ADAPTER_WEIGHTS = "adapter_model.safetensors"
VALUES_DIGESTED = 1024
"""About so many of each matrix say whether it is the same."""


def find_job_model(name: str, runs_folder: Path, begun: RunFolder | None) -> ModelSource:
    """A job's model; for a run that has begun from an adapter, the copy of it that the run keeps."""
    if begun is None or not steps_in(begun.states) or not begun.start_adapter.is_dir():
        return find_model(name, runs_folder=runs_folder)
    if verify_folder(begun.start_adapter):
        return find_model(name, runs_folder=runs_folder)
    return replace(find_model(str(begun.start_adapter), runs_folder=runs_folder), name=name)


def keep_start_adapter(adapter: Path, folder: RunFolder) -> None:
    """Copy the adapter that a run continues from into its folder. Raises DiskError."""
    names = ("adapter_config.json", ADAPTER_WEIGHTS)
    write_folder(folder.start_adapter, {name: (adapter / name).read_bytes() for name in names})


def model_digest(base: PreTrainedModel, adapter: Path | None) -> str:
    """SHA-256 over name, type, shape and some thousand values of each of the base's matrices, those that are
    sharded left out, and over the file of the adapter that the policy continues from.

    Any further training of a base changes nearly all of its numbers; reading all of a large one would take as
    long as loading it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(base.named_parameters()):
        if isinstance(parameter, DTensor):
            continue
        flat = parameter.detach().flatten()
        some = flat[:: max(1, len(flat) // VALUES_DIGESTED)].cpu().contiguous()
        digest.update(f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
        digest.update(some.view(torch.uint8).numpy().data)
    if adapter is not None:
        digest.update((adapter / ADAPTER_WEIGHTS).read_bytes())
    return digest.hexdigest()
