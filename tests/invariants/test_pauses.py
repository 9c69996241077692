"""Invariant: a run that is asked to stop leaves a state and a checkpoint, soon, and goes on as if nothing was."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rft.runs.layout import RunFolder
from rft.runs.reader import Run, open_run
from rft.training.interrupts import GRACE_SECONDS
from tests.killing import Command, Ended, differences, ranks_of, run, traces, write_moving_job

SLOW_GRADER = """
        def grade(sample, item):
            import time
            time.sleep({seconds})
            text = sample["output_text"]
            return sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moving_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = run(["train", str(job), "--run-dir", str(folder)], folder.with_name("log"))
    assert ended.code == 0, ended.output
    return folder


def go_on(folder: Path, log: Path, *arguments: str) -> Ended:
    return run(["runs", "resume", str(folder), *arguments], log)


def await_step(folder: Path, step: int, timeout: float = 60) -> None:
    """Until so many steps are done."""
    give_up_at = time.monotonic() + timeout
    while Run(RunFolder(folder)).status().step < step:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def await_status(folder: Path, status: str, timeout: float = 60) -> None:
    give_up_at = time.monotonic() + timeout
    while Run(RunFolder(folder)).status().status != status:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def messages(folder: Path) -> list[str]:
    return [event["message"] for event in open_run(str(folder), folder.parent).events()]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name
)
def test_a_signal_pauses_with_a_state_and_a_checkpoint(
    job: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    command = Command(["train", str(job), "--run-dir", str(folder)], tmp_path / "log")
    await_step(folder, 3)
    command.send(number)
    ended = command.wait()
    assert ended.code == 75, ended.output
    run_folder = open_run(str(folder), tmp_path)
    status = run_folder.status()
    assert (status.status, status.process_ended) == ("paused", False)
    assert f"stopped by {number.name}" in (status.message or "")
    assert status.step in {checkpoint.step for checkpoint in run_folder.checkpoints()}
    assert [e["data"]["status"] for e in run_folder.events() if "status" in (e["data"] or {})] == [
        "validating_files", "queued", "running", "pausing", "paused",
    ]  # fmt: skip
    assert go_on(folder, tmp_path / "log").code == 0
    assert differences(traces(folder), traces(whole)) == []
    assert any("paused after step" in message for message in messages(folder))


def test_a_pause_checkpoint_is_what_the_state_holds_and_plain_peft_loads_it(
    job: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ended = run(
        ["train", str(job), "engine.budget.steps=3", "--run-dir", str(folder)], tmp_path / "log"
    )
    assert ended.code == 75, ended.output
    checkpoint = RunFolder(folder).checkpoint(3)
    entry = json.loads((checkpoint / "checkpoint.json").read_text())
    assert (entry["is_pause"], entry["valid_reward_mean"]) == (True, None)
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    found = PeftModel.from_pretrained(base, str(checkpoint)).state_dict()
    lora = {name: tensor for name, tensor in found.items() if ".lora_" in name}
    from safetensors.torch import load_file

    saved = load_file(RunFolder(folder).state_folder(3) / "adapter.safetensors")
    assert {name.replace(".default", ""): t.tolist() for name, t in lora.items()} == {
        name: t.tolist() for name, t in saved.items()
    }
    assert open_run(str(folder), tmp_path).best_checkpoint().step == 2  # type: ignore[union-attr]


def test_another_terminal_pauses_and_cancels(job: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = Command(["train", str(job), "--run-dir", str(folder)], tmp_path / "log")
    await_step(folder, 2)
    asked = run(["runs", "pause", str(folder)], tmp_path / "asked")
    assert asked.code == 0 and "paused" in asked.output, asked.output
    assert command.wait().code == 75
    assert "rft runs pause" in messages(folder)[-1]
    again = run(["runs", "pause", str(folder)], tmp_path / "asked")
    assert again.code == 0
    assert go_on(folder, tmp_path / "log").code == 0
    assert differences(traces(folder), traces(whole)) == []

    other = tmp_path / "other"
    command = Command(["train", str(job), "--run-dir", str(other)], tmp_path / "log")
    await_step(other, 2)
    cancelled = run(["runs", "cancel", str(other)], tmp_path / "asked")
    assert cancelled.code == 0, cancelled.output
    assert command.wait().code == 0
    assert open_run(str(other), tmp_path).status().status == "cancelled"
    for order in ("pause", "cancel"):
        assert run(["runs", order, str(other)], tmp_path / "asked").code == 2


def test_a_step_that_takes_too_long_is_given_up(job: Path, tmp_path: Path) -> None:
    """16 grades of 20 seconds each: the step in progress cannot end within the grace."""
    text = job.read_text()
    begin, end = text.index("        def grade"), text.index("    hyperparameters")
    slow = tmp_path / "slow" / "job.yaml"
    slow.parent.mkdir()
    for name in ("train", "valid"):
        os.link(job.with_name(f"{name}.jsonl"), slow.with_name(f"{name}.jsonl"))
    slow.write_text(text[:begin] + SLOW_GRADER.format(seconds=20).lstrip("\n") + text[end:])
    folder = tmp_path / "run"
    options = ["engine.evaluation.at_start=false", "--run-dir", str(folder)]
    command = Command(["train", str(slow), *options], tmp_path / "log")
    await_status(folder, "running")
    time.sleep(1)
    began = time.monotonic()
    command.send(signal.SIGTERM)
    ended = command.wait()
    assert ended.code == 75, ended.output
    assert GRACE_SECONDS <= time.monotonic() - began < GRACE_SECONDS + 5
    assert open_run(str(folder), tmp_path).status().status == "paused"


def test_twice_leaves_at_once(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = Command(
        ["train", str(job), "engine.rollout.max_completion_tokens=400", "--run-dir", str(folder)],
        tmp_path / "log",
    )
    await_status(folder, "running")
    command.send(signal.SIGINT)
    time.sleep(0.1)
    command.send(signal.SIGINT)
    ended = command.wait()
    assert ended.code == 75 and ended.seconds < 30, ended.output
    assert open_run(str(folder), tmp_path).status().status == "paused"


def test_a_request_to_one_rank_stops_all(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    commands = ranks_of(["train", str(job), "--run-dir", str(folder)], tmp_path / "log", 2, 29701)
    await_step(folder, 2)
    commands[1].send(signal.SIGTERM)
    endings = [command.wait() for command in commands]
    assert [ended.code for ended in endings] == [75, 75], endings
    status = open_run(str(folder), tmp_path).status()
    assert status.status == "paused" and "SIGTERM" in (status.message or "")
    assert go_on(folder, tmp_path / "again", "--processes", "1").code == 0


def test_a_fork_goes_on_by_itself_with_another_rate(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine-1"
    begun = run(
        ["train", str(job), "engine.budget.steps=4", "--run-dir", str(folder)], tmp_path / "log"
    )
    assert begun.code == 75, begun.output
    before = traces(folder)
    refused = go_on(folder, tmp_path / "log", "engine.training.learning_rate=1e-3")
    assert refused.code == 2 and "learning_rate: 0.005 → 0.001" in refused.output
    options = ["engine.training.learning_rate=1e-3", "engine.budget.steps=null", "--fork"]
    forked = go_on(folder, tmp_path / "log2", *options)
    assert forked.code == 0, forked.output
    assert differences(traces(folder), before) == []
    mine = traces(tmp_path / "mine-2")
    assert mine["metrics"][:5] == before["metrics"]
    rates = [json.loads(line)["optimizer/learning_rate"] for line in mine["metrics"][1:]]
    assert rates == [0.005] * 4 + [0.001] * 4
    other = go_on(folder, tmp_path / "log3", f"model={job.parent / 'model'}", "--fork")
    assert (other.code, (tmp_path / "mine-3").exists()) == (2, False), other.output


def test_a_second_process_is_refused_at_once_and_told_by_whom(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = Command(["train", str(job), "--run-dir", str(folder)], tmp_path / "log")
    await_step(folder, 1)
    refused = run(["train", str(job), "--run-dir", str(folder), "--resume"], tmp_path / "second")
    assert refused.code == 2, refused.output
    assert "in use by process" in refused.output and "since 20" in refused.output
    assert command.wait().code == 0


def test_more_epochs_go_on_and_fewer_are_refused(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["engine.budget.steps=5", "--run-dir", str(folder)]
    epochs = "method.reinforcement.hyperparameters.n_epochs"
    assert run(["train", str(job), f"{epochs}=2", *options], tmp_path / "log").code == 75
    fewer = go_on(folder, tmp_path / "fewer", f"{epochs}=1", "engine.budget.steps=6")
    assert fewer.code == 2 and f"{epochs}: 2 → 1 (more are possible)" in fewer.output
    more = go_on(folder, tmp_path / "more", f"{epochs}=3", "engine.budget.steps=6")
    assert more.code == 75, more.output
    assert Run(RunFolder(folder)).status().total_steps == 24


def test_a_run_that_fails_after_a_checkpoint_delivers_its_best_one(
    job: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", str(job), "--run-dir", str(folder)]
    ended = run(arguments, tmp_path / "log", "update.gradients#6=EIO")
    assert ended.code == 4, ended.output
    run_folder = open_run(str(folder), tmp_path)
    best = run_folder.best_checkpoint()
    assert run_folder.status().status == "failed" and best is not None
    said = f"Its best checkpoint can be used: run@{best.step}, valid_reward_mean "
    assert said in messages(folder)[-1] and said in ended.output
    assert f"New fine-tuned model created: run@{best.step}" in messages(folder)
    assert go_on(folder, tmp_path / "log").code == 0


def test_a_fork_that_is_stopped_before_its_first_step_is_still_free_to_differ(
    job: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine-1"
    arguments = ["train", str(job), "engine.budget.steps=3", "--run-dir", str(folder)]
    assert run(arguments, tmp_path / "log").code == 75
    rate = "engine.training.learning_rate=1e-3"
    options = [rate, "engine.budget.steps=null", "--fork"]
    command = Command(["runs", "resume", str(folder), *options], tmp_path / "log")
    await_status(tmp_path / "mine-2", "running")
    command.send(signal.SIGKILL)
    command.wait()
    assert go_on(tmp_path / "mine-2", tmp_path / "again").code == 0
    rows = [json.loads(line) for line in (tmp_path / "mine-2/metrics.jsonl").open()]
    assert [row["optimizer/learning_rate"] for row in rows[1:]] == [0.005] * 3 + [0.001] * 5


def test_an_early_end_is_not_forgotten(job: Path, tmp_path: Path) -> None:
    """Killed after the state of the step that ended the run, before the run could say so."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    early = ["train", str(job), "engine.evaluation.stop_at=0", "--run-dir"]
    assert run([*early, str(whole)], tmp_path / "log").code == 0
    assert Run(RunFolder(whole)).status().step == 2
    assert run([*early, str(folder)], tmp_path / "log", "save.pointed#3=kill").code < 0
    assert run([*early, str(folder), "--resume"], tmp_path / "log").code == 0
    assert differences(traces(folder), traces(whole)) == []


def test_finished_steps_are_saved_when_a_later_one_fails(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rarely = "engine.checkpoints.state_every_steps=8"
    arguments = ["train", str(job), rarely, "--run-dir", str(folder)]
    assert run(arguments, tmp_path / "log", "update.gradients#6=EIO").code == 4
    assert (folder / "states/step_5").is_dir()


@pytest.mark.long
def test_a_rank_whose_peer_is_frozen_leaves_all_the_same(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    commands = ranks_of(["train", str(job), "--run-dir", str(folder)], tmp_path / "log", 2, 29711)
    await_step(folder, 2)
    commands[1].send(signal.SIGSTOP)
    began = time.monotonic()
    commands[0].send(signal.SIGTERM)
    assert commands[0].wait().code == 75
    assert time.monotonic() - began < 30
    commands[1].send(signal.SIGKILL)
    status = open_run(str(folder), tmp_path).status()
    assert (status.status, status.process_ended) == ("paused", False)
    assert go_on(folder, tmp_path / "again", "--processes", "1").code == 0


def test_a_fork_to_another_grader_begins_its_history_anew(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine-1"
    arguments = ["train", str(job), "engine.budget.steps=4", "--run-dir", str(folder)]
    assert run(arguments, tmp_path / "log").code == 75
    other = tmp_path / "other.yaml"
    text = job.read_text().replace('"aeiou"', '"xyz"')
    for name in ("train", "valid"):
        text = text.replace(f"{name}.jsonl", str(job.with_name(f"{name}.jsonl")))
    other.write_text(text)
    refused = go_on(folder, tmp_path / "log", "--job", str(other))
    assert refused.code == 2 and "grader.source" in refused.output
    assert go_on(folder, tmp_path / "log", "--job", str(other), "--fork").code == 0
    rows = [json.loads(line) for line in (tmp_path / "mine-2/metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [5, 6, 7, 8]
    kept = open_run(str(tmp_path / "mine-2"), tmp_path).checkpoints()
    assert [checkpoint.step for checkpoint in kept] == [6, 8]
    assert any("a copy of mine-1 after step 4" in m for m in messages(tmp_path / "mine-2"))
