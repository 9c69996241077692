"""What was spent, step by step and over ranks."""

from rft.training.clock import growth, over_ranks


def test_growth_is_what_came_since() -> None:
    before = {"decode": 1.0, "decode_tokens": 10.0}
    after = {"decode": 1.5, "decode_tokens": 16.0, "prefill": 0.25}
    assert growth(before, after) == {"decode": 0.5, "decode_tokens": 6.0, "prefill": 0.25}
    assert growth({}, {}) == {}


def test_tokens_of_ranks_add_up_and_the_longest_time_counts() -> None:
    ranks = [{"decode": 2.0, "decode_tokens": 30.0}, {"decode": 3.0, "decode_tokens": 10.0}]
    assert over_ranks(ranks) == {"decode": 3.0, "decode_tokens": 40.0}
    # a rank without prompts has spent nothing
    assert over_ranks([{}, ranks[0]]) == ranks[0]
    assert over_ranks([{}, {}]) == {}
