"""text_similarity by cosine: a tiny random sentence-transformers model, and what is told without one."""

import importlib.util
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rft.errors import GraderError
from rft.graders import GradingSettings, TextSimilarity, cosine, open_grader, problems_of
from rft.graders.cosine import Cosine, load_embedder, similarity_model_problem
from rft.graders.cosine import cosine as cosine_of

DOCUMENT = TextSimilarity(
    type="text_similarity",
    name="alike",
    input="{{ sample.output_text }}",
    reference="{{ item.answer }}",
    evaluation_metric="cosine",
)
IS_INSTALLED = importlib.util.find_spec("sentence_transformers") is not None
needs_package = pytest.mark.skipif(
    not IS_INSTALLED, reason="sentence-transformers is not installed"
)
WORDS = ["[PAD]", "[UNK]", "paris", "rome", "berlin", "is", "the", "capital"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random one-layer model that knows six words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("embedder")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder / "bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=8, intermediate_size=16, max_position_embeddings=32, **shape)
    BertModel(config).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(16)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


def grades(model: Path, pairs: list[tuple[str, str]]) -> list[float | None]:
    with open_grader(DOCUMENT, GradingSettings(similarity_model=str(model))) as grader:
        return [grader.grade({"output_text": a}, {"answer": b}).reward for a, b in pairs]


@needs_package
def test_texts_are_as_alike_as_their_embeddings(model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encode = SentenceTransformer(str(model), device="cpu").encode
    pairs = [("paris", "rome"), ("the capital is paris", "rome"), ("the the", "is"), ("x", "paris")]
    expected = []
    for text, reference in pairs:
        a, b = encode(text).astype(float), encode(reference).astype(float)
        expected.append(a @ b / math.sqrt((a @ a) * (b @ b)))
    found = grades(model, pairs)
    assert found == pytest.approx(expected, abs=1e-9)
    assert len({round(value, 3) for value in expected}) == 4
    assert all(0 < value < 1 for value in expected)


@needs_package
def test_equal_texts_and_empty_ones(model: Path) -> None:
    pairs = [("the capital", "the capital"), ("", ""), ("", "paris"), ("paris", " \n")]
    one, *nothing = grades(model, pairs)
    assert one == pytest.approx(1.0, abs=1e-12) and one <= 1.0
    assert nothing == [0.0, 0.0, 0.0]


@needs_package
def test_threads_get_what_one_thread_gets(model: Path) -> None:
    texts = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:3]]
    with open_grader(DOCUMENT, GradingSettings(similarity_model=str(model))) as grader:
        one = [grader.grade({"output_text": text}, {"answer": "paris"}).reward for text in texts]
        cosine.cached_embedder.cache_clear()
    with (
        open_grader(DOCUMENT, GradingSettings(similarity_model=str(model))) as grader,
        ThreadPoolExecutor(4) as pool,
    ):
        jobs = [
            pool.submit(grader.grade, {"output_text": text}, {"answer": "paris"}) for text in texts
        ]
        assert [job.result().reward for job in jobs] == one
    assert len(set(one)) > 100


@needs_package
def test_a_process_loads_a_model_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = cosine.load_transformer

    def counted(name: str) -> Any:
        loaded.append(name)
        return load(name)

    monkeypatch.setattr(cosine, "load_transformer", counted)
    cosine.cached_embedder.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        embedders = list(pool.map(load_embedder, [str(model)] * 4))
    assert loaded == [str(model)]
    assert len({id(embed) for embed in embedders}) == 1


@needs_package
def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[{")
    settings = GradingSettings(similarity_model=str(tmp_path))
    assert problems_of(DOCUMENT, "grader", settings) == []
    with pytest.raises(GraderError) as caught:
        open_grader(DOCUMENT, settings)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"the similarity model {str(tmp_path)!r} cannot be loaded: ")
    assert problem.where == "engine.grading.similarity_model"


@pytest.mark.parametrize(
    ("make", "what", "where"),
    [
        (None, "cosine needs a model that turns texts into embeddings", "grader.evaluation_metric"),
        ("", "the similarity model 'PATH' is no folder", "engine.grading.similarity_model"),
        ("file", "the similarity model 'PATH' is no folder", "engine.grading.similarity_model"),
        ("folder", "the similarity model 'PATH' holds no model", "engine.grading.similarity_model"),
    ],
)
def test_a_missing_model_is_told_before_anything_is_loaded(
    make: str | None, what: str, where: str, tmp_path: Path
) -> None:
    path = tmp_path / "embedder"
    if make == "file":
        path.write_text("")
    elif make == "folder":
        path.mkdir()
    problem = similarity_model_problem(
        None if make is None else str(path), "grader.evaluation_metric"
    )
    assert problem is not None
    assert (problem.what.replace(str(path), "PATH"), problem.where) == (what, where)
    assert "hub id" in problem.remedy
    with pytest.raises(GraderError):
        open_grader(DOCUMENT, GradingSettings(similarity_model=None if make is None else str(path)))


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_hub_id_is_left_to_the_hub(name: str) -> None:
    assert similarity_model_problem(name, "x") is None


def test_a_missing_package_is_told_and_nothing_heavy_is_imported() -> None:
    """In a process that finds no sentence-transformers."""
    script = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "sentence_transformers" else find(name, *a)
from rft.errors import GraderError
from rft.graders import GradingSettings, TextSimilarity, open_grader, problems_of
document = TextSimilarity(
    type="text_similarity", name="n", input="", reference="", evaluation_metric="cosine"
)
print(*problems_of(document))
try:
    open_grader(document, GradingSettings(similarity_model="x"))
except GraderError as error:
    print(error)
print([name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    told = "cosine needs the package sentence-transformers, which is not installed"
    assert result.stdout.splitlines() == [
        f'{told} (grader.evaluation_metric) → pip install "rft[cosine]"',
        f'{told} (evaluation_metric) → pip install "rft[cosine]"',
        "[]",
    ], result.stderr


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([3.0, 4.0], [4.0, 3.0], 0.96),
        ([1.0, 0.0], [0.0, 2.0], 0.0),
        ([1.0, 0.0], [-1.0, 0.0], 0.0),
        ([0.0, 0.0], [1.0, 0.0], 0.0),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], 1.0),
    ],
)
def test_cosine_lies_between_0_and_1(
    first: list[float], second: list[float], expected: float
) -> None:
    found = cosine_of(np.array(first), np.array(second))
    assert found == pytest.approx(expected, abs=1e-15)
    assert 0.0 <= found <= 1.0


def test_embeddings_that_are_not_finite_give_no_reward() -> None:
    similarity = Cosine(lambda text: np.array([math.nan, 1.0]))
    with pytest.raises(ArithmeticError):
        similarity("a", "b")
