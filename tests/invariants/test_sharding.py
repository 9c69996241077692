"""Invariant 8, for a base that is sharded: processes that hold parts of it compute what one computes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from rft.policy import LoraShape, new_policy
from rft.runs.reader import open_run
from rft.training.model_origin import base_digest
from tests.invariants.sharding_worker import (
    DTYPES,
    base_and_digest,
    open_base,
    prepare,
    whole_tensors,
)
from tests.jobs import write_job
from tests.launch import run_ranks
from tests.tiny import save_tiny_model

SIZES = [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(4, marks=pytest.mark.long)]
KINDS = [f"{dtype}.kl {kl}" for dtype in DTYPES for kl in (0.0, 0.1)]


@dataclass(frozen=True)
class Worked:
    """What real ranks did with a sharded base."""

    folder: Path
    facts: dict[str, Any]
    ranks: list[dict[str, Tensor]]
    """The tensors of each rank."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("sharding"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    return whole_tensors(folder, "cpu")


@pytest.fixture(scope="module")
def worked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Worked]:
    """The same work done by so many ranks, once."""

    @cache
    def work(size: int) -> Worked:
        place = tmp_path_factory.mktemp(f"ranks{size}")
        for name in ("base", "start"):
            (place / name).symlink_to(folder / name)
        done = run_ranks(size, "tests.invariants.sharding_worker", str(place), "cpu", cwd=place)
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [load_file(place / f"rank_{rank}.safetensors") for rank in range(size)]
        return Worked(place, json.loads((place / "facts.json").read_text()), ranks)

    return work


def relative_errors(
    found: dict[str, Tensor], expected: dict[str, Tensor], prefix: str
) -> list[float]:
    names = [name for name in expected if name.startswith(prefix)]
    assert names and all(expected[name].norm() > 0 for name in names)
    return [float((found[n] - expected[n]).norm() / expected[n].norm()) for n in names]


@pytest.mark.parametrize("size", SIZES)
def test_each_rank_holds_its_part_of_the_layers_and_the_rest_whole(
    worked: Callable[[int], Worked], size: int
) -> None:
    facts = worked(size).facts
    assert facts["size"] == len(facts["ranks"]) == size and facts["backend"] == "gloo"
    for dtype, itemsize in (("float32", 4), ("bfloat16", 2)):
        for share in (told[dtype] for told in facts["ranks"]):
            assert share["all"] > 90_000
            assert share["own"] == pytest.approx(share["all"] / size, rel=1e-3)
            assert share["itemsize"] == itemsize
            assert share["stored"] == pytest.approx(share["own"] * itemsize, rel=1e-3)
            assert share["whole"] == ["model.embed_tokens.weight", "model.norm.weight"]
            assert share["split lora"] == []
            assert share["merges"] is False


@pytest.mark.parametrize("size", SIZES)
def test_a_sharded_base_is_known_by_the_whole_of_it(
    worked: Callable[[int], Worked], size: int
) -> None:
    for dtype in DTYPES:
        base, digest = base_and_digest(worked(size).folder, dtype, "none", "cpu")
        assert [told[f"{dtype} digest"] for told in worked(size).facts["ranks"]] == [digest] * size
        with torch.no_grad():
            base.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(1.01)
        assert base_digest(base) != digest


@pytest.mark.parametrize("size", SIZES)
def test_ranks_make_equally_many_passes_and_train_on_groups_of_their_own(
    worked: Callable[[int], Worked], size: int
) -> None:
    for dtype in DTYPES:
        for kl in (0.0, 0.1):
            passes = [told[f"{dtype} passes at kl {kl}"] for told in worked(size).facts["ranks"]]
            assert len({told["all"] for told in passes}) == 1
            assert all(told["own"] > 0 for told in passes)
            if size > 1 and kl == 0:
                assert any(told["own"] < told["all"] for told in passes)


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_sees_the_logprobs_of_the_whole_base(
    worked: Callable[[int], Worked], expected: dict[str, Tensor], size: int
) -> None:
    gap = (expected["float32.logprobs"] - expected["float32.reference"]).abs()
    assert gap[gap > 0].mean() > 0.1
    for rank in worked(size).ranks:
        for dtype in DTYPES:
            for name in ("logprobs", "entropies", "reference", "kl 0.0.anchors", "kl 0.1.anchors"):
                key = f"{dtype}.{name}"
                assert (rank[key] - expected[key]).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_and_three_updates_are_those_of_the_whole_base(
    worked: Callable[[int], Worked], expected: dict[str, Tensor], size: int, kind: str
) -> None:
    for rank in worked(size).ranks:
        assert max(relative_errors(rank, expected, f"{kind}.sums")) < 1e-5
        assert max(relative_errors(rank, expected, f"{kind}.gradient.")) < 1e-5
        assert max(relative_errors(rank, expected, f"{kind}.update.")) < 1e-2


