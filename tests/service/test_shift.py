"""The statistics: they find what moved, and chance alone is found no more often than alpha says."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from service.facts import Facts, Feature, Reference
from service.shift import ALPHA, Sample, Shift, compare, counts, values

SAMPLES = 200
LEARNED, WINDOW = 120, 1000  # rows of the reference, rows of traffic
NAMES = ["sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm"]
FACTS = Facts("iris", "1", "", "", "", [Feature(name, 0, 12) for name in NAMES], ["a", "b", "c"], [], 1e-5)
MIX = (0.32, 0.34, 0.34)
MEANS = np.array(
    [[5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0]]
)  # by class, as the flowers have
SPREAD = np.array([0.5, 0.3, 0.4, 0.2])


def draw(random: np.random.Generator, size: int, mix: Sequence[float] = MIX) -> Sample:
    """Draw rows that are independent of each other, measured to the millimetre like the flowers: with ties."""
    classes = random.choice(len(mix), size, p=mix)
    features = random.normal(MEANS[classes], SPREAD).round(1)
    return Sample(features, classes, random.beta(8, 1, size))


def as_reference(sample: Sample) -> Reference:
    answers = np.bincount(sample.predictions, minlength=len(MIX)).tolist()
    return Reference(np.sort(sample.features.T).tolist(), answers, np.sort(sample.probabilities).tolist())


def suspected(found: dict[str, Shift]) -> set[str]:
    return {about for about, shift in found.items() if shift.suspected}


@pytest.mark.parametrize(("alpha", "window"), [(ALPHA, WINDOW), (0.05, WINDOW), (0.05, 100)])
def test_chance_alone_is_suspected_no_more_often_than_alpha_says(alpha: float, window: int) -> None:
    """Reference and traffic are drawn anew each time, as chance drew both."""
    alarms = 0
    for seed in range(SAMPLES):
        random = np.random.default_rng(seed)
        reference = as_reference(draw(random, LEARNED))
        alarms += bool(suspected(compare(FACTS, reference, draw(random, window), alpha)))
    assert alarms <= stats.binom.isf(0.001, SAMPLES, alpha)
    # And the limits are not so far away that the count says nothing.
    assert alarms > 0 or alpha == ALPHA


def test_one_feature_half_a_centimetre_larger_is_suspected_alone() -> None:
    random = np.random.default_rng(1)
    reference, traffic = as_reference(draw(random, LEARNED)), draw(random, WINDOW)
    traffic.features[:, 1] += 0.5
    assert suspected(compare(FACTS, reference, traffic)) == {"sepal_width_cm"}


def test_another_mix_of_answers_is_suspected_alone() -> None:
    random = np.random.default_rng(2)
    reference, traffic = as_reference(draw(random, LEARNED)), draw(random, WINDOW)
    other = Sample(traffic.features, random.choice(3, WINDOW, p=(0.1, 0.2, 0.7)), traffic.probabilities)
    assert suspected(compare(FACTS, reference, other)) == {"prediction"}


def test_lower_confidence_is_suspected_alone() -> None:
    random = np.random.default_rng(3)
    reference, traffic = as_reference(draw(random, LEARNED)), draw(random, WINDOW)
    doubtful = traffic._replace(probabilities=random.beta(4, 1, WINDOW))
    assert suspected(compare(FACTS, reference, doubtful)) == {"confidence"}


def test_the_smallest_sample_shows_a_large_shift_and_no_small_one() -> None:
    random = np.random.default_rng(4)
    reference, traffic = as_reference(draw(random, LEARNED)), draw(random, 100)
    traffic.features[:, 1] += 0.1
    assert suspected(compare(FACTS, reference, traffic)) == set()
    traffic.features[:, 1] += 0.4
    assert suspected(compare(FACTS, reference, traffic)) == {"sepal_width_cm"}


def test_the_limits_follow_from_both_sizes() -> None:
    """The larger sample cannot make up for the smaller one."""

    def limits(learned: int, window: int) -> NDArray[np.float64]:
        random = np.random.default_rng(5)
        found = compare(FACTS, as_reference(draw(random, learned)), draw(random, window))
        return np.array([shift.limit for shift in found.values()])

    assert (limits(120, 1000) < limits(120, 100)).all()
    assert (limits(1200, 1000) < limits(120, 1000)).all()
    of_the_reference_alone = stats.kstwo.isf(ALPHA / 6, 120)
    assert limits(120, 10_000)[0] == pytest.approx(of_the_reference_alone, rel=0.01)


@pytest.mark.parametrize(("learned", "window"), [(30, 100), (120, 100), (120, 300), (120, 1000)])
def test_the_limit_of_kolmogorov_and_smirnov_is_where_the_exact_test_has_it(learned: int, window: int) -> None:
    alpha = ALPHA / 6
    seen = np.linspace(0, 1, window)
    below = {True: 0.0, False: 1.0}  # exact p-values, the largest suspected and the smallest that is not
    for moved in range(1, learned):
        expected = np.concatenate([np.full(moved, -1.0), np.linspace(0, 1, learned - moved)])
        shift = values(expected, seen, alpha)
        exact = stats.ks_2samp(expected, seen, method="exact").pvalue
        below[shift.suspected] = (max if shift.suspected else min)(below[shift.suspected], exact)
    assert below[True] <= 1.1 * alpha  # never much more often than promised
    assert below[False] >= 0.8 * alpha  # and no shift is let pass that the exact test would find, or hardly


def test_equal_tables_are_no_shift() -> None:
    assert counts([40, 40, 40], [400, 400, 400], ALPHA).statistic == 0
    assert counts([120, 0, 0], [1000, 0, 0], ALPHA) == (0, 0)


def test_disjoint_samples_are_as_far_apart_as_can_be() -> None:
    assert counts([120, 0], [0, 1000], ALPHA).statistic == pytest.approx(1)
    assert values([0.0] * 120, [1.0] * 1000, ALPHA).statistic == 1


def test_a_class_too_rare_for_the_reference_is_no_shift_until_it_is_common() -> None:
    """Of 0.5 % one expects less than one in the reference, and the chi-square distribution is no guide there."""
    assert not counts([119, 1, 0], [985, 10, 5], ALPHA).suspected
    assert counts([119, 1, 0], [700, 10, 290], ALPHA).suspected


def test_the_same_rows_have_the_same_limits() -> None:
    assert counts([40, 39, 41], [300, 350, 350], ALPHA) == counts([40, 39, 41], [300, 350, 350], ALPHA)


def test_the_chi_square_is_that_of_scipy_and_so_is_its_limit_where_counts_are_large() -> None:
    expected, seen = [400, 410, 390], [3000, 3600, 3400]
    chi_square, total = stats.chi2_contingency([expected, seen]).statistic, sum(expected + seen)
    shift = counts(expected, seen, 0.01)
    assert shift.statistic == pytest.approx((chi_square / total) ** 0.5)
    assert shift.limit == pytest.approx((stats.chi2.isf(0.01, 2) / total) ** 0.5, rel=0.2)
