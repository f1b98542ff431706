"""Metrics against cases worked by hand, scipy's and scikit-learn's functions, and plain loops."""

import json
import math

import numpy as np
import pytest
from scipy.spatial.distance import cosine, jensenshannon
from scipy.stats import entropy, norm
from sklearn.metrics import f1_score

from efficientface.pipeline.metrics import calibration_error, distances, macro_f1_interval, mcnemar, score, share

CLASSES = ("neutral", "happiness", "sadness")


def onehot(chosen, classes=3):
    return np.eye(classes, dtype=np.float32)[chosen]


@pytest.fixture
def answers():
    """Probabilities, labels and targets for 200 faces, right about half the time; some targets missing."""
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet([0.6] * 3, 200).astype(np.float32)
    labels = np.where(rng.random(200) < 0.4, probabilities.argmax(1), rng.integers(0, 3, 200))
    targets = rng.dirichlet([0.5] * 3, 200).astype(np.float32)
    targets[rng.random(200) < 0.3] = np.nan
    return probabilities, labels, targets


def test_a_case_worked_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    result = score(onehot([0, 0, 1, 1, 1, 0]), labels, CLASSES)
    assert result["count"] == 6
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    two_thirds = pytest.approx(2 / 3)
    assert result["classes"] == {
        "neutral": {"precision": two_thirds, "recall": two_thirds, "f1": two_thirds, "support": 3},
        "happiness": {"precision": two_thirds, "recall": 1.0, "f1": pytest.approx(0.8), "support": 2},
        "sadness": {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1},
    }
    assert result["macro_f1"] == pytest.approx((2 / 3 + 0.8 + 0) / 3)
    assert result["distribution"] is None


def test_macro_f1_averages_over_the_classes_that_have_faces():
    result = score(onehot([0, 1, 2, 0]), np.array([0, 1, 1, 0]), CLASSES)
    assert result["classes"]["sadness"] == {"precision": 0.0, "recall": None, "f1": 0.0, "support": 0}
    assert result["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    never = score(onehot([0, 1]), np.array([0, 1]), CLASSES)
    assert never["classes"]["sadness"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert never["macro_f1"] == 1


def test_accuracy_interval_is_wilsons():
    labels = np.zeros(50, int)
    low, high = score(onehot([0] * 43 + [1] * 7), labels, CLASSES)["accuracy_interval"]
    n, p, z = 50, 43 / 50, norm.ppf(0.975)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (low, high) == pytest.approx((centre - reach, centre + reach))
    assert score(onehot([0] * 50), labels, CLASSES)["accuracy_interval"] == [pytest.approx(0.9286, abs=1e-4), 1.0]


def test_macro_f1_interval_is_the_bootstrap_over_faces(answers):
    probabilities, labels, _ = answers
    result = score(probabilities, labels, CLASSES)
    rng = np.random.default_rng(11)
    scores = []
    for _ in range(400):
        rows = rng.integers(0, len(labels), len(labels))
        predicted = probabilities[rows].argmax(1)
        scores.append(f1_score(labels[rows], predicted, labels=np.unique(labels[rows]), average="macro"))
    low, high = result["macro_f1_interval"]
    assert low < result["macro_f1"] < high
    assert (low, high) == pytest.approx(tuple(np.quantile(scores, (0.025, 0.975))), abs=0.015)
    assert result["macro_f1_interval"] == macro_f1_interval(np.array(result["confusion"]))  # the same every time


def test_macro_f1_interval_with_a_class_that_resamples_miss():
    low, high = macro_f1_interval(np.array([[30, 2, 0], [1, 25, 0], [0, 0, 1]]))
    assert 0.6 < low < high <= 1


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    correct = np.array([True, True, False, True])
    assert calibration_error(probabilities, correct) == pytest.approx((3 * (0.9 - 2 / 3) + 0.4) / 4)
    assert calibration_error(np.array([[1.0, 0.0]] * 4), np.ones(4, bool)) == 0
    assert calibration_error(np.array([[0.5, 0.5]] * 4), np.array([True, False] * 2)) == 0


def test_calibration_error_as_a_plain_loop(answers):
    probabilities, labels, _ = answers
    probabilities = probabilities.astype(np.float64)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert calibration_error(probabilities, correct) == pytest.approx(expected)


def test_distances_agree_with_scipy_on_the_faces_that_have_targets(answers):
    probabilities, labels, targets = answers
    result = score(probabilities, labels, CLASSES, targets)["distribution"]
    rows = [k for k in range(200) if not np.isnan(targets[k]).any()]
    pairs = [(targets[k].astype(np.float64), probabilities[k].astype(np.float64)) for k in rows]
    assert result["count"] == len(rows) < 200
    # scipy renormalises both; ours are distributions to float32 rounding
    assert result["kl"] == pytest.approx(np.mean([entropy(t, p) for t, p in pairs]), abs=1e-6)
    assert result["js"] == pytest.approx(np.mean([jensenshannon(t, p) ** 2 for t, p in pairs]), abs=1e-6)
    assert result["cosine"] == pytest.approx(np.mean([1 - cosine(t, p) for t, p in pairs]), abs=1e-6)
    assert result["total_variation"] == pytest.approx(np.mean([abs(t - p).sum() / 2 for t, p in pairs]), abs=1e-6)
    assert result["entropy"] == pytest.approx(np.mean([entropy(t) for t, _ in pairs]), abs=1e-6)
    assert result["cross_entropy"] == pytest.approx(result["kl"] + result["entropy"], abs=1e-12)


def test_distances_of_equal_and_of_disjoint_distributions():
    one, other = onehot([0, 1]), onehot([1, 2])
    same = distances(one, one)
    assert same == {
        "count": 2, "kl": 0, "js": 0, "cosine": 1, "total_variation": 0, "cross_entropy": 0, "entropy": 0
    }  # fmt: skip
    apart = distances(one, other)
    assert apart["js"] == pytest.approx(math.log(2))
    assert apart["total_variation"] == 1
    assert apart["cosine"] == 0
    # a probability that float32 rounded to 0 counts as the smallest normal float32: large, but a number
    assert apart["kl"] == pytest.approx(-math.log(2.0**-126))


def test_no_target_at_all_is_no_distribution():
    probabilities = onehot([0, 1])
    result = score(probabilities, np.array([0, 1]), CLASSES, np.full((2, 3), np.nan))
    assert result["distribution"] is None


def test_the_result_is_json(answers):
    result = score(*answers[:2], CLASSES, answers[2])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_mcnemar_against_the_binomial_sum():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.random((2, 40)) < [[0.8], [0.6]]
        test = mcnemar(a, b)
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        apart = only_a + only_b
        tail = sum(math.comb(apart, k) for k in range(min(only_a, only_b) + 1)) / 2**apart
        assert test["p"] == pytest.approx(min(1, 2 * tail))
        counts = [test[key] for key in ("both_right", "only_first_right", "only_second_right", "both_wrong")]
        assert counts[1:3] == [only_a, only_b]
        assert sum(counts) == test["count"] == 40
        assert test["difference"] == pytest.approx(a.mean() - b.mean())


def test_mcnemar_of_models_that_never_differ():
    right = np.array([True, False, True])
    assert mcnemar(right, right)["p"] == 1


def test_share_is_wilsons_interval():
    p, n, z = 0.9, 200, 1.959964
    middle, reach = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    limits = [(middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)]
    assert share(180, 200)["accuracy_interval"] == pytest.approx(limits, abs=1e-6)
    assert share(179.7, 200) == {**share(180, 200), "accuracy": 179.7 / 200}
