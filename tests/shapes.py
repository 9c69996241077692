"""The run-time checker behind jaxtyping's shapes in tests."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""As usual in Python, an int will do where a float is asked for."""
