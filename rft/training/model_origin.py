"""The weights that a run begins with and never changes: found again, and known again, when it goes on."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

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
    """Copy the adapter that a run continues from, if it does, into its folder. Raises DiskError."""
    disk.remove_folder(folder.start_adapter)
    if source.adapter is None:
        return
    config = json.loads((source.adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    is_path = os.path.isabs(source.base_name)  # it may have been relative to the adapter
    config["base_model_name_or_path"] = (
        str(source.folder.resolve()) if is_path else source.base_name
    )
    files = {
        ADAPTER_CONFIG: json_bytes(config, indent=2),
        ADAPTER_WEIGHTS: (source.adapter / ADAPTER_WEIGHTS).read_bytes(),
    }
    write_folder(folder.start_adapter, files)


def start_adapter_faults(folder: RunFolder) -> list[str]:
    """What is wrong with the copy of the adapter that a run continues from, if it has one."""
    faults = verify_folder(folder.start_adapter) if folder.start_adapter.is_dir() else []
    return [f"{folder.start_adapter.name} is damaged: {'; '.join(faults)}"] if faults else []


def origin_digest(base_digest: str, adapter: Path | None) -> str:
    """SHA-256 over a base's digest and the file of the adapter that the policy continues from."""
    digest = hashlib.sha256(base_digest.encode())
    if adapter is not None:
        digest.update((adapter / ADAPTER_WEIGHTS).read_bytes())
    return digest.hexdigest()


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
