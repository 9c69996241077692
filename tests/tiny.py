"""Small real parts for tests: random models of several families, a byte tokenizer, a model folder."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rft.policy import LoraShape, Policy, new_policy

END, PAD = "<|im_end|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen2 sliding": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {},
    "mistral sliding": {"sliding_window": 7},
    "phi3 sliding": {"sliding_window": 7},
    "gemma": {},
    "gemma2 sliding": {
        "sliding_window": 7,
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 4.0,
    },
    "gemma3_text sliding": {"sliding_window": 7},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "smollm3": {},
}
"""Name (its first word is transformers' model type) → configuration."""

LEFT_OUT = object()
"""In a configuration: the key of `tiny_model` that a family does not know."""

EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "shared_expert_intermediate_size": 32,
}
MAMBA2: dict[str, Any] = {
    "num_hidden_layers": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
LINEAR_ATTENTION: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "num_hidden_layers": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

MORE_FAST_FAMILIES: dict[str, dict[str, Any]] = {
    "llama bias": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "gemma3_text pattern": {
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma4_text": {
        "final_logit_softcapping": 30.0,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": 260,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 16,
    },
    "ministral3": {"sliding_window": 7},
    "phi": {},
    "smollm3 nope": {"no_rope_layer_interval": 2},
    "olmo2": {},
    "olmo3": {"sliding_window": 7},
    "cohere2": {"sliding_window": 7, "logit_scale": 0.3},
    "glm4": {},
    "starcoder2": {"sliding_window": 7},
    "exaone4": {"sliding_window": 7},
    "seed_oss": {},
    "gpt_neox": {},
    "gpt2": {},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96, "activation_function": "gelu"},
    "mixtral": {},
    "qwen3_moe": EXPERTS,
    "granitemoe": EXPERTS,
    "deepseek_v3": EXPERTS
    | {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "head_dim": LEFT_OUT,
        "num_key_value_heads": 4,
        "n_group": 1,
        "topk_group": 1,
    },
}

SLOW_FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {},
    "falcon": {"head_dim": LEFT_OUT},
    "falcon alibi": {"head_dim": LEFT_OUT, "alibi": True, "multi_query": False},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_hidden_layers": LEFT_OUT,
        "window_size": 7,
    },
    "mpt": {},
    "stablelm": {},
    "nemotron": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
    "diffllama": {},
    "qwen2_moe sliding": EXPERTS
    | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {
        "num_heads": 8,
        "n_groups": 1,
        "state_size": 8,
        "chunk_size": 8,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_hidden_layers": 2,
        "use_mamba_kernels": False,
        "num_experts": 1,
    },
    "granitemoehybrid": MAMBA2
    | {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
    },
    "qwen3_next": EXPERTS | LINEAR_ATTENTION,
    "qwen3_5_text": LINEAR_ATTENTION,
}

UNCACHED_FAMILIES: dict[str, dict[str, Any]] = {
    "bamba": MAMBA2 | {"attn_layer_indices": [1]},
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 7},
}
"""Families whose cache disagrees with their own pass without one."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "mixtral": ATTENTION,
    "qwen3_moe": ATTENTION,
    "deepseek_v3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    "mamba2": ("in_proj",),
    "jamba": (*ATTENTION, "in_proj", "x_proj", "gate_proj", "down_proj"),
    "qwen3_next": (*ATTENTION, "in_proj_qkvz", "in_proj_ba", "out_proj"),
}
"""Where `all-linear` names layers that LoRA cannot be put on, or not with effect."""


def tiny_model(
    family: str = "llama", vocab_size: int = 260, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """A frozen random model whose logits are far from uniform."""
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    kind = CONFIG_MAPPING[family.split()[0]]
    known = FAMILIES | MORE_FAST_FAMILIES | SLOW_FAMILIES | UNCACHED_FAMILIES
    settings = shape | known.get(family, {}) | config
    settings = {key: value for key, value in settings.items() if value is not LEFT_OUT}
    model = AutoModelForCausalLM.from_config(kind(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if parameter.ndim >= 2 else 0.05
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(1 + noise if _scales(name, family) else noise)
    return model.float().eval().requires_grad_(False)


def _scales(name: str, family: str) -> bool:
    """Whether a parameter is the factor of a norm; Gemma's are added to 1, but for its fourth."""
    is_norm = "norm" in name or ".ln_" in name
    return is_norm and ("gemma" not in family or "gemma4" in family)


def tiny_policy(family: str = "llama", checkpointing: bool = False, **config: Any) -> Policy:
    """A policy whose adapter is large: on and off differ by more than a tenth of a nat."""
    shape = LoraShape(rank=4, alpha=8, targets=LORA_TARGETS.get(family, "all-linear"))
    policy = new_policy(tiny_model(family, **config), shape, 0, checkpointing)
    make_adapter_large(policy)
    return policy


def make_adapter_large(policy: Policy, scale: float = 0.3, seed: int = 1) -> None:
    """Give every B random values."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.parameters().items():
        if ".lora_B." in name:
            values = torch.randn(parameter.shape, generator=generator) * scale
            with torch.no_grad():
                parameter.copy_(values)
    policy.refresh()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus the control tokens of the chat template; 260 in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [PAD, "<|im_start|>", END, "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny_model(folder: Path, family: str = "llama", **config: Any) -> Path:
    """A model folder as a hub would have it, small enough for the real command line in seconds."""
    tiny_model(family, **config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
