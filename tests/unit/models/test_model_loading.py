"""A model folder is loaded whole and frozen, or refused with a reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, PretrainedConfig

from rft.errors import MachineError, ModelError
from rft.job import ModelSettings
from rft.models import (
    ModelSource,
    choose_device_and_dtype,
    context_length,
    count_parameters,
    find_model,
    load_model,
    load_tokenizer,
)


@pytest.fixture
def source(write_gguf: Callable[..., Path], tmp_path: Path) -> ModelSource:
    """The tiny model, converted into the test's own cache."""
    return find_model(str(write_gguf()), runs_folder=tmp_path / "runs")


def test_a_model_comes_frozen_and_in_evaluation_mode(
    source: ModelSource, settings: ModelSettings
) -> None:
    model = load_model(source, settings, "bfloat16", "cpu")
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.name_or_path == source.base_name


def drop_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = torch.ones(7)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def write_config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_tensor, r"lack 1 of the model's tensors, such as model\.layers\.1\.mlp\.up_proj"),
        (reshape_a_tensor, "cannot read the model"),
        (cut_weights, "cannot read the model"),
        (remove_weights, "cannot read the model"),
        (write_config("{"), "cannot read the model"),
        (write_config("{}"), "cannot read the model"),
        (write_config('{"model_type": "vit"}'), "cannot read the model"),
        (write_config('{"model_type": "nobody"}'), "cannot read the model"),
    ],
)
def test_a_damaged_folder_is_refused(
    source: ModelSource,
    settings: ModelSettings,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(source.folder)
    with pytest.raises(ModelError, match=message):
        load_model(source, settings, "float32", "cpu")


def test_a_folder_without_tokenizer(source: ModelSource, settings: ModelSettings) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source.folder / name).unlink()
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        load_tokenizer(source, settings)


def test_code_beside_a_model_does_not_run_unasked(
    source: ModelSource, settings: ModelSettings, tmp_path: Path
) -> None:
    (source.folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((source.folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (source.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"set engine\.model\.trust_remote_code=true"):
        load_model(source, settings, "float32", "cpu")
    assert not (tmp_path / "ran").exists()


def test_the_jobs_chat_template_wins(
    source: ModelSource, settings: ModelSettings, tmp_path: Path
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0].content }}!")
    for template in (str(file), file.read_text()):
        changed = settings.model_copy(update={"chat_template": template})
        assert load_tokenizer(source, changed).chat_template == "{{ messages[0].content }}!"


def test_a_chat_template_that_is_not_there(source: ModelSource, settings: ModelSettings) -> None:
    changed = settings.model_copy(update={"chat_template": "/gone.jinja"})
    with pytest.raises(ModelError, match=r"'/gone\.jinja'.*engine\.model\.chat_template"):
        load_tokenizer(source, changed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("auto", "auto", ("cpu", "float32")),
        ("cpu", "auto", ("cpu", "float32")),
        ("cpu", "bfloat16", ("cpu", "bfloat16")),
    ],
)
def test_auto_on_a_cpu(device: str, dtype: str, expected: tuple[str, str]) -> None:
    assert choose_device_and_dtype(ModelSettings(device=device, dtype=dtype)) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(MachineError, match=f"no device '{device}'"):
        choose_device_and_dtype(ModelSettings(device=device))


def test_four_bits_take_a_package_or_a_gpu(source: ModelSource) -> None:
    settings = ModelSettings(quantization="4bit")
    with pytest.raises(MachineError, match="4-bit weights take"):
        load_model(source, settings, "float32", "cpu")


def test_counts(source: ModelSource, settings: ModelSettings) -> None:
    model = load_model(source, settings, "float32", "cpu")
    attention, feed_forward, norms = 2 * 32 * 32 + 2 * 16 * 32, 3 * 32 * 64, 2 * 32
    assert count_parameters(model) == 261 * 32 + 32 + 2 * (attention + feed_forward + norms)


DYNAMIC = {
    "rope_type": "dynamic",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 32,
}
"""Beyond the original context the rotation would depend on the longest row of a batch."""


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=77), 77),
        (GPT2Config(n_positions=55), 55),
        (LlamaConfig(max_position_embeddings=77, rope_parameters=DYNAMIC), 32),
        (
            Gemma3TextConfig(
                max_position_embeddings=77,
                rope_parameters={
                    "full_attention": DYNAMIC,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            ),
            32,
        ),
    ],
)
def test_context_length(config: PretrainedConfig, expected: int) -> None:
    assert context_length(config) == expected
