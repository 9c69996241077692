"""What the command line promises: exit codes, messages, one JSON document, no torch at the start."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rft.cli import failure, launch, train
from rft.cli.curve import draw_curve
from rft.cli.live import LiveReport, evaluation_line, step_line
from rft.cli.main import main
from rft.cli.output import Screen
from rft.cli.summary import program, summary_lines
from rft.cli.text import clean, duration, outline, table
from rft.errors import JobFailedError, MachineError, PausedError, Problem, UserError
from rft.runs.documents import json_bytes
from rft.runs.folders import write_folder
from rft.runs.layout import RunFolder
from rft.runs.reader import open_run
from rft.runs.requests import asked
from rft.runs.writer import RunWriter
from tests.jobs import write_job
from tests.statuses import bring_to
from tests.tiny import save_tiny_model

JOB = """\
model: smollm2-135m-instruct
training_file: rows.jsonl
validation_file: rows.jsonl
method:
  type: reinforcement
  reinforcement:
    grader:
      type: multi
      name: both
      graders:
        same:
          type: string_check
          name: same
          operation: eq
          input: "{{ sample.output_text }}"
          reference: "{{ item.answer }}"
        code:
          type: python
          name: code
          source: |
            def grade(sample, item):
                if sample["output_text"] == "boom":
                    raise ValueError("it went boom")
                return 0.5
      calculate_output: 0.5 * same + code
