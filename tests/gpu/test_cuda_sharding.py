"""A sharded base on CUDA devices, one NCCL rank each: what tests/invariants/test_sharding.py asks on a CPU."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.invariants.sharding_worker import DTYPES, prepare, whole_tensors
from tests.launch import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def worked(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], list[dict[str, Tensor]], dict[str, Tensor]]:
    """Facts and tensors of a rank per device, and the tensors of one process with the whole base."""
    torch.backends.cuda.matmul.allow_tf32 = False
    folder = prepare(tmp_path_factory.mktemp("sharding"))
    expected = whole_tensors(folder, "cuda")
    size = torch.cuda.device_count()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    module = ["-m", "tests.invariants.sharding_worker", str(folder), "cuda"]
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    done = subprocess.run(
        [sys.executable, *launch, *module],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((folder / "facts.json").read_text())
    ranks = [load_file(folder / f"rank_{rank}.safetensors") for rank in range(size)]
    return facts, ranks, expected


def test_the_ranks_are_real_and_each_holds_its_part(worked: Any) -> None:
    facts, ranks, _ = worked
    size = torch.cuda.device_count()
    assert facts["size"] == len(ranks) == size and facts["backend"] == "nccl"
    for told in facts["ranks"]:
        for dtype in DTYPES:
            share = told[dtype]
            assert share["all"] > 90_000
            assert share["own"] == pytest.approx(share["all"] / size, rel=0.05)
            assert share["stored"] == pytest.approx(share["own"] * share["itemsize"], rel=0.1)


def test_logprobs_and_gradients_are_those_of_the_whole_base(worked: Any) -> None:
    _, ranks, expected = worked
    for rank in ranks:
        assert rank.keys() == expected.keys()
        for name, tensor in expected.items():
            limit = 1e-2 if ".update." in name or name.startswith("bfloat16") else 1e-4
            assert (rank[name] - tensor).norm() <= limit * tensor.norm(), name
