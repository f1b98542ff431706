"""Which faces a list names, on lists written as RAN distributes them, and by pose."""

import numpy as np
import pyarrow as pa
import pytest

from efficientface import FerError
from efficientface.pipeline.subsets import subset

HEX = ["0a" * 28, "1b" * 28, "2c" * 28]


def rows(*face_ids, yaw=None, pitch=None):
    count = len(face_ids)
    return pa.table(
        {
            "face_id": list(face_ids),
            "yaw": pa.array(yaw or [None] * count, pa.float32()),
            "pitch": pa.array(pitch or [None] * count, pa.float32()),
        }
    )


def chosen(text, tmp_path, *face_ids):
    path = tmp_path / "list.txt"
    path.write_text(text)
    found, facts = subset(str(path), rows(*face_ids), "test")
    return np.flatnonzero(found).tolist(), facts


@pytest.mark.parametrize(
    ("text", "face_ids"),
    [
        # RAF-DB: name, label, kind of occlusion; the run holds the aligned or the original files, or the authors' tree
        ("test_0003_aligned 3 4\n", ["Image/aligned/test_0002_aligned.jpg", "Image/aligned/test_0003_aligned.jpg"]),
        ("test_0003_aligned 3 4\n", ["Image/original/test_0002.jpg", "Image/original/test_0003.jpg"]),
        ("0/test_0004_aligned.jpg\n", ["test/1/test_0003.jpg", "raf/test/1/test_0004.jpg"]),
        # AffectNet: the file, the folder, and a number below the folder
        (f"val/0/{HEX[1]}/\n", [f"12/{HEX[0]}.jpg", f"3/{HEX[1]}.jpg", "8.jpg"]),
        (f"0/{HEX[1]}.jpg\n", [f"12/{HEX[0]}.jpg", f"3/{HEX[1]}.jpg"]),
        (f"7/{HEX[1]}/8.jpg\n", [f"12/{HEX[0]}.jpg", f"3/{HEX[1]}.jpg", "8.jpg"]),
        # FER+: label before the name, label and kind behind it
        ("1_fer0034656.png 8 0\n", ["FER2013Test/fer0034655.png", "FER2013Test/fer0034656.png"]),
        ("0/fer0032226.jpg\n", ["FER2013Test/fer0034655.png", "FER2013Test/fer0032226.png"]),
        # one's own: spaces, other marks, Windows' slashes
        ("my photos\\100% #1.png\n", ["my photos/100%25 %232.png", "my photos/100%25 %231.png"]),
    ],
)
def test_a_list_as_distributed_names_the_face(text, face_ids, tmp_path):
    assert chosen(text, tmp_path, *face_ids)[0] == [1]


def test_every_face_of_a_photograph_belongs(tmp_path):
    assert chosen("b.jpg\n", tmp_path, "a.jpg", "b.jpg", "b.jpg#1")[0] == [1, 2]


def test_names_in_several_folders_are_told_apart_by_their_folders(tmp_path):
    faces = ["Anger/0001.png", "Happy/0001.png", "Sad/0002.png"]
    assert chosen("CAER-S/Happy/0001.png\nHappy/0001.png\n", tmp_path, *faces[1:])[0] == [0]
    assert chosen("Happy/0001.png\n", tmp_path, *faces)[0] == [1]
    # the aligned file and the original in one run
    assert chosen("test_1_aligned\n", tmp_path, "original/test_1.jpg", "aligned/test_1_aligned.jpg")[0] == [1]
    with pytest.raises(FerError) as error:
        chosen("0001.png\n0002.png\n", tmp_path, *faces)
    assert str(error.value) == (
        f"{tmp_path}/list.txt names 1 photographs that are several in split test, first 0001.png; "
        "write their paths as in the face ids"
    )


def test_lines_given_twice_and_names_that_are_missing_are_counted(tmp_path):
    rows, facts = chosen("\ufefftest_1 3 4\n\ntest_1 3 1\ntest_9 2 2\n", tmp_path, "test_1.jpg", "test_2.jpg")
    assert rows == [0]
    assert facts == {"lines": 3, "named": 2, "missing": 1, "first_missing": "test_9 2 2"}


def test_a_list_of_other_files_is_refused(tmp_path):
    with pytest.raises(FerError) as error:
        chosen(f"0/{HEX[0]}.jpg\n1/{HEX[1]}.jpg\n", tmp_path, "17.jpg")
    assert str(error.value) == (
        f"{tmp_path}/list.txt: none of its 2 photographs is in split test (first 0/{HEX[0]}.jpg); give "
        "another --split, or a list of this data set's files (AffectNet's have the names of its first release, not "
        "2021's numbers)"
    )


def test_a_list_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    for name, reason in (("absent.txt", "No such file or directory"), ("picture.png", "it is no text")):
        with pytest.raises(FerError) as error:
            subset(str(tmp_path / name), rows("a.jpg"), "test")
        assert str(error.value) == (
            f"--subset {tmp_path}/{name} cannot be read ({reason}); "
            "give a list of file names, a photograph a line, or pose:30"
        )


def test_pose_is_the_larger_of_yaw_and_pitch():
    faces = rows(*"abcde", yaw=[30, -31, 10, 0, None], pitch=[0, 5, -45, 29.9, None])
    assert subset("pose:30", faces, "test")[0].tolist() == [True, True, True, False, False]
    assert subset("pose:45", faces, "test")[0].tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("given", ["pose:", "pose:many", "pose:0", "pose:91", "pose:nan"])
def test_a_pose_that_is_none_is_refused(given):
    with pytest.raises(FerError) as error:
        subset(given, rows("a"), "test")
    assert str(error.value) == f"--subset {given} is no pose; give degrees from 1 to 90, such as pose:30"
