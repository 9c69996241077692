"""A tiny GGUF file and a byte-level tokenizer, made in code."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rft.job import ModelSettings

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>", "</s>"]
VOCABULARY = [*SPECIAL, *bytes_to_unicode().values(), "ab"]
WIDTH, NUM_HEADS, NUM_KV_HEADS, NUM_LAYERS, FEED_FORWARD = 32, 4, 2, 2, 64
HEAD_WIDTH = WIDTH // NUM_HEADS
ROPE_BASE = 500000.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own, and no network."""
    monkeypatch.setenv("RFT_CACHE", str(tmp_path / "cache"))

    return tmp_path / "cache" / "models"


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a GGUF file of a two-layer model with random weights."""

    def write(
        architecture: str = "llama",
        extra: dict[str, np.ndarray] | None = None,
        rope_scaling: str | None = None,
        eot_token_id: int | None = None,
        quantised: bool = False,
    ) -> Path:
        path = tmp_path / f"tiny-{architecture}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_context_length(128)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(NUM_LAYERS)
        writer.add_feed_forward_length(FEED_FORWARD)
        writer.add_head_count(NUM_HEADS)
        writer.add_head_count_kv(NUM_KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(ROPE_BASE)
        writer.add_rope_dimension_count(HEAD_WIDTH)
        writer.add_vocab_size(len(VOCABULARY))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(VOCABULARY)
        writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template(CHATML)
        if eot_token_id is not None:
            writer.add_eot_token_id(eot_token_id)
        if rope_scaling is not None:
            writer.add_string("llama.rope.scaling.type", rope_scaling)
            writer.add_float32("llama.rope.scaling.factor", 4.0)
        for name, values in (random_weights() | (extra or {})).items():
            if quantised and values.ndim == 2:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def random_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kv_width = NUM_KV_HEADS * HEAD_WIDTH
    layer = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (kv_width, WIDTH),
        "attn_v": (kv_width, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FEED_FORWARD, WIDTH),
        "ffn_up": (FEED_FORWARD, WIDTH),
        "ffn_down": (WIDTH, FEED_FORWARD),
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(VOCABULARY), WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for index in range(NUM_LAYERS):
        shapes |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
    return {
        name: 0.1 * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }


@pytest.fixture
def build_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A byte-level tokenizer, one token a character, with the given template and added tokens."""

    def build(
        chat_template: str | None = CHATML,
        special: tuple[str, ...] = (),
        plain: tuple[str, ...] = (),
    ) -> PreTrainedTokenizerFast:
        vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
        backend = Tokenizer(BPE(vocabulary, [("a", "b")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([*SPECIAL, *special])
        backend.add_tokens([AddedToken(token, normalized=False) for token in plain])
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, chat_template=chat_template, eos_token="</s>"
        )

    return build


@pytest.fixture
def settings() -> ModelSettings:
    return ModelSettings(device="cpu")
