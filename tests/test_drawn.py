"""Drawn faces: known mixtures, the same bytes for the same seed, and faces that a face detector believes."""

import hashlib
from dataclasses import asdict, astuple

import numpy as np
import pandas as pd
import pytest

from efficientface import FerError
from efficientface.data.detect import Detector
from efficientface.data.drawn import (
    BASIC,
    EXPRESSIONS_DRAWN,
    blend,
    draw_face,
    draw_face_and_landmarks,
    mixture,
    split_of,
    write_photos,
)


def face(k: int, seed: int = 0, size: int = 224) -> np.ndarray:
    return draw_face(mixture(seed, k), np.random.default_rng([seed, k, 1]), size)


def digests(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("drawn"), 60, seed=5, size=96).parent


def test_mixtures_are_distributions_with_one_clear_main_expression():
    mixtures = np.stack([mixture(3, k) for k in range(2000)])
    assert mixtures.dtype == np.float32
    assert (mixtures >= 0).all()
    np.testing.assert_allclose(mixtures.sum(axis=1), 1, atol=1e-6)
    assert (mixtures.max(axis=1) >= np.float32(0.55)).all()
    parts = np.bincount((mixtures > 0).sum(axis=1), minlength=4) / len(mixtures)
    np.testing.assert_allclose(parts[1:4], [0.15, 0.7, 0.15], atol=0.03)
    np.testing.assert_allclose(np.bincount(mixtures.argmax(axis=1)) / len(mixtures), 1 / 7, atol=0.03)


def test_a_blend_has_the_weighted_sum_of_the_numbers():
    weights = np.zeros(7)
    weights[[1, 4]] = 0.7, 0.3
    for name, value in asdict(blend(weights)).items():
        expected = 0.7 * getattr(BASIC["happiness"], name) + 0.3 * getattr(BASIC["fear"], name)
        assert value == pytest.approx(expected), name


def test_a_pure_mixture_is_the_basic_expression():
    for c, name in enumerate(EXPRESSIONS_DRAWN):
        assert astuple(blend(np.eye(7)[c])) == pytest.approx(astuple(BASIC[name]))


def test_a_face_is_the_same_for_the_same_seed_and_another_for_another():
    image = face(4)
    assert image.shape == (224, 224, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, face(4))
    assert np.abs(image.astype(int) - face(5)).mean() > 5
    assert np.abs(image.astype(int) - face(4, seed=1)).mean() > 5


def test_the_mixture_moves_the_face_and_nothing_else():
    happy, angry = (draw_face(np.eye(7)[c], np.random.default_rng(8), 224).astype(int) for c in (1, 6))
    changed = np.abs(happy - angry).max(axis=2) > 25
    assert changed.mean() > 0.01
    assert changed[:8].sum() == changed[:, :8].sum() == changed[:, -8:].sum() == 0


def test_the_table_agrees_with_the_mixtures(photos):
    table = pd.read_csv(photos / "labels.csv")
    assert list(table.columns) == ["image", "label", "split", *EXPRESSIONS_DRAWN]
    truth = np.stack([mixture(5, k) for k in range(60)])
    weights = table[list(EXPRESSIONS_DRAWN)].to_numpy()
    np.testing.assert_array_equal(weights.astype(np.float32), truth)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert list(table.label) == [EXPRESSIONS_DRAWN[c] for c in truth.argmax(axis=1)]
    assert [(photos / name).is_file() for name in table.image] == [True] * 60
    assert table.split.value_counts().to_dict() == {"train": 42, "test": 12, "val": 6}


def test_faces_are_spread_over_the_splits_whatever_their_number():
    assert {split_of(k) for k in range(10)} == {"train", "val", "test"}


def test_a_face_does_not_depend_on_how_many_are_drawn(photos, tmp_path):
    few = digests(write_photos(tmp_path, 7, seed=5, size=96).parent)
    many = digests(photos)
    assert {name: many[name] for name in few if name != "labels.csv"} == {
        name: digest for name, digest in few.items() if name != "labels.csv"
    }


def test_drawing_again_writes_the_same_bytes(photos):
    before, seen = digests(photos), []
    write_photos(photos, 60, seed=5, size=96, progress=seen.append)
    assert digests(photos) == before
    assert sum(seen) == 60


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"mine")
    (tmp_path / "labels.csv").write_text("path,emotion\nimages/holiday.jpg,happy\n")
    with pytest.raises(FerError) as error:
        write_photos(tmp_path, 2, seed=0)
    assert str(error.value) == (
        f"{tmp_path} holds 2 files that are not among the drawn faces asked for, first images/holiday.jpg; "
        "choose an empty folder"
    )
    assert (tmp_path / "labels.csv").read_text() == "path,emotion\nimages/holiday.jpg,happy\n"


def test_no_faces_cannot_be_drawn(tmp_path):
    with pytest.raises(FerError, match="cannot draw 0 faces; ask for at least 1"):
        write_photos(tmp_path / "none", 0, seed=0)


def test_retinaface_finds_at_least_99_of_100_with_their_landmarks_in_place():
    detector = Detector()
    found = 0
    for k in range(100):
        image, landmarks = draw_face_and_landmarks(mixture(11, k), np.random.default_rng([11, k, 1]))
        faces = detector.detect(image)
        if len(faces) == 1 and faces[0].score > 0.9:
            eyes = landmarks[1, 0] - landmarks[0, 0]
            found += np.abs(faces[0].landmarks - landmarks).max() < 0.4 * eyes
    assert found >= 99
