"""Planned batches in the trainers of others: ``pip install mbcl[integrations]``.

:mod:`~mbcl.integrations.transformers` is for Hugging Face's ``Trainer`` and ``accelerate``,
:mod:`~mbcl.integrations.sentence_transformers` and :mod:`~mbcl.integrations.lightning` for what they are named after.
Each module needs its framework alone.
"""
