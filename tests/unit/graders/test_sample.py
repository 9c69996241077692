"""A completion has the product's shape, and equal ones have equal samples."""

from rft.graders.sample import make_sample


def test_graders_see_the_answer_in_the_shape_of_the_product() -> None:
    assert make_sample("42", "length") == {
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
    assert make_sample("")["choices"][0]["finish_reason"] == "stop"
    assert make_sample("42") == make_sample("42") != make_sample("42", "length")
