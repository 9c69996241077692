"""Bytes of a token, estimated from a model's shapes."""

import torch
from transformers import PretrainedConfig


def kv_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token over all layers."""
    config = config.get_text_config()
    width = _head_width(config) * _num_kv_heads(config)
    return int(2 * config.num_hidden_layers * width * dtype.itemsize)


def activation_bytes_per_token(
    config: PretrainedConfig, dtype: torch.dtype, checkpointing: bool = False
) -> int:
    """What one token of a packed row leaves for the backward pass.

    Per layer: five vectors of hidden width (inputs and outputs of both norms, the residual between),
    queries, attention output and its contiguous copy, keys and values with two copies of them,
    and four of the feed-forward width (gate, its activation, up, their product).
    Below float32 the adapter is apart, and keeps the input of each of its seven layers in float32.
    With checkpointing: the input of each layer, and all of one.
    """
    config = config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    queries = _head_width(config) * _num_heads(config)
    keys = _head_width(config) * _num_kv_heads(config)
    feed_forward = getattr(config, "intermediate_size", None) or 4 * hidden
    per_layer = dtype.itemsize * (5 * hidden + 3 * queries + 6 * keys + 4 * feed_forward)
    if dtype != torch.float32:
        per_layer += torch.float32.itemsize * (5 * hidden + queries + feed_forward)
    if checkpointing:
        return int(per_layer + layers * hidden * dtype.itemsize)
    return int(layers * per_layer)


def prompt_copy_cost(
    config: PretrainedConfig, dtype: torch.dtype, checkpointing: bool = False
) -> float:
    """What a token of a prompt leaves for each completion that sees it, a copy of its keys and values, as a share
    of what a token of a packed row leaves."""
    copied = kv_bytes_per_token(config, dtype)
    if checkpointing:
        copied //= config.get_text_config().num_hidden_layers
    return copied / activation_bytes_per_token(config, dtype, checkpointing)


def _num_heads(config: PretrainedConfig) -> int:
    """Query heads; 1 for a model without attention, whose state is then taken for that of one wide head."""
    return int(getattr(config, "num_attention_heads", None) or 1)


def _num_kv_heads(config: PretrainedConfig) -> int:
    return int(getattr(config, "num_key_value_heads", None) or _num_heads(config))


def _head_width(config: PretrainedConfig) -> int:
    default = config.hidden_size // _num_heads(config)
    return int(getattr(config, "head_dim", None) or default)
