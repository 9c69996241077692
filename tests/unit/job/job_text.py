"""A small legal job document, as text, for tests to vary."""

from pathlib import Path

from rft.job import Job, JobFacts, parse_job

JOB = """\
model: smollm2-135m-instruct
training_file: train.jsonl
validation_file: valid.jsonl
method:
  type: reinforcement
  reinforcement:
    grader:
      type: string_check
      name: exact
      input: "{{ sample.output_text }}"
      reference: "{{ item.answer }}"
      operation: eq
"""

FACTS = JobFacts(
    num_training_rows=100,
    num_parameters=134_515_008,
    device="cpu",
    dtype="float32",
    context_length=8192,
    longest_prompt=100,
    mean_prompt=100,
    kv_bytes_per_token=46_080,
    activation_bytes_per_token=500_000,
    num_cores=2,
    sandbox="kernel",
)


def parse(text: str = JOB, *overrides: str) -> Job:
    return parse_job(text, name="job.yaml", folder=Path("/jobs"), overrides=overrides)
