"""vLLM inside this process as a replica; written for vLLM 0.32's `LLM`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rft.errors import MachineError, Problem
from rft.rollout.vllm_replica import SETTING, Answer, Ask, fitting_lora_rank


def vllm_problem() -> Problem | None:
    """What keeps vLLM from running in this process."""
    if importlib.util.find_spec("vllm") is not None:
        return None
    return Problem(
        "engine vllm without servers needs the package vllm, which is not installed",
        SETTING,
        'pip install "rft[vllm]", or start a server and name its url there',
    )


class LocalVllm:
    """Owns an engine of vLLM with its own copy of the base model."""

    place = "vLLM in this process"
    asks_per_call: int | None = None

    def __init__(
        self,
        model_folder: Path,
        *,
        dtype: str,
        lora_rank: int,
        needed_tokens: int,
        memory_fraction: float,
        trust_remote_code: bool,
    ):
        """`needed_tokens`: the longest prompt with its completion. Raises MachineError."""
        if problem := vllm_problem():
            raise MachineError(problem)
        import vllm

        self._vllm = vllm
        self.version = str(vllm.__version__)
        try:
            self._llm = vllm.LLM(
                str(model_folder),
                dtype=dtype,
                enable_lora=True,
                max_lora_rank=fitting_lora_rank(lora_rank),
                max_loras=2,
                max_model_len=needed_tokens,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                gpu_memory_utilization=memory_fraction,
                trust_remote_code=trust_remote_code,
            )
        except Exception as error:  # vLLM raises what its many parts raise
            raise self._fault("does not start", error) from error
        self._adapters: dict[str, Any] = {}
        self._num_adapters = 0

    def complete(self, asks: Sequence[Ask], adapter: str | None) -> list[Answer]:
        settings = [
            self._vllm.SamplingParams(
                temperature=ask.temperature,
                max_tokens=ask.max_tokens,
                seed=ask.seed,
                stop=list(ask.stop),
                stop_token_ids=list(ask.end_token_ids),
                ignore_eos=True,  # `stop_token_ids` says them all
                logprobs=0,
            )
            for ask in asks
        ]
        outputs = self._generate([ask.prompt_ids for ask in asks], settings, adapter)
        return [_answer(output.outputs[0]) for output in outputs]

    def next_logprobs(
        self,
        prompts: Sequence[tuple[int, ...]],
        candidates: Sequence[int],
        temperature: float,
        adapter: str | None,
    ) -> list[list[float]]:
        """One token is drawn after each prompt and thrown away."""
        settings = self._vllm.SamplingParams(
            temperature=temperature,
            max_tokens=1,
            seed=0,
            ignore_eos=True,
            logprob_token_ids=list(candidates),
        )
        outputs = self._generate(prompts, [settings] * len(prompts), adapter)
        found = [output.outputs[0].logprobs[0] for output in outputs]
        return [[float(row[candidate].logprob) for candidate in candidates] for row in found]

    def load_adapter(self, name: str, folder: Path) -> None:
        self._num_adapters += 1
        request = self._vllm.lora.request.LoRARequest(name, self._num_adapters, str(folder))
        try:
            is_loaded = self._llm.llm_engine.add_lora(request)
        except Exception as error:
            raise self._fault(f"does not load the adapter {folder}", error) from error
        if not is_loaded:
            raise MachineError(f"{self.place} does not load the adapter {folder}")
        self._adapters[name] = request

    def unload_adapter(self, name: str) -> None:
        if request := self._adapters.pop(name, None):
            self._llm.llm_engine.remove_lora(request.lora_int_id)

    def close(self) -> None:
        """Nothing is in flight: a call is over when it returns."""

    def _generate(
        self, prompts: Sequence[tuple[int, ...]], settings: list[Any], adapter: str | None
    ) -> list[Any]:
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        request = None if adapter is None else self._adapters[adapter]
        try:
            return list(self._llm.generate(inputs, settings, lora_request=request, use_tqdm=False))
        except Exception as error:
            raise self._fault("fails", error) from error

    def _fault(self, what: str, error: Exception) -> MachineError:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        remedy = "see what it printed; a lower engine.rollout.vllm.memory_fraction leaves the trainer more"
        return MachineError(f"{self.place} {what}: {reason}", where=SETTING, remedy=remedy)


def _answer(output: Any) -> Answer:
    token_ids = tuple(int(token_id) for token_id in output.token_ids)
    logprobs = tuple(
        float(row[token_id].logprob)
        for token_id, row in zip(token_ids, output.logprobs, strict=True)
    )
    if output.finish_reason not in ("stop", "length"):
        raise MachineError(f"vLLM in this process ended a completion with {output.finish_reason!r}")
    return Answer(token_ids, logprobs, output.finish_reason)
