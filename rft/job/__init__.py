"""The job document: YAML and overrides → a frozen, strict model; every knob documented once."""

from rft.job.document import Hyperparameters, Job
from rft.job.dump import dump_job
from rft.job.engine import DataSettings, Engine, LoraSettings, ModelSettings
from rft.job.load import Reading, load_job, parse_job, read_job
from rft.job.resolve import JobFacts, completion_limit, resolve_job
from rft.job.resolved import ResolvedJob
from rft.job.schema import json_schema

__all__ = [
    "DataSettings",
    "Engine",
    "Hyperparameters",
    "Job",
    "JobFacts",
    "LoraSettings",
    "ModelSettings",
    "Reading",
    "ResolvedJob",
    "completion_limit",
    "dump_job",
    "json_schema",
    "load_job",
    "parse_job",
    "read_job",
    "resolve_job",
]
