"""Baselines that a model should beat: the commonest label, and TF-IDF with a linear model, which is strong (Wang &
Manning 2012), whose results `classification` scores; of texts how often each token occurs, and a compressor.

Shapes: N rows, M test rows, C classes, F features."""

import lzma
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lmkit.evaluation.writing import WORD

BaselineKind = Literal["single", "multi", "regression"]
STRENGTHS = (1.0, 4.0, 16.0)  # values to choose from for the inverse of the regularisation
HELD_OUT = 0.1  # the share of the training rows that is held out to choose it
FEW = 100  # with fewer rows, none is held out
MOST_CELLS = 20_000_000  # rows times classes, above which logistic regression takes hours
MOST_WEIGHTS = 10_000_000  # features times classes; if there are more, only the commonest words are used
MANY = 1000  # from this number of rows on, words that occur in only one text are left out


def majority(kind: BaselineKind, labels: np.ndarray, test_rows: int, classes: int) -> np.ndarray:
    """Returns the same guess for all rows: the shares of the training labels, (M, C); their mean, (M,), for
    `regression`."""
    shares = np.bincount(labels, minlength=classes) / len(labels) if kind == "single" else np.mean(labels, axis=0)
    return np.tile(shares, (test_rows, 1)) if kind != "regression" else np.full(test_rows, float(shares))


def unigram(train: np.ndarray, held_out: np.ndarray, vocab_size: int) -> float:
    """Returns the nats per token of held-out ids where each is as likely as it is frequent in training ids, all of
    which are counted once more than they occur."""
    counts = np.bincount(train, minlength=vocab_size) + 1.0
    return float(-np.log(counts[held_out] / counts.sum()).mean())


def compressed(text: bytes) -> float:
    """Returns the bits per byte of a text that xz has packed, which knows no other text. text: at least one byte."""
    return 8 * len(lzma.compress(text)) / len(text)


def tfidf(
    kind: BaselineKind,
    train_texts: Sequence[str],
    labels: np.ndarray,
    test_texts: Sequence[str],
    classes: int,
    train_pairs: Sequence[str] | None = None,
    test_pairs: Sequence[str] | None = None,
) -> np.ndarray:
    """Returns probabilities (M, C) by logistic regression on words and pairs of words, or numbers (M,) by ridge
    regression.

    For `multi` there is one logistic regression per class. The second texts of pairs have features of their own.
    labels: (N,) int; (N, C) bool for `multi`; (N,) float for `regression`. The strength of the regularisation is chosen
    on a part of the training rows, and then all of them are used; the same rows always give the same result. If the
    training texts have no words, the result is the `majority` guess."""
    from scipy.sparse import hstack

    y, columns = np.asarray(labels), [(train_texts, test_texts)]
    if train_pairs is not None and test_pairs is not None:
        columns.append((train_pairs, test_pairs))
    try:
        parts = [_features(*column, MOST_WEIGHTS // classes) for column in columns]
    except ValueError:  # no words, no vocabulary
        return majority(kind, y, len(test_texts), classes)
    x, test = (hstack(part, "csr") for part in zip(*parts, strict=True))
    strength = _strength(kind, x, y, classes) if len(y) >= FEW else STRENGTHS[0]
    return _fitted(kind, x, y, test, classes, strength)


def _features(train: Sequence[str], test: Sequence[str], most: int) -> tuple[Any, Any]:
    """Returns the features of training and test texts, sparse matrices (N, F) and (M, F)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(train) >= MANY else 1, dtype=np.float32,
        token_pattern=WORD.pattern, max_features=most,
    )  # fmt: skip
    return vectoriser.fit_transform(train), vectoriser.transform(test)


def _strength(kind: BaselineKind, x: Any, y: np.ndarray, classes: int) -> float:
    order = np.random.default_rng(0).permutation(len(y))
    dev, rest = np.split(order, [round(HELD_OUT * len(y))])
    losses = [_loss(kind, y[dev], _fitted(kind, x[rest], y[rest], x[dev], classes, s)) for s in STRENGTHS]
    return STRENGTHS[int(np.argmin(losses))]


def _loss(kind: BaselineKind, y: np.ndarray, guess: np.ndarray) -> float:
    """Returns the mean loss: nats per label, or squared error for `regression`."""
    if kind == "regression":
        return float(np.mean((y - guess) ** 2))
    right = guess[np.arange(len(y)), y] if kind == "single" else np.where(y, guess, 1 - guess)
    return float(-np.log(np.maximum(right, 1e-9)).mean())


def _fitted(kind: BaselineKind, x: Any, y: np.ndarray, test: Any, classes: int, strength: float) -> np.ndarray:
    """Returns what a model trained on rows x (N, F) with labels y predicts for `test` (M, F)."""
    if kind == "regression":
        from sklearn.linear_model import Ridge

        return Ridge(alpha=4 / strength, solver="sparse_cg", random_state=0).fit(x, y).predict(test)
    if kind == "multi":
        columns = [_fitted("single", x, y[:, c].astype(int), test, 2, strength)[:, 1] for c in range(classes)]
        return np.stack(columns, axis=1)
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(y)
    out = np.zeros((test.shape[0], classes))
    if len(seen) == 1:
        out[:, seen] = 1
        return out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model that has not converged is only a weaker baseline
        model = LogisticRegression(C=strength, max_iter=200).fit(x, y)
    out[:, seen] = model.predict_proba(test)
    return out
