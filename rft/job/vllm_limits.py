"""What the engine vllm cannot do, told before anything starts."""

from collections.abc import Iterator

from rft.job.document import Job
from rft.job.engine import VllmSettings
from rft.job.places import Fault, KeyPath

ROLLOUT: KeyPath = ("engine", "rollout")
MAX_LORA_RANK = 512
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0
"""vLLM raises a lower one without a word, and refuses a higher one."""


def vllm_faults(job: Job) -> Iterator[Fault]:
    """Faults of a job between its engine and what else it asks for."""
    rollout, rank = job.engine.rollout, job.engine.lora.rank
    if rollout.engine == "native":
        if rollout.vllm != VllmSettings():
            what = "settings of vllm with the engine native"
            yield Fault((*ROLLOUT, "vllm"), what, "remove them, or set engine.rollout.engine: vllm")
        return
    servers = rollout.vllm.servers
    if len({url.rstrip("/") for url in servers}) < len(servers):
        yield Fault((*ROLLOUT, "vllm", "servers"), "a server is named twice", "name each once")
    if rollout.top_p < 1:
        what = f"top_p {rollout.top_p:g}: vLLM does not tell which tokens it left out, and training needs that"
        yield Fault(
            (*ROLLOUT, "top_p"), what, "leave it at 1, or take engine.rollout.engine: native"
        )
    if rank > MAX_LORA_RANK:
        what = f"vLLM serves LoRA up to rank {MAX_LORA_RANK}, this one has {rank}"
        yield Fault(("engine", "lora", "rank"), what, "lower the rank")
    temperatures = {
        (*ROLLOUT, "temperature"): rollout.temperature,
        ("engine", "evaluation", "temperature"): job.engine.evaluation.temperature,
    }
    for path, temperature in temperatures.items():
        if temperature == "auto" or temperature == 0:
            continue
        if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            what = f"vLLM samples at temperatures from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
            what += f", not {temperature:g}"
            yield Fault(path, what, "take one of those, or engine.rollout.engine: native")
