"""A whole job through a vLLM server in miniature, which dies on the way."""

import json
from pathlib import Path

import pytest

from tests.jobs import write_job
from tests.launch import run_rft
from tests.tiny import save_tiny_model
from tests.unit.rollout.fake_vllm import fake_vllm


@pytest.mark.long
def test_a_job_whose_server_dies_goes_on_where_it_was(tmp_path: Path) -> None:
    job = write_job(tmp_path, save_tiny_model(tmp_path / "model"), num_rows=11)
    with fake_vllm() as server:
        servers = f"engine.rollout.vllm.servers=[{server.url}]"
        options = [str(job), "engine.rollout.engine=vllm", servers, "--run-dir", "run"]
        options.append("engine.evaluation.at_start=false")
        server.dies_after = 20  # in the second step of 16 completions
        died = run_rft("train", *options, cwd=tmp_path)
        assert died.returncode == 3, died.stderr
        assert server.url in died.stderr and "--resume" in died.stderr
        assert "Traceback" not in died.stderr
        state = json.loads((tmp_path / "run" / "state.json").read_text())
        assert (state["status"], state["step"]) == ("failed", 1)
        server.dies_after, left_by_the_first = None, list(server.names)
        resumed = run_rft("train", *options, "--resume", cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        assert server.names == left_by_the_first
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["rollout/logprob_gap"] < 1e-4 for row in rows)
    facts = json.loads((tmp_path / "run" / "env.json").read_text())
    assert facts["vllm"] == "0.32.0" and not facts["bitwise"]
