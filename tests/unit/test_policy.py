"""The policy: what is trained, what never changes, and the adapter on its way to disk and back."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from rft.attention import use_layouts
from rft.errors import ModelError
from rft.packing import PackedBatch, TokenGroup, pack
from rft.policy import LoraShape, Policy, continued_policy, new_policy
from tests.tiny import make_adapter_large, tiny_model, tiny_policy

CPU = torch.device("cpu")
SHAPE = LoraShape(rank=4, alpha=8)
GROUP = TokenGroup((5, 6, 7, 8), ((20, 21, 22), (30,), (40, 41)))


def read_adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def batch() -> PackedBatch:
    return pack([GROUP], CPU)


def values_of(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.parameters().items()}


@torch.no_grad()
def plain_logits(policy: Policy, token_ids: tuple[int, ...]) -> Tensor:
    """Logits of the model's own forward pass over one sequence, (tokens, V)."""
    policy.base.set_attn_implementation("eager")
    try:
        return policy.base(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    finally:
        use_layouts(policy.base)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_those_of_the_plain_model(temperature: float) -> None:
    policy = tiny_policy()
    scored = policy.score(batch(), temperature)
    for row, ids in enumerate(GROUP.completions):
        logits = plain_logits(policy, GROUP.prompt_ids + ids)[len(GROUP.prompt_ids) - 1 : -1]
        logprobs = (logits / temperature).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]
        entropies = torch.special.entr(logprobs.exp()).sum(-1)
        length = len(ids)
        torch.testing.assert_close(
            scored.logprobs[row, :length].detach(), expected, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(scored.entropies[row, :length], entropies, rtol=1e-4, atol=1e-4)
        assert scored.logprobs[row, length:].tolist() == [0.0] * (3 - length)


def test_only_lora_matrices_are_trained() -> None:
    policy = new_policy(tiny_model(), SHAPE, 0)
    names = list(policy.parameters())
    assert len(names) == 2 * 7 * 3  # A and B of seven linear layers in each of three blocks
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    policy.score(batch(), 1.0).logprobs.sum().backward()
    with_gradient = [n for n, p in policy.model.named_parameters() if p.grad is not None]
    assert with_gradient == names


def test_a_pass_changes_no_weight() -> None:
    policy = tiny_policy()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    with policy.updating():
        policy.score(batch(), 1.0).logprobs.sum().backward()
    policy.reference_logprobs(batch(), 1.0)
    after = dict(policy.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_new_policy_is_the_base_model() -> None:
    policy = new_policy(tiny_model(), SHAPE, 0)
    scored = policy.score(batch(), 1.0).logprobs
    assert torch.allclose(scored, policy.reference_logprobs(batch(), 1.0), atol=1e-5)
    assert all(not p.any() for name, p in policy.parameters().items() if ".lora_B." in name)


def test_initialisation_depends_on_the_seed_and_on_the_matrix_alone() -> None:
    everywhere, again, other = (values_of(new_policy(tiny_model(), SHAPE, s)) for s in (3, 3, 4))
    some = values_of(new_policy(tiny_model(), LoraShape(4, 8, targets=("v_proj",)), 3))
    torch.manual_seed(99)
    for name, value in everywhere.items():
        assert torch.equal(value, again[name])
        if ".lora_A." in name:
            assert not torch.equal(value, other[name])
    assert len(some) == 6
    assert all(torch.equal(value, everywhere[name]) for name, value in some.items())
    firsts = {value.flatten()[0].item() for name, value in everywhere.items() if "lora_A" in name}
    assert len(firsts) == 21


def test_the_first_matrix_is_uniform_within_its_bound() -> None:
    """Bound 1/√64 = 0.125 for an input of 64, 1/√96 for the one of 96; deviation bound/√3."""
    for name, value in values_of(new_policy(tiny_model(), LoraShape(rank=64), 0)).items():
        if ".lora_A." not in name:
            continue
        bound = 96**-0.5 if "down_proj" in name else 0.125
        assert value.abs().max() <= bound
        assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_adapter_is_scaled_by_alpha_over_rank() -> None:
    policy = tiny_policy()
    layer = policy.base.get_submodule("model.layers.0.self_attn.q_proj")
    inputs = torch.randn(2, 64)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = inputs @ layer.base_layer.weight.T + (8 / 4) * inputs @ a.T @ b.T
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("lm_head",), "LoRA on the embeddings or the output head is not supported"),
        (("embed_tokens",), "LoRA on the embeddings or the output head is not supported"),
        (("q_proj", "lm_head"), "LoRA on the embeddings or the output head is not supported"),
        (("nothing",), "LoRA cannot be put on ['nothing']"),
        (("norm",), "LoRA cannot be put on ['norm']"),
    ],
)
def test_targets_that_cannot_be_trained_are_refused(targets: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError) as refusal:
        new_policy(tiny_model(), LoraShape(4, 8, targets=targets), 0)
    assert said in str(refusal.value)
    assert refusal.value.problems[0].where == "engine.lora.targets"


