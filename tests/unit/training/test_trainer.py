"""A step's rollouts and updates, with a sampler and a grader that follow a script."""

from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from made import make_completion, make_grade, make_job, make_prompt, make_training_group

from rft.data import PromptStream
from rft.graders import Grader
from rft.rollout.collect import Collector, RolloutPlan
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.training.batch import TrainingGroup
from rft.training.ranks import Ranks
from rft.training.trainer import Trainer, rollout_plan, split
from rft.training.update import Anchors, Sums, Update, Updater
from rft.types import Grade, Item, Sample

NUM_ROWS = 6


class ScriptedSampler(Sampler):
    """Completes with the sample's number; the last request finishes first."""

    is_exact, facts = True, {}

    def __init__(self) -> None:
        self.calls: list[tuple[list[SampleRequest], SamplingSettings]] = []
        self.num_refreshes = 0

    @property
    def spent(self) -> Mapping[str, float]:
        """Each call takes half a second and 3 tokens of decoding."""
        return {"decode": 0.5 * len(self.calls), "decode_tokens": 3.0 * len(self.calls)}

    def refresh(self) -> None:
        self.num_refreshes += 1

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        self.calls.append((list(requests), settings))
        for index in reversed(range(len(requests))):
            for sample in range(requests[index].num_samples):
                completion = make_completion((10 + sample,), text=str(sample))
                yield Sampled(index, sample, completion)


class ScriptedGrader(Grader):
    """Rewards a row's samples as the script says."""

    name, type = "script", "string_check"

    def __init__(self, rewards: Mapping[int, Sequence[float | None]]):
        self._rewards = rewards

    def grade(self, sample: Sample, item: Item) -> Grade:
        return make_grade(self._rewards[item["row"]][int(sample["output_text"])])


