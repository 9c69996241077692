"""Models: from a name to weights, tokenizer and prompts."""

from rft.models.chat import encode_prompts, end_token_ids
from rft.models.loading import (
    choose_device_and_dtype,
    context_length,
    count_parameters,
    load_config,
    load_model,
    load_tokenizer,
)
from rft.models.names import ModelSource, find_model
from rft.models.thinking import find_thinking

__all__ = [
    "ModelSource",
    "choose_device_and_dtype",
    "context_length",
    "count_parameters",
    "encode_prompts",
    "end_token_ids",
    "find_model",
    "find_thinking",
    "load_config",
    "load_model",
    "load_tokenizer",
]
