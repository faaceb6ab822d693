"""Studies: spaces, trials, resources, and Ray, which only this package imports."""
