"""The three models that compete."""

from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline.names import Algorithm


def build(algorithm: Algorithm, seed: int) -> Pipeline:
    """Return the algorithm as an unfitted scikit-learn Pipeline, seeded, on one core."""
    match algorithm:
        case Algorithm.LOGISTIC_REGRESSION:
            classifier = LogisticRegression(max_iter=1000, random_state=seed)
        case Algorithm.SVM:
            # What scikit-learn 1.9 puts in the place of SVC(probability=True). ensemble=False keeps one SVM,
            # fitted on all rows, with one calibration curve for each class.
            classifier = CalibratedClassifierCV(SVC(random_state=seed), cv=5, ensemble=False, n_jobs=1)
        case Algorithm.RANDOM_FOREST:
            # Not scaled: it gains a tree nothing, and float32 arithmetic ahead of a threshold sends rows that
            # lie on it down another branch than scikit-learn (with a scaler, the parity check finds four of them).
            return Pipeline([("classify", RandomForestClassifier(100, random_state=seed, n_jobs=1))])
    return Pipeline([("scale", StandardScaler()), ("classify", classifier)])
