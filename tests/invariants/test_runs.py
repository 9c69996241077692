"""Invariants 9 and 10: a run is a function of its job; what it saves is what it trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rft.errors import PausedError, RunError
from rft.job import load_job
from rft.models import find_model
from rft.runs.folders import verify_folder
from rft.runs.fork import fork_run
from rft.runs.layout import RunFolder
from rft.runs.reader import open_run
from rft.training.probes import generate
from rft.training.report import Outcome
from rft.training.start import train
from tests.jobs import write_job
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    return write_job(folder, save_tiny_model(folder / "model"))


def run_job(job_file: Path, folder: Path, *overrides: str, resume: bool = False) -> Outcome:
    job = load_job(job_file, overrides)
    text = job_file.read_text()
    return train(job, job_text=text, run_folder=folder, resume=resume)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without wall-clock times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows]


@pytest.fixture(scope="module")
def whole(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run_job(job_file, folder).status == "succeeded"
    return folder


def test_the_same_seed_gives_the_same_metrics(job_file: Path, whole: Path, tmp_path: Path) -> None:
    run_job(job_file, tmp_path / "again")
    assert timeless(tmp_path / "again") == timeless(whole)
    assert [row["step"] for row in timeless(whole)] == list(range(9))


def test_another_seed_gives_others(job_file: Path, whole: Path, tmp_path: Path) -> None:
    run_job(job_file, tmp_path / "other", "seed=8", "engine.budget.steps=null")
    assert timeless(tmp_path / "other") != timeless(whole)


def test_a_resumed_run_is_one_that_never_stopped(
    job_file: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for budget in (3, 5):
        with pytest.raises(PausedError):
            run_job(job_file, folder, f"engine.budget.steps={budget}", resume=budget > 3)
    assert json.loads((folder / "state.json").read_text())["status"] == "paused"
    assert run_job(job_file, folder, resume=True).status == "succeeded"
    assert timeless(folder) == timeless(whole)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        step = open_run(str(whole), tmp_path).checkpoints()[-1].step
        ours = RunFolder(folder).checkpoint(step) / name
        assert ours.read_bytes() == (RunFolder(whole).checkpoint(step) / name).read_bytes()


def test_the_adapter_moves_and_the_reward_rises(whole: Path) -> None:
    rows = timeless(whole)
    assert all(row["optimizer/update_norm"] > 0 for row in rows[1:])
    assert all(row["rollout/logprob_gap"] < 1e-5 for row in rows[1:])
    assert rows[-1]["valid_reward_mean"] > rows[0]["valid_reward_mean"] + 0.05


def test_plain_peft_answers_as_rft_does(whole: Path) -> None:
    run = open_run(str(whole), whole.parent)
    best = run.best_checkpoint()
    assert best is not None
    adapter_config = json.loads((best.folder / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(adapter_config["base_model_name_or_path"])
    model = PeftModel.from_pretrained(base, str(best.folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter_config["base_model_name_or_path"])
    for question in ("valid 0", "train 3", "something else"):
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        expected = tokenizer.decode(
            answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
        )
        found = generate(str(best.folder), question, greedy=True, max_tokens=12)
        assert found == expected


def test_three_checkpoints_at_most_and_two_states_stay(whole: Path) -> None:
    folder = RunFolder(whole)
    rewards = {
        row["step"]: row["valid_reward_mean"]
        for row in timeless(whole)
        if "valid_reward_mean" in row
    }
    del rewards[0]
    best = sorted(rewards, key=lambda step: (rewards[step], step))[-3:]
    assert [c.step for c in open_run(str(whole), whole.parent).checkpoints()] == sorted(best)
    assert sorted(path.name for path in folder.states.iterdir()) == [
        "latest.json", "step_7", "step_8",
    ]  # fmt: skip
    assert json.loads(folder.newest_state.read_text())["step"] == 8


def test_a_job_continues_from_a_checkpoint_which_is_its_reference(
    job_file: Path, whole: Path, tmp_path: Path
) -> None:
    run = open_run(str(whole), whole.parent)
    checkpoint = run.checkpoints()[0]
    model = f"model={whole}@{checkpoint.step}"
    run_job(job_file, tmp_path / "more", model, "engine.training.kl_coefficient=0.1")
    rows = timeless(tmp_path / "more")
    assert rows[0]["valid_reward_mean"] == checkpoint.valid_reward_mean
    assert rows[1]["loss/kl"] == 0
    assert all(row["loss/kl"] > 0 for row in rows[2:])
    assert all(row["optimizer/update_norm"] > 0 for row in rows[1:])
    again = open_run(str(tmp_path / "more"), tmp_path).checkpoints()[-1]
    config = json.loads((again.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(job_file.parent / "model")


def test_a_run_keeps_the_adapter_that_it_continues_from(
    job_file: Path, whole: Path, tmp_path: Path
) -> None:
    """The run that made it may drop it, or find a better one: the reference stays what it was."""
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    best = open_run(str(source), tmp_path).best_checkpoint()
    assert best is not None
    shutil.copytree(job_file.parent / "model", source / "model")
    config = json.loads((best.folder / "adapter_config.json").read_text())
    beside = tmp_path / "source" / "adapter"
    shutil.copytree(best.folder, beside)
    config["base_model_name_or_path"] = "../model"
    (beside / "adapter_config.json").write_text(json.dumps(config))
    keys = (f"model={beside}", "engine.training.kl_coefficient=0.1")
    run_job(job_file, tmp_path / "straight", *keys)
    with pytest.raises(PausedError):
        run_job(job_file, tmp_path / "paused", *keys, "engine.budget.steps=2")
    fork = fork_run(RunFolder(tmp_path / "paused"))
    shutil.rmtree(beside)
    expected = open_run(str(tmp_path / "straight"), tmp_path).checkpoints()[-1].folder
    for folder in (tmp_path / "paused", fork.root):
        assert run_job(job_file, folder, *keys, resume=True).status == "succeeded"
        assert timeless(folder) == timeless(tmp_path / "straight")
        found = open_run(str(folder), tmp_path).checkpoints()[-1].folder
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (found / name).read_bytes() == (expected / name).read_bytes()
    assert find_model(str(expected), runs_folder=tmp_path).folder == source / "model"


def test_a_fork_does_not_go_on_from_another_adapter(
    job_file: Path, whole: Path, tmp_path: Path
) -> None:
    """Whatever number format it takes."""
    best = open_run(str(whole), whole.parent).best_checkpoint()
    assert best is not None
    start, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(best.folder, start)
    with pytest.raises(PausedError):
        run_job(job_file, run, f"model={start}", "engine.budget.steps=1")
    fork = fork_run(RunFolder(run))
    shutil.rmtree(RunFolder(fork.root).start_adapter)
    tensors = load_file(start / "adapter_model.safetensors")
    changed = {name: tensor + 0.01 for name, tensor in tensors.items()}
    save_file(changed, start / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"the weights of .*/start differ from those this run"):
        run_job(job_file, fork.root, f"model={start}", "engine.model.dtype=bfloat16", resume=True)


def test_a_damaged_copy_of_an_adapter_is_told_and_passed_over(
    job_file: Path, whole: Path, tmp_path: Path
) -> None:
    step = open_run(str(whole), whole.parent).checkpoints()[0].step
    model, folder = f"model={whole}@{step}", tmp_path / "run"
    with pytest.raises(PausedError):
        run_job(job_file, folder, model, "engine.budget.steps=1")
    weights = RunFolder(folder).start_adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert run_job(job_file, folder, model, resume=True).status == "succeeded"
    told = [event["message"] for event in open_run(str(folder), tmp_path).events()]
    assert sum("start_adapter is damaged: adapter_model.safetensors" in text for text in told) == 1
    assert verify_folder(RunFolder(folder).start_adapter) == []


def test_a_run_that_begins_again_with_a_plain_model_keeps_no_adapter(
    job_file: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    step = open_run(str(whole), whole.parent).checkpoints()[0].step
    run_job(job_file, folder, f"model={whole}@{step}")
    for name in ("states", "checkpoints", "samples"):  # as if it had ended before its first step
        shutil.rmtree(folder / name)
    (folder / "state.json").write_text(
        json.dumps(json.loads((folder / "state.json").read_text()) | {"status": "failed"})
    )
    with pytest.raises(PausedError):
        run_job(job_file, folder, "engine.budget.steps=1", resume=True)
    assert not RunFolder(folder).start_adapter.exists()
    assert run_job(job_file, folder, resume=True).status == "succeeded"


def test_a_run_does_not_go_on_over_other_weights(job_file: Path, tmp_path: Path) -> None:
    """Ranks would tell by the same digest that they have different ones."""
    model = tmp_path / "model"
    shutil.copytree(job_file.parent / "model", model)
    run = tmp_path / "run"
    with pytest.raises(PausedError):
        run_job(job_file, run, f"model={model}", "engine.budget.steps=1")
    file = model / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "down_proj" in name)
    save_file({**tensors, name: tensors[name] * 1.001}, file, {"format": "pt"})
    fork = fork_run(RunFolder(run))
    for folder in (run, fork.root):
        with pytest.raises(RunError, match=r"the weights of .*/model differ from those this run"):
            run_job(job_file, folder, f"model={model}", resume=True)
    save_file(tensors, file, {"format": "pt"})
    assert run_job(job_file, run, f"model={model}", resume=True).status == "succeeded"


def test_several_updates_a_step_use_the_recorded_logprobs(job_file: Path, tmp_path: Path) -> None:
    keys = ("num_iterations=2", "minibatches=2", "learning_rate=0.05")
    run_job(job_file, tmp_path / "run", *(f"engine.training.{key}" for key in keys))
    rows = timeless(tmp_path / "run")[1:]
    assert any(row["policy/clipped_fraction"] > 0 for row in rows)
    # the gap is of the first update alone, before the policy has moved
    assert all(row["rollout/logprob_gap"] < 1e-5 for row in rows)


def test_a_changed_job_is_not_resumed(job_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(PausedError):
        run_job(job_file, folder, "engine.budget.steps=1")
    with pytest.raises(RunError, match=r"learning_rate: 0\.005 → 0\.001"):
        run_job(job_file, folder, "engine.training.learning_rate=1e-3", resume=True)
