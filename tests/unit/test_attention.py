"""Attention over packed groups against attention over one dense mask that says who sees whom."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rft.attention import (
    AttentionKind,
    PackedGroups,
    PackedSpan,
    _alike,
    as_bias,
    causal_visibility,
    masked_attention,
    use_layouts,
)
from rft.errors import ModelError
from tests.tiny import tiny_model

CPU = torch.device("cpu")
WIDTH = 8

KINDS = [
    AttentionKind(0, 0.4, None, None),
    AttentionKind(0, 0.4, 3, None),
    AttentionKind(0, 0.4, 1, None),
    AttentionKind(0, 0.4, None, 1.5),
    AttentionKind(0, 0.4, 4, 1.5),
]

LAYOUTS = {
    "one group": [PackedSpan(0, 5, (3, 1, 4))],
    "a completion without input": [PackedSpan(0, 5, (2, 0, 4))],
    "the last completion without input": [PackedSpan(0, 2, (2, 0))],
    "the first completion without input": [PackedSpan(0, 2, (0, 2))],
    "no completion with input": [PackedSpan(0, 4, (0, 0))],
    "no completions": [PackedSpan(0, 4, ())],
    "three groups": [
        PackedSpan(0, 1, (6, 2)),
        PackedSpan(9, 7, (0,)),
        PackedSpan(16, 2, (1, 1, 1)),
    ],
}


def dense_visibility(spans: list[PackedSpan], window: int | None, prefix_length: int = 0) -> Tensor:
    """(N, N): token q sees token k, written down pair by pair."""
    # group (−1: all of them), completion (−1: the prompt), logical position
    places: list[tuple[int, int, int]] = [(-1, -1, n) for n in range(prefix_length)]
    for group, span in enumerate(spans):
        boundary = prefix_length + span.prompt_length
        places += [(group, -1, n) for n in range(prefix_length, boundary)]
        for completion, length in enumerate(span.completion_lengths):
            places += [(group, completion, boundary + n) for n in range(length)]

    def sees(query: tuple[int, int, int], key: tuple[int, int, int]) -> bool:
        is_near = window is None or key[2] > query[2] - window
        is_own = key[0] in (-1, query[0]) and key[1] in (-1, query[1])
        return is_own and key[2] <= query[2] and is_near

    return torch.tensor([[sees(query, key) for key in places] for query in places])


def dense_attention(
    kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor, visible: Tensor
) -> Tensor:
    """Softmax attention in plain words."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * kind.scaling
    if kind.softcap is not None:
        scores = kind.softcap * torch.tanh(scores / kind.softcap)
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value


def make_tensors(num_tokens: int, num_kv_heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [
        (2 * torch.randn(1, heads, num_tokens, WIDTH, generator=generator)).requires_grad_()
        for heads in (4, num_kv_heads, num_kv_heads)
    ]


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp(min=1e-9)).item()


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_groups(layout: str, kind: AttentionKind, num_kv_heads: int) -> None:
    check_layout(LAYOUTS[layout], 0, kind, num_kv_heads)