"""
COMMANDS = [
    ["--help"],
    ["train", "--help"],
    ["validate", "--help"],
    ["grade", "--help"],
    ["evaluate", "--help"],
    ["generate", "--help"],
    ["export", "--help"],
    ["schema", "--help"],
    ["doctor", "--help"],
    ["runs", "--help"],
    *(
        ["runs", name, "--help"]
        for name in (
            *("list", "show", "checkpoints", "events", "samples", "errors", "compare"),
            *("pause", "resume", "cancel"),
        )
    ),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}\n')
    (tmp_path / "item.json").write_text('{"answer": "Paris"}')
    return tmp_path


def evaluation(rewards: dict[int, float]) -> list[dict[str, object]]:
    return [
        {
            "row": row,
            "sample": 0,
            "prompt": "p",
            "messages": [{"role": "user", "content": f"question {row} \x1b[31m"}],
            "completion": "c",
            "output_text": f"answer \x1b[2J[bold]{reward}[/bold]",
            "finish_reason": "stop",
            "num_tokens": 3,
            "reward": reward,
            "sub_rewards": {"same": reward},
            "errors": {},
            "item": {},
        }
        for row, reward in rewards.items()
    ]


@pytest.fixture
def run(here: Path) -> Path:
    """runs/a-1: a short job that succeeded, best at step 2."""
    folder = here / "runs" / "a-1"
    with RunWriter(folder, [("both", "multi")]) as writer:
        bring_to(writer, "running")
        writer.event("info", "Created")
        writer.event("warn", "Beware")
        writer.metrics({"step": 0, "valid_reward_mean": 0.25})
        writer.evaluation(0, evaluation({0: 0.0, 1: 0.5}))
        for step, reward in ((1, 0.5), (2, 0.75)):
            writer.metrics({"step": step, "train_reward_mean": 0.3, "valid_reward_mean": reward})
            writer.evaluation(step, evaluation({0: 1.0, 1: reward - 0.25}))
            writer.samples(step, evaluation({0: 0.25}))
            document = {"step": step, "valid_reward_mean": reward, "metrics": {"step": step}}
            write_folder(
                folder / "checkpoints" / f"step_{step}",
                {"adapter_config.json": b"{}", "checkpoint.json": json_bytes(document)},
            )
        writer.status("succeeded", "The job is done", step=2, total_steps=2)
    return folder


def rft(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rft", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Example:\n  rft " in shown.replace("    rft", "  rft") or arguments == ["--help"]
    assert "--json" in shown or arguments in (["--help"], ["runs", "--help"])


TORCH_FREE = """
import sys
from rft.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "accelerate"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["schema"],
        ["runs", "list"],
        ["runs", "show", "a-1"],
        ["runs", "compare", "a-1@0", "a-1"],
        ["runs", "errors", "a-1"],
        ["grade", "job.yaml", "--item", "item.json", "--sample", "Paris"],
    ],
    ids=" ".join,
)
def test_these_start_without_torch(run: Path, arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", TORCH_FREE, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "error: No such command 'bogus'. → see rft --help\n"),
        (["runs", "bogus"], "error: No such command 'bogus'. → see rft runs --help\n"),
        (["generate"], "error: Missing argument 'MODEL'. → see rft generate --help\n"),
        (["runs", "show", "a-2"], "error: there is no run 'a-2' (runs/a-2) → did you mean a-1?\n"),
        (
            ["runs", "compare", "a-1@0", "a-1@7"],
            "error: the run keeps no evaluation at step 7 (runs/a-1) → "
            "take one of the steps 0, 1, 2\n",
        ),
        (
            ["runs", "list", "nowhere"],
            "error: there is no such folder (nowhere) → name one with runs\n",
        ),
        (
            ["grade", "job.yaml", "--item", "rows.json", "--sample", "x"],
            "error: the item cannot be read: No such file or directory (rows.json) → "
            "give --item a JSON file that holds one row of the data\n",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)
    assert main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == message
    assert document["error"]["message"] == message.removeprefix("error: ").removesuffix("\n")
    assert len(document["error"]["problems"]) == 1


NO_RUN = "error: there is no run 'a-2' (runs/a-2) → did you mean a-1?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pause", "a-2"], NO_RUN),
        (["resume", "a-2"], NO_RUN),
        (["cancel", "a-2"], NO_RUN),
        (
            ["pause", "a-1"],
            "error: the run has succeeded: there is nothing to pause (runs/a-1)\n",
        ),
        (["cancel", "a-1"], "error: the run has already succeeded (runs/a-1)\n"),
        (
            ["resume", "a-1@1"],
            "error: a run goes on from its newest state (a-1@1) → "
            "leave the step out, or add --fork to go on from that step in a copy\n",
        ),
        (
            ["resume", "a-1"],
            "error: there is no job document (runs/a-1/job.resolved.yaml) → name one with --job\n",
        ),
        (
            ["resume", "a-1@1", "--fork"],
            "error: there is no job document (runs/a-1/job.resolved.yaml) → name one with --job\n",
        ),
    ],
)
def test_what_cannot_be_stopped_or_resumed_says_so_and_changes_nothing(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in run.parent.rglob("*") if p.is_file()}

    before = files()
    assert main(["runs", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)
    assert main(["runs", *arguments, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["type"] == "RunError"
    assert files() == before


@pytest.mark.parametrize("order", ["pause", "cancel"])
def test_a_run_is_stopped_as_a_whole(
    run: Path, order: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", order, "a-1@1"]) == 2
    assert "a run is stopped as a whole (a-1@1) → leave the step out" in capsys.readouterr().err


def test_a_fork_to_a_job_that_is_missing_leaves_no_copy(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(RunFolder(run).state_folder(2), {"progress.json": b"{}"})
    assert main(["runs", "resume", "a-1", "--fork", "--job", "nowhere.yaml"]) == 2
    assert "no job document (nowhere.yaml)" in capsys.readouterr().err
    assert [path.name for path in run.parent.iterdir()] == ["a-1"]


def test_a_run_that_never_had_a_status_is_cancelled_at_once(here: Path) -> None:
    RunWriter(here / "runs/b-1", []).close()
    assert main(["runs", "cancel", "b-1", "--timeout", "0.5"]) in (0, 2)
    assert not (here / "runs/b-1/request.json").exists()


def test_a_paused_run_stays_paused_until_it_is_cancelled(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunWriter(here / "runs/b-1", []) as writer:
        bring_to(writer, "paused", message="stopped by SIGTERM", step=3)
    assert main(["runs", "pause", "b-1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "runs/b-1: paused, step 3",
        "  stopped by SIGTERM",
        "  go on with: rft runs resume b-1",
    ]
    assert not (here / "runs/b-1/request.json").exists()
    assert main(["runs", "cancel", "b-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": "b-1",
        "status": "cancelled",
        "step": 3,
        "message": "cancelled by rft runs cancel",
    }
    messages = [event["message"] for event in open_run("b-1", Path("runs")).events()]
    assert messages == ["stopped by SIGTERM", "cancelled by rft runs cancel"]
    for command in ("pause", "cancel"):
        assert main(["runs", command, "b-1"]) == 2
        assert "cancelled" in capsys.readouterr().err


def test_a_failed_run_can_be_cancelled_but_not_paused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunWriter(here / "runs/b-1", []) as writer:
        bring_to(writer, "failed", message="lost", error={"message": "lost"})
    assert main(["runs", "pause", "b-1"]) == 2
    assert "the run has failed: there is nothing to pause" in capsys.readouterr().err
    assert main(["runs", "cancel", "b-1"]) == 0
    assert open_run("b-1", Path("runs")).status().status == "cancelled"


def test_a_run_whose_process_died_can_be_cancelled(here: Path) -> None:
    with RunWriter(here / "runs/b-1", []) as writer:
        bring_to(writer, "running")
    assert main(["runs", "pause", "b-1"]) == 0
    assert main(["runs", "cancel", "b-1"]) == 0
    assert open_run("b-1", Path("runs")).status().status == "cancelled"


def test_a_run_of_a_machine_that_is_gone_can_be_taken_up(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunWriter(here / "runs/b-1", []) as writer:
        bring_to(writer, "running")
    state = here / "runs/b-1/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"host": "pod-7"}))
    assert main(["runs", "cancel", "b-1", "--timeout", "0.2"]) == 3
    assert (
        "it was begun on pod-7, and no process holds it here: if that machine is gone, "
        "rft runs resume b-1 goes on with it here" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("action", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_running_job_is_asked_and_waited_for(
    here: Path, action: str, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "runs/b-1"
    with RunWriter(folder, []) as writer:
        bring_to(writer, "running", step=4)
        assert main(["runs", action, "b-1", "--timeout", "0.2"]) == 3
        assert capsys.readouterr().err == (
            "error: the run has not stopped within 0.2 seconds; it is asked to, and may still "
            "(runs/b-1) → look at it: rft runs show b-1\n"
        )
        request = asked(RunFolder(folder))
        assert request is not None
        assert (request.action, request.reason) == (action, f"rft runs {action}")

        def obey() -> None:
            time.sleep(0.5)
            writer.status(status, request.reason)  # type: ignore[arg-type]
            writer.close()

        process = threading.Thread(target=obey)
        process.start()
        assert main(["runs", action, "b-1"]) == 0
        process.join()
    assert capsys.readouterr().out.splitlines()[0] == f"runs/b-1: {status}, step 4"


def test_a_run_in_use_is_not_resumed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunWriter(here / "runs/b-1", []) as writer:
        bring_to(writer, "running")
        assert main(["runs", "resume", "b-1"]) == 2
        assert re.match(
            rf"error: the run is in use by process {os.getpid()} on \S+ since [\d: -]+ "
            r"\(runs/b-1\) → pause it first: rft runs pause runs/b-1",
            capsys.readouterr().err,
        )


def test_a_missing_job_is_refused_before_any_process_starts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for processes in ("1", "2"):
        assert main(["train", "nowhere.yaml", "--processes", processes]) == 2
        assert "nowhere.yaml" in capsys.readouterr().err


def test_an_existing_run_folder_is_refused_before_a_model_is_loaded(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "job.yaml", "--run-dir", "runs/a-1"]) == 2
    assert capsys.readouterr().err == (
        "error: the run folder exists already (runs/a-1) → add --resume to go on with that run, "
        "or name a folder that does not exist yet\n"
    )


def test_a_resumed_run_remembers_its_baseline(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = LiveReport(Screen(sys.stdout))
    report.started({"run_folder": "runs/a-1", "total_steps": 4})
    report.evaluated(3, {"valid_reward_mean": 0.7})
    report.evaluated(4, {"valid_reward_mean": 0.8})
    assert capsys.readouterr().out.splitlines()[2:] == [
        "evaluation at step 3: valid reward 0.700 (+0.450)",
        "evaluation at step 4: valid reward 0.800 (+0.550)  best so far",
    ]


def test_an_evaluation_that_does_not_rank_is_not_called_the_best(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = LiveReport(Screen(sys.stdout))
    for step, ungraded in ((1, 0.06), (2, 0.05)):
        report.evaluated(step, {"valid_reward_mean": 0.7, "valid_ungraded_fraction": ungraded})
    assert capsys.readouterr().out.splitlines() == [
        "evaluation at step 1: valid reward 0.700",
        "evaluation at step 2: valid reward 0.700  best so far",
    ]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"a": 1,}', "item.json:1:"),
        (b"[1]", "(item.json)"),
        (b"\xff\xfe", "(item.json)"),
        (b"[" * 100_000, "(item.json)"),
    ],
)
def test_a_bad_item_names_its_place(
    here: Path, content: bytes, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "item.json").write_bytes(content)
    assert main(["grade", "job.yaml", "--item", "item.json", "--sample", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the item is not ") or "the item is a JSON list" in error
    assert place in error


@pytest.mark.parametrize(
    ("text", "reward", "parts"),
    [("Paris", 1.0, {"same": 1.0, "code": 0.5}), ("Rome", 0.5, {"same": 0.0, "code": 0.5})],
)
def test_a_grade_is_the_product_s_reply(
    here: Path,
    text: str,
    reward: float,
    parts: dict[str, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["grade", "job.yaml", "--item", "item.json", "--sample", text, "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    metadata = reply.pop("metadata")
    assert reply == {
        "reward": reward,
        "sub_rewards": parts,
        "model_grader_token_usage_per_model": {},
    }
    assert (metadata["name"], metadata["type"]) == ("both", "multi")
    assert (metadata["token_usage"], metadata["sampled_model_name"]) == (None, None)
    assert metadata["execution_time"] >= 0
    assert metadata["errors"]["python_grader_runtime_error"] is False
    assert metadata["errors"]["python_grader_runtime_error_details"] is None
    assert not any(metadata["errors"].values())


@pytest.mark.parametrize(
    ("row", "reward"),
    [
        ({"q": "Capital?", "gold": {"name": "Paris"}}, 1.0),
        ({"gold": {"name": "Paris"}}, 1.0),
        ({"answer": "Paris"}, 1.0),
        ({"answer": "Rome", "gold": {"name": "Paris"}}, 1.0),
        ({"answer": "Rome"}, 0.0),
    ],
)
def test_an_item_is_what_graders_see_in_training(
    here: Path, row: dict[str, Any], reward: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of the data with its fields mapped, or what somebody wrote instead of one."""
    (here / "row.json").write_text(json.dumps(row))
    fields = 'engine.data.fields={prompt: "{{ q }}", answer: "{{ gold.name }}"}'
    command = ["grade", "job.yaml", fields, "--item", "row.json", "--sample", "Paris", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["sub_rewards"]["same"] == reward


def test_a_failing_grade_is_an_answer_not_a_failure(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grade", "job.yaml", "--item", "item.json", "--sample", "boom", "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)["metadata"]["errors"]
    assert errors["python_grader_runtime_error"] is True
    assert "it went boom" in errors["python_grader_runtime_error_details"]


CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "has_tools", "reward", "flags"),
    [
        (CALL, True, 1.0, []),
        (CALL, False, 0.0, ["invalid_variable_error"]),
        ("Paris", True, 0.0, ["invalid_variable_error"]),
        (CALL[:30], True, 0.0, ["sample_parse_error"]),
    ],
)
def test_a_call_is_read_where_the_item_has_tools(
    here: Path,
    text: str,
    has_tools: bool,
    reward: float,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}] if has_tools else []
    (here / "tools.json").write_text(json.dumps({"tools": tools}))
    grader = (
        "{type: string_check, name: t, operation: eq, reference: f, "
        "input: '{{ sample.output_tools[0].function.name }}'}"
    )
    command = ["grade", "job.yaml", f"method.reinforcement.grader={grader}", "--json"]
    assert main([*command, "--item", "tools.json", "--sample", text]) == 0
    reply = json.loads(capsys.readouterr().out)
    errors = reply["metadata"]["errors"]
    assert reply["reward"] == reward
    assert [flag for flag, raised in errors.items() if raised is True] == flags
    if flags == ["sample_parse_error"]:
        assert errors["sample_parse_error_details"].startswith(
            "output_tools: tool call 1: not valid"
        )


def test_bad_tools_of_an_item_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "tools.json").write_text(json.dumps({"tools": [{"type": "function"}]}))
    assert main(["grade", "job.yaml", "--item", "tools.json", "--sample", "x"]) == 2
    assert "error: `tools[0]` has no name (tools.json) → " in capsys.readouterr().err


@pytest.fixture(scope="module")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return write_job(folder, save_tiny_model(folder / "model"))


def test_a_baseline_is_one_document(tiny_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tiny_job), "--samples", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["is_valid"], document["num_training_rows"]) == (True, 32)
    found = document["samples"]
    assert set(found) == {
        *("num_prompts", "samples_per_prompt", "temperature", "seconds", "reward", "parts"),
        *("groups", "pass_threshold", "pass_at", "ungraded_fraction", "errors", "completions"),
        *("reward_length_correlation", "canaries", "grading", "verdict", "findings"),
    }
    assert set(found["canaries"]) == {"empty", "punctuation", "echo", "reference"}
    assert found["verdict"] in ("ready", "learnable with changes", "not learnable")
    assert all(set(finding) == {"weight", "about", "text"} for finding in found["findings"])


def test_a_baseline_is_readable(tiny_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tiny_job), "--samples", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("") + 1
    assert lines[0] == "is valid               yes"
    assert re.fullmatch(
        r"the untrained model on 24 training prompts, 2 completions each at temperature 1: "
        r"48 completions in [\d.]+ s",
        lines[start],
    )
    assert re.fullmatch(r"reward( +0\.\d{3}){5}", lines[start + 3])
    names = ["groups", "a step", "passing", "completions", "length", "grading", "errors"]
    assert [line[:11].rstrip() for line in lines[start + 5 : start + 12]] == names
    assert "the reference answer          –            –" in lines
    (verdict,) = [number for number, line in enumerate(lines) if line.startswith("verdict: ")]
    assert lines[verdict] == "verdict: learnable with changes"
    assert lines[verdict + 1].startswith("  ! ")
    assert all(line[:4] in ("  ! ", "  · ", "    ") for line in lines[verdict + 1 :])
    assert all(len(line) <= 100 for line in lines[verdict:])


def test_one_sample_is_no_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "job.yaml", "--samples", "1"]) == 2
    assert "--samples" in capsys.readouterr().err


def test_the_schema_is_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plain
    assert "method" in plain["properties"]


def test_the_commands_that_look_at_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def document(*arguments: str) -> dict[str, object]:
        assert main([*arguments, "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return json.loads(captured.out)  # type: ignore[no-any-return]

    assert [entry["run"] for entry in document("runs", "list")["data"]] == ["a-1"]  # type: ignore[attr-defined]
    shown = document("runs", "show", "a-1")
    assert (shown["status"], shown["best"]) == ("succeeded", {"step": 2, "valid_reward_mean": 0.75})
    checkpoint = document("runs", "checkpoints", "a-1")["data"][0]  # type: ignore[index]
    assert checkpoint["object"] == "fine_tuning.job.checkpoint"
    assert (checkpoint["step_number"], checkpoint["metrics"]) == (1, {"step": 1})
    warnings = document("runs", "events", "a-1", "--level", "warn")["data"]
    assert [event["message"] for event in warnings] == ["Beware"]  # type: ignore[attr-defined]
    samples = document("runs", "samples", "a-1", "--limit", "1")
    assert samples["data"][0]["step"] == 2  # type: ignore[index]
    compared = document("runs", "compare", "a-1@0", "a-1@best")
    assert (compared["mean_before"], compared["mean_after"]) == (0.25, 0.75)
    assert (compared["num_better"], compared["num_same"]) == (1, 1)


def test_model_text_cannot_speak_to_the_terminal(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["show", "a-1"], ["samples", "a-1"], ["compare", "a-1@0", "a-1"]):
        assert main(["runs", *arguments]) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert "answer [bold]" in shown


def test_a_summary_tells_the_whole_story(run: Path) -> None:
    lines = summary_lines(open_run("a-1", Path("runs")))
    assert lines[0] == "runs/a-1: succeeded, step 2/2"
    assert "baseline  0.250  valid reward before training" in lines
    assert "best      0.750  at step 2  gain +0.500 ± 0.500" in lines
    assert "          1 rows better, 0 worse, 1 the same" in lines
    assert "  runs/a-1/checkpoints/step_2  valid reward 0.750  best" in lines
    assert "    before  0.00  answer [bold]0.0[/bold]" in lines
    assert f"  {program()} runs compare a-1@0 a-1@best" in lines
    assert any(line.startswith(f"  {program()} generate a-1 ") for line in lines)
    assert any(line.endswith("training reward   ● validation reward") for line in lines)


def test_a_prompt_like_an_option_is_shown_as_a_prompt(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rft.cli.summary._example_prompt", lambda run: "-5 + 3 = ?")
    shown = [line for line in summary_lines(open_run("a-1", Path("runs"))) if "generate" in line]
    assert shown == [f"  {program()} generate -- a-1 '-5 + 3 = ?'"]
    assert main(["generate", "--", "nowhere-1", "-5 + 3 = ?"]) == 2
    assert "no model 'nowhere-1'" in capsys.readouterr().err


def test_a_run_with_nothing_in_it_yet_has_a_summary(here: Path) -> None:
    with RunWriter(here / "runs" / "b-1", []):
        pass
    assert summary_lines(open_run("b-1", Path("runs"))) == ["runs/b-1: unknown, step 0"]


def failing(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("bad", where="x:1:2", remedy="mend"), 2, "error: bad (x:1:2) → mend\n"),
        (UserError([Problem("a"), Problem("b", "here")]), 2, "error: a\nerror: b (here)\n"),
        (MachineError("no room"), 3, "error: no room\n"),
        (OSError(28, "No space left on device", "f"), 3, "error: No space left on device (f) → "),
        (ModuleNotFoundError("no", name="torch.x"), 3, "error: the package torch is missing → "),
        (JobFailedError("lost"), 4, "error: lost\n"),
        (PausedError("stopped"), 75, "error: stopped\n"),
        (KeyError("x"), 4, "error: unexpected KeyError: 'x' → the traceback is in "),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    message: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TMPDIR", str(here))
    monkeypatch.setattr("tempfile.tempdir", str(here))
    monkeypatch.setattr("rft.job.json_schema", failing(error))
    assert main(["schema"]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(message)
    assert "Traceback" not in captured.err
    assert main(["schema", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"]["message"] in captured.err.replace(
        "error: ", ""
    ) or isinstance(error, KeyError)


def test_the_traceback_of_the_unexpected_is_kept_in_the_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = failure.Crash(here)
    crash.__cause__ = ZeroDivisionError("division by zero")
    assert failure.report_failure(crash, False, "rft") == 4
    (kept,) = here.glob("crash-*.txt")
    assert "ZeroDivisionError: division by zero" in kept.read_text()
    assert str(kept) in capsys.readouterr().err


def test_other_ranks_leave_the_talking_to_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(failure, "GRACE_SECONDS", 0.0)
    assert failure.report_failure(UserError("bad"), True, "rft") == 2
    assert capsys.readouterr() == ("", "")
    assert failure.report_failure(MachineError("mine alone"), True, "rft") == 3
    assert capsys.readouterr() == ("", "[rank 1] error: mine alone\n")


@pytest.mark.parametrize("reader", ["true", "head -1"])
@pytest.mark.parametrize("arguments", ["--help", "schema", "schema --json"])
def test_a_pipe_closed_early_is_silent(here: Path, reader: str, arguments: str) -> None:
    script = f"{sys.executable} -m rft {arguments} | {reader}; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "0"


def test_a_stream_that_knows_only_ascii(run: Path) -> None:
    result = rft("runs", "show", "a-1", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert result.stdout.isascii() and ". training reward   o validation reward" in result.stdout
    assert "gain +0.500 +- 0.500" in result.stdout


def heed_interrupts() -> None:
    """A shell's background jobs, and what they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupting_is_130(here: Path) -> None:
    source = JOB.replace("return 0.5", "import time; time.sleep(60)")
    (here / "job.yaml").write_text(source)
    process = subprocess.Popen(
        [sys.executable, "-m", "rft", "grade", "job.yaml", "--sample", "x"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "error: interrupted\n")


def test_libraries_that_print_do_not_spoil_the_document(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy() -> dict[str, float]:
        print("a library says hello")
        return {"x": float("nan")}

    monkeypatch.setattr("rft.job.json_schema", noisy)
    assert main(["schema", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"x": None}
    assert captured.err == "a library says hello\n"


@pytest.mark.parametrize(
    ("failed", "state", "code"),
    [
        (None, "succeeded", 0),
        ((0, 2), None, 2),
        ((0, 75), "paused", 75),
        ((-1, -2), "paused", 75),
        ((1, 1), "paused", 75),
        ((1, 2), None, 2),
        ((1, -9), "running", JobFailedError),
    ],
)
def test_the_code_of_a_launch_is_the_job_s(
    here: Path,
    failed: tuple[int, int] | None,
    state: str | None,
    code: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rft.job import load_job

    folder = here / "mine"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"status": state}))
    monkeypatch.setattr(launch, "_prepare_environment", lambda *_: None)
    monkeypatch.setattr(launch, "_accelerate", lambda *_: failed)
    job = load_job(here / "job.yaml")
    if code is JobFailedError:
        with pytest.raises(JobFailedError, match="rank 1 was killed by signal 9"):
            launch.launch(job, [], 2, folder, False)
    else:
        assert launch.launch(job, [], 2, folder, False) == code


def test_each_process_of_a_launch_gets_the_same_command() -> None:
    order = train.Order(Path("j.yaml"), ("seed=1",), Path("out"), resume=True)
    assert order.arguments(as_json=True) == [
        *("train", "--run-dir", "out", "--resume", "--json", "--", "j.yaml", "seed=1")
    ]
    new = train.Order(Path("j.yaml"), (), None, resume=False)
    assert new.arguments(as_json=False) == ["train", "--", "j.yaml"]


def test_a_step_is_one_line() -> None:
    metrics = {
        "step": 3,
        "train_reward_mean": 0.5,
        "completion_tokens_mean": 41.25,
        "rollout/zero_signal_groups": 2,
        "rollout/groups": 8,
        "rollout/truncated_fraction": 0.125,
        "timing/full_iteration": 4.21,
        "timing/sampling_tokens_per_second": 1234.5,
    }
    assert step_line(metrics, 120, 440.0) == (
        "step   3/120  reward 0.500  zero-signal 2/8  length 41.2  cut off 12%"
        "  1,234 tok/s  4.2 s  ETA 7 min 20 s"
    )
    assert step_line({"step": 3, "train_reward_mean": None}, None, None) == "step   3  reward –"


def test_an_evaluation_is_one_line() -> None:
    metrics = {"valid_reward_mean": 0.75, "valid_reward_se": 0.05, "valid_reward_mean/same": 1.0}
    assert evaluation_line(10, metrics, 0.5, "best so far") == (
        "evaluation at step 10: valid reward 0.750 ± 0.050 (+0.250)  same 1.000  best so far"
    )


def test_a_report_without_facts_still_reports(capsys: pytest.CaptureFixture[str]) -> None:
    report = LiveReport(Screen(sys.stdout))
    report.started({})
    report.evaluated(0, {"valid_reward_mean": None})
    report.step({"step": 1, "total_steps": 2})
    report.event("warn", "careful \x1b[31m")
    assert capsys.readouterr().out.splitlines() == [
        "evaluation at step 0: valid reward –",
        "step 1/2  reward –  ETA 0.0 s",
        "warning: careful ",
    ]


def test_a_curve_rises_from_the_lower_left_to_the_upper_right() -> None:
    points = [(float(step), step / 10) for step in range(11)]
    lines = draw_curve(points, [], width=21, height=11, is_unicode=False)
    assert lines[0] == "   1.000 |          ."
    assert lines[10] == "   0.000 |."
    assert [line.index(".", 9) - 10 for line in lines[1:10]] == list(range(9, 0, -1))
    marked = draw_curve(points, [(0.0, 1.0)], width=21, height=11)
    assert marked[0].startswith("   1.000 ┤●")
    assert all(len(line) <= 21 + 30 for line in marked)


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.0, 0.0, 0.0], [-3.0, -3.0]])
def test_a_flat_curve_is_drawn(values: list[float]) -> None:
    lines = draw_curve([(float(step), value) for step, value in enumerate(values)], [])
    assert len(lines) == 10
    assert draw_curve([(0.0, 1.0)], []) == []


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("\x1b]0;title\x07b\x1b]8;;http://x\x1b\\link", "blink"),
        ("x\x9b31my\x00\x7f", "x31my"),
        ("\u202eabc\u2069", "abc"),
        ("tab\tline\nmore\r\nend\r", "tab\tline\nmore\nend"),
        ("\ud800[bold]", "[bold]"),
        ("é 漢 🙂", "é 漢 🙂"),
    ],
)
def test_clean(text: str, safe: str) -> None:
    assert clean(text) == safe


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (440, "7 min 20 s"),
        (3600, "1 h 00 min"),
        (7499, "2 h 04 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tables_and_outlines() -> None:
    assert table(("run", "step"), [("a", "1"), ("bcd", "10")]) == [
        "run  step",
        "a       1",
        "bcd    10",
    ]
    document = {"num_rows": 3, "ok": True, "parts": [{"a": 1, "b": None}], "none": {}, "x": [1, 2]}
    assert outline(document) == [
        "num rows  3",
        "ok        yes",
        "parts",
        "  - a  1",
        "    b  –",
        "none      –",
        "x         1, 2",
    ]
