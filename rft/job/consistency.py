"""What the parts of a job document must agree on."""

from rft.job.document import Job
from rft.job.places import Fault, KeyPath
from rft.job.vllm_limits import vllm_faults

_HYPERPARAMETERS: KeyPath = ("method", "reinforcement", "hyperparameters")
_SHARDING: KeyPath = ("engine", "model", "sharding")


def contradictions(job: Job) -> list[Fault]:
    """Faults between keys that are each legal; a key on `auto` contradicts nothing."""
    faults = []
    batch_size, minibatches = job.hyperparameters.batch_size, job.engine.training.minibatches
    if batch_size != "auto" and minibatches > batch_size:
        what = f"minibatches ({minibatches}) is more than batch_size ({batch_size})"
        remedy = "a minibatch needs a prompt: lower minibatches or raise batch_size"
        faults.append(Fault(("engine", "training", "minibatches"), what, remedy))
    faults += vllm_faults(job)
    return faults + (_against_sharding(job) if job.engine.model.sharding != "none" else [])


def _against_sharding(job: Job) -> list[Fault]:
    """What a base that no process holds whole rules out."""
    faults = []
    if job.engine.rollout.engine == "native":
        what = (
            "the native sampler needs the whole base in each process, and sharding: fsdp spreads it"
        )
        remedy = "set engine.rollout.engine to vllm, or sharding to none"
        faults.append(Fault(_SHARDING, what, remedy))
    if job.engine.model.quantization != "none":
        quantization = job.engine.model.quantization
        what = f"sharding: fsdp cannot divide weights of quantization: {quantization}"
        faults.append(Fault(_SHARDING, what, "set one of the two to none"))
    return faults
