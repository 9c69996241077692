"""Randomness that is counted, not streamed: the uniform of a token is a function of what it is for."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """Keeps the uniforms of unlike uses apart."""

    TRAIN = 0
    EVALUATE = 1
    GENERATE = 2
    JUDGE = 3


def uniforms(
    seed: int, purpose: Purpose, step: int, prompt: int, sample: int, count: int
) -> NDArray[np.float64]:
    """The uniforms in [0, 1) of tokens 0…count−1 of one completion.

    Philox-4x64 (Salmon et al. 2011) keyed by SeedSequence([seed, purpose, step, prompt, sample]), the
    top 53 bits of each output; a longer `count` begins with the same numbers.
    """
    key = np.random.SeedSequence([seed, int(purpose), step, prompt, sample])
    bits = np.random.Philox(key).random_raw(count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
