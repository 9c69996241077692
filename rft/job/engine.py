"""The `engine` block of the job document: what only a local engine has."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from rft.graders import Tier
from rft.job.section import (
    MAY_BE_EMPTY,
    Auto,
    Count,
    Fraction,
    Named,
    NotNegative,
    Positive,
    Section,
    Text,
    Texts,
)

BelowOne = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
DEVICE = Field(
    pattern=r"^(auto|cpu|cuda|cuda:[0-9]{1,3})$", examples=["auto", "cpu", "cuda", "cuda:1"]
)
Betas = Annotated[tuple[BelowOne, BelowOne], Field(strict=False)]
GroupSize = Annotated[int, Field(ge=2)]
ServerUrls = Annotated[
    tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+")], ...], Field(strict=False)
]
Tracker = Literal[
    "aim",
    "all",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]


class ModelSettings(Section):
    """How the model is loaded."""

    dtype: Auto | Literal["float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto: what the device does best."""
    device: Annotated[str, DEVICE] = "auto"
    """auto, cpu, cuda or cuda:N; auto: cuda when there is one."""
    quantization: Literal["none", "4bit"] = "none"
    """4bit: the base weights as NF4 through bitsandbytes."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp: each process holds its part of every layer's weights and borrows the rest while it computes
    that layer, for a base that does not fit one device; takes two processes or more, and the engine vllm."""
    trust_remote_code: bool = False
    """Whether Python files that come with the model may run on this machine."""
    chat_template: Text | None = None
    """A Jinja chat template, or a path to one, in place of the model's own."""
    chat_template_kwargs: Named = Field(default={})
    """Handed to the chat template, such as `enable_thinking: false`."""


class DataSettings(Section):
    """How the rows of a data source become prompts."""

    messages: Text = "messages"
    """The column that holds the conversation."""
    system: str | None = None
    """A system message put before conversations that have none."""
    fields: Annotated[Mapping[str, Text], MAY_BE_EMPTY] = {}
    """Templates over the row's columns, for sources without messages. `prompt` makes one user
    message, such as `"{{ question }} Answer with a number."`; every other entry adds `item.<name>`
    for graders, and a template that is one bare `{{ column }}` keeps the column's type. Nested
    values: `{{ column.key[0] }}`. The row's own columns stay in `item`."""
    shuffle: bool = True
    """Whether each epoch draws the training rows in another order; false: in that of the file, for a curriculum,
    or for batches that hold every kind of row equally often."""


class LoraSettings(Section):
    """The adapter that is trained."""

    rank: Count = 16
    """Inner dimension of the update matrices."""
    alpha: Count = 32
    """Scale: the update is multiplied by alpha / rank."""
    dropout: BelowOne = 0.0
    """Probability of dropping an input of the adapter in training."""
    targets: Literal["all-linear"] | Annotated[Texts, Field(min_length=1)] = "all-linear"
    """all-linear, or the names of the modules to adapt, such as [q_proj, v_proj]."""


class VllmSettings(Section):
    """Where vLLM runs and how it is asked."""

    servers: ServerUrls = ()
    """Urls of running servers, such as [http://localhost:8000]: copies of one model that share the
    prompts and all get each adapter; none: vLLM runs inside this process. A key that they ask for
    stands in the environment variable VLLM_API_KEY."""
    adapter_folder: Text | None = None
    """Where adapters are written for the servers, under the same path there; null: a temporary folder."""
    request_seconds: Positive = 600.0
    """Limit of one request to a server."""
    tolerance: Positive = 0.1
    """The job fails when vLLM and the trainer differ after a sync by more nats a token, on average
    over fixed prompts and tokens."""
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of the device's memory for a vLLM inside this process."""


