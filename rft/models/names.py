"""A model's name → the folders that hold it: built-in, folder, GGUF file, run, hub id."""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft.errors import ModelError
from rft.models.builtin import BUILTIN_MODELS, builtin_folder
from rft.models.gguf import converted_folder
from rft.models.hub import hub_folder
from rft.runs.layout import RunFolder
from rft.runs.reader import adapter_folder, list_runs, split_reference

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files lie; nothing of it is loaded yet."""

    name: str
    """As the person wrote it."""
    folder: Path
    """The base model: config, safetensors, tokenizer."""
    adapter: Path | None
    """A PEFT folder to continue from."""
    base_name: str
    """What plain transformers finds the base model by: hub id or absolute path."""


def find_model(name: str, *, runs_folder: Path) -> ModelSource:
    """The model of that name; fetched or converted first where that takes it.

    Raises ModelError when there is none or it is unusable, MachineError when fetching fails.
    """
    folder, found_name = _locate(name, runs_folder)
    if not _is_adapter(folder):
        _check_model_folder(folder)
        return ModelSource(name, folder, None, found_name)
    base_name = _base_of(folder)
    base, found_base_name = _locate(base_name, runs_folder, asked_by=folder)
    if _is_adapter(base):
        raise ModelError(
            f"the base model {base_name!r} of this adapter is an adapter too",
            where=str(folder / "adapter_config.json"),
            remedy="merge the lower one into its model first: rft export … --format merged",
        )
    _check_model_folder(base)
    return ModelSource(name, base, folder, found_base_name)


def _locate(name: str, runs_folder: Path, asked_by: Path | None = None) -> tuple[Path, str]:
    """The folder of a model or adapter, and the name that finds it from anywhere."""
    if builtin := BUILTIN_MODELS.get(name):
        return _found(builtin_folder(builtin))
    path = Path(name).expanduser()
    if name and (_is_adapter(path) or (path / "config.json").is_file()):
        return _found(path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                f"a model file must be a .gguf, not {path.name!r}",
                where=name,
                remedy="name the folder that holds config.json and the safetensors files",
            )
        return _found(converted_folder(path))
    run = split_reference(name)[0]
    if run and any(RunFolder(parent / run).is_run for parent in (Path(), runs_folder)):
        return _found(adapter_folder(name, runs_folder))
    if name and path.is_dir():
        return _found(path)
    if HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return hub_folder(name), name
    raise _not_found(name, runs_folder, asked_by)


def _found(folder: Path) -> tuple[Path, str]:
    return folder.absolute(), str(folder.absolute())


def _not_found(name: str, runs_folder: Path, asked_by: Path | None) -> ModelError:
    known = [*BUILTIN_MODELS, *(run.name for run in list_runs(runs_folder)), *_models_beside(name)]
    near = difflib.get_close_matches(name, known, n=1)
    return ModelError(
        f"no model {name!r}: no built-in model, folder, GGUF file or run below {runs_folder} has"
        " that name, and a hub id reads owner/name",
        where=str(asked_by / "adapter_config.json") if asked_by else "model",
        remedy=f"did you mean {near[0]!r}?" if near else f"try {next(iter(BUILTIN_MODELS))}",
    )


def _models_beside(name: str) -> list[str]:
    """The models in the folder where that path would lie, as paths of the same kind."""
    parent = Path(name).expanduser().parent
    try:
        entries = list(parent.iterdir())
    except (OSError, ValueError):
        return []
    return [
        str(entry)
        for entry in entries
        if entry.suffix == ".gguf" or (entry / "config.json").is_file() or _is_adapter(entry)
    ]


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _base_of(adapter: Path) -> str:
    """The name of the model an adapter belongs to; raises ModelError for what cannot be one."""
    config_file = adapter / "adapter_config.json"
    try:
        config: Any = json.loads(config_file.read_text(encoding="utf-8"))
        base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"cannot read this adapter: {error}", where=str(config_file)) from error
    if kind != "LORA":
        raise ModelError(
            f"an adapter of type {kind!r}; only LORA is supported", where=str(config_file)
        )
    if not (adapter / "adapter_model.safetensors").is_file():
        has_pickle = (adapter / "adapter_model.bin").is_file()
        raise ModelError(
            "this adapter has only adapter_model.bin, a pickle, which could run code when read"
            if has_pickle
            else "this adapter has no adapter_model.safetensors",
            where=str(adapter),
            remedy="load it with peft where you trust it, and save it again as safetensors",
        )
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"this adapter does not name its model: base_model_name_or_path is {base!r}",
            where=str(config_file),
            remedy="write the base model's name or folder there",
        )
    if Path(base).is_dir():
        return base
    if Path(base).name in BUILTIN_MODELS:  # trained on another machine, whose cache lay elsewhere
        return Path(base).name
    beside = adapter / base
    return str(beside.resolve()) if beside.is_dir() else base


def _check_model_folder(folder: Path) -> None:
    """Raises ModelError unless the folder has a config and weights as safetensors."""
    if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
        return
    if ggufs := sorted(folder.glob("*.gguf")):
        what, remedy = "this folder holds GGUF files", f"name one of them: {ggufs[0]}"
    elif not (folder / "config.json").is_file():
        what = "not a model folder: neither config.json nor adapter_config.json is in it"
        remedy = "name the folder that save_pretrained wrote"
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        what = "this model has only pickled weights (.bin), which could run code when read"
        remedy = "load it with transformers where you trust it, and save_pretrained it again"
    else:
        what, remedy = "this model folder holds no *.safetensors", "fetch its weights too"
    raise ModelError(what, where=str(folder), remedy=remedy)
