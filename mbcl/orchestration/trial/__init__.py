"""One trial: its job, its result, and the processes that train, plan and evaluate it."""
