"""Entry point of ``python -m mbcl``."""

import sys

from mbcl.cli import main

sys.exit(main())
