"""Five landmarks -> where the face goes, and which way it looks. Numpy only.

Landmarks are (5, 2) x, y: the eye on the image's left, the eye on its right, nose tip, mouth corner on the left,
mouth corner on the right. Coordinates are continuous: 0 is the outer edge of the first pixel, whose centre is 0.5.
"""

import math

import numpy as np

# ArcFace's template (Deng et al. 2019, insightface) for 112 x 112 crops.
_ARCFACE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
# In units of the eye distance: x from the middle of the crop, y from the eyes.
_EYES_Y = _ARCFACE[:2, 1].mean()
PROPORTIONS = (_ARCFACE - (56.0, _EYES_Y)) / np.hypot(*(_ARCFACE[1] - _ARCFACE[0]))

# The same landmarks as RetinaFace sees them in front: medians of 870 frontal photographs. Behind them how far each
# lies in front of the eyes: an adult's nose tip and lips, rounded. In eye distances (63 mm on average).
MEAN_FACE = np.array([(-0.5, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.59, 0.45), (-0.415, 1.045, 0.1), (0.415, 1.045, 0.1)])
_FIT = np.linalg.pinv((MEAN_FACE - MEAN_FACE.mean(0)) * (1, 1, -1))  # (3, 5), z away from the camera
_FLAT = 1e-12  # of landmarks on a line, which show no third direction


def template(crop: int, eye_distance: float = 0.31, eye_height: float = 0.38) -> np.ndarray:
    """Where the landmarks of an upright face belong in a crop of `crop` pixels a side, (5, 2) pixels.

    eye_distance: share of the crop's width; eye_height: share of its height, from above. With the defaults the
    chin stays inside: it lies about two eye distances below the eyes. ArcFace itself has eyes at 0.46, the chin cut.
    """
    return PROPORTIONS * (eye_distance * crop) + (0.5 * crop, eye_height * crop)


def similarity(landmarks: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift (no reflection) that take landmarks (N, 2) nearest to target (N, 2): (2, 3).

    Least squares in closed form (Umeyama 1991), which in the plane is a complex line fit: w = a z + b.
    """
    # Python's own numbers: of so few, numpy's calls take several times as long, and hold up other threads
    z, w = ([complex(x, y) for x, y in points.tolist()] for points in (landmarks, target))
    middle = sum(z) / len(z)
    spread = [point - middle for point in z]
    weight = sum(abs(point) ** 2 for point in spread)
    if not weight > 0:
        raise ValueError("landmarks lie in one point: no similarity is defined")
    a = sum(point.conjugate() * goal for point, goal in zip(spread, w, strict=True)) / weight
    b = sum(w) / len(w) - a * middle
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def scale_of(matrix: np.ndarray) -> float:
    """Crop pixels a source pixel, of a similarity (2, 3)."""
    return math.hypot(matrix[0, 0], matrix[1, 0])


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through an affine matrix (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def head_pose(landmarks: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, estimated from five landmarks.

    yaw > 0: the face is turned to the image's right; pitch > 0: it looks up; roll > 0: the head is turned clockwise
    in the image. A mean face in three dimensions is fitted under scaled orthographic projection (the POS step of
    DeMenthon and Davis 1995), in closed form. An estimate only: perspective, the person's own nose and a
    wide-open mouth each shift it by several degrees (the open mouth in pitch), and beyond 60 degrees, where the
    detector guesses the hidden eye, it means little.
    """
    # (2, 3), scale times two rows of the rotation; _FIT leaves out the middle
    (ax, ay, az), (bx, by, bz) = (landmarks.T @ _FIT.T).tolist()
    # The nearest two orthonormal rows, P^-1/2 times these, where P = (p q; q r) are their products and s is the root
    # of P's determinant: P^1/2 = (P + s) / t, t = (p + r + 2 s)^1/2.
    p, q, r = ax * ax + ay * ay + az * az, ax * bx + ay * by + az * bz, bx * bx + by * by + bz * bz
    s = max(math.hypot(ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), _FLAT)
    t = s * math.sqrt(p + r + 2 * s)
    p, q, r = (p + s) / t, q / t, (r + s) / t
    ax, ay, az, bx, by, bz = (
        *(r * ax - q * bx, r * ay - q * by, r * az - q * bz),
        *(p * bx - q * ax, p * by - q * ay, p * bz - q * az),
    )
    # Third row, their cross product: how deep each axis of the face points. The rotation is roll (in the image) after
    # yaw after pitch.
    yaw = math.asin(min(max(ay * bz - az * by, -1.0), 1.0))
    pitch = math.atan2(ax * bz - az * bx, ax * by - ay * bx)
    roll = math.atan2(bx, ax)
    return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)