class RolloutSettings(Section):
    """How completions are sampled."""

    engine: Literal["native", "vllm"] = "native"
    """The sampler: native, or vLLM where its package or a server of it is at hand."""
    vllm: Annotated[VllmSettings, MAY_BE_EMPTY] = VllmSettings()
    """Where vLLM runs and how it is asked, for the engine vllm."""
    group_size: Auto | GroupSize = "auto"
    """Completions per prompt; auto: max(2, round(8 · compute_multiplier))."""
    temperature: Positive = 1.0
    """Sampling temperature in training."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens with this probability."""
    max_prompt_tokens: Auto | Count = "auto"
    """A longer prompt is an error; auto: the model's context minus max_completion_tokens."""
    max_completion_tokens: Auto | Count = "auto"
    """A completion is cut here, the reasoning included; auto: 256, 128 at reasoning_effort low, 512 at
    high."""
    stop: Texts = ()
    """Texts that end a completion."""
    slots: Auto | Count = "auto"
    """Completions decoded side by side; auto: from the step's size and the memory for their KV."""


class TrainingSettings(Section):
    """How weights are updated."""

    learning_rate: Auto | LearningRate = "auto"
    """auto: 2e-4 below 0.5 B parameters, 1e-4 below 2 B, 5e-5 below 10 B, 2e-5 above."""
    loss: Literal["grpo", "dapo", "dr_grpo", "cispo", "gspo"] = "dapo"
    """The policy-gradient loss."""
    advantage_scaling: Literal["group", "batch", "none"] = "group"
    """What divides an advantage: the standard deviation of its group, of the batch, or nothing."""
    num_iterations: Count = 1
    """Passes over a rollout batch."""
    minibatches: Count = 1
    """Optimizer updates per pass; at most batch_size."""
    clip_low: Fraction = 0.2
    """The ratio is clipped below at 1 − clip_low."""
    clip_high: NotNegative = 0.28
    """The ratio is clipped above at 1 + clip_high."""
    kl_coefficient: NotNegative = 0.0
    """Weight of the divergence from the model the job started from."""
    importance_cap: Positive = 2.0
    """Upper bound of the importance weight between sampler and trainer."""
    mask_truncated: bool = False
    """Whether completions cut at the token limit are left out of the loss."""
    resample_zero_signal: Annotated[int, Field(ge=0)] = 0
    """Rounds per step in which groups without a signal are replaced by those of fresh prompts."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are scaled down to this norm; 0 = never."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    betas: Betas = (0.9, 0.99)
    """AdamW's decay rates of the two moments."""
    token_budget: Auto | Count = "auto"
    """Tokens in a micro-batch of whole groups, or of even parts of one that exceeds it, with what each completion
    keeps of its prompt; auto: from the device's memory, the prompts and the size of a group."""
    gradient_checkpointing: Auto | bool = "auto"
    """Recompute activations in the backward pass; auto: when the largest group needs it."""


class EvaluationSettings(Section):
    """How the validation set is measured."""

    at_start: bool = True
    """Whether the untrained model is evaluated first, as step 0."""
    temperature: Auto | NotNegative = "auto"
    """auto: 0 (greedy) when eval_samples is 1, else the rollout's temperature."""
    pass_threshold: float = 1.0
    """A sample passes at a reward of at least this."""
    stop_at: float | None = None
    """The job ends when valid_reward_mean reaches this."""
    patience: Count | None = None
    """The job ends after so many evaluations without a new best."""


class CheckpointSettings(Section):
    """What is kept of the run's weights."""

    keep: Count = 3
    """The best checkpoints that are kept."""
    state_every_steps: Count = 1
    """A state to resume from is written every so many steps."""


class PythonGraderRules(Section):
    """The box in which Python graders run."""

    sandbox: Auto | Tier = "auto"
    """What keeps a grader from files, network and other processes: kernel (Linux), monty (a small
    Python inside Python, no packages), unsafe-local (nothing does); auto: the best one here."""
    timeout_seconds: Positive = 120.0
    """Wall-clock limit of one call."""
    memory_mb: Annotated[int, Field(ge=64)] = 2048
    """Memory limit of one grading process."""


