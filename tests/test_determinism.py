"""Equal runs leave equal bytes, however many threads work and whatever takes how long; see docs/reliability.md.

Training and labelling are in test_train.py, several processes in test_torchrun.py, test_jobs.py and test_cluster.py.
"""

from dataclasses import replace

import pytest
from conftest import write_photos
from determinism import PARTS, SAME, Circumstance, compare, make, waiting
from torture import outcome

from efficientface.pipeline import align
from efficientface.pipeline.artifact import DIGEST
from efficientface.pipeline.config import AlignConfig


def test_faces_and_manifest_are_the_same_with_any_number_of_threads_at_any_speed(tmp_path):
    photos, config = write_photos(tmp_path / "photos"), AlignConfig(aligned=True, crop=64, shard_faces=5)
    runs = [tmp_path / f"run-{workers}" for workers in (1, 2, 3)]
    for workers, run in enumerate(runs, start=1):
        with waiting():
            align.run(photos, run, replace(config, workers=workers))
    first = outcome(runs[0] / "faces")
    assert len(first) == 5  # four shards and the manifest
    assert outcome(runs[1] / "faces") == first
    assert outcome(runs[2] / "faces") == first
    assert len({(run / "faces" / DIGEST).read_bytes() for run in runs}) == 1


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return make(tmp_path_factory.mktemp("first"), Circumstance())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("circumstance", SAME)
def test_a_run_is_the_same_to_the_byte(first, tmp_path, circumstance):
    assert compare(make(tmp_path, SAME[circumstance]), first) == dict.fromkeys(PARTS, "same")
