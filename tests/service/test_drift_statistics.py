"""Drift statistics find what has drifted, and raise false alarms no more often than alpha."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from service.drift_statistics import ALPHA, DriftStatistic, Sample, compare, compare_counts, compare_values
from service.model_metadata import Feature, ModelMetadata, Reference

SAMPLES = 200
TRAINING, WINDOW = 120, 1000  # rows of the reference, rows of traffic
NAMES = ["sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm"]
METADATA = ModelMetadata(
    "iris", "1", "", "", "", [Feature(name, 0, 12) for name in NAMES], ["a", "b", "c"], [], 1e-5
)
MIX = (0.32, 0.34, 0.34)
# By class, as in the iris data set.
MEANS = np.array([[5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0]])
SPREAD = np.array([0.5, 0.3, 0.4, 0.2])


def draw(random: np.random.Generator, size: int, mix: Sequence[float] = MIX) -> Sample:
    """Draw independent rows, rounded to 0.1 cm like the iris data set, so that there are ties."""
    classes = random.choice(len(mix), size, p=mix)
    features = random.normal(MEANS[classes], SPREAD).round(1)
    return Sample(features, classes, random.beta(8, 1, size))


def as_reference(sample: Sample) -> Reference:
    answers = np.bincount(sample.predictions, minlength=len(MIX)).tolist()
    return Reference(np.sort(sample.features.T).tolist(), answers, np.sort(sample.probabilities).tolist())


def suspected(found: dict[str, DriftStatistic]) -> set[str]:
    return {about for about, statistic in found.items() if statistic.suspected}


@pytest.mark.parametrize(("alpha", "window"), [(ALPHA, WINDOW), (0.05, WINDOW), (0.05, 100)])
def test_false_alarms_are_no_more_frequent_than_alpha(alpha: float, window: int) -> None:
    """Draw both reference and traffic for each comparison: chance affects both."""
    alarms = 0
    for seed in range(SAMPLES):
        random = np.random.default_rng(seed)
        reference = as_reference(draw(random, TRAINING))
        alarms += bool(suspected(compare(METADATA, reference, draw(random, window), alpha)))
    assert alarms <= stats.binom.isf(0.001, SAMPLES, alpha)
    # The critical values are not so high that there are never false alarms.
    assert alarms > 0 or alpha == ALPHA


def test_drift_of_one_feature_is_suspected_in_it_alone() -> None:
    random = np.random.default_rng(1)
    reference, traffic = as_reference(draw(random, TRAINING)), draw(random, WINDOW)
    traffic.features[:, 1] += 0.5
    assert suspected(compare(METADATA, reference, traffic)) == {"sepal_width_cm"}


def test_drift_of_the_class_mix_is_suspected_alone() -> None:
    random = np.random.default_rng(2)
    reference, traffic = as_reference(draw(random, TRAINING)), draw(random, WINDOW)
    other = Sample(traffic.features, random.choice(3, WINDOW, p=(0.1, 0.2, 0.7)), traffic.probabilities)
    assert suspected(compare(METADATA, reference, other)) == {"prediction"}


def test_drift_of_confidence_is_suspected_alone() -> None:
    random = np.random.default_rng(3)
    reference, traffic = as_reference(draw(random, TRAINING)), draw(random, WINDOW)
    doubtful = traffic._replace(probabilities=random.beta(4, 1, WINDOW))
    assert suspected(compare(METADATA, reference, doubtful)) == {"confidence"}


def test_the_smallest_window_shows_large_drift_but_not_small_drift() -> None:
    random = np.random.default_rng(4)
    reference, traffic = as_reference(draw(random, TRAINING)), draw(random, 100)
    traffic.features[:, 1] += 0.1
    assert suspected(compare(METADATA, reference, traffic)) == set()
    traffic.features[:, 1] += 0.4
    assert suspected(compare(METADATA, reference, traffic)) == {"sepal_width_cm"}


def test_critical_values_depend_on_both_sample_sizes() -> None:
    """A large sample does not make up for a small one."""

    def critical_values(training: int, window: int) -> NDArray[np.float64]:
        random = np.random.default_rng(5)
        found = compare(METADATA, as_reference(draw(random, training)), draw(random, window))
        return np.array([statistic.critical_value for statistic in found.values()])

    assert (critical_values(120, 1000) < critical_values(120, 100)).all()
    assert (critical_values(1200, 1000) < critical_values(120, 1000)).all()
    with_infinite_traffic = stats.kstwo.isf(ALPHA / 6, 120)
    assert critical_values(120, 10_000)[0] == pytest.approx(with_infinite_traffic, rel=0.01)


@pytest.mark.parametrize(("training", "window"), [(30, 100), (120, 100), (120, 300), (120, 1000)])
def test_the_kolmogorov_smirnov_critical_value_matches_the_exact_test(training: int, window: int) -> None:
    alpha = ALPHA / 6
    observed = np.linspace(0, 1, window)
    suspected_p_values, other_p_values = [], []  # of the exact test
    for moved in range(1, training):
        expected = np.concatenate([np.full(moved, -1.0), np.linspace(0, 1, training - moved)])
        exact = stats.ks_2samp(expected, observed, method="exact").pvalue
        if compare_values(expected, observed, alpha).suspected:
            suspected_p_values.append(exact)
        else:
            other_p_values.append(exact)
    assert max(suspected_p_values) <= 1.1 * alpha  # hardly more false alarms than alpha
    assert min(other_p_values) >= 0.8 * alpha  # hardly any drift missed that the exact test finds


def test_equal_tables_have_no_distance() -> None:
    assert compare_counts([40, 40, 40], [400, 400, 400], ALPHA).value == 0
    assert compare_counts([120, 0, 0], [1000, 0, 0], ALPHA) == (0, 0)


def test_disjoint_samples_have_distance_1() -> None:
    assert compare_counts([120, 0], [0, 1000], ALPHA).value == pytest.approx(1)
    assert compare_values([0.0] * 120, [1.0] * 1000, ALPHA).value == 1


def test_a_class_too_rare_for_the_reference_is_drift_only_when_it_is_common() -> None:
    """A class of 0.5 % has an expected count below 1 in the reference; the chi-square distribution fails there."""
    assert not compare_counts([119, 1, 0], [985, 10, 5], ALPHA).suspected
    assert compare_counts([119, 1, 0], [700, 10, 290], ALPHA).suspected


def test_critical_values_are_deterministic() -> None:
    first, second = (compare_counts([40, 39, 41], [300, 350, 350], ALPHA) for _ in range(2))
    assert first == second


def test_cramers_v_and_its_critical_value_match_scipy_for_large_counts() -> None:
    expected, observed = [400, 410, 390], [3000, 3600, 3400]
    chi_square, total = stats.chi2_contingency([expected, observed]).statistic, sum(expected + observed)
    drift = compare_counts(expected, observed, 0.01)
    assert drift.value == pytest.approx((chi_square / total) ** 0.5)
    assert drift.critical_value == pytest.approx((stats.chi2.isf(0.01, 2) / total) ** 0.5, rel=0.2)
