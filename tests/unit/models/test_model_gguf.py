"""GGUF files become folders that plain transformers loads, bit for bit as it would load the file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rft.errors import ModelError
from rft.models.gguf import (
    converted_folder,
    llama3_rope,
    llama3_rope_factors,
    unpermute_rope_rows,
)

ROPE_BASE, HEAD_WIDTH = 500000.0, 8
"""Of the files that `write_gguf` writes."""

WriteGguf = Callable[..., Path]


def assert_loads_like_the_file(folder: Path, path: Path) -> None:
    ours = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("quantised", [False, True])
def test_weights_equal_those_of_the_file(
    write_gguf: WriteGguf, architecture: str, quantised: bool
) -> None:
    path = write_gguf(architecture, quantised=quantised)
    folder = converted_folder(path)
    assert_loads_like_the_file(folder, path)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_an_untied_head_is_kept(write_gguf: WriteGguf) -> None:
    head = np.random.default_rng(1).standard_normal((261, 32)).astype(np.float32)
    path = write_gguf(extra={"output.weight": head})
    folder = converted_folder(path)
    assert_loads_like_the_file(folder, path)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, torch.from_numpy(head))


def test_a_converted_model_saves_and_loads_again(write_gguf: WriteGguf, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted_folder(write_gguf("qwen2")))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_tokenizer_splits_digits_and_keeps_the_template(write_gguf: WriteGguf) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted_folder(write_gguf()))
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "ĠĠ", "1", "2"]
    assert tokenizer("cab<|im_end|>").input_ids[1:] == [260, 2]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert rendered == "<|im_start|>user\nx<|im_end|>\n"
    assert tokenizer.model_max_length == 128


@pytest.mark.parametrize(("eot_token_id", "end"), [(None, 2), (3, [2, 3])])
def test_end_tokens_are_saved(
    write_gguf: WriteGguf, eot_token_id: int | None, end: int | list[int]
) -> None:
    folder = converted_folder(write_gguf(eot_token_id=eot_token_id))
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (end, 2)


def test_it_is_converted_once(write_gguf: WriteGguf) -> None:
    path = write_gguf()
    folder = converted_folder(path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted_folder(path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_unpermute_restores_halves_of_each_head() -> None:
    weight = torch.arange(8.0).view(8, 1)
    restored = unpermute_rope_rows(weight, num_heads=2)
    assert restored.flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_positions_are_recognised_by_their_table(
    write_gguf: WriteGguf, factor: float
) -> None:
    table = llama3_rope_factors(llama3_rope(ROPE_BASE, factor), HEAD_WIDTH // 2)
    path = write_gguf(extra={"rope_freqs.weight": table.numpy()})
    config = AutoConfig.from_pretrained(converted_folder(path))
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = ROPE_BASE ** (-torch.arange(HEAD_WIDTH // 2) / (HEAD_WIDTH // 2))
    torch.testing.assert_close(frequencies, plain / table)
    assert table[0] == 1.0
    assert table[-1] > 1.0


def test_linear_scaling_is_kept(write_gguf: WriteGguf) -> None:
    config = AutoConfig.from_pretrained(converted_folder(write_gguf(rope_scaling="linear")))
    expected = {"rope_type": "linear", "rope_theta": ROPE_BASE, "factor": 4.0}
    assert config.rope_parameters == expected


def test_an_unknown_scaling_is_refused(write_gguf: WriteGguf) -> None:
    with pytest.raises(ModelError, match="unknown scaling of positions 'yarn'"):
        converted_folder(write_gguf(rope_scaling="yarn"))


def test_an_unknown_table_of_factors_is_refused(write_gguf: WriteGguf) -> None:
    table = np.array([1, 7, 3, 2], dtype=np.float32)
    with pytest.raises(ModelError, match="unknown table of position factors"):
        converted_folder(write_gguf(extra={"rope_freqs.weight": table}))


@pytest.mark.parametrize("kept", [0, 3, 100, 5000, -1000])
def test_a_cut_file_is_an_error_that_names_it(
    write_gguf: WriteGguf, kept: int, cache: Path
) -> None:
    path = write_gguf()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"cannot read this GGUF file.*tiny-llama\.gguf"):
        converted_folder(path)
    assert [entry.name for entry in cache.iterdir() if not entry.name.endswith(".lock")] == []


def test_an_unknown_architecture_is_an_error(write_gguf: WriteGguf) -> None:
    with pytest.raises(ModelError, match="rwkv6"):
        converted_folder(write_gguf("rwkv6"))
