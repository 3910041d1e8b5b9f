"""Two-sample statistics: how far traffic is from the reference, and how far chance alone brings such samples.

Only `python -m service.drift` imports this: scipy would double the memory of a process that serves.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from service.facts import Facts, Reference

ALPHA = 0.001
"""How often one look at traffic like the reference may find anything at all to be beyond its limit."""
TABLES_BEYOND = 20  # drawn tables that lie beyond a limit: more would move it by less than a tenth


class Shift(NamedTuple):
    """How far apart two samples are, from 0 to 1, and what chance exceeds with a probability of at most alpha."""

    statistic: float
    limit: float

    @property
    def suspected(self) -> bool:
        """Whether chance alone hardly explains it."""
        return self.statistic > self.limit


class Sample(NamedTuple):
    """Rows of the prediction log: features [n, 4], class indices [n], and the probabilities of these [n]."""

    features: NDArray[np.float64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def compare(facts: Facts, reference: Reference, sample: Sample, alpha: float = ALPHA) -> dict[str, Shift]:
    """Return the shift of each feature by its name, of the mix of answers ("prediction"), and of "confidence".

    Any of them exceeds its limit by chance with a probability of at most alpha (Bonferroni), if the rows of both
    samples are independent of each other.
    """
    share = alpha / (len(facts.features) + 2)
    shifts = {
        feature.name: values(expected, seen, share)
        for feature, expected, seen in zip(facts.features, reference.features, sample.features.T, strict=True)
    }
    answers = np.bincount(sample.predictions, minlength=len(reference.predictions))
    shifts["prediction"] = counts(reference.predictions, answers, share)
    shifts["confidence"] = values(reference.probabilities, sample.probabilities, share)
    return shifts


def values(expected: ArrayLike, seen: ArrayLike, alpha: float) -> Shift:
    """Compare numbers by the Kolmogorov-Smirnov statistic: the largest distance of the distribution functions.

    The limit is scipy's own approximation of the p-value, inverted. Equal values make it rarer to exceed it.
    """
    m, n = np.size(expected), np.size(seen)
    statistic = stats.ks_2samp(expected, seen, method="asymp").statistic
    return Shift(float(statistic), float(stats.kstwo.isf(alpha, round(m * n / (m + n)))))


def counts(expected: ArrayLike, seen: ArrayLike, alpha: float) -> Shift:
    """Compare how often each class came by Cramér's V: the chi-square statistic, brought to 0 to 1.

    Its limit comes from tables drawn at random with the totals of this one, because the chi-square distribution
    is wrong where few of a class are expected. The observed table counts as one of them (Phipson and Smyth, 2010),
    so alpha holds however many are drawn.
    """
    table = np.array([expected, seen])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] == 1:  # no other table has these totals; random_table gives negative counts for it
        return Shift(0.0, 0.0)
    size = math.ceil(TABLES_BEYOND / alpha)
    drawn = stats.random_table(table.sum(axis=1), table.sum(axis=0), seed=0).rvs(size=size)
    # In one array, so that equal tables have equal values to the last bit.
    found = _cramers_v(np.concatenate([table[np.newaxis], drawn]))
    return Shift(float(found[0]), float(np.sort(found[1:])[-TABLES_BEYOND]))


def _cramers_v(tables: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return V for each of the tables [..., 2, classes], all with the same totals and no empty class."""
    rows, columns = tables.sum(axis=-1, keepdims=True), tables.sum(axis=-2, keepdims=True)
    total = rows.sum(axis=-2, keepdims=True)
    wanted = rows * columns / total
    chi_square = ((tables - wanted) ** 2 / wanted).sum(axis=(-2, -1))
    v: NDArray[np.float64] = np.sqrt(chi_square / total[..., 0, 0])
    return v