class EndpointGraderRules(Section):
    """How endpoint graders call."""

    timeout_seconds: Positive = 600.0
    """Limit of one call, retries included."""
    private_hosts: Texts = ()
    """Hosts that may lie on this machine or in a private network, such as localhost; any other
    must have a public address."""


class JudgeRules(Section):
    """Where score_model and label_model graders find their judge, if they do not say themselves."""

    base_url: Text | None = None
    """An OpenAI-compatible server, such as http://localhost:8000/v1; null: OpenAI's. This machine may be named;
    another private address is listed in endpoint.private_hosts."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "OPENAI_API_KEY"
    """The environment variable that holds the server's key, if it wants one."""
    concurrency: Count = 16
    """Calls of one judge at a time."""
    timeout_seconds: Positive = 120.0
    """Limit of one call, retries included."""


class GradingRules(Section):
    """How grades are obtained and what failures do."""

    concurrency: Auto | Count = "auto"
    """Grades computed side by side; auto: the number of cores; or the most of 16 with an endpoint
    grader, judge.concurrency with a judge, 32 with a judge in this process."""
    on_exception: Literal["minimum", "exclude"] = "minimum"
    """What a completion gets on which the grader raises: the grader's minimum, or no grade."""
    error_pause_rate: Fraction = 0.5
    """The job pauses when more than this share of grades fails."""
    pass_threshold_shapes_reward: bool = False
    """Whether a grader's pass_threshold turns its reward into 0 or 1."""
    similarity_model: Text | None = None
    """Folder or hub id of the sentence-transformers model behind text_similarity by cosine."""
    python: Annotated[PythonGraderRules, MAY_BE_EMPTY] = PythonGraderRules()
    """The box in which Python graders run."""
    endpoint: Annotated[EndpointGraderRules, MAY_BE_EMPTY] = EndpointGraderRules()
    """How endpoint graders call."""
    judge: Annotated[JudgeRules, MAY_BE_EMPTY] = JudgeRules()
    """Where model graders find their judge."""


class TrackingSettings(Section):
    """Experiment trackers."""

    report_to: Annotated[tuple[Tracker, ...], Field(strict=False)] = ()
    """Trackers that also get the metrics."""


class BudgetSettings(Section):
    """When a job pauses by itself; with a larger budget it can be resumed."""

    steps: Count | None = None
    """It pauses after so many steps."""
    hours: Positive | None = None
    """It pauses after so many hours of wall-clock time, counted from each start."""


class Engine(Section):
    """What only a local engine has."""

    model: Annotated[ModelSettings, MAY_BE_EMPTY] = ModelSettings()
    """How the model is loaded."""
    data: Annotated[DataSettings, MAY_BE_EMPTY] = DataSettings()
    """How the rows of a data source become prompts."""
    lora: Annotated[LoraSettings, MAY_BE_EMPTY] = LoraSettings()
    """The adapter that is trained."""
    rollout: Annotated[RolloutSettings, MAY_BE_EMPTY] = RolloutSettings()
    """How completions are sampled."""
    training: Annotated[TrainingSettings, MAY_BE_EMPTY] = TrainingSettings()
    """How weights are updated."""
    evaluation: Annotated[EvaluationSettings, MAY_BE_EMPTY] = EvaluationSettings()
    """How the validation set is measured."""
    checkpoints: Annotated[CheckpointSettings, MAY_BE_EMPTY] = CheckpointSettings()
    """What is kept of the run's weights."""
    grading: Annotated[GradingRules, MAY_BE_EMPTY] = GradingRules()
    """How grades are obtained and what failures do."""
    tracking: Annotated[TrackingSettings, MAY_BE_EMPTY] = TrackingSettings()
    """Experiment trackers."""
    budget: Annotated[BudgetSettings, MAY_BE_EMPTY] = BudgetSettings()
    """When a job ends before its last step."""
