"""`rft schema` and `rft doctor`: the job document's schema, and what this machine offers."""

import json

from rft.cli.output import Json, Reply
from rft.cli.text import outline


def schema(as_json: Json = False) -> Reply:
    """Print the JSON schema of the job document, for editors.

    \b
    Example:
      rft schema > job.schema.json
      # then, as the first line of job.yaml:
      # yaml-language-server: $schema=job.schema.json
    """
    from rft.job import json_schema

    document = json_schema()
    return Reply(document, json.dumps(document, indent=2).splitlines(), as_json)


def doctor(as_json: Json = False) -> Reply:
    """Show what this machine offers: device, kernels, sandbox layers, versions.

    \b
    Example:
      rft doctor
    """
    from rft.training.doctor import examine

    document = examine()
    return Reply(document, outline(document), as_json)
