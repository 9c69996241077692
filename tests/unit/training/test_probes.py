"""How a run's model is opened to answer, without what only training takes."""

from pathlib import Path

import pytest

from rft.errors import JobError
from rft.models.names import ModelSource
from rft.runs.layout import RunFolder
from rft.training.probes import settings_of

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


def test_a_run_whose_settings_cannot_be_read_does_not(tmp_path: Path) -> None:
    RunFolder(tmp_path).resolved_job.write_text(JOB.replace("system: Be brief.", "system: 3"))
    with pytest.raises(JobError, match=r"engine\.data\.system"):
        settings_of(source_of(tmp_path))
