"""Scheduling of trials: the queue, early stopping, and adaptive search. Imports no Ray."""