class RecordingUpdater(Updater):
    """Notes what it is asked to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[int], bool]] = []

    def anchors(self, groups: Sequence[TrainingGroup]) -> Anchors:
        return {group.ordinal: [[-1.0]] * len(group.rollouts) for group in groups}

    def update(
        self,
        step: int,
        groups: Sequence[TrainingGroup],
        anchors: Anchors | None,
        number: int = 0,
    ) -> Update:
        self.calls.append((step, [group.ordinal for group in groups], anchors is not None))
        return Update(Sums(0.0, 0.0, 0.0, 1, 0.0, 0, 0.0, 0.0, 1), 1.0, 1.0, 0.1, False)


def make_trainer(
    rewards: Mapping[int, Sequence[float | None]], *overrides: str
) -> tuple[Trainer, ScriptedSampler, RecordingUpdater]:
    job, sampler, updater = make_job(*overrides), ScriptedSampler(), RecordingUpdater()
    prompts = [make_prompt(row, (row + 20, 3), row=row) for row in range(NUM_ROWS)]
    collector = Collector(sampler, ScriptedGrader(rewards), concurrency=2)
    return Trainer(job, prompts, sampler, collector, updater, Ranks(use_cpu=True)), sampler, updater


def rows_of_stream(count: int) -> list[int]:
    return [row for _, row in PromptStream(NUM_ROWS, 7).take(count)]


LIVELY = dict.fromkeys(range(NUM_ROWS), (1.0, 0.0))


def test_a_step_walks_through_the_stream() -> None:
    trainer, sampler, updater = make_trainer(LIVELY)
    first, second = trainer.step(1), trainer.step(2)
    groups = [*first.groups, *second.groups]
    assert [group.ordinal for group in groups] == [0, 1, 2, 3]
    assert [group.prompt.example.row for group in groups] == rows_of_stream(4)
    assert trainer.stream.cursor == 4
    assert sampler.num_refreshes == 2
    assert updater.calls == [(1, [0, 1], False), (2, [2, 3], False)]

    assert [request.step for requests, _ in sampler.calls for request in requests] == [1, 1, 2, 2]
    assert first.advantages[0] == pytest.approx((0.70700679, -0.70700679))
    names = {"sampling", "grading_wait", "training", "sync", "full_iteration"}
    assert set(first.seconds) == names
    # of each step, not since the beginning
    assert first.sampler_spent == second.sampler_spent == {"decode": 0.5, "decode_tokens": 3.0}


def test_without_shuffling_rows_are_drawn_as_they_stand() -> None:
    trainer, _, _ = make_trainer(LIVELY, "engine.data.shuffle=false")
    rows = [group.prompt.example.row for step in (1, 2) for group in trainer.step(step).groups]
    assert rows == [0, 1, 2, 3]
    trainer.go_to(NUM_ROWS + 1)
    assert [group.prompt.example.row for group in trainer.step(3).groups] == [1, 2]


def test_go_to() -> None:
    trainer, _, _ = make_trainer(LIVELY)
    trainer.go_to(3)
    groups, _ = trainer.rollouts(1)
    assert [group.ordinal for group in groups] == [3, 4]
    assert [group.prompt.example.row for group in groups] == rows_of_stream(5)[3:]


def test_a_group_holds_its_own_samples_and_grades() -> None:
    trainer, _, _ = make_trainer({row: (row / 10, row / 10 + 1) for row in range(NUM_ROWS)})
    groups, replaced = trainer.rollouts(1)
    assert replaced == []
    for group in groups:
        row = group.prompt.example.row
        assert [r.grade.reward for r in group.rollouts] == [row / 10, row / 10 + 1]
        assert [r.completion.token_ids for r in group.rollouts] == [(10,), (11,)]


def scripted_by_ordinal(kinds: str) -> dict[int, Sequence[float | None]]:
    """Rewards such that the prompt of ordinal n is lively, dull or ungraded, as letter n says."""
    rewards = {"l": (1.0, 0.0), "d": (0.3, 0.3), "u": (None, 1.0)}
    return {row: rewards[kind] for row, kind in zip(rows_of_stream(NUM_ROWS), kinds, strict=True)}


@pytest.mark.parametrize(
    ("kinds", "rounds", "kept", "replaced"),
    [
        ("ddllll", 0, [0, 1], []),
        ("llllll", 3, [0, 1], []),
        ("ddllll", 1, [2, 3], [0, 1]),
        ("dlllll", 1, [1, 2], [0]),
        ("ldllll", 1, [0, 2], [1]),
        ("dlddll", 1, [1, 2], [0]),
        ("dlddll", 2, [1, 3], [0, 2]),
        ("dlddll", 9, [1, 4], [0, 2, 3]),
        ("dddddd", 2, [4, 5], [0, 1, 2, 3]),
        ("ulllll", 1, [1, 2], [0]),
    ],
)
def test_dull_groups_are_replaced_by_fresh_prompts(
    kinds: str, rounds: int, kept: list[int], replaced: list[int]
) -> None:
    override = f"engine.training.resample_zero_signal={rounds}"
    trainer, _, _ = make_trainer(scripted_by_ordinal(kinds), override)
    groups, gone = trainer.rollouts(1)
    assert [group.ordinal for group in groups] == kept
    assert [group.ordinal for group in gone] == replaced
    assert trainer.stream.cursor == len(kept) + len(replaced)


@pytest.mark.parametrize(
    ("num_iterations", "minibatches", "calls"),
    [
        (1, 1, [([0, 1], False)]),
        (2, 1, [([0, 1], True), ([0, 1], True)]),
        (1, 2, [([0], True), ([1], True)]),
        (2, 2, [([0], True), ([1], True), ([0], True), ([1], True)]),
    ],
)
def test_how_many_updates_a_step_feeds(
    num_iterations: int, minibatches: int, calls: list[tuple[list[int], bool]]
) -> None:
    trainer, _, updater = make_trainer(
        LIVELY,
        f"engine.training.num_iterations={num_iterations}",
        f"engine.training.minibatches={minibatches}",
    )
    assert len(trainer.step(1).updates) == len(calls)
    assert [(ordinals, anchored) for _, ordinals, anchored in updater.calls] == calls


def test_a_step_without_a_grade_still_makes_an_update() -> None:
    trainer, _, updater = make_trainer(dict.fromkeys(range(NUM_ROWS), (None, None)))
    record = trainer.step(1)
    assert updater.calls == [(1, [], False)]
    assert record.advantages == ((None, None), (None, None))


@pytest.mark.parametrize(
    ("num_groups", "num_parts", "sizes"),
    [
        (4, 1, [4]),
        (4, 2, [2, 2]),
        (5, 2, [2, 3]),
        (7, 3, [2, 2, 3]),
        (2, 3, [1, 1]),
        (1, 4, [1]),
        (0, 2, [0]),
    ],
)
def test_split(num_groups: int, num_parts: int, sizes: list[int]) -> None:
    groups = [make_training_group([make_completion()], (1.0,), n) for n in range(num_groups)]
    parts = split(groups, num_parts)
    assert [len(part) for part in parts] == sizes
    assert [group for part in parts for group in part] == groups


def test_what_a_step_draws() -> None:
    job = make_job("engine.rollout.temperature=0.5", "engine.rollout.top_p=0.9")
    settings = SamplingSettings(0.5, 0.9, 8, ())
    assert rollout_plan(job, 3) == RolloutPlan(2, 7, Purpose.TRAIN, 3, settings)


def test_one_process_shares_with_nobody() -> None:
    ranks = Ranks(use_cpu=True)
    tensors = [torch.ones(2)]
    ranks.sum_into(tensors)
    assert (ranks.rank, ranks.size, ranks.is_main, ranks.backend) == (0, 1, True, "none")
    assert (ranks.share([1, 2]), ranks.gather([3]), ranks.broadcast(4)) == ([1, 2], [3], 4)
    assert tensors[0].tolist() == [1, 1]
