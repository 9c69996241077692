"""At the start all ranks must have the same job, rows, libraries and weights; one that differs is named."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rft.errors import MachineError, Problem
from rft.job import ResolvedJob, dump_job
from rft.runs.environment import environment
from rft.training.ranks import Ranks

REMEDIES = {
    "job": "start every process with the same job document and overrides",
    "data": "give every process the same data files",
    "step": "let all processes see the same run folder, on a disk that they share",
    "adapter": "let all processes see the same run folder and the same model",
    "base": "give every process the same files of the model",
    "reference": "give every process the same adapter to continue from",
}
SAME_ENVIRONMENT = "start every process in the same environment"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What one rank is about to train with."""

    job: str
    """SHA-256 of the resolved document, as `common_text` has it."""
    data: str
    """SHA-256 of the rows as the model sees them."""
    step: int
    """The last finished step."""
    adapter: str
    """SHA-256 over names, types, shapes and bytes of the LoRA matrices."""
    base: str
    """The digest of the base's weights."""
    reference: str
    """The digest of the adapter that the job continues from."""
    versions: Mapping[str, str]


def common_text(job: ResolvedJob) -> str:
    """The document without what each rank takes from its own machine's cores: how many it grades at once."""
    grading = job.engine.grading.model_copy(update={"concurrency": 1})
    engine = job.engine.model_copy(update={"grading": grading})
    return dump_job(job.model_copy(update={"engine": engine}))


def fingerprint(
    job_text: str,
    data_digest: str,
    step: int,
    adapter: Mapping[str, Tensor],
    base_digest: str,
    adapter_digest: str,
) -> Fingerprint:
    """This process's; `adapter`: the LoRA matrices by name."""
    found: dict[str, Any] = environment()
    return Fingerprint(
        job=hashlib.sha256(job_text.encode()).hexdigest(),
        data=data_digest,
        step=step,
        adapter=tensors_digest(adapter),
        base=base_digest,
        reference=adapter_digest,
        versions={
            "python": platform.python_version(),
            "rft": found["rft"],
            **found["libraries"],
        },
    )


def refuse_drift(ranks: Ranks, mine: Fingerprint) -> None:
    """Raise MachineError on all ranks, in the same words, when one differs from rank 0. Collective."""
    if problems := drift(ranks.gather([mine])):
        raise MachineError(problems)


def drift(told: Sequence[Fingerprint]) -> list[Problem]:
    """Each difference of a rank from rank 0; `told`: one fingerprint per rank, in order."""
    flat = [_flat(one) for one in told]
    names = list(dict.fromkeys(name for one in flat for name in one))  # some may lack a library
    return [
        Problem(
            f"rank {rank} has another {name} than rank 0: {theirs.get(name, 'none')} instead of "
            f"{flat[0].get(name, 'none')}",
            where=f"rank {rank}",
            remedy=REMEDIES.get(name, SAME_ENVIRONMENT),
        )
        for rank, theirs in enumerate(flat)
        for name in names
        if theirs.get(name) != flat[0].get(name)
    ]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(one: Fingerprint) -> dict[str, object]:
    """By name, digests cut to what a person compares."""
    document = asdict(one)
    versions = document.pop("versions")
    short = {k: v[:12] if isinstance(v, str) else v for k, v in document.items()}
    return {**short, **versions}