@pytest.mark.parametrize("size", SIZES)
def test_an_adapter_is_continued_and_kept_as_the_reference(
    worked: Callable[[int], Worked], expected: dict[str, Tensor], size: int
) -> None:
    gap = (expected["continued.reference"] - expected["float32.reference"]).abs()
    assert gap[gap > 0].mean() > 0.1
    for rank in worked(size).ranks:
        for name in ("logprobs", "reference"):
            key = f"continued.{name}"
            assert (rank[key] - expected[key]).abs().max() < 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_the_saved_adapter_is_whole_and_plain_peft_loads_it(
    worked: Callable[[int], Worked], folder: Path, expected: dict[str, Tensor], size: int
) -> None:
    adapter = worked(size).folder / "adapter"
    assert files_of(adapter) == files_of(folder / "adapter")
    for rank in worked(size).ranks:
        assert (rank["reloaded"] - expected["float32.logprobs"]).abs().max() < 1e-6
    plain = PeftModel.from_pretrained(open_base(folder, "float32", "none", "cpu"), adapter)
    found = get_peft_model_state_dict(plain, save_embedding_layers=False)
    saved = load_file(adapter / "adapter_model.safetensors")
    assert found.keys() == saved.keys() and all(torch.equal(found[n], saved[n]) for n in saved)


def files_of(adapter: Path) -> dict[str, bytes]:
    """A PEFT folder, but for where its base lies."""
    found = {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert found.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(found["adapter_config.json"])
    del config["base_model_name_or_path"]
    return found | {"adapter_config.json": json.dumps(config).encode()}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_whole_job_on_two_ranks_goes_on_with_three(tmp_path: Path) -> None:
    model, run, adapters = (tmp_path / name for name in ("model", "run", "adapters"))
    job = write_job(tmp_path / "job", save_tiny_model(model), num_rows=12)
    arguments = [str(model), str(adapters), "train", str(job), "--run-dir", str(run)]
    arguments += [
        "engine.model.sharding=fsdp",
        "engine.model.device=cpu",
        "engine.rollout.engine=vllm",
        "engine.rollout.vllm.servers=[http://whole.base:1]",
        f"engine.rollout.vllm.adapter_folder={adapters}",
        "engine.rollout.max_completion_tokens=5",
        "engine.training.kl_coefficient=0.01",
        "engine.evaluation.at_start=false",
    ]
    worker = "tests.invariants.sharded_job_worker"
    done = run_ranks(2, worker, *arguments, "engine.budget.steps=1", cwd=tmp_path, timeout=400)
    assert open_run(str(run), tmp_path).status().status == "paused", done.stderr[-3000:]
    assert json.loads((run / "env.json").read_text())["world_size"] == 2
    done = run_ranks(3, worker, *arguments, "--resume", cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    environment = json.loads((run / "env.json").read_text())
    assert environment["world_size"] == 3 and environment["backend"] == "gloo"

    finished = open_run(str(run), tmp_path)
    steps = [line for line in finished.metrics() if line["step"] > 0]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert max(line["rollout/logprob_gap"] for line in steps) < 1e-5
    assert all(line["optimizer/update_norm"] > 0 for line in steps)
    assert not any(adapters.glob("*"))

    checkpoint = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name.split("_")[1]))
    saved = load_file(checkpoint / "adapter_model.safetensors")
    (tmp_path / "base").symlink_to(model)
    base = open_base(tmp_path, "float32", "none", "cpu")
    whole = new_policy(base, LoraShape(rank=4, alpha=8), 0).adapter_tensors()
    assert {name: t.shape for name, t in saved.items()} == {n: t.shape for n, t in whole.items()}
    assert all(tensor.norm() > 0 for tensor in saved.values())
