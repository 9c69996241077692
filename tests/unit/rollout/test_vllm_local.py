"""vLLM inside the process, as far as it goes without vLLM."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from rft.errors import JobError, MachineError
from rft.rollout.transcribe import Transcriber
from rft.rollout.vllm import Alone
from rft.rollout.vllm_local import LocalVllm, vllm_problem
from rft.rollout.vllm_open import open_vllm
from rft.rollout.vllm_replica import fitting_lora_rank
from tests.jobs import resolved_job
from tests.tiny import tiny_policy, tiny_tokenizer

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "lora_rank": 4,
    "needed_tokens": 8,
    "memory_fraction": 0.3,
    "trust_remote_code": False,
}

without_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here"
)


@without_vllm
def test_a_missing_package_is_told_with_both_ways_out() -> None:
    with pytest.raises(MachineError, match=r"needs the package vllm.*rft\[vllm\].*server"):
        LocalVllm(Path("model"), **OPTIONS)
    assert vllm_problem() is not None


@without_vllm
def test_what_it_hands_to_vllm_and_unloads_that_never_got_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm.py").write_text(
        "__version__ = '0'\nclass LLM:\n    def __init__(self, *args, **options): self.options = options\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        for trusts in (True, False):
            local = LocalVllm(Path("model"), **(OPTIONS | {"trust_remote_code": trusts}))
            assert local._llm.options["trust_remote_code"] is trusts
            local.unload_adapter("never loaded")
    finally:
        sys.modules.pop("vllm", None)


def test_one_process_only() -> None:
    class Two(Alone):
        size = 2

    job = resolved_job("engine.rollout.engine=vllm")
    with pytest.raises(JobError, match="inside each of 2 processes"):
        open_vllm(tiny_policy(), Transcriber(tiny_tokenizer(), [2]), job, Path("model"), 8, Two())


@pytest.mark.parametrize(
    ("rank", "size"), [(1, 1), (2, 8), (16, 16), (17, 32), (300, 320), (512, 512)]
)
def test_ranks_are_rounded_up_to_what_vllm_has(rank: int, size: int) -> None:
    assert fitting_lora_rank(rank) == size
