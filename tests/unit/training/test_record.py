"""What a recorder does when a tracker fails."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from made import make_job

from rft.runs.reader import open_run
from rft.runs.writer import RunWriter
from rft.training import record
from rft.training.record import Recorder
from rft.training.report import Silent
from tests.statuses import bring_to


class Failing(GeneralTracker):
    """Starts, and can neither be written to nor be closed, like one whose server has gone."""

    name, requires_logging_directory, tracker = "failing", False, None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        raise ConnectionError("the server has gone")

    def finish(self) -> None:
        raise ConnectionError("the server has gone")


def test_a_tracker_that_cannot_be_closed_takes_nothing_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accelerator(**options: Any) -> Any:
        return real(**options | {"log_with": [Failing()]})

    real = record.Accelerator
    monkeypatch.setattr(record, "Accelerator", accelerator)
    job = make_job("engine.tracking.report_to=[tensorboard]", "engine.model.device=cpu")
    with RunWriter(tmp_path / "a-1", []) as writer:
        bring_to(writer, "running")
        recorder = Recorder(writer, Silent(), job, [], 1)
        recorder.end("succeeded", "done")
        recorder.close()
        recorder.close()
    events = [event["message"] for event in open_run("a-1", tmp_path).events()]
    assert events[-2:] == ["done", "tracking stops here: ConnectionError: the server has gone"]
    assert open_run("a-1", tmp_path).status().status == "succeeded"
