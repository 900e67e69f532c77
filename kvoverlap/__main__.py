"""`python -m kvoverlap`: the command line."""

import sys

from kvoverlap.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
