"""`python -m rft` and the `rft` command."""

import sys

from rft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