def test_the_adapter_goes_to_disk_and_back(tmp_path: Path) -> None:
    policy, other = tiny_policy(), new_policy(tiny_model(), SHAPE, 5)
    policy.save_adapter(tmp_path)
    tensors = read_adapter(tmp_path)
    assert tensors.keys() == policy.adapter_tensors().keys()
    parameters = other.parameters()
    other.load_adapter(tensors)
    assert torch.equal(other.score(batch(), 1.0).logprobs, policy.score(batch(), 1.0).logprobs)
    for name, parameter in other.parameters().items():
        assert parameter is parameters[name]  # the optimizer goes on with the same objects
        assert torch.equal(parameter, policy.parameters()[name])


def test_tensors_of_another_adapter_are_refused() -> None:
    policy = tiny_policy()
    with pytest.raises(ModelError, match=r"the saved adapter is not this policy's"):
        policy.load_adapter({"wrong.lora_A.weight": torch.zeros(1)})


def test_plain_peft_loads_a_saved_adapter(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.save_adapter(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path))
    ids = torch.tensor([(*GROUP.prompt_ids, 20, 21)])
    with torch.no_grad():
        found = loaded(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(found, plain_logits(policy, (*GROUP.prompt_ids, 20, 21)))


def test_a_saved_adapter_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tiny_policy().save_adapter(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert list(config) == sorted(config)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_the_files_say_what_peft_itself_would_write(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.save_adapter(tmp_path / "mine")  # a folder that is not there yet
    policy.model.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    mine, theirs = read_adapter(tmp_path / "mine"), read_adapter(tmp_path / "theirs")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    configs = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("mine", "theirs")
    ]
    for config in configs:
        config.update({k: sorted(v) for k, v in config.items() if isinstance(v, list)})
        assert not config.pop("base_model_name_or_path")  # a model from nowhere
    assert configs[0] == configs[1]


def test_the_files_of_other_weights_leave_the_policy_as_it_is(tmp_path: Path) -> None:
    policy = tiny_policy()
    before = {name: tensor.clone() for name, tensor in policy.adapter_tensors().items()}
    own = policy.adapter_files()
    other = policy.adapter_files({name: tensor + 1 for name, tensor in before.items()})
    assert own["adapter_config.json"] == other["adapter_config.json"]
    for name, content in other.items():
        (tmp_path / name).write_bytes(content)
    found = read_adapter(tmp_path)
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name] + 1) for name in before)
    after = policy.adapter_tensors()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert policy.adapter_files() == own


def test_the_reference_of_a_new_policy_is_the_base() -> None:
    policy = tiny_policy()
    base = new_policy(tiny_model(), SHAPE, 0).score(batch(), 0.8).logprobs
    reference = policy.reference_logprobs(batch(), 0.8)
    assert torch.allclose(reference, base, atol=1e-5)
    assert (policy.score(batch(), 0.8).logprobs - reference).abs().max() > 0.1
    assert not reference.requires_grad


