"""What a plain YAML scalar stands for, by the rules of YAML 1.2."""

import re

TAG = "tag:yaml.org,2002:"
NULL = re.compile(r"~|null|Null|NULL|", re.ASCII)
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE", re.ASCII)
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
RESOLVERS = [
    (f"{TAG}null", re.compile(f"(?:{NULL.pattern})$")),
    (f"{TAG}bool", re.compile(f"(?:{BOOL.pattern})$")),
    (f"{TAG}int", re.compile(f"(?:{INTEGER.pattern})$")),
    (f"{TAG}float", re.compile(f"(?:{NUMBER.pattern}|{NOT_FINITE.pattern})$")),
    (f"{TAG}merge", re.compile("<<$")),
]
"""Tag and pattern of the plain scalars that are not text."""
