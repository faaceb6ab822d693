"""Ray Tune, which runs the trials that :mod:`mbcl.orchestration.scheduling` selects."""
