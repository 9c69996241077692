"""A completion as graders see it, in the product's shape."""

from rft.types import FinishReason, Sample


def text_sample(text: str, finish_reason: FinishReason = "stop") -> Sample:
    """The sample of a completion that is all text; equal completions have equal samples."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"output_text": text, "output_tools": [], "choices": [choice]}
