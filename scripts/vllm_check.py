"""Exercises the engine vllm against a running server; `scripts/vllm_server --check` starts one for it.

python scripts/vllm_check.py URL MODEL     prints what was measured; exit 1 when something is wrong
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rft.errors import JobFailedError
from rft.job import ModelSettings
from rft.models import end_token_ids, find_model, load_model, load_tokenizer
from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, Policy, new_policy
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.rollout.vllm import VllmRules, VllmSampler
from rft.rollout.vllm_canary import replica_logprobs, trainer_logprobs
from rft.rollout.vllm_server import VllmServer

ROOT = Path(__file__).parent.parent
QUESTIONS = ("What is 17 + 25?", "Name a river.", "Say hello.", "What is the capital of Peru?")
SETTINGS = SamplingSettings(0.8, 1.0, 32, ("\n\n",))
TOLERANCE = 0.1
"""Nats; both sides compute in float32."""


class StuckServer(VllmServer):
    """A real server that goes on with the adapter it had, whatever is loaded."""

    stuck_at: str | None = None

    def next_logprobs(
        self,
        prompts: Sequence[tuple[int, ...]],
        candidates: Sequence[int],
        temperature: float,
        adapter: str | None,
    ) -> list[list[float]]:
        used = self.stuck_at if adapter and self.stuck_at else adapter
        return super().next_logprobs(prompts, candidates, temperature, used)

    def unload_adapter(self, name: str) -> None:
        if name != self.stuck_at:
            super().unload_adapter(name)


def main() -> int:
    url, model = sys.argv[1:3]
    source = find_model(model, runs_folder=Path("runs"))
    tokenizer = load_tokenizer(source, ModelSettings())
    base = load_model(source, ModelSettings(), "float32", "cpu")
    policy = new_policy(base, LoraShape(), seed=0)
    ends = end_token_ids(base.config, base.generation_config, tokenizer)
    transcriber = Transcriber(tokenizer, ends)
    prompts = [
        tuple(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        for question in QUESTIONS
    ]
    server = StuckServer(url, 600.0, lora_rank=16, needed_tokens=256)
    sampler = VllmSampler(policy, transcriber, [server], VllmRules(64, TOLERANCE))
    print("facts", dict(sampler.facts))
    faults = []
    for version in (1, 2):
        before = trainer_logprobs(policy, sampler.pairs)
        make_large(policy, seed=version)
        present = trainer_logprobs(policy, sampler.pairs)
        began = time.monotonic()
        sampler.refresh()
        seconds = time.monotonic() - began
        canary = abs(replica_logprobs(server, sampler.pairs, sampler.adapter) - present)
        moved = abs(present - before).mean()
        print(
            f"version {version}: sync {seconds:.2f} s, policy moved by {moved:.3f} nats a token, "
            f"canary gap mean {canary.mean():.2g} max {canary.max():.2g}"
        )
        for temperature in (SETTINGS.temperature, 0.0):
            faults += agreement(policy, sampler, prompts, ends, temperature)
    faults += stale_is_found(policy, sampler, server)
    faults += train(url, model)
    for fault in faults:
        print("FAULT", fault)
    print("engine vllm:", "not as it should be" if faults else "all as it should be")
    return 1 if faults else 0


@torch.no_grad()
def make_large(policy: Policy, seed: int) -> None:
    """Another random adapter, far from the base model."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.parameters().items():
        if ".lora_B." in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    policy.refresh()


def agreement(
    policy: Policy,
    sampler: VllmSampler,
    prompts: Sequence[tuple[int, ...]],
    ends: Sequence[int],
    temperature: float,
) -> list[str]:
    """Recorded logprobs beside the trainer's, over sampled completions."""
    settings = SamplingSettings(temperature, 1.0, SETTINGS.max_tokens, SETTINGS.stop)
    requests = [SampleRequest(ids, 4, 0, Purpose.TRAIN, 1, n) for n, ids in enumerate(prompts)]
    began = time.monotonic()
    sampled = sorted(sampler.sample(requests, settings), key=lambda s: (s.request, s.sample))
    seconds = time.monotonic() - began
    repeated = sorted(sampler.sample(requests, settings), key=lambda s: (s.request, s.sample))
    gaps = torch.cat([gap_of(policy, prompts, one, temperature or 1.0) for one in sampled])
    same = sum(
        a.completion.token_ids == b.completion.token_ids
        for a, b in zip(sampled, repeated, strict=True)
    )
    print(
        f"  temperature {temperature:g}: {len(gaps)} tokens, {len(gaps) / seconds:.0f} tokens/s, "
        f"logprob gap mean {gaps.mean():.2g} max {gaps.max():.2g} nats; {same}/{len(sampled)} "
        "completions the same when drawn again"
    )
    faults = [] if float(gaps.mean()) <= TOLERANCE else [f"gap {gaps.mean():.3g} nats"]
    for one in sampled:
        completion = one.completion
        is_cut = completion.finish_reason == "stop" and completion.token_ids[-1] not in ends
        if is_cut and SETTINGS.stop[0] not in completion.text:
            faults.append(f"ended without its stop string: {completion.text!r}")
        if SETTINGS.stop[0] in completion.output_text:
            faults.append(f"stop string not cut: {completion.output_text!r}")
    return faults


@torch.no_grad()
def gap_of(
    policy: Policy, prompts: Sequence[tuple[int, ...]], one: Sampled, temperature: float
) -> torch.Tensor:
    group = TokenGroup(prompts[one.request], (one.completion.token_ids,))
    scored = policy.score(pack([group], policy.device), temperature).logprobs[0]
    return (scored - torch.tensor(one.completion.sampling_logprobs)).abs()


def stale_is_found(policy: Policy, sampler: VllmSampler, server: StuckServer) -> list[str]:
    """The third version never becomes visible."""
    server.stuck_at = sampler.adapter
    make_large(policy, seed=3)
    try:
        sampler.refresh()
    except JobFailedError as error:
        print("stale adapter found:", error)
        return []
    finally:
        server.stuck_at = None
    return ["a stale adapter went unnoticed"]


def train(url: str, model: str) -> list[str]:
    """Two steps of a real job through the server."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rft", "train", str(ROOT / "configs/capitals/job.yaml")]
        command += [
            f"model={model}",
            "engine.rollout.engine=vllm",
            f"engine.rollout.vllm.servers=[{url}]",
        ]
        command += ["engine.budget.steps=2", "engine.evaluation.at_start=false"]
        command += [
            "method.reinforcement.hyperparameters.batch_size=4",
            "engine.training.learning_rate=1e-3",
        ]
        ended = subprocess.run(
            [*command, "--run-dir", f"{folder}/run"], capture_output=True, text=True
        )
        lines = Path(folder, "run", "metrics.jsonl")
        if ended.returncode not in (0, 75) or not lines.exists():
            return [f"rft train ended with {ended.returncode}: {ended.stderr[-2000:]}"]
        for line in lines.read_text().splitlines():
            row = json.loads(line)
            keys = (
                "step",
                "train_reward_mean",
                "rollout/logprob_gap",
                "rollout/logprob_gap_max",
                "timing/sampling",
                "timing/training",
                "timing/sync",
            )
            print("  train", {key: row.get(key) for key in keys})
    return []


if __name__ == "__main__":
    sys.exit(main())