def test_the_reference_of_a_continued_policy_is_the_adapter_it_began_with(tmp_path: Path) -> None:
    first = tiny_policy()
    first.save_adapter(tmp_path)
    start = first.score(batch(), 1.0).logprobs
    policy = continued_policy(tiny_model(), tmp_path)
    assert torch.equal(policy.score(batch(), 1.0).logprobs, start)
    assert policy.parameters().keys() == first.parameters().keys()

    make_adapter_large(policy, seed=7)
    moved = policy.score(batch(), 1.0).logprobs
    assert (moved - start).abs().max() > 0.1
    assert torch.allclose(policy.reference_logprobs(batch(), 1.0), start, atol=1e-5)
    assert torch.equal(policy.score(batch(), 1.0).logprobs, moved)
    assert policy.parameters().keys() == first.parameters().keys()

    folder = tmp_path / "again"
    folder.mkdir()
    policy.save_adapter(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert read_adapter(folder).keys() == read_adapter(tmp_path).keys()


def test_asking_the_reference_keeps_gradients_and_modes(tmp_path: Path) -> None:
    tiny_policy().save_adapter(tmp_path)
    for policy in (tiny_policy(), continued_policy(tiny_model(), tmp_path)):
        with policy.updating():
            policy.score(batch(), 1.0).logprobs.sum().backward()
            before = {
                n: p.grad.clone() for n, p in policy.parameters().items() if p.grad is not None
            }
            policy.reference_logprobs(batch(), 1.0)
            after = policy.parameters()
            assert before.keys() == after.keys()
            for name, gradient in before.items():
                assert torch.equal(gradient, after[name].grad)
            policy.score(batch(), 1.0).logprobs.sum().backward()
            for name, gradient in before.items():
                torch.testing.assert_close(after[name].grad, 2 * gradient)


def test_the_reference_has_no_dropout(tmp_path: Path) -> None:
    policy = new_policy(tiny_model(), LoraShape(4, 8, dropout=0.5), 0)
    make_adapter_large(policy)
    policy.save_adapter(tmp_path)
    policy = continued_policy(tiny_model(), tmp_path)
    with policy.updating():
        first, second = (policy.reference_logprobs(batch(), 1.0) for _ in range(2))
        noisy = policy.score(batch(), 1.0).logprobs
    assert torch.equal(first, second)
    assert (noisy - first).abs().max() > 0.01


def test_the_adapters_dropout_is_on_in_an_update_alone() -> None:
    policy = new_policy(tiny_model(), LoraShape(4, 8, dropout=0.5), 0)
    make_adapter_large(policy)
    assert policy.has_dropout and not tiny_policy().has_dropout

    def scored() -> torch.Tensor:
        with torch.no_grad():
            return policy.score(batch(), 1.0).logprobs

    quiet = scored()
    with policy.updating():
        assert not torch.equal(scored(), quiet)
        policy.reference_logprobs(batch(), 1.0)
        assert not torch.equal(scored(), quiet)
    assert torch.equal(scored(), quiet)


def test_an_update_sees_the_policy_that_is_sampled_from() -> None:
    noisy = {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "word_embed_proj_dim": 64}
    policy = tiny_policy("opt", True, ffn_dim=96, **noisy)
    with torch.no_grad():
        quiet = policy.score(batch(), 1.0).logprobs
    with policy.updating():
        assert torch.equal(policy.score(batch(), 1.0).logprobs, quiet)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": "all"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"alora_invocation_tokens": [3, 4]},
        {"layer_replication": [[0, 2], [1, 3]]},
    ],
)
def test_an_unusual_adapter_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    tiny_policy().save_adapter(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ModelError, match=next(iter(change))):
        continued_policy(tiny_model(), tmp_path)


def test_training_mode_ends_with_a_failed_update() -> None:
    policy = tiny_policy()
    with pytest.raises(IndexError), policy.updating():
        policy.score(pack([TokenGroup((5, 999), ((6,),))], CPU), 1.0)
    assert not any(module.training for module in policy.model.modules())


def test_the_bare_base() -> None:
    policy = tiny_policy()
    base = new_policy(tiny_model(), SHAPE, 0).score(batch(), 1.0).logprobs
    with policy.adapter_off():
        assert torch.allclose(policy.score(batch(), 1.0).logprobs, base, atol=1e-5)
    assert not torch.allclose(policy.score(batch(), 1.0).logprobs, base, atol=1e-2)


@pytest.mark.parametrize(("dtype", "is_exact"), [(torch.float32, True), (torch.bfloat16, False)])
def test_only_float32_merges_exactly(dtype: torch.dtype, is_exact: bool) -> None:
    assert new_policy(tiny_model().to(dtype), SHAPE, 0).merges_exactly is is_exact


@pytest.mark.parametrize("family", ["llama", "gemma2 sliding"])
def test_checkpointing_changes_no_gradient(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = tiny_policy(family, checkpointing)
        with policy.updating():
            policy.score(batch(), 1.0).logprobs.sum().backward()
        gradients.append({n: p.grad for n, p in policy.parameters().items()})
    plain, recomputed = gradients
    for name, gradient in plain.items():
        assert gradient is not None
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6)
