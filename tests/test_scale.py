"""benchmarks/scale.py runs, and what it leans on gives what the plain ways give."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from small_caches import make

from efficientface.data import columns, views, words
from efficientface.data.words import all_differ, leads_out, numbered, places
from efficientface.pipeline.config import DistillConfig
from efficientface.pipeline.distill import replay

WORDS = np.array(["b", "a\n../b", "/a", "a/../b", "..", "a..", "..a/b", "ü", "a/..", "", "b/.", "a\0/../b"], object)


@pytest.mark.parametrize("held", [columns.HELD, 0])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a step's peak")
def test_the_benchmark_of_scale_runs(held, tmp_path, capsys, monkeypatch):
    """It asserts that what it made is in order; also with all columns mapped."""
    monkeypatch.setattr(columns, "HELD", held)
    path = Path(__file__).parent.parent / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("scale", path)
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    steps = scale.measure(2000, 2, str(tmp_path), apart=False)
    assert len(steps) == len({step.name for step in steps}) == 15
    assert all(step.seconds > 0 and step.peak > step.own > 0 for step in steps)
    assert "distributions/: 3 files" in capsys.readouterr().out  # one shard, the manifest and its digest
    assert not list(tmp_path.iterdir())
    assert scale.exponent([10, 100, 1000], [3.0, 30.0, 300.0]) == pytest.approx(1)


@pytest.mark.parametrize("bits", [64, 1, 0])
def test_words_are_found_whatever_their_fingerprints(bits, monkeypatch):
    """Also where fingerprints, or all of them, are the same for other words."""
    plain = words.fingerprints
    monkeypatch.setattr(words, "fingerprints", lambda of: plain(of) & np.uint64(2**bits - 1))
    wanted, known = np.array(["ü", "none of them", "", "b", "ü"], object), [*WORDS, "ü"]
    assert places(wanted, known).tolist() == [known.index(word) if word in known else -1 for word in wanted]
    assert places(wanted[:0], known).tolist() == []
    assert places(wanted, known[:0]).tolist() == [-1] * 5
    assert places(np.array([None, "b"], object), np.array(["None", "b", None], object)).tolist() == [2, 1]
    assert all_differ(WORDS)
    assert all_differ(np.array([None, "None"], object))
    assert not all_differ(known)
    assert all_differ(known[:0])


def test_words_are_counted_and_refused_as_one_by_one():
    assert leads_out(WORDS).tolist() == [word.startswith("/") or ".." in word.split("/") for word in WORDS]
    repeated = np.array(["x", None, "y", "x", None], object)
    numbers = numbered(repeated)
    assert sorted(set(numbers.tolist())) == [0, 1, 2]
    assert all((numbers[i] == numbers[j]) == (repeated[i] == repeated[j]) for i in range(5) for j in range(5))


def test_views_drawn_in_blocks_are_the_same(monkeypatch):
    ids = [f"face-{k}.jpg" for k in range(50)]
    boxes, flips = views.draw_views(1, ids, range(3), 224)
    monkeypatch.setattr(views, "BLOCK", 7)
    again, flips_again = views.draw_views(1, ids, range(3), 224)
    assert np.array_equal(boxes, again)
    assert np.array_equal(flips, flips_again)
    assert views.draw_views(1, ids, [], 224)[0].shape == (50, 0, 4)
    assert views.draw_views(1, [], range(3), 224)[0].shape == (0, 3, 4)


@pytest.mark.parametrize("stored", [0, 3])
def test_rows_in_place_are_replayed_as_their_copies(stored):
    cached, own = make([f"{k}.jpg" for k in range(9)], views=stored), np.array([7, 2, 5])
    rows, turns = np.array([1, 0, 2, 1]), np.array([0, 4, 2, 1])
    in_place = replay(cached, 64, DistillConfig(), own)(rows, turns)
    copied = replay(cached.select(own), 64, DistillConfig())(rows, turns)
    for name in ("boxes", "flips", "targets"):
        assert np.array_equal(getattr(in_place, name), getattr(copied, name)), name
