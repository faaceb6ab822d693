"""One trial: what its driver is told, and the processes that train, plan and evaluate it."""
