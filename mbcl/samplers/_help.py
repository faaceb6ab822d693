"""What ``mbcl explain`` says of every sampler with embeddings."""

from __future__ import annotations

SHARED_PARAMETERS = """\
As every sampler with embeddings, it also takes:
    mix: share of the places of each batch whose samples are permuted among all batches of the plan.
    skip: so many nearest of every sample are kept out of its batch.
    relative_margin, absolute_margin: sample j is kept out of i's batch unless the similarity s_ij of i's first view
        and j's second is below s_ii - relative_margin * |s_ii|, or s_ii - absolute_margin (NV-Retriever, arXiv
        2407.15831; the names of sentence-transformers, and its sign-safe form).
    apart, together (arguments of plan): ids of samples that must not meet, and of sources that batches do not mix.
What could not be kept apart is counted in plan/conflicts.

When which:
    apart: the likely false negatives are known: captions of one image, chunks of one document, labels.
    relative_margin (0.05, say): they are not known, and the encoder is trained. The number kept apart follows the
        data: many where samples are crowded, none where the positive is far more similar than all others. The limit is
        a share of s_ii, so it is strict for confident pairs and lax for unsure ones.
    absolute_margin (0.1, say): the same where similarities of positives differ little, or are near zero or negative,
        where a share of them says nothing.
    skip: similarities mean little yet, as in first epochs, or their scale is unknown; a rank has no scale. It keeps
        the same number apart everywhere, also true negatives: in small pools, most of what makes batches hard.
    mix: no limit at all; a share of every batch is random."""
