"""cosine: the angle between the embeddings of two texts by a local sentence-transformers model.

The model runs on the processor, one text at a time: so it takes no memory from the policy, and an
embedding does not depend on what stands beside it in a batch.
"""

import importlib.util
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rft.errors import GraderError, Problem

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Embedding = NDArray[np.float64]
SETTING = "engine.grading.similarity_model"
MODEL_FILES = ("modules.json", "config.json")
"""A folder with one of these holds a model."""
REMEMBERED = 4096
"""Embeddings kept: the completions of a prompt share a reference."""

loading = threading.Lock()


def package_problem(where: str) -> Problem | None:
    """What keeps cosine from running here, whatever the model."""
    if importlib.util.find_spec("sentence_transformers") is not None:
        return None
    what = "cosine needs the package sentence-transformers, which is not installed"
    return Problem(what, where, 'pip install "rft[cosine]"')


def similarity_model_problem(model: str | None, where: str) -> Problem | None:
    """What can be told about the name of a model without loading it."""
    if model is None:
        what = "cosine needs a model that turns texts into embeddings"
        return Problem(what, where, f"set {SETTING} to a folder or hub id of one")
    path = os.path.expanduser(model)
    if not (os.path.exists(path) or model.startswith((".", "/", "~"))):
        return None  # a hub id, which is looked for when the grader opens
    if any(os.path.isfile(os.path.join(path, name)) for name in MODEL_FILES):
        return None
    kind = "holds no model" if os.path.isdir(path) else "is no folder"
    remedy = "name a folder that SentenceTransformer.save wrote, or a hub id"
    return Problem(f"the similarity model {model!r} {kind}", SETTING, remedy)


def load_embedder(model: str) -> Callable[[str], Embedding]:
    """The model's embedding of a text; raises GraderError. A process loads each model once."""
    with loading:
        return cached_embedder(os.path.expanduser(model))


@cache
def cached_embedder(model: str) -> Callable[[str], Embedding]:
    transformer = load_transformer(model)
    lock = threading.Lock()

    @lru_cache(REMEMBERED)
    def embed(text: str) -> Embedding:
        with lock:
            embedding: Any = transformer.encode(text, show_progress_bar=False)
        return np.asarray(embedding, dtype=np.float64)

    return embed


def load_transformer(model: str) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(
            model, device="cpu", model_kwargs={"use_safetensors": True, "dtype": "float32"}
        )
    except Exception as error:  # hub, disk and model code raise what they like; the answer is one
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise GraderError(
            f"the similarity model {model!r} cannot be loaded: {reason}",
            where=SETTING,
            remedy="name a folder that SentenceTransformer.save wrote, or a hub id",
        ) from error


@dataclass(frozen=True, slots=True)
class Cosine:
    """How alike two texts are; 0 where either has nothing but blanks, as by the other metrics."""

    embed: Callable[[str], Embedding]

    def __call__(self, text: str, reference: str) -> float:
        if not text.strip() or not reference.strip():
            return 0.0
        return cosine(self.embed(text), self.embed(reference))


def cosine(first: Embedding, second: Embedding) -> float:
    """a · b / (|a| |b|), at least 0 and at most 1; 0 where a length is 0.

    Raises ArithmeticError for embeddings that are not finite.
    """
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    if lengths == 0:
        return 0.0
    angle = float(first @ second) / lengths
    if not math.isfinite(angle):
        raise ArithmeticError("the similarity model gave numbers that are not finite")
    return min(max(angle, 0.0), 1.0)
