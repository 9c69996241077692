"""Every kind of model name finds its folders, and every unusable one says why."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rft.errors import ModelError, RunError
from rft.models import find_model
from rft.runs.folders import write_folder


def model_folder(path: Path, weights: str = "model.safetensors") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / weights).write_bytes(b"")
    return path


def adapter_folder(path: Path, base: object, weights: str = "adapter_model.safetensors") -> Path:
    path.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": base}
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / weights).write_bytes(b"")
    return path


def test_a_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    source = find_model(str(folder), runs_folder=tmp_path / "runs")
    assert (source.folder, source.adapter, source.base_name) == (folder, None, str(folder))


def test_a_relative_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "owner" / "m")
    monkeypatch.chdir(tmp_path)
    source = find_model("owner/m", runs_folder=Path("runs"))
    assert (source.name, source.folder, source.base_name) == ("owner/m", folder, str(folder))


def test_an_adapter_brings_its_base(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "m")
    adapter = adapter_folder(tmp_path / "a", str(base))
    source = find_model(str(adapter), runs_folder=tmp_path)
    assert (source.folder, source.adapter, source.base_name) == (base, adapter, str(base))


def test_an_adapters_base_may_lie_beside_it(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "m")
    adapter = adapter_folder(tmp_path / "a", "../m")
    assert os.path.samefile(find_model(str(adapter), runs_folder=tmp_path).folder, base)


def test_a_gguf_file_is_converted(
    write_gguf: Callable[..., Path], tmp_path: Path, cache: Path
) -> None:
    path = write_gguf()
    source = find_model(str(path), runs_folder=tmp_path)
    assert (source.folder.parent, source.base_name) == (cache, str(source.folder))


def run_with_checkpoint(tmp_path: Path) -> Path:
    """runs/first-1 whose only checkpoint, of step 5, continues the model in tmp_path/m."""
    base = model_folder(tmp_path / "m")
    run = tmp_path / "runs" / "first-1"
    run.mkdir(parents=True)
    (run / "state.json").write_text("{}")
    made = adapter_folder(tmp_path / "made", str(base))
    files = {path.name: path.read_bytes() or b"weights" for path in made.iterdir()}
    write_folder(run / "checkpoints" / "step_5", {**files, "checkpoint.json": b'{"step": 5}'})
    return run


@pytest.mark.parametrize("name", ["first-1", "first-1@5", "first-1@best", "runs/first-1@5"])
def test_a_run_gives_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = run_with_checkpoint(tmp_path)
    monkeypatch.chdir(tmp_path)
    source = find_model(name, runs_folder=Path("runs"))
    assert source.adapter is not None
    assert os.path.samefile(source.adapter, run / "checkpoints" / "step_5")
    assert source.folder == tmp_path / "m"


def test_a_step_a_run_has_not_kept(tmp_path: Path) -> None:
    run = run_with_checkpoint(tmp_path)
    with pytest.raises(RunError, match="no checkpoint of step 7"):
        find_model("first-1@7", runs_folder=run.parent)


UNUSABLE = {
    "empty": (lambda path: path.mkdir(), "neither config.json nor adapter_config.json"),
    "pickled": (lambda path: model_folder(path, "pytorch_model.bin"), "only pickled weights"),
    "bare": (lambda path: model_folder(path, "vocab.txt"), "holds no .*safetensors"),
    "gguf": (lambda path: model_folder(path, "x.gguf"), "name one of them: .*x.gguf"),
    "pickled_adapter": (
        lambda path: adapter_folder(path, "m", "adapter_model.bin"),
        "only adapter_model.bin",
    ),
    "baseless": (lambda path: adapter_folder(path, None), "does not name its model|is None"),
    "lost_base": (lambda path: adapter_folder(path, "/gone/m"), "no model '/gone/m'"),
    "endless": (lambda path: adapter_folder(path, str(path)), "is an adapter too"),
    "file": (lambda path: path.write_bytes(b""), "a model file must be a .gguf"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_path_says_why(tmp_path: Path, kind: str) -> None:
    make, message = UNUSABLE[kind]
    make(tmp_path / kind)
    with pytest.raises(ModelError, match=message):
        find_model(str(tmp_path / kind), runs_folder=tmp_path / "runs")


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"peft_type": "IA3"}'])
def test_a_broken_adapter_config(tmp_path: Path, text: str) -> None:
    adapter = adapter_folder(tmp_path / "a", "m")
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        find_model(str(adapter), runs_folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("smollm2-135m-instuct", "did you mean 'smollm2-135m-instruct'?"),
        ("frist-1", "did you mean 'first-1'?"),
        ("quite something else", "try smollm2-135m-instruct"),
        ("", "try smollm2-135m-instruct"),
        ("@best", "try smollm2-135m-instruct"),
        ("nul\0byte", "try smollm2-135m-instruct"),
        ("./missing/model.gguf", "try smollm2-135m-instruct"),
    ],
)
def test_no_such_name(tmp_path: Path, name: str, remedy: str) -> None:
    run_with_checkpoint(tmp_path)
    with pytest.raises(ModelError) as caught:
        find_model(name, runs_folder=tmp_path / "runs")
    assert caught.value.problems[0].remedy == remedy


def test_the_nearest_folder_is_named(tmp_path: Path) -> None:
    model_folder(tmp_path / "llama-tiny")
    with pytest.raises(ModelError, match=r"did you mean '.*/llama-tiny'"):
        find_model(str(tmp_path / "llama-tinny"), runs_folder=tmp_path / "runs")


def test_hub_ids_without_network(tmp_path: Path) -> None:
    stored = tmp_path / "hub" / "models--owner--kept"
    snapshot = model_folder(stored / "snapshots" / ("0" * 40))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0" * 40)
    program = (
        "from pathlib import Path; from rft.models import find_model\n"
        "print(find_model('owner/kept', runs_folder=Path('runs')).folder)\n"
        "find_model('owner/unseen', runs_folder=Path('runs'))"
    )
    # The hub's client reads these when it is imported.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(snapshot)
    assert "ModelError: no model 'owner/unseen'" in done.stderr
    assert "hub cannot be reached" in done.stderr
