"""Two-sample statistics for drift: the distance of traffic from the reference, and its critical value.

Only `python -m service.drift` imports this module: scipy would double the memory of the serving process.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from service.model_metadata import ModelMetadata, Reference

ALPHA = 0.001
"""The probability that one comparison raises a false alarm for any of its statistics."""
TABLES_BEYOND = 20  # random tables beyond the critical value; drawing more would move it by less than a tenth


class DriftStatistic(NamedTuple):
    """The distance of two samples (0 to 1), and the value that chance exceeds with probability alpha at most."""

    value: float
    critical_value: float

    @property
    def suspected(self) -> bool:
        """Return whether the distance is too large to be chance."""
        return self.value > self.critical_value


class Sample(NamedTuple):
    """Rows of the prediction log: features [n, 4], class indices [n], and probabilities of these classes [n]."""

    features: NDArray[np.float64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def compare(
    metadata: ModelMetadata, reference: Reference, sample: Sample, alpha: float = ALPHA
) -> dict[str, DriftStatistic]:
    """Return a statistic for each feature by its name, for "prediction" (the class mix), and for "confidence".

    The probability that chance alone pushes any of them beyond its critical value is at most alpha (Bonferroni),
    if the rows of both samples are independent.
    """
    alpha_each = alpha / (len(metadata.features) + 2)
    statistics = {
        feature.name: compare_values(expected, observed, alpha_each)
        for feature, expected, observed in zip(
            metadata.features, reference.features, sample.features.T, strict=True
        )
    }
    observed_counts = np.bincount(sample.predictions, minlength=len(reference.predictions))
    statistics["prediction"] = compare_counts(reference.predictions, observed_counts, alpha_each)
    statistics["confidence"] = compare_values(reference.probabilities, sample.probabilities, alpha_each)
    return statistics


def compare_values(expected: ArrayLike, observed: ArrayLike, alpha: float) -> DriftStatistic:
    """Compare numbers by the Kolmogorov-Smirnov statistic: the largest distance of the distribution functions.

    The critical value inverts scipy's asymptotic p-value. Ties make the test conservative.
    """
    m, n = np.size(expected), np.size(observed)
    statistic = stats.ks_2samp(expected, observed, method="asymp").statistic
    return DriftStatistic(float(statistic), _kolmogorov_smirnov_critical_value(alpha, round(m * n / (m + n))))


@cache  # the root of an equation: it takes longer than all else here, and every feature has the same sizes
def _kolmogorov_smirnov_critical_value(alpha: float, size: int) -> float:
    return float(stats.kstwo.isf(alpha, size))


def compare_counts(expected: ArrayLike, observed: ArrayLike, alpha: float) -> DriftStatistic:
    """Compare counts by class with Cramér's V: the chi-square statistic, scaled to 0 to 1.

    The critical value comes from random tables with the same totals, because the chi-square distribution is wrong
    for small expected counts. The observed table counts as one of them (Phipson and Smyth, 2010), so alpha holds
    for any number of tables.
    """
    table = np.array([expected, observed])
    table = table[:, table.sum(axis=0) > 0]
    totals, size = table.sum(axis=0), table[0].sum()
    # The totals leave the second row no choice, so the first one stands for the table.
    drawn = np.random.default_rng(0).multivariate_hypergeometric(
        totals, size, math.ceil(TABLES_BEYOND / alpha), method="marginals"
    )
    # One array, so that equal tables give bitwise equal values.
    values = _cramers_v(np.concatenate([table[:1], drawn]), totals)
    return DriftStatistic(float(values[0]), float(np.partition(values[1:], -TABLES_BEYOND)[-TABLES_BEYOND]))


def _cramers_v(rows: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return V for the table of each first row [n, classes] with these totals by class, none of which is 0."""
    fraction = rows[0].sum() / totals.sum()
    # Both rows differ from their expected counts by the same number, so the two fractions are one.
    chi_square = ((rows - totals * fraction) ** 2 / (totals * fraction * (1 - fraction))).sum(axis=-1)
    v: NDArray[np.float64] = np.sqrt(chi_square / totals.sum())
    return v
