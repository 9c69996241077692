"""From the job document to a vLLM sampler: servers that are asked, or an engine in this process."""

from pathlib import Path

from rft.errors import JobError
from rft.job import ResolvedJob
from rft.policy import Policy
from rft.rollout.transcribe import Transcriber
from rft.rollout.vllm import Alone, Peers, VllmRules, VllmSampler
from rft.rollout.vllm_local import LocalVllm
from rft.rollout.vllm_replica import SETTING, Replica
from rft.rollout.vllm_server import VllmServer


def open_vllm(
    policy: Policy,
    transcriber: Transcriber,
    job: ResolvedJob,
    model_folder: Path,
    longest_prompt: int,
    peers: Peers | None = None,
) -> VllmSampler:
    """The sampler, after vLLM has answered as the policy would; every process must call it.

    Raises MachineError and JobFailedError as the sampler does, JobError for an engine in each of
    several processes.
    """
    peers = peers or Alone()
    rollout, settings = job.engine.rollout, job.engine.rollout.vllm
    needed_tokens = longest_prompt + rollout.max_completion_tokens
    rank = job.engine.lora.rank
    replicas: list[Replica]
    if settings.servers:
        replicas = [
            VllmServer(url, settings.request_seconds, rank, needed_tokens)
            for url in settings.servers
        ]
    else:
        if peers.size > 1:
            raise JobError(
                f"vLLM inside each of {peers.size} processes is not supported",
                where=SETTING,
                remedy="start servers, and name their urls there",
            )
        replicas = [
            LocalVllm(
                model_folder,
                dtype=job.engine.model.dtype,
                lora_rank=rank,
                needed_tokens=needed_tokens,
                memory_fraction=settings.memory_fraction,
                trust_remote_code=job.engine.model.trust_remote_code,
            )
        ]
    folder = None if settings.adapter_folder is None else Path(settings.adapter_folder)
    rules = VllmRules(rollout.slots, settings.tolerance, folder)
    return VllmSampler(policy, transcriber, replicas, rules, peers)
