"""Ray Tune: it runs the trials and asks the scheduling."""