@pytest.mark.parametrize("most_padding", [1.0, 100.0], ids=["apart", "together"])
@pytest.mark.parametrize("prefix", [0, 4])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_groups_behind_a_prefix(
    layout: str,
    kind: AttentionKind,
    prefix: int,
    most_padding: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unlike groups in one padded batch too."""
    monkeypatch.setattr("rft.attention.MOST_PADDING", most_padding)
    spans = [replace(span, start=prefix + span.start) for span in LAYOUTS[layout]]
    check_layout(spans, prefix, kind, num_kv_heads=2)


def check_layout(
    spans: list[PackedSpan], prefix: int, kind: AttentionKind, num_kv_heads: int
) -> None:
    """Output and gradients are those of dense attention."""
    tensors = make_tensors(spans[-1].stop, num_kv_heads)
    output = PackedGroups(spans, prefix_length=prefix).attend(kind, *tensors)
    visible = dense_visibility(spans, kind.sliding_window, prefix)
    expected = dense_attention(kind, *tensors, visible)
    assert output.shape == expected.shape
    assert relative(output, expected) < 1e-5
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(output, tensors, upstream)
    expected_gradients = torch.autograd.grad(expected, tensors, upstream)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert torch.isfinite(found).all()
        assert (found - wanted).norm() < 1e-5 * upstream.norm()


def test_a_mask_is_made_once_for_all_layers() -> None:
    """Each layer keeps it for the backward pass."""
    layout = PackedGroups([PackedSpan(4, 5, (3, 2)), PackedSpan(14, 4, (2,))], prefix_length=4)
    tensors = make_tensors(20)
    masks = set()

    def note(tensor: Tensor) -> Tensor:
        if (tensor == float("-inf")).any():
            masks.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = [layout.attend(kind, *tensors) for kind in [KINDS[0]] * 3]
    assert len(masks) == 2, "of prompts and of completions"
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("spans", "prefix", "expected"),
    [
        ([PackedSpan(0, 40, (9,) * 8), PackedSpan(112, 30, (12,) * 8)], 0, 1),
        ([PackedSpan(0, 40, (9,) * 8), PackedSpan(112, 30, (99,) * 8)], 0, 2),
        ([PackedSpan(0, 40, (200,) * 8), PackedSpan(1640, 40, (200,) * 8)], 0, 1),
        ([PackedSpan(0, 40, (200,) * 8), PackedSpan(1640, 40, (200,) * 8)], 4000, 2),
        ([PackedSpan(0, 1500, ()), PackedSpan(1500, 1500, ())], 0, 2),
    ],
    ids=["alike", "unlike", "long", "long behind a long prefix", "long prompts"],
)
def test_groups_attend_together_where_that_pads_and_masks_little(
    spans: list[PackedSpan], prefix: int, expected: int
) -> None:
    assert len(_alike(spans, prefix)) == expected


def test_a_completion_does_not_feel_its_neighbours() -> None:
    """Changing one completion or another group leaves the rest as it was, bit for bit."""
    spans = [PackedSpan(0, 3, (2, 4)), PackedSpan(9, 2, (3,))]
    query, key, value = (tensor.detach() for tensor in make_tensors(14))
    before = PackedGroups(spans).attend(KINDS[0], query, key, value)
    key, value = key.clone(), value.clone()
    key[:, :, 5:9] += 1.0
    value[:, :, 9:] -= 2.0
    after = PackedGroups(spans).attend(KINDS[0], query, key, value)
    assert torch.equal(after[:, :, :5], before[:, :, :5])
    assert not torch.allclose(after[:, :, 5:9], before[:, :, 5:9])
    assert not torch.allclose(after[:, :, 9:], before[:, :, 9:])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_masked_attention(kind: AttentionKind) -> None:
    query, key, value = make_tensors(9)
    visible = causal_visibility(4, 5, kind.sliding_window, CPU)
    bias = as_bias(visible, query.dtype)
    found = masked_attention(kind, query[:, :, 5:], key, value, bias)
    expected = dense_attention(kind, query[:, :, 5:], key, value, visible)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_no_mask_means_causal(softcap: float | None) -> None:
    kind, tensors = AttentionKind(0, 0.4, None, softcap), make_tensors(6)
    causal = torch.ones(6, 6).tril().bool()
    expected = dense_attention(kind, *tensors, causal)
    assert relative(masked_attention(kind, *tensors, None), expected) < 1e-5


@pytest.mark.parametrize(
    ("num_queries", "num_before", "window", "expected"),
    [
        (3, 0, None, ["x..", "xx.", "xxx"]),
        (2, 2, None, ["xxx.", "xxxx"]),
        (3, 0, 1, ["x..", ".x.", "..x"]),
        (3, 1, 2, ["xx..", ".xx.", "..xx"]),
        (1, 4, 3, ["..xxx"]),
    ],
)
def test_causal_visibility(
    num_queries: int, num_before: int, window: int | None, expected: list[str]
) -> None:
    visible = causal_visibility(num_queries, num_before, window, CPU)
    assert ["".join(".x"[cell] for cell in row) for row in visible.tolist()] == expected


def test_a_model_called_without_a_layout_is_refused() -> None:
    model = tiny_model()
    use_layouts(model)
    with pytest.raises(ModelError, match="LlamaAttention does not pass its keyword arguments"):
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)


@pytest.mark.parametrize("family", ["llama", "mistral sliding", "gemma2 sliding"])
def test_a_model_under_a_layout_is_the_model(family: str) -> None:
    """One prompt in the packed layout against the family's own attention and masks."""
    model = tiny_model(family, attn_implementation="eager")
    token_ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        expected = model(input_ids=token_ids, use_cache=False).logits
        use_layouts(model)
        layout = PackedGroups([PackedSpan(0, 20, ())])
        found = model(
            input_ids=token_ids,
            position_ids=torch.arange(20)[None],
            use_cache=False,
            layout=layout,
        ).logits
    assert relative(found, expected) < 1e-5
