"""Data sources → Examples with located errors, and the stream of prompts a job draws from."""

from rft.data.checked import job_warnings, load_all_rows, load_sound_job
from rft.data.examples import data_warnings, item_by_hand, load_examples, row_place
from rft.data.stream import PromptStream

__all__ = [
    "PromptStream",
    "data_warnings",
    "item_by_hand",
    "job_warnings",
    "load_all_rows",
    "load_examples",
    "load_sound_job",
    "row_place",
]
