"""One rank of a job on a sharded base: `rft …` with a whole copy of the base in place of vLLM servers.

Run by a launcher as `python -m tests.invariants.sharded_job_worker BASE ADAPTERS train JOB.yaml …`;
ADAPTERS is the job's engine.rollout.vllm.adapter_folder.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from rft.__main__ import main
from rft.rollout import vllm_open
from rft.rollout.vllm_replica import Answer, Ask


class WholeBase:
    """Answers as a vLLM server does, by plain transformers and peft; the adapters are those in a folder."""

    version = "plain peft"
    asks_per_call = 1

    def __init__(self, base: Path, adapters: Path, url: str, *_: object):
        self.place = url
        self._base = base
        self._adapters = adapters
        self._lock = Lock()
        self._opened: str | None = None
        self._model = self._open(None)

    def complete(self, asks: Sequence[Ask], adapter: str | None) -> list[Answer]:
        return [self._draw(ask, adapter) for ask in asks]

    def next_logprobs(
        self,
        prompts: Sequence[tuple[int, ...]],
        candidates: Sequence[int],
        temperature: float,
        adapter: str | None,
    ) -> list[list[float]]:
        rows = [self._logprobs(prompt, temperature, adapter) for prompt in prompts]
        return [row[list(candidates)].tolist() for row in rows]

    def load_adapter(self, name: str, folder: Path) -> None:
        assert folder == self._folder(name)

    def unload_adapter(self, name: str) -> None:
        assert self._folder(name).is_dir()

    def close(self) -> None:
        pass

    def _draw(self, ask: Ask, adapter: str | None) -> Answer:
        generator = torch.Generator().manual_seed(ask.seed)
        ids: list[int] = []
        recorded: list[float] = []
        while len(ids) < ask.max_tokens and (not ids or ids[-1] not in ask.end_token_ids):
            logprobs = self._logprobs((*ask.prompt_ids, *ids), ask.temperature or 1.0, adapter)
            drawn = (
                torch.multinomial(logprobs.exp(), 1, generator=generator)
                if ask.temperature
                else logprobs.argmax()[None]
            )
            ids.append(int(drawn))
            recorded.append(float(logprobs[drawn]))
        reason = "stop" if ids[-1] in ask.end_token_ids else "length"
        return Answer(tuple(ids), tuple(recorded), reason)

    @torch.no_grad()
    def _logprobs(self, ids: Sequence[int], temperature: float, adapter: str | None) -> Tensor:
        with self._lock:
            if adapter != self._opened:
                self._model, self._opened = self._open(adapter), adapter
            logits = self._model(input_ids=torch.tensor([ids])).logits[0, -1]
        return (logits / temperature).log_softmax(-1)

    def _open(self, adapter: str | None) -> torch.nn.Module:
        base = AutoModelForCausalLM.from_pretrained(self._base, dtype=torch.float32).eval()
        return base if adapter is None else PeftModel.from_pretrained(base, self._folder(adapter))

    def _folder(self, name: str) -> Path:
        (folder,) = self._adapters.glob(f"*/{name}")
        return folder.resolve()


if __name__ == "__main__":
    base, adapters, *arguments = sys.argv[1:]
    vllm_open.VllmServer = partial(WholeBase, Path(base), Path(adapters))  # type: ignore[misc]
    sys.argv = ["rft", *arguments]
    main()
