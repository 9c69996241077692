"""Log-probabilities, entropies and their gradient against plain log-softmax in double precision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rft.errors import ModelError
from rft.head import CHUNK_TOKENS, Head, read_head, tempered, token_logprobs
from tests.tiny import FAMILIES, tiny_model

VOCAB_SIZE, WIDTH = 37, 16


def make_head(with_bias: bool = False, **transform: Any) -> Head:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCAB_SIZE, WIDTH, generator=generator) * 0.7
    bias = torch.randn(VOCAB_SIZE, generator=generator) if with_bias else None
    return Head(weight, bias, **transform)


def make_places(num_tokens: int) -> tuple[Tensor, Tensor, NDArray[np.uint8]]:
    """Hidden states, targets, and for each place about half of the vocabulary with the target in it."""
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, WIDTH, generator=generator)
    targets = torch.randint(VOCAB_SIZE, (num_tokens,), generator=generator)
    is_allowed = torch.rand(num_tokens, VOCAB_SIZE, generator=generator) < 0.5
    is_allowed[torch.arange(num_tokens), targets] = True
    return hidden, targets, np.packbits(is_allowed.numpy(), axis=1)


def plain(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    allowed: NDArray[np.uint8] | None,
) -> tuple[Tensor, Tensor]:
    """The same in float64 through autograd."""
    logits = hidden @ head.weight.double().T
    if head.bias is not None:
        logits = logits + head.bias.double()
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logits = logits * head.scale / temperature
    if allowed is not None:
        closed = np.unpackbits(allowed, axis=1)[:, :VOCAB_SIZE] == 0
        logits = logits.masked_fill(torch.from_numpy(closed), float("-inf"))
    logprobs = logits.log_softmax(-1)
    entropies = torch.special.entr(logprobs.exp()).sum(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropies


TRANSFORMS: list[dict[str, Any]] = [
    {},
    {"with_bias": True},
    {"scale": 0.3},
    {"softcap": 2.0},
    {"softcap": 2.0, "with_bias": True},
]


@pytest.mark.parametrize("is_restricted", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.8])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS + 3])
def test_value_entropy_and_gradient(
    num_tokens: int, transform: dict[str, Any], temperature: float, is_restricted: bool
) -> None:
    check_against_autograd(make_head(**transform), num_tokens, temperature, is_restricted)


def test_a_scale_on_top_of_a_softcap() -> None:
    check_against_autograd(make_head(softcap=2.0, scale=3.0), 5, 0.7, is_restricted=False)


def check_against_autograd(
    head: Head, num_tokens: int, temperature: float, is_restricted: bool
) -> None:
    hidden, targets, allowed_tokens = make_places(num_tokens)
    allowed = allowed_tokens if is_restricted else None
    upstream = torch.randn(num_tokens, generator=torch.Generator().manual_seed(9))
    upstream[0] = 0.5

    hidden.requires_grad_()
    logprobs, entropies = token_logprobs(head, hidden, targets, temperature, allowed)
    (gradient,) = torch.autograd.grad(logprobs, hidden, upstream)

    exact = hidden.detach().double().requires_grad_()
    expected, expected_entropies = plain(head, exact, targets, temperature, allowed)
    (expected_gradient,) = torch.autograd.grad(expected, exact, upstream.double())

    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies.double(), expected_entropies, rtol=1e-5, atol=1e-5)
    error = (gradient.double() - expected_gradient).norm() / expected_gradient.norm()
    assert error < 1e-5


def test_in_literal_numbers() -> None:
    """Logits 0 and ln 3 at temperature 0.5: probabilities 1/10 and 9/10."""
    head = Head(torch.eye(2), None)
    hidden = torch.tensor([[0.0, math.log(3)]] * 2, requires_grad=True)
    logprobs, entropies = token_logprobs(head, hidden, torch.tensor([0, 1]), 0.5, None)
    assert logprobs.tolist() == pytest.approx([math.log(0.1), math.log(0.9)], rel=1e-6)
    # −0.1 ln 0.1 − 0.9 ln 0.9
    assert entropies.tolist() == pytest.approx([0.3250829733914482] * 2, rel=1e-6)
    # (onehot − p) / 0.5
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert gradient.flatten().tolist() == pytest.approx([1.8, -1.8, -0.2, 0.2], rel=1e-5)


def test_a_single_allowed_token_is_certain() -> None:
    hidden, targets, _ = make_places(3)
    only = np.zeros((3, VOCAB_SIZE), bool)
    only[np.arange(3), targets.numpy()] = True
    hidden.requires_grad_()
    logprobs, entropies = token_logprobs(
        make_head(), hidden, targets, 0.7, np.packbits(only, axis=1)
    )
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert logprobs.tolist() == [0.0] * 3
    assert entropies.tolist() == [0.0] * 3
    assert gradient.abs().sum() == 0


def test_chunks_do_not_change_a_place() -> None:
    hidden, targets, allowed = make_places(CHUNK_TOKENS + 1)
    logprobs, entropies = token_logprobs(make_head(), hidden, targets, 0.8, allowed)
    for place in (0, CHUNK_TOKENS - 1, CHUNK_TOKENS):
        rows = slice(place, place + 1)
        alone = token_logprobs(make_head(), hidden[rows], targets[rows], 0.8, allowed[rows])
        assert float(alone[0]) == pytest.approx(float(logprobs[place]), abs=1e-6)
        assert float(alone[1]) == pytest.approx(float(entropies[place]), abs=1e-6)


def test_only_the_logprobs_carry_gradient() -> None:
    hidden, targets, _ = make_places(2)
    logprobs, entropies = token_logprobs(make_head(), hidden.requires_grad_(), targets, 1.0, None)
    assert logprobs.requires_grad and not entropies.requires_grad
    logprobs, _ = token_logprobs(make_head(), hidden.detach(), targets, 1.0, None)
    assert not logprobs.requires_grad


def test_confident_logits_stay_finite() -> None:
    head = Head(torch.eye(3) * 1000, None)
    hidden = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    logprobs, entropies = token_logprobs(head, hidden, torch.tensor([1]), 1.0, None)
    assert (logprobs.item(), entropies.item()) == (-1000.0, 0.0)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert gradient.tolist() == [[-1000.0, 1000.0, 0.0]]


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("confidence", [0.9, 0.99, 0.999, 0.9999])
def test_a_confident_token_keeps_its_gradient_in_bfloat16(
    confidence: float, softcap: float | None
) -> None:
    """Its probability cannot be told from 1 there; what is left of it can."""
    exact = make_head(softcap=softcap)
    head = Head(exact.weight.bfloat16(), None, softcap=softcap)
    targets = torch.tensor([5])
    direction = head.weight[targets].float()
    steps = torch.linspace(0, 3, 3001)
    logprobs, _ = plain(head, steps[:, None].double() * direction, targets.repeat(3001), 1.0, None)
    size = steps[(logprobs.exp() - confidence).abs().argmin()]
    hidden = (size * direction).bfloat16()
    double = hidden.double().requires_grad_()
    plain(head, double, targets, 1.0, None)[0].sum().backward()
    hidden.requires_grad_()
    token_logprobs(head, hidden, targets, 1.0, None)[0].sum().backward()
    assert hidden.grad is not None and double.grad is not None
    assert (hidden.grad - double.grad).norm() < 0.1 * double.grad.norm()


def test_tempered_divides_and_closes() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]])
    bits = np.array([[0b01000001, 0b01000000]], np.uint8)
    found = tempered(logits, 2.0, bits)[0].tolist()
    closed = float("-inf")
    assert found == [closed, 1.0, closed, closed, closed, closed, closed, 4.0, closed, 5.0]
    assert tempered(logits, 2.0, None).tolist() == [[n / 2 for n in range(1, 11)]]
    assert logits[0, 0] == 1


@pytest.mark.parametrize("family", [*FAMILIES, "phi"])
def test_the_head_of_a_family_gives_its_own_logits(family: str) -> None:
    model = tiny_model(family)
    token_ids = torch.arange(12)[None] * 7 % 260
    with torch.no_grad():
        before = model(input_ids=token_ids, use_cache=False).logits
        head = read_head(model)
        hidden = model.get_decoder()(input_ids=token_ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(head.logits(hidden[0]), before[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(model(input_ids=token_ids, use_cache=False).logits, before)


@pytest.mark.parametrize(
    ("family", "scale", "softcap", "has_bias"),
    [
        ("llama", 1.0, None, False),
        ("granite", 1 / 3, None, False),
        ("cohere", 0.3, None, False),
        ("gemma2 sliding", 1.0, 5.0, False),
        ("phi", 1.0, None, True),
    ],
)
def test_the_transform_of_a_family(
    family: str, scale: float, softcap: float | None, has_bias: bool
) -> None:
    head = read_head(tiny_model(family))
    assert head.scale == pytest.approx(scale, rel=1e-4)
    assert (head.softcap, head.bias is not None) == (softcap, has_bias)


def test_logits_are_float32_whatever_the_weights() -> None:
    model = tiny_model().to(torch.bfloat16)
    logits = read_head(model).logits(torch.randn(3, 64))
    assert logits.dtype == torch.float32


def test_an_unknown_transform_is_refused() -> None:
    model = tiny_model()
    plain_forward = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = plain_forward(*args, **kwargs)
        output.logits = output.logits.sin()
        return output

    model.forward = forward
    with pytest.raises(ModelError, match="LlamaForCausalLM changes its logits in a way"):
        read_head(model)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="LlamaModel has no output head"):
        read_head(tiny_model().model)
