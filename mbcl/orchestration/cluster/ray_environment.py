"""Environment variables that Ray reads, and names of its folders. Imports no Ray, which reads some at its import.

Like :mod:`.ray_internals` they are assumptions about Ray, and are tested in the same file.
"""

from __future__ import annotations

ENV_ALL = {
    # Maximum delay of an epoch's report and of the end of training; the default is 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Do not change the working directory, so that relative data folders mean the same in every process.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Environment variables of every process of a trial."""
ENV_LOCAL = {
    # A local machine is not preempted.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # How long Ray Tune waits for a stopped trial to end before the next one takes its driver; the default of 2 s is too
    # short for a tracker that uploads, and a trial that comes too early fails.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
    # Keep idle processes for the next trial's tasks: importing torch takes each some seconds.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
"""Further variables of a local Ray."""
ENV_CLUSTER = {
    # The replacement of a preempted spot node has to boot.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # A rank that hangs before it asks for a preemption notice would keep the others waiting without limit.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
}
"""Further variables of a joined cluster."""
ENV_DRIVER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The sweep handles interrupts itself, and never reads Tune's snapshots.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # An error ends up in a file of its trial; Tune would print its traceback for every attempt.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Write no tables and TensorBoard files of Tune.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Further variables of the process that runs the study."""
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable in which ``ray job submit`` passes a job's configuration to its process."""
WORKING_DIR_FOLDER = "working_dir_files"
"""The folder on a node into which Ray unpacks working directories."""
