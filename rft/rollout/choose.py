"""Which sampler serves a model: the native one, or, where a family does not fit it, a slower one that says so."""

from rft.errors import ModelError
from rft.policy import Policy
from rft.rollout.memory import is_out_of_memory
from rft.rollout.native import NativeSampler
from rft.rollout.plain import PlainSampler
from rft.rollout.sampler import NotFiniteError, Sampler
from rft.rollout.selftest import check_sampler
from rft.rollout.transcribe import Transcriber

FAMILY_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    ModelError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What comes of a model that does other things than an engine expects of it."""

NUM_PLAIN_TOKENS = 12
"""Tokens of each row that examines a model's own cache: states of convolutions need some to show a fault."""


def open_sampler(policy: Policy, transcriber: Transcriber, num_slots: int) -> Sampler:
    """The fastest sampler that agrees with the model's plain forward pass; where that is not the native
    one, `policy` goes over to the unpacked training pass.

    Raises ModelError when none agrees; NotFiniteError where even the model's own pass gives no numbers.
    """
    if policy.why_unpacked is None:
        try:
            native = NativeSampler(policy, transcriber, num_slots)
            check_sampler(native, policy)
            return native
        except FAMILY_FAULTS as error:
            if is_out_of_memory(error):
                raise
            policy.stop_packing(_in_words(error))
    plain = PlainSampler(policy, transcriber, num_slots)
    try:
        check_sampler(plain, policy, NUM_PLAIN_TOKENS)
        return plain
    except FAMILY_FAULTS as error:
        if is_out_of_memory(error):
            raise
        why_uncached = _in_words(error)
    uncached = PlainSampler(policy, transcriber, num_slots, why_uncached)
    try:
        check_sampler(uncached, policy, NUM_PLAIN_TOKENS)
    except FAMILY_FAULTS as error:
        if is_out_of_memory(error) or isinstance(error, NotFiniteError):
            raise
        raise ModelError(
            f"{type(policy.base).__name__} does not fit the engine: {_in_words(error)}",
            where="model",
            remedy="this model family is not supported yet",
        ) from error
    return uncached


def slow_path_warnings(policy: Policy, sampler: Sampler) -> list[str]:
    """What a person should know before a run on a slower path; nothing on the fast one."""
    if policy.why_unpacked is None:
        return []
    family = type(policy.base).__name__
    return [
        f"the fast sampler and the packed training pass do not serve {family} ({policy.why_unpacked}): "
        "plain ones are taken, as exact but much slower, the more so the longer the prompts (computed once "
        "per completion) and the less even the completions (finished ones wait for the longest)"
        f"{_uncached_warning(sampler)}"
    ]


def _uncached_warning(sampler: Sampler) -> str:
    why = sampler.facts.get("why_uncached")
    if why is None:
        return ""
    return f"; and uncached, a pass over everything per token, as the model's own cache is not to be trusted ({why})"


def _in_words(error: Exception) -> str:
    """The fault without its remedy."""
    if isinstance(error, ModelError):
        return error.problems[0].what
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
