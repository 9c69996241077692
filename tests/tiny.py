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
    model = AutoModelForCausalLM.from_config(kind(**(shape | FAMILIES.get(family, {}) | config)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if parameter.ndim >= 2 else 0.05
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(1 + noise if "norm" in name and "gemma" not in family else noise)
    return model.float().eval().requires_grad_(False)


def tiny_policy(family: str = "llama", checkpointing: bool = False, **config: Any) -> Policy:
    """A policy whose adapter is large: on and off differ by more than a tenth of a nat."""
    policy = new_policy(tiny_model(family, **config), LoraShape(rank=4, alpha=8), 0, checkpointing)
    make_adapter_large(policy)
    return policy


def make_adapter_large(policy: Policy, scale: float = 0.3, seed: int = 1) -> None:
    """Give every B random values."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.parameters().items():
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)


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
