"""Landmarks to transforms and head poses, against OpenCV, scipy's rotations and figures worked by hand."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from efficientface.data.geometry import MEAN_FACE, head_pose, scale_of, similarity, template, transform


def turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(5, 2) landmarks of the mean face turned by degrees as `head_pose` counts them, at some size and place."""
    # scipy's right-handed axes here: x right, y down, z away from the camera
    rotation = Rotation.from_euler("ZYX", [roll, -yaw, -pitch], degrees=True)
    return rotation.apply(MEAN_FACE * (1, 1, -1))[:, :2] * 83 + (210, 140)


def test_template_puts_the_eyes_where_it_says():
    left, right = template(200, eye_distance=0.31, eye_height=0.38)[:2]
    assert np.hypot(*(right - left)) == pytest.approx(0.31 * 200)
    assert (left + right) / 2 == pytest.approx([100, 76], abs=0.2)  # ArcFace's eyes are a hair off the middle


def test_template_leaves_room_for_the_chin():
    points = template(224)
    eyes = points[:2].mean(0)
    assert eyes[1] + 1.9 * np.hypot(*(points[1] - points[0])) < 224


def test_a_known_similarity_is_found_again():
    angle, scale = 0.7, 3.4
    matrix = np.array([[np.cos(angle), -np.sin(angle), 12], [np.sin(angle), np.cos(angle), -5]])
    matrix[:, :2] *= scale
    points = np.random.default_rng(0).normal(size=(5, 2)) * 20
    found = similarity(points, transform(matrix, points))
    assert found == pytest.approx(matrix)
    assert scale_of(found) == pytest.approx(scale)


@pytest.mark.parametrize("seed", range(10))
def test_noisy_landmarks_give_the_least_squares_that_opencv_finds(seed):
    rng = np.random.default_rng(seed)
    target = template(112)
    landmarks = target * rng.uniform(0.3, 4) + rng.normal(size=(5, 2)) * 5 + rng.uniform(0, 300, 2)
    # a threshold that takes all points as inliers: RANSAC's last step is then plain least squares
    expected, _ = cv2.estimateAffinePartial2D(landmarks, target, ransacReprojThreshold=1e4, refineIters=100)
    assert similarity(landmarks, target) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_mirrored_landmarks_are_not_fitted_by_a_reflection():
    mirrored = template(112) * (-1, 1)
    assert np.linalg.det(similarity(mirrored, template(112))[:, :2]) > 0


def test_landmarks_in_one_point_have_no_similarity():
    with pytest.raises(ValueError, match="one point"):
        similarity(np.ones((5, 2)), template(112))


@pytest.mark.parametrize(
    "pose", [(0, 0, 0), (30, 0, 0), (-55, 0, 0), (0, 25, 0), (0, -25, 0), (0, 0, 170), (35, -20, 60), (-20, 15, -120)]
)
def test_head_pose_of_the_mean_face_is_exact(pose):
    assert head_pose(turned(*pose)) == pytest.approx(pose, abs=1e-6)


@pytest.mark.parametrize("landmarks", [np.ones((5, 2)), np.outer(np.arange(5), (1, 2))])
def test_landmarks_on_a_line_have_some_head_pose(landmarks):
    assert np.isfinite(head_pose(landmarks)).all()


def test_head_pose_signs_as_seen_in_a_photograph():
    face = template(224)
    nose = np.zeros((5, 2))
    nose[2] = 8, 0
    yaw, pitch = np.array([head_pose(face + shift)[:2] for shift in (nose, -nose[:, ::-1])]).T
    yaw0, pitch0, _ = head_pose(face)
    assert yaw[0] > yaw0 + 5  # the nose further right: turned to the image's right
    assert pitch[1] > pitch0 + 5  # the nose further up: looking up
    clockwise = np.array([[0, -1, 0], [1, 0, 0]])  # y points down
    assert head_pose(transform(clockwise, face))[2] == pytest.approx(90, abs=3)


def test_a_mirrored_face_looks_the_other_way():
    face = turned(25, 10, 8)
    mirrored = (face * (-1, 1))[[1, 0, 2, 4, 3]]
    assert head_pose(mirrored) == pytest.approx((-25, 10, -8), abs=1e-6)


def test_head_pose_ignores_size_and_place():
    face = turned(20, -10, 5) + np.random.default_rng(1).normal(size=(5, 2))
    assert head_pose(face * 7 + 1000) == pytest.approx(head_pose(face))
