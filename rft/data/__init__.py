"""Data sources → Examples with located errors, and the stream of prompts a job draws from."""

from rft.data.examples import data_warnings, load_examples, row_place
from rft.data.stream import PromptStream

__all__ = ["PromptStream", "data_warnings", "load_examples", "row_place"]
