"""Data sources → Examples with located errors, and the stream of prompts a job draws from."""

from rft.data.checked import job_warnings, load_all_rows, load_sound_job
from rft.data.examples import data_warnings, load_examples, row_place
from rft.data.stream import PromptStream

__all__ = [
    "PromptStream",
    "data_warnings",
    "job_warnings",
    "load_all_rows",
    "load_examples",
    "load_sound_job",
    "row_place",
]
