"""The real RetinaFace on drawn faces, against its package's own wrapper and OpenCV's suppression."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import retinaface
import torch
import torchvision

from efficientface.data import detect
from efficientface.data.detect import BORDER, Detector, decode_boxes, decode_landmarks, keep_apart, priors
from efficientface.data.drawn import draw_face, mixture

FACES = [draw_face(mixture(3, k), np.random.default_rng(k), 224) for k in range(6)]


@pytest.fixture(scope="module")
def detector():
    return Detector()


@pytest.fixture(scope="module")
def scene():
    """Two drawn faces of 120 and 160 pixels side by side on grey, (240, 420, 3)."""
    image = np.full((240, 420, 3), 128, np.uint8)
    image[60:180, 30:150] = cv2.resize(FACES[0], (120, 120), interpolation=cv2.INTER_AREA)
    image[40:200, 220:380] = cv2.resize(FACES[1], (160, 160), interpolation=cv2.INTER_AREA)
    return image


def rounded(detection):
    x1, y1, x2, y2 = detection.box
    return [x1, y1, x2 - x1, y2 - y1], detection.landmarks


@pytest.mark.parametrize("k", range(len(FACES)))
def test_agrees_with_the_package_that_rounds_to_pixels(detector, k):
    """On the same pixels: the package cuts the fraction off, so ours lie up to a pixel beyond."""
    theirs = retinaface.detect_faces(FACES[k], score_threshold=0.5)
    ours = detector.detect(FACES[k])
    assert len(ours) == len(theirs) >= 1
    for mine, other in zip(ours, theirs, strict=True):
        box, landmarks = rounded(mine)
        points = np.array([(p.x, p.y) for p in other.landmarks])
        assert mine.score == pytest.approx(other.score, abs=1e-4)
        for exact, cut in ((np.array(box), [other.x, other.y, other.width, other.height]), (landmarks, points)):
            assert np.abs(exact - cut).max() < 1.001


def test_finds_both_faces_of_a_scene_where_they_are(detector, scene):
    left, right = sorted(detector.detect(scene), key=lambda face: face.box[0])
    assert 30 < left.landmarks[:, 0].min() < left.landmarks[:, 0].max() < 150
    assert 220 < right.landmarks[:, 0].min() < right.landmarks[:, 0].max() < 380
    assert right.area > left.area
    for face in (left, right):
        eye_left, eye_right, nose, mouth_left, mouth_right = face.landmarks
        assert eye_left[0] < eye_right[0]
        assert mouth_left[0] < mouth_right[0]
        assert eye_left[1] < nose[1] < mouth_left[1]


@pytest.mark.parametrize("size", [(48, 48), (1200, 1200), (700, 1500)])
def test_small_and_large_photographs_answer_in_their_own_pixels(detector, size):
    height, width = size
    side = min(size)
    image = np.full((height, width, 3), 90, np.uint8)
    image[:side, width - side :] = cv2.resize(FACES[2], (side, side), interpolation=cv2.INTER_AREA)
    expected = detector.detect(FACES[2])[0].landmarks * side / 224 + (width - side, 0)
    found = detector.detect(image)[0].landmarks
    assert np.abs(found - expected).max() < 0.05 * side


def test_a_shrunk_photograph_tells_its_scale_to_the_pixel():
    """Squares of 12 pixels leave out the last of 97 rows and the last 7 of 4003 columns."""
    shrunk, scale = detect._resize(np.zeros((97, 4003, 3), np.uint8), 1 / 25)
    assert shrunk.shape == (4, 160, 3)
    np.testing.assert_allclose(scale, (160 / 3996, 4 / 96))


def test_a_face_that_fills_the_frame_is_found_with_a_border(detector, monkeypatch):
    asked = []
    plain = Detector._detect_as_is

    def only_bordered(self, image):
        asked.append(image.shape)
        return plain(self, image) if (image[:BORDER] == 0).all() else []

    monkeypatch.setattr(Detector, "_detect_as_is", only_bordered)
    with_border = detector.detect(FACES[0])[0]
    assert len(asked) == 2
    monkeypatch.undo()
    without = detector.detect(FACES[0])[0]
    assert np.abs(with_border.landmarks - without.landmarks).max() < 10  # same place, border taken off again


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (2000, 5, 3), (64, 64, 3), (333, 97, 3)])
def test_pictures_without_a_face_give_none_whatever_their_shape(detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert detector.detect(noise) == []
    assert detector.detect(np.zeros(shape, np.uint8)) == []


def test_one_detector_serves_threads_with_the_same_answers(detector):
    alone = [detector.detect(face) for face in FACES]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(detector.detect, FACES))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one[0].landmarks, other[0].landmarks)
        assert one[0].score == other[0].score


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (2000, 5, 3), (333, 97, 3)])
def test_the_network_is_given_what_opencv_makes_of_a_picture(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    blob = cv2.dnn.blobFromImage(picture, mean=(104, 117, 127), swapRB=True)
    np.testing.assert_array_equal(detect.as_input(picture), blob[0])


def test_priors_by_hand():
    boxes = priors(33, 40)
    assert boxes.shape == (5 * 5 + 3 * 3 + 2 * 2, 2, 3)
    assert boxes[:2].tolist() == [[[4, 4, 16], [4, 4, 32]], [[12, 4, 16], [12, 4, 32]]]
    assert boxes[-1, -1].tolist() == [48, 48, 512]


def test_decoding_by_hand():
    prior = np.array([[20.0, 30.0, 16.0]])
    assert decode_boxes(np.zeros((1, 4)), prior).tolist() == [[12, 22, 28, 38]]
    wider = decode_boxes(np.array([[1.0, 0, np.log(2) / 0.2, 0]]), prior)
    assert wider[0] == pytest.approx([21.6 - 16, 22, 21.6 + 16, 38])
    points = decode_landmarks(np.arange(10.0)[np.newaxis], prior)
    assert points[0] == pytest.approx(np.arange(10).reshape(5, 2) * 1.6 + (20, 30))


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_that_of_torchvision(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (60, 2))
    size = rng.uniform(10, 60, (60, 2))
    scores = rng.random(60)
    boxes = np.hstack([corner, corner + size])
    theirs = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4)
    assert keep_apart(boxes, scores, 0.4).tolist() == theirs.tolist()


def test_suppression_of_nothing():
    assert keep_apart(np.zeros((0, 4)), np.zeros(0), 0.4).tolist() == []
