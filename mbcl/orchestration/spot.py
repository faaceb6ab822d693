"""``python -m mbcl.orchestration.spot`` of cluster files: :mod:`mbcl.orchestration.cluster.spot_notices`."""

import sys

from mbcl.orchestration.cluster.spot_notices import main

if __name__ == "__main__":
    sys.exit(main())
