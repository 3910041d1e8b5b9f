"""The candidate models, as unfitted scikit-learn pipelines."""

from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline.names import Algorithm


def build(algorithm: Algorithm, seed: int) -> Pipeline:
    """Return the algorithm as an unfitted Pipeline that is seeded and uses one core."""
    match algorithm:
        case Algorithm.LOGISTIC_REGRESSION:
            classifier = LogisticRegression(max_iter=1000, random_state=seed)
        case Algorithm.SVM:
            # scikit-learn 1.9 recommends this instead of SVC(probability=True). ensemble=False keeps a single SVM,
            # fitted on all rows, with one calibration curve per class.
            classifier = CalibratedClassifierCV(SVC(random_state=seed), cv=5, ensemble=False, n_jobs=1)
        case Algorithm.RANDOM_FOREST:
            # Not scaled: trees gain nothing from it, and scaling in float32 sends rows that lie exactly on a
            # threshold down another branch than in scikit-learn. With a scaler, the parity check finds four.
            return Pipeline([("classify", RandomForestClassifier(100, random_state=seed, n_jobs=1))])
    return Pipeline([("scale", StandardScaler()), ("classify", classifier)])
