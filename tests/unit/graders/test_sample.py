"""A completion has the product's shape, and equal ones have equal samples."""

from rft.graders.sample import text_sample


def test_graders_see_the_answer_in_the_shape_of_the_product() -> None:
    assert text_sample("42", "length") == {
        "output_text": "42",
        "output_tools": [],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "42"},
                "finish_reason": "length",
            }
        ],
    }
    assert text_sample("")["choices"][0]["finish_reason"] == "stop"
    assert text_sample("42") == text_sample("42") != text_sample("42", "length")
