"""What the parts of a job document must agree on."""

from rft.job.document import Job
from rft.job.places import Fault, KeyPath

_HYPERPARAMETERS: KeyPath = ("method", "reinforcement", "hyperparameters")


def contradictions(job: Job) -> list[Fault]:
    """Faults between keys that are each legal; a key on `auto` contradicts nothing."""
    faults = []
    batch_size, minibatches = job.hyperparameters.batch_size, job.engine.training.minibatches
    if batch_size != "auto" and minibatches > batch_size:
        what = f"minibatches ({minibatches}) is more than batch_size ({batch_size})"
        remedy = "a minibatch needs a prompt: lower minibatches or raise batch_size"
        faults.append(Fault(("engine", "training", "minibatches"), what, remedy))
    return faults
