"""How a run's model is opened to answer, without what only training takes."""

from pathlib import Path

import pytest
from made import make_prompt

from rft.errors import JobError
from rft.models.names import ModelSource
from rft.runs.layout import RunFolder
from rft.training.probes import settings_of, spread

JOB = """\
model: tiny
training_file: train.jsonl
validation_file: valid.jsonl
method:
  type: reinforcement
  reinforcement:
    grader:
      type: score_model
      name: judge
      model: gpt-none
      input: [{role: user, content: "{{ sample.output_text }}"}]
engine:
  model: {chat_template_kwargs: {enable_thinking: false}}
  data: {system: Be brief.}
"""


def source_of(run: Path) -> ModelSource:
    return ModelSource("run-1", Path("base"), run / "checkpoints" / "step_1", "base")


def test_a_run_whose_grader_cannot_run_here_still_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    RunFolder(tmp_path).resolved_job.write_text(JOB)
    settings, system = settings_of(source_of(tmp_path))
    assert settings.chat_template_kwargs == {"enable_thinking": False}
    assert system == "Be brief."


def test_prompts_of_an_estimate_lie_evenly_apart() -> None:
    prompts = [make_prompt(row) for row in range(10)]
    assert [prompt.example.row for prompt in spread(prompts, 4)] == [0, 2, 5, 7]
    assert spread(prompts, 10) == spread(prompts, 64) == prompts


def test_a_run_whose_settings_cannot_be_read_does_not(tmp_path: Path) -> None:
    RunFolder(tmp_path).resolved_job.write_text(JOB.replace("system: Be brief.", "system: 3"))
    with pytest.raises(JobError, match=r"engine\.data\.system"):
        settings_of(source_of(tmp_path))
