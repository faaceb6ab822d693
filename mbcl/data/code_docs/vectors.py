"""Rows of numbers from words: TF-IDF and a truncated singular value decomposition (latent semantic analysis)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mbcl.errors import DataError

_LEAST_TEXTS = 2
"""Training texts in which a word must occur."""


def vectors(texts: Sequence[Sequence[str]], in_training: NDArray[np.bool_], dim: int) -> NDArray[np.float32]:
    """Return a row of ``dim`` numbers for each text; its length is the root of ``dim``, or 0 if no word is known.

    Vocabulary, weights and directions are fitted on the training texts alone. One thread, a fixed random state and
    scikit-learn's rule for signs make the rows the same in every process of a machine. Another processor may round
    otherwise.

    Args:
        texts: N texts as words.
        in_training: (N,).
        dim: number of directions.

    Raises:
        DataError: if the training texts have too few words for that many directions.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    tfidf = TfidfVectorizer(analyzer=list, min_df=_LEAST_TEXTS, sublinear_tf=True)
    training = [text for text, fits in zip(texts, in_training, strict=True) if fits]
    with threadpool_limits(1):
        try:
            fitted = tfidf.fit_transform(training)
        except ValueError as error:  # no word is left
            raise DataError(f"code_docs: {error}") from error
        if min(fitted.shape) <= dim:
            raise DataError(
                f"code_docs: {fitted.shape[0]} training pairs with {fitted.shape[1]} words give fewer than {dim} "
                f"directions; found data.dim {dim}, allowed: at most {min(fitted.shape) - 1}"
            )
        svd = TruncatedSVD(dim, random_state=0).fit(fitted)
        rows = svd.transform(tfidf.transform(texts))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (rows * (np.sqrt(dim) / np.where(lengths > 0, lengths, 1.0))).astype(np.float32)
    return scaled
