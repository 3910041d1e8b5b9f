"""What the modules and the commands agree on; light, so that `--help` does not wait for scikit-learn."""

from enum import StrEnum

CHAMPION = "production"  # the alias of the version that a challenger has to match
SEED = 42  # of the candidates, unless --seed says otherwise; any number does


class Algorithm(StrEnum):
    """The candidates, the simplest first: the order decides when two are equally good."""

    LOGISTIC_REGRESSION = "logistic_regression"
    SVM = "svm"
    RANDOM_FOREST = "random_forest"
