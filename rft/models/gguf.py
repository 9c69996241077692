"""A GGUF file → a transformers folder: safetensors, config, tokenizer, chat template.

Files of the llama architecture are read here in about two seconds, bit for bit as transformers'
own loader reads them in thirty; the other architectures go through that loader.
"""

import hashlib
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.gguf.dequant import dequantize
from transformers.integrations.gguf.reader import GgufHeader, TensorInfo, read_gguf_metadata

from rft.errors import MachineError, ModelError
from rft.models.cache import make_once, models_cache

Metadata = Mapping[str, Any]
"""The key-value part of a GGUF file; long arrays of strings stand in it as their length."""

PLAIN_TYPES = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""ggml types that hold values rather than quantised blocks."""

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
LAYER_TENSOR = re.compile(rf"blk\.(\d+)\.({'|'.join(LAYER_NAMES)})\.weight")
ROPE_FACTORS = "rope_freqs.weight"

READING_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What the readers raise on files that are damaged or of a kind they do not know."""


def converted_folder(path: Path) -> Path:
    """The GGUF file as a transformers folder in the cache, converted when first asked for.

    Raises ModelError as `convert_gguf` does, MachineError when the cache cannot be written.
    """
    sha256 = sha256_of(path)
    folder = models_cache() / f"{path.stem}-{sha256[:16]}"
    return make_once(folder, lambda made: convert_gguf(path, made), sha256)


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert_gguf(path: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file into an existing folder, in full precision.

    Raises ModelError when the file is damaged or of an unknown kind, MachineError when reading it
    takes a package that is not installed.
    """
    try:
        header = GgufHeader.from_file(str(path))
        metadata, _ = read_gguf_metadata(str(path))
        if (num_parts := metadata.get("split.count", 1)) > 1:
            raise ValueError(f"it is one of {num_parts} parts; merge them with llama-gguf-split")
        tokenizer = read_tokenizer(path, metadata)
        if is_plain_llama(header):
            state, config = read_llama(header, metadata), llama_config(header, metadata)
        else:
            model = read_with_transformers(path)
    except READING_ERRORS as error:
        raise ModelError(
            f"cannot read this GGUF file: {type(error).__name__}: {str(error)[:300]}",
            where=str(path),
            remedy="fetch the file again, or use a folder with safetensors files",
        ) from error
    if is_plain_llama(header):
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    generation_config(metadata).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def is_plain_llama(header: GgufHeader) -> bool:
    """Whether every tensor of the file is one of those a dense llama model has."""
    return header.architecture == "llama" and all(
        info.name in OUTER_NAMES or info.name == ROPE_FACTORS or LAYER_TENSOR.fullmatch(info.name)
        for info in header.tensors
    )


def read_llama(header: GgufHeader, metadata: Metadata) -> dict[str, Tensor]:
    """The weights under transformers' names; quantised ones as float32."""
    num_heads = metadata["llama.attention.head_count"]
    rows_are_permuted = {
        "attn_q": num_heads,
        "attn_k": metadata.get("llama.attention.head_count_kv", num_heads),
    }
    blob = np.memmap(header.path, dtype=np.uint8, mode="r")
    state = {}
    for info in header.tensors:
        if info.name == ROPE_FACTORS:
            continue
        weight = read_tensor(blob, header.data_start, info)
        if layer := LAYER_TENSOR.fullmatch(info.name):
            index, kind = layer.groups()
            if kind in rows_are_permuted:
                weight = unpermute_rope_rows(weight, rows_are_permuted[kind])
            state[f"model.layers.{index}.{LAYER_NAMES[kind]}.weight"] = weight.contiguous()
        else:
            state[OUTER_NAMES[info.name]] = weight
    return state


def read_tensor(blob: np.ndarray[Any, Any], data_start: int, info: TensorInfo) -> Tensor:
    """One tensor of the file; float32 when it is stored quantised, its own type otherwise."""
    start = data_start + info.offset
    if start + info.nbytes > len(blob):
        raise ValueError(f"the file ends inside the tensor {info.name}")
    raw = torch.from_numpy(blob[start : start + info.nbytes].copy())
    if plain_type := PLAIN_TYPES.get(info.ggml_type):
        return raw.view(plain_type).view(info.shape).float()
    values: Tensor = dequantize(raw, info.ggml_type)
    return values.reshape(info.shape)


def unpermute_rope_rows(weight: Tensor, num_heads: int) -> Tensor:
    """Undoes llama.cpp's order of the query and key rows, which pairs neighbours for its RoPE."""
    half = weight.shape[0] // num_heads // 2
    paired = weight.view(num_heads, half, 2, weight.shape[1])
    return paired.transpose(1, 2).reshape(weight.shape)


def llama_config(header: GgufHeader, metadata: Metadata) -> LlamaConfig:
    """The model's shape as the file's metadata and tensor table tell it."""
    shapes = {info.name: info.shape for info in header.tensors}
    num_heads = metadata["llama.attention.head_count"]
    width = metadata["llama.embedding_length"]
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=shapes["token_embd.weight"][0],
        hidden_size=width,
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=num_heads,
        num_key_value_heads=metadata.get("llama.attention.head_count_kv", num_heads),
        head_dim=metadata.get("llama.rope.dimension_count", width // num_heads),
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters=rope_parameters(header, metadata),
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def rope_parameters(header: GgufHeader, metadata: Metadata) -> dict[str, Any]:
    """How positions are scaled; a file stores Llama 3's way only as a table of factors.

    Raises ValueError for a scaling that cannot be told from the file.
    """
    theta = metadata.get("llama.rope.freq_base", 10000.0)
    table = next((info for info in header.tensors if info.name == ROPE_FACTORS), None)
    if table is not None:
        blob = np.memmap(header.path, dtype=np.uint8, mode="r")
        stored = read_tensor(blob, header.data_start, table)
        parameters = llama3_rope(theta, stored.max().item())
        if not torch.allclose(stored, llama3_rope_factors(parameters, len(stored)), rtol=1e-3):
            raise ValueError(f"unknown table of position factors in {ROPE_FACTORS}")
        return parameters
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if scaling == "linear":
        factor = metadata["llama.rope.scaling.factor"]
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    raise ValueError(f"unknown scaling of positions {scaling!r}")


def llama3_rope(theta: float, factor: float) -> dict[str, Any]:
    """The scaling all Llama 3.1 to 3.3 models share, but for the factor."""
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def llama3_rope_factors(parameters: Mapping[str, Any], num_frequencies: int) -> Tensor:
    """By what each frequency is divided under the given Llama 3 scaling."""
    exponents = torch.arange(num_frequencies, dtype=torch.float64) / num_frequencies
    wavelengths = 2 * math.pi * parameters["rope_theta"] ** exponents
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] / wavelengths
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    kept: Tensor = (1 - blend) / parameters["factor"] + blend
    return (1 / kept).float()


def read_with_transformers(path: Path) -> PreTrainedModel:
    """The model as transformers' own GGUF loader reads it, freed of its traces of quantisation."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
    except ImportError as error:
        raise MachineError(
            f"reading this GGUF file takes the package gguf: {error}",
            where=str(path),
            remedy='pip install "gguf>=0.17"',
        ) from error
    model.hf_quantizer = None
    for flag in ("is_quantized", "quantization_method"):
        model.__dict__.pop(flag, None)
    for key in ("quantization_config", "_model_name_or_path"):
        model.config.__dict__.pop(key, None)
    model.config._name_or_path = ""
    return model


def read_tokenizer(path: Path, metadata: Metadata) -> PreTrainedTokenizerFast:
    """The tokenizer and chat template the file describes."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True
    )
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        # transformers does not know this name and would leave runs of digits in one piece.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    architecture = metadata["general.architecture"]
    if context_length := metadata.get(f"{architecture}.context_length"):
        tokenizer.model_max_length = context_length
    return tokenizer


def generation_config(metadata: Metadata) -> GenerationConfig:
    """The tokens that begin, end and pad a text; a file may name several that end one."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = (metadata.get(f"tokenizer.ggml.{name}") for name in names)
    end_ids = list(dict.fromkeys(token_id for token_id in found if token_id is not None))
    end = end_ids[0] if len(end_ids) == 1 else end_ids or None
    padding = metadata.get("tokenizer.ggml.padding_token_id")
    return GenerationConfig(
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=end,
        pad_token_id=padding if padding is not None else next(iter(end_ids), None),
    )
