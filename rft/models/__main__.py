"""`python -m rft.models [NAME]` fetches a built-in model into the cache and prints its folder."""

import sys

from rft.errors import RftError
from rft.models.builtin import BUILTIN_MODELS, SMOLLM2, builtin_folder


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else SMOLLM2.name
    if name not in BUILTIN_MODELS:
        sys.stderr.write(
            f"error: no built-in model {name!r} → one of {', '.join(BUILTIN_MODELS)}\n"
        )
        return 2
    try:
        sys.stdout.write(f"{builtin_folder(BUILTIN_MODELS[name])}\n")
    except RftError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
