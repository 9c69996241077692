"""What the engine vllm cannot do, told before anything starts."""

from collections.abc import Iterator

from rft.job.document import Job
from rft.job.engine import VllmSettings
from rft.job.places import Fault, KeyPath
from rft.job.response_format import RESPONSE_FORMAT

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
    yield from _faults_of_its_place(job)
    if rollout.top_p < 1:
        what = f"top_p {rollout.top_p:g}: vLLM does not tell which tokens it left out, and training needs that"
        yield Fault(
            (*ROLLOUT, "top_p"), what, "leave it at 1, or take engine.rollout.engine: native"
        )
    if job.completion_schema is not None:
        what = "response_format with vLLM, which does not tell which tokens a schema left out, and training needs that"
        yield Fault(RESPONSE_FORMAT, what, "take engine.rollout.engine: native")
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


def _faults_of_its_place(job: Job) -> Iterator[Fault]:
    """What is said of servers where there are none, and of a vLLM in this process where there are some."""
    settings, untouched = job.engine.rollout.vllm, VllmSettings()
    servers, quantization = settings.servers, job.engine.model.quantization
    if servers and settings.memory_fraction != untouched.memory_fraction:
        what = "memory_fraction is for a vLLM in this process, and there are servers"
        remedy = "remove it, and start the servers with --gpu-memory-utilization"
        yield Fault((*ROLLOUT, "vllm", "memory_fraction"), what, remedy)
    if not servers and settings.request_seconds != untouched.request_seconds:
        what = "request_seconds is for servers, and there are none"
        yield Fault((*ROLLOUT, "vllm", "request_seconds"), what, "remove it, or name servers")
    if not servers and quantization != "none":
        what = f"a vLLM in this process does not hold the base in {quantization}"
        remedy = "set it to none, or start a server with --quantization bitsandbytes and name it in servers"
        yield Fault(("engine", "model", "quantization"), what, remedy)
    if len({url.rstrip("/") for url in servers}) < len(servers):
        yield Fault((*ROLLOUT, "vllm", "servers"), "a server is named twice", "name each once")
