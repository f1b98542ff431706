"""Boxes: torchvision's distribution, keyed by face. Pictures: Pillow's and torchvision's antialiased resize."""

import hashlib
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as TF
from PIL import Image

from efficientface.data.views import draw_views, render

IDS = [f"a/{k}.jpg" for k in range(3000)]


def test_a_face_has_the_same_views_whatever_it_is_drawn_with():
    boxes, flips = draw_views(7, IDS[:50], range(10), 224)
    alone, alone_flips = draw_views(7, [IDS[31]], [4], 224)
    backwards, _ = draw_views(7, IDS[:50][::-1], [4, 9], 224)
    assert (alone[0, 0] == boxes[31, 4]).all()
    assert alone_flips[0, 0] == flips[31, 4]
    assert (backwards[::-1, 1] == boxes[:, 9]).all()


def test_seeds_faces_and_views_differ():
    boxes, _ = draw_views(0, IDS[:200], range(10), 224)
    other, _ = draw_views(1, IDS[:200], range(10), 224)
    assert len(np.unique(boxes.reshape(-1, 4), axis=0)) > 1950
    assert (boxes == other).all(-1).mean() < 0.01


def test_a_box_worked_by_hand():
    digest = hashlib.blake2b(b"3\x001\x00y.jpg", digest_size=64, salt=bytes(16)).digest()
    word = [int.from_bytes(digest[8 * k : 8 * k + 8], "little") / 2**64 for k in range(5)]
    area, aspect = 100 * 100 * (0.5 + 0.5 * word[0]), math.exp(math.log(3 / 4) + word[1] * math.log(16 / 9))
    width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    assert max(width, height) <= 100, "this key should not need a second try"
    boxes, flips = draw_views(3, ["y.jpg"], [1], 100, min_area=0.5)
    expected = [int(word[2] * (101 - height)), int(word[3] * (101 - width)), height, width]
    assert boxes[0, 0].tolist() == expected
    assert flips[0, 0] == (word[4] < 0.5)


def test_boxes_are_distributed_as_torchvision_draws_them():
    torch.manual_seed(0)
    face = torch.zeros(3, 224, 224)
    theirs = np.array([T.RandomResizedCrop.make_params(T.RandomResizedCrop(224), [face]) for _ in range(3000)])
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs])
    ours, flips = draw_views(0, IDS, [0], 224)
    for column in range(4):  # two-sample Kolmogorov-Smirnov; 0.042 is the 1 % point for 3,000 against 3,000
        edges = np.arange(225)
        cdf = [np.searchsorted(np.sort(x[:, column]), edges, side="right") / 3000 for x in (ours[:, 0], theirs)]
        assert np.abs(cdf[0] - cdf[1]).max() < 0.042
    assert abs(flips.mean() - 0.5) < 0.03


def test_boxes_lie_inside_the_face_and_keep_their_share_of_it():
    boxes, _ = draw_views(0, IDS, [0], 97, min_area=0.3)
    top, left, height, width = boxes[:, 0].astype(int).T
    assert (top + height <= 97).all()
    assert (left + width <= 97).all()
    assert (height * width >= 0.3 * 97 * 97 * 0.97).all()  # sides are rounded to whole pixels


@pytest.mark.parametrize("size", [64, 112, 224])
def test_a_view_is_the_antialiased_resized_crop_within_two_grey_levels(size):
    rng = np.random.default_rng(0)
    face = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    boxes, _ = draw_views(0, IDS[:20], [0], 224)
    for top, left, height, width in boxes[:, 0].astype(int):
        ours = render(face, (top, left, height, width), False, size).astype(int)
        cut = Image.fromarray(face[top : top + height, left : left + width])
        pillow = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        tensor = torch.from_numpy(face).permute(2, 0, 1).float()  # in floats: another code path than ours
        theirs = TF.resized_crop(tensor, top, left, height, width, [size, size], antialias=True)
        assert np.abs(ours - pillow).max() <= 2
        assert np.abs(ours - theirs.permute(1, 2, 0).numpy()).max() <= 2


def test_a_flip_commutes_exactly():
    rng = np.random.default_rng(1)
    face = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    mirrored = np.ascontiguousarray(face[:, ::-1])
    ours = render(face, (10, 20, 101, 87), True, 64)
    assert (ours == render(mirrored, (10, 224 - 20 - 87, 101, 87), False, 64)).all()


def test_the_whole_face_at_its_own_size_is_itself():
    face = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (render(face, (0, 0, 64, 64), False, 64) == face).all()
