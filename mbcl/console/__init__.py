"""Console output: progress of a running command, and listings of the registries."""
