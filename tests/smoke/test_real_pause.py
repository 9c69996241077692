"""SIGTERM to the real model, in the middle of sampling and of training: out within 30 seconds, and all is there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rft.runs.layout import RunFolder
from rft.runs.reader import Run, open_run
from tests.launch import ROOT, run_rft

LIMIT_SECONDS = 30

LONG_ROLLOUT = ("engine.rollout.max_completion_tokens=400", "engine.rollout.group_size=24")
"""About a minute and a half of sampling a step on two cores."""

LONG_UPDATE = ("engine.rollout.max_completion_tokens=200", "engine.rollout.group_size=12")


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    job = ROOT / "configs/arithmetic/job.yaml"
    quick = ("engine.evaluation.at_start=false", "engine.rollout.temperature=1.0")
    arguments = ["train", str(job), *quick, *overrides, "--run-dir", str(folder)]
    log = folder.with_suffix(".log").open("wb")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-m", "rft", *arguments]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def await_status(folder: Path, status: str, timeout: float = 240) -> None:
    give_up_at = time.monotonic() + timeout
    while Run(RunFolder(folder)).status().status != status:
        assert time.monotonic() < give_up_at, folder.with_suffix(".log").read_text()
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> float:
    """Seconds from SIGTERM to the end of the process, which must say that it has paused."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    return time.monotonic() - began


@pytest.mark.long
@pytest.mark.model
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [3, 12, 25], ids=lambda seconds: f"after {seconds} s")
def test_in_the_middle_of_a_long_rollout(tmp_path: Path, seconds: int) -> None:
    folder = tmp_path / "run"
    process = start(folder, *LONG_ROLLOUT)
    await_status(folder, "running")
    time.sleep(seconds)
    taken = stop(process)
    print(f"SIGTERM to exit, {seconds} s into sampling: {taken:.1f} s")
    assert taken < LIMIT_SECONDS
    status = open_run(str(folder), tmp_path).status()
    assert (status.status, status.step) == ("paused", 0)


@pytest.mark.long
@pytest.mark.model
@pytest.mark.timeout(1200)
def test_in_the_middle_of_an_update_with_a_checkpoint_for_plain_peft(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, *LONG_UPDATE, "engine.budget.steps=1")
    assert process.wait(timeout=400) == 75
    run_folder = RunFolder(folder)
    first = json.loads(run_folder.metrics.read_text().splitlines()[-1])
    again = subprocess.Popen(
        [sys.executable, "-m", "rft", "runs", "resume", str(folder), "engine.budget.steps=null"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    await_status(folder, "running")
    time.sleep(first["timing/sampling"] + first["timing/training"] / 2)
    taken = stop(again)
    print(f"SIGTERM to exit, within an update: {taken:.1f} s")
    assert taken < LIMIT_SECONDS
    checkpoint = run_folder.checkpoint(open_run(str(folder), tmp_path).status().step)
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    loaded = PeftModel.from_pretrained(base, str(checkpoint))
    weights = {n: p for n, p in loaded.named_parameters() if ".lora_B." in n}
    assert weights and any(float(p.detach().abs().max()) > 0 for p in weights.values())
    answer = run_rft("generate", str(checkpoint), "What is 2 + 2?", "--greedy", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
