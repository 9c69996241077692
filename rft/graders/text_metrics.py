"""How alike two texts are, by the metrics of text_similarity: numbers from 0 to 1, never NaN.

The first text is the graded one, the second the reference.

- fuzzy_match: rapidfuzz's normalised indel similarity of the raw strings; 1 for two empty ones.
- bleu, gleu, meteor: words by the mteval-v13a rules of sacrebleu (case kept; meteor lowers it).
- rouge: words are runs of a-z and 0-9 after lowering, without stemming, as in the rouge-score
  package; a text in another script has no words.

Where either text has no words (or too few for an n-gram), bleu, gleu, meteor and rouge are 0.
"""

import re
from collections import Counter
from collections.abc import Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp


def fuzzy_match(text: str, reference: str) -> float:
    """`rapidfuzz.fuzz.ratio / 100`: 2 × longest common subsequence / both lengths."""
    return float(fuzz.ratio(text, reference)) / 100


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU of sacrebleu: exponential smoothing, effective order (Post, 2018)."""
    scorer = BLEU(effective_order=True, tokenize="none")
    words, reference_words = split_words(text), split_words(reference)
    score = scorer.sentence_score(" ".join(words), [" ".join(reference_words)]).score
    return min(float(score) / 100, 1.0)


def gleu(text: str, reference: str) -> float:
    """Matching 1- to 4-grams / those of the longer text (Wu et al., 2016, arXiv:1609.08144)."""
    words, reference_words = split_words(text), split_words(reference)
    counts = sum((ngrams(words, n) for n in range(1, 5)), Counter[tuple[str, ...]]())
    expected = sum((ngrams(reference_words, n) for n in range(1, 5)), Counter[tuple[str, ...]]())
    longest = max(counts.total(), expected.total())
    return (counts & expected).total() / longest if longest else 0.0


def rouge_n(text: str, reference: str, n: int) -> float:
    """F-measure of shared n-grams (Lin, 2004)."""
    counts, expected = ngrams(rouge_words(text), n), ngrams(rouge_words(reference), n)
    return f_measure((counts & expected).total(), counts.total(), expected.total())


def rouge_l(text: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin, 2004)."""
    words, expected = rouge_words(text), rouge_words(reference)
    return f_measure(LCSseq.similarity(words, expected), len(words), len(expected))


def split_words(text: str) -> list[str]:
    """Words and punctuation marks by the rules of mteval-v13a."""
    words = str(Tokenizer13a()(text.rstrip())).split()
    # sacrebleu remembers 65,536 texts for good, which a long job would feel in its memory.
    Tokenizer13a.__call__.cache_clear()
    TokenizerRegexp.__call__.cache_clear()
    return words


def rouge_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def f_measure(num_matches: int, num_given: int, num_expected: int) -> float:
    """Harmonic mean of precision and recall; 0 without a match."""
    if num_matches == 0:
        return 0.0
    precision, recall = num_matches / num_given, num_matches / num_expected
    return 2 * precision * recall / (precision + recall)
