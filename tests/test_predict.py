"""Answers are the same, to the bit, however many threads give them."""

import numpy as np
import pytest
import torch
from test_models import varied
from torch import nn

from efficientface.data.faces import read_faces
from efficientface.data.views import draw_views
from efficientface.models.efficientface import efficient_face
from efficientface.pipeline.predict import PIXELS, most_at_once, predict

SEEN = {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def faces(run):
    found = read_faces(sorted((run / "faces").glob("*.parquet")))
    return found.select(np.flatnonzero(found.usable)[:50])


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Calls(nn.Module):
    """Notes with how many threads and about how many views it is asked."""

    def __init__(self):
        super().__init__()
        self.network = varied(efficient_face(7))
        self.noted = []

    def forward(self, images):
        self.noted.append((torch.get_num_threads(), len(images)))
        return self.network(images)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_change_no_bit_and_no_cut(faces, threads, precision):
    boxes, flips = draw_views(0, faces.face_id, range(3), 64, 0.5)
    model, told = Calls().eval(), []
    found = predict(model, faces, boxes, flips, batch=25, precision=precision, advance=told.append, **SEEN)
    assert torch.get_num_threads() == threads
    assert {of_call for of_call, _ in model.noted} == {1}
    assert sorted(count for _, count in model.noted) == [6] + [24] * 6  # whole faces: 8 of 3 views, 50 in all
    assert told == [8] * 6 + [2]
    shown_so = predict(model, faces, boxes, flips, batch=25, precision=precision, shown=np.arange(50), **SEEN)
    np.testing.assert_array_equal(found, shown_so)
    torch.set_num_threads(1)
    np.testing.assert_array_equal(found, predict(model, faces, boxes, flips, batch=25, precision=precision, **SEEN))


def test_a_cpu_is_asked_about_no_more_pixels_than_its_cache_is_good_for(faces, threads, monkeypatch):
    monkeypatch.setattr("efficientface.pipeline.predict.PIXELS", 5 * 32**2)
    boxes, flips = draw_views(0, faces.face_id, range(1), 64, 0.5)
    model = Calls().eval()
    predict(model, faces, boxes, flips, batch=12, **SEEN)
    assert sorted(count for _, count in model.noted) == [2] * 5 + [5] * 8  # batches of 12 are cut into 5, 5 and 2
    monkeypatch.undo()
    assert most_at_once(224) * 224**2 == PIXELS
    assert most_at_once(10_000) == 1


def test_what_a_network_raises_arrives_and_leaves_the_threads_as_they_were(faces, threads):
    class Broken(nn.Module):
        def forward(self, images):
            raise ArithmeticError("no answer")

    boxes, flips = draw_views(0, faces.face_id, range(1), 64, 0.5)
    with pytest.raises(ArithmeticError, match="no answer"):
        predict(Broken(), faces, boxes, flips, **SEEN)
    assert torch.get_num_threads() == threads
