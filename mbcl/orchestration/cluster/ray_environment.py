"""Names that Ray reads from the environment or gives to folders. No Ray here: some are read when it is imported.

Like :mod:`.ray_internals` they are assumptions about Ray, and stand in the same test file.
"""

from __future__ import annotations

ENV_ALL = {
    # An epoch is reported at most this late, and a training run ends this much sooner than with the default of 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Relative data folders mean the same in every process.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Environment variables of every process of a trial."""
ENV_LOCAL = {
    # A local machine is not preempted.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Processes that planned or evaluated are reused by the next trial: each has imported torch for some seconds.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
"""Further ones on a local Ray."""
ENV_CLUSTER = {
    # A spot node that was taken away is replaced by one that has to boot.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}
"""Further ones on a joined cluster."""
ENV_DRIVER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The sweep handles interrupts itself, and never reads Tune's own snapshots.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Tune would write tables and TensorBoard files of its own.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Further ones of the process that runs the study."""
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable in which ``ray job submit`` passes a job's configuration on to its process."""
WORKING_DIR_FOLDER = "working_dir_files"
"""The folder on a node into which Ray unpacks working directories."""
