"""RetinaFace in ncnn, against the published file in onnxruntime."""

import numpy as np
import onnxruntime
import pytest
from retinaface.weights import WEIGHTS
from scipy.special import expit

from efficientface.data.detect import as_input
from efficientface.data.drawn import draw_face, mixture
from efficientface.data.retinaface import RetinaFace


@pytest.fixture(scope="module")
def network():
    return RetinaFace()


@pytest.fixture(scope="module")
def published():
    return onnxruntime.InferenceSession(WEIGHTS, providers=["CPUExecutionProvider"])


def differences(network, published, image):
    """Of box offsets, probabilities of a face and landmark shifts: the largest, over all priors."""
    expected = published.run(["loc", "conf", "landmarks"], {"input": image[np.newaxis]})
    logits, offsets, shifts = network(image)
    found = (
        offsets.transpose(2, 0, 1).reshape(-1, 4),
        expit(logits.T.ravel()),
        shifts.transpose(2, 0, 1).reshape(-1, 10),
    )
    boxes, scores, landmarks = (answers[0] for answers in expected)
    return [np.abs(ours - theirs).max() for ours, theirs in zip(found, (boxes, scores[:, 1], landmarks), strict=True)]


@pytest.mark.parametrize("shape", [(1, 1), (3, 641), (2000, 5), (45, 46), (333, 97), (350, 350), (640, 427)])
def test_answers_as_the_published_file_whatever_the_shape(network, published, shape):
    noise = np.random.default_rng(0).uniform(-120, 150, (3, *shape)).astype(np.float32)
    assert np.max(differences(network, published, noise)) < 1e-4


@pytest.mark.parametrize("side", [192, 350, 640])
def test_answers_as_the_published_file_about_faces(network, published, side):
    image = as_input(draw_face(mixture(3, 1), np.random.default_rng(1), side))
    offsets, scores, shifts = differences(network, published, image)
    assert max(offsets, shifts) < 3e-4
    assert scores < 1e-5


def test_a_second_thread_changes_no_number(network):
    image = as_input(draw_face(mixture(3, 2), np.random.default_rng(2), 320))
    for one, other in zip(network(image), RetinaFace(threads=2)(image), strict=True):
        np.testing.assert_array_equal(one, other)
