"""A job document → YAML that loads again as the same job."""

from typing import Any, ClassVar

import yaml

from rft.job.document import Job
from rft.job.scalars import RESOLVERS

_IMPLICIT = {**yaml.SafeDumper.yaml_implicit_resolvers, None: RESOLVERS}


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or our reading would take for more than text; never writes aliases."""

    yaml_implicit_resolvers = _IMPLICIT

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if "\n" in data else None
        if any(line_break in data for line_break in "\x85\u2028\u2029"):
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    yaml_representers: ClassVar[Any] = {**yaml.SafeDumper.yaml_representers, str: represent_str}


def dump_job(job: Job) -> str:
    """The job as YAML, keys in the document's order; `load_job` gives back an equal job."""
    document = job.model_dump(mode="json")
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
