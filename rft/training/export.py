"""A checkpoint for use elsewhere: the adapter alone, or a whole model with the adapter folded in."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel

from rft.errors import MachineError, RunError
from rft.models import ModelSource, find_model, load_config, load_model, load_tokenizer
from rft.runs.folders import MANIFEST
from rft.training.checkpoints import ENTRY
from rft.training.probes import settings_of


def export(reference: str, folder: Path, format: str, runs_folder: Path) -> Path:
    """Write RUN (its best), RUN@step or an adapter folder as `peft` or `merged` into a new folder.

    Raises RunError when the folder exists or the reference has no adapter, MachineError when the
    folder cannot be written.
    """
    if folder.exists():
        raise RunError("the folder exists already", where=str(folder), remedy="name a new folder")
    source = find_model(reference, runs_folder=runs_folder)
    if source.adapter is None:
        raise RunError(
            f"{reference} is a base model: there is nothing trained in it",
            remedy="name a run, RUN@step or an adapter folder",
        )
    try:
        if format == "peft":
            ignored = shutil.ignore_patterns(MANIFEST, ENTRY)
            shutil.copytree(source.adapter, folder, ignore=ignored)
        else:
            _write_merged(source, folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise MachineError(
            f"the export failed: {error.strerror or error}",
            where=str(folder),
            remedy="name a folder you may write to, with room for the model",
        ) from None
    return folder


def _write_merged(source: ModelSource, folder: Path) -> None:
    """Fold W + scaling · B A in float32, then save in the base's own number format."""
    settings = settings_of(source)[0].model_copy(update={"quantization": "none"})
    stored = load_config(source, settings).dtype or torch.float32
    base = load_model(source, settings, "float32", "cpu")
    merged = PeftModel.from_pretrained(base, str(source.adapter)).merge_and_unload()
    merged.to(stored).save_pretrained(folder)
    load_tokenizer(source, settings).save_pretrained(folder)
