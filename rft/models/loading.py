"""Folders → tokenizer and model, on the device and in the type the job asks for."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rft.errors import MachineError, ModelError
from rft.job import ModelSettings
from rft.models.names import ModelSource

LOADING_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What transformers raises on folders that are incomplete, damaged or of an unknown kind."""

CONTEXT_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
NO_CONTEXT_LIMIT = 1 << 20


def choose_device_and_dtype(settings: ModelSettings) -> tuple[str, str]:
    """`auto` decided: cuda where there is one; bfloat16 where the device has it, else float32.

    Raises MachineError for a device the machine lacks.
    """
    has_cuda = torch.cuda.is_available()
    device = ("cuda" if has_cuda else "cpu") if settings.device == "auto" else settings.device
    if device != "cpu" and not _is_present(device):
        raise MachineError(
            f"there is no device {device!r} here",
            where="engine.model.device",
            remedy="set it to cpu or auto, or install a driver and a torch built for CUDA",
        )
    if settings.dtype != "auto":
        return device, settings.dtype
    has_bfloat16 = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    return device, "bfloat16" if has_bfloat16 else "float32"


def _is_present(device: str) -> bool:
    index = torch.device(device).index or 0
    return torch.cuda.is_available() and index < torch.cuda.device_count()


def load_tokenizer(source: ModelSource, settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the job's chat template when it names one.

    Raises ModelError when it cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder,
            local_files_only=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except LOADING_ERRORS as error:
        raise _unreadable("the tokenizer", source, error) from error
    if settings.chat_template is not None:
        tokenizer.chat_template = read_chat_template(settings.chat_template)
    return tokenizer


def read_chat_template(setting: str) -> str:
    """The template itself: the setting when it is Jinja text, else the file it names."""
    if "{{" in setting or "{%" in setting:
        return setting
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read the chat template {setting!r}: {error}",
            where="engine.model.chat_template",
            remedy="give a file, or the Jinja text itself",
        ) from error


def load_config(source: ModelSource, settings: ModelSettings) -> PretrainedConfig:
    """The model's configuration, without its weights. Raises ModelError when it cannot be read."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.folder,
            local_files_only=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except LOADING_ERRORS as error:
        raise _unreadable("the model's configuration", source, error) from error
    return config


def load_model(
    source: ModelSource, settings: ModelSettings, dtype: str, device: str
) -> PreTrainedModel:
    """The base model in evaluation mode, all weights frozen; on the device `meta` it has no storage.

    Raises ModelError when the folder holds no whole causal language model, MachineError when the
    machine lacks the memory or a package.
    """
    transformers_logging.disable_progress_bar()
    placement: dict[str, Any] = {}
    if settings.quantization == "4bit":
        placement = {"quantization_config": _four_bit(device), "device_map": {"": device}}
    elif device == "meta":
        placement = {"device_map": device}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
            **placement,
        )
        if not placement:
            model = model.to(device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            f"not enough memory on {device} for {source.name}",
            remedy="take a smaller model, or engine.model.quantization=4bit on a GPU",
        ) from error
    except LOADING_ERRORS as error:
        raise _unreadable("the model", source, error) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights lack {len(missing)} of the model's tensors, such as {missing[0]}",
            where=str(source.folder),
            remedy="fetch the weights again; training on random ones would be pointless",
        )
    model.name_or_path = source.base_name
    return model.eval().requires_grad_(False)


def _four_bit(device: str) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(
            "4-bit weights take the package bitsandbytes",
            where="engine.model.quantization",
            remedy='pip install "rft[quantization]"',
        )
    if device == "cpu":
        raise MachineError(
            f"4-bit weights take a CUDA device, not {device}",
            where="engine.model.quantization",
            remedy="set it to none",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _unreadable(what: str, source: ModelSource, error: BaseException) -> ModelError:
    said = " ".join(str(error).split())
    remedy = "see that the folder is complete and holds a causal language model"
    if "trust_remote_code" in said:
        remedy = "if you trust its Python files, set engine.model.trust_remote_code=true"
    return ModelError(
        f"cannot read {what} of {source.name}: {type(error).__name__}: {said[:300]}",
        where=str(source.folder),
        remedy=remedy,
    )


def count_parameters(model: torch.nn.Module) -> int:
    """How many weights the model has; one packed in 4 bits counts as one."""
    return sum(_num_weights(parameter) for parameter in model.parameters())


def _num_weights(parameter: torch.nn.Parameter) -> int:
    quantisation = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantisation is None else quantisation.shape.numel()


def context_length(config: PretrainedConfig) -> int:
    """The longest sequence the model was made for, in tokens."""
    text_config = config.get_text_config()
    parameters = getattr(text_config, "rope_parameters", None) or {}
    by_layer_type = [one for one in parameters.values() if isinstance(one, dict)]
    for rope in [parameters, *by_layer_type]:
        if rope.get("rope_type") in ("longrope", "dynamic"):
            # beyond it the rotation depends on the longest row of a batch
            original = rope.get("original_max_position_embeddings") or getattr(
                text_config, "original_max_position_embeddings", None
            )
            if isinstance(original, int):
                return original
    found = (getattr(text_config, key, None) for key in CONTEXT_LENGTH_KEYS)
    return next((length for length in found if isinstance(length, int)), NO_CONTEXT_LIMIT)
