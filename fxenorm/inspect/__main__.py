"""``python -m fxenorm.inspect`` is the console script ``fxenorm-inspect``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
