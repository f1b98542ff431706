"""Reading faces/ back: what is held in memory, and what is mapped from a file."""

import resource
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_faces

from efficientface import FerError
from efficientface.data import faces as table
from efficientface.data.faces import read_faces


def test_pictures_beyond_what_is_held_are_mapped(tmp_path, monkeypatch):
    files = sorted(write_faces(tmp_path / "run").glob("*.parquet"))
    before = pa.total_allocated_bytes()
    held = read_faces(files)
    taken = pa.total_allocated_bytes() - before
    pictures = held.images.nbytes
    monkeypatch.setattr(table, "HELD", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mapped = read_faces(files)
    assert pa.total_allocated_bytes() - before - taken < taken - pictures / 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for name in (field.name for field in fields(held) if field.name != "images"):
        np.testing.assert_array_equal(getattr(held, name), getattr(mapped, name))
    half = np.flatnonzero(held.usable)[::2]
    for row, face in enumerate(half):
        assert mapped.select(half).encoded(row).to_pybytes() == held.encoded(face).to_pybytes()
    assert f"{tmp_path}/" in Path("/proc/self/maps").read_text()


def test_a_temporary_folder_without_room_is_told(tmp_path, monkeypatch):
    files = sorted(write_faces(tmp_path / "run").glob("*.parquet"))
    monkeypatch.setattr(table, "HELD", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(
            FerError, match=rf"{tmp_path} does not take [\d,]+ bytes of pictures.*File too large.*TMPDIR"
        ):
            read_faces(files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
