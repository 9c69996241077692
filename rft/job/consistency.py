"""What the parts of a job document must agree on."""

from collections.abc import Iterator

from rft.graders import local_judges
from rft.graders.json_schema import unenforceable
from rft.job.document import Job
from rft.job.places import Fault, KeyPath
from rft.job.response_format import RESPONSE_FORMAT
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
    faults += _of_response_format(job)
    faults += vllm_faults(job)
    return faults + (_against_sharding(job) if job.engine.model.sharding != "none" else [])


def _of_response_format(job: Job) -> Iterator[Fault]:
    """What a form of completions rules out, and schemas that cannot be enforced."""
    response_format = job.method.reinforcement.response_format
    if response_format is None:
        return
    settings = response_format.json_schema
    if (settings is None) == (response_format.type == "json_schema"):
        lacks = settings is None
        what = f"response_format of type {response_format.type} {'without' if lacks else 'with'} a schema"
        remedy = (
            "add json_schema: {name: …, schema: {…}}"
            if lacks
            else "set type to json_schema, or remove it"
        )
        yield Fault(RESPONSE_FORMAT, what, remedy)
    elif settings is not None and (reason := unenforceable(settings.schema_)):
        what = f"completions cannot be held to this schema: {reason}"
        remedy = "write it with what is enforced: see docs/structured-outputs.md"
        yield Fault((*RESPONSE_FORMAT, "json_schema", "schema"), what, remedy)
    if response_format.schema_text is not None and job.engine.rollout.stop:
        what = "a stop text would cut the JSON that response_format asks for"
        yield Fault(("engine", "rollout", "stop"), what, "remove one of the two")


def _against_sharding(job: Job) -> list[Fault]:
    """What a base that no process holds whole rules out."""
    faults = []
    if "local:base" in local_judges(job.grader):
        what = "sharding: fsdp leaves no process a whole base that could answer as local:base"
        faults.append(Fault(_SHARDING, what, "take a judge behind a server, or sharding: none"))
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
