"""Data sets read as they are distributed, from small trees of exactly their shape."""

import io
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_sources import column, put, refusal, write

from efficientface import FerError
from efficientface.data.labels import AFFECTNET, CLASS_SETS, COMPOUND
from efficientface.data.layouts import LAYOUTS, huggingface
from efficientface.data.layouts.ferplus import FERPLUS_COLUMNS
from efficientface.data.layouts.published import AFFECTNET as AFFECTNET_COUNTS
from efficientface.data.layouts.published import FER_2013, PUBLISHED, RAF_DB_BASIC
from efficientface.data.photos import Unreadable, decode_photo
from efficientface.data.sources import read_source

SEVEN = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
RAF_NATIVE = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


# --- RAF-DB -----------------------------------------------------------------------------------------------------


@pytest.fixture
def raf(tmp_path):
    """RAF-DB as it is unpacked, seven images a split, both kinds of images and some annotations."""
    names = [f"train_{k:05d}.jpg" for k in range(1, 8)] + [f"test_{k:04d}.jpg" for k in range(1, 8)]
    lines = "\n".join(f"{name} {k % 7 + 1}" for k, name in enumerate(names))  # no line break at the end
    write(tmp_path / "basic/EmoLabel/list_patition_label.txt", lines)
    put(tmp_path, *(f"basic/Image/original/{name}" for name in names))
    put(tmp_path, *(f"basic/Image/aligned/{name[:-4]}_aligned.jpg" for name in names))
    return put(tmp_path, "basic/Annotation/manual/train_00001_manu_attri.txt", "RAF-DB/readme.txt")


def test_raf_db_by_its_list(raf):
    source = read_source(raf)
    assert (source.layout, source.root, source.classes) == ("raf-db", raf, SEVEN)
    assert column(source, "file")[::7] == ["basic/Image/original/train_00001.jpg", "basic/Image/original/test_0001.jpg"]
    assert column(source, "label") == [*RAF_NATIVE, *RAF_NATIVE]
    assert column(source, "split") == ["train"] * 7 + ["test"] * 7
    assert source.notes == (
        f"Read {raf / 'basic/EmoLabel/list_patition_label.txt'} as layout raf-db: 14 images, 7 classes.",
        f"Taken from {raf / 'basic/Image/original'}: the photographs.",
        "Not as published for RAF-DB: train 7, published 12,271 (happiness 1, published 4,772); "
        "test 7, published 3,068 (happiness 1, published 1,185).",
    )


def test_classes_that_the_published_counts_are_not_about(raf):
    write(raf / "basic/EmoLabel/list_patition_label.txt", "train_00001.jpg 1\ntrain_00002.jpg 2\n")
    source = read_source(raf, classes=["contempt", "boredom"])
    assert column(source, "label") == [None, None]
    assert not any("published" in note for note in source.notes)


def test_raf_db_from_inside_and_with_the_authors_aligned_faces(raf):
    inside = read_source(raf / "basic", aligned=True)
    assert inside.layout == "raf-db"
    assert column(inside, "file")[0] == "Image/aligned/train_00001_aligned.jpg"
    assert f"Taken from {raf / 'basic/Image/aligned'}: the faces that RAF-DB's authors aligned." in inside.notes


def test_raf_db_without_photographs_takes_the_aligned_faces(raf):
    (raf / "basic/Image/original").rename(raf / "elsewhere")
    assert column(read_source(raf), "file")[-1] == "basic/Image/aligned/test_0007_aligned.jpg"


def test_a_face_that_raf_dbs_list_names_twice_is_counted_once(raf):
    """With `.jpg` and without, which come to one aligned face."""
    listed = raf / "basic/EmoLabel/list_patition_label.txt"
    listed.write_text(listed.read_text().rstrip() + "\ntrain_00001 5\n")
    shutil.rmtree(raf / "basic/Image/original")
    assert not [note for note in read_source(raf).notes if note.startswith("Left out")]


def test_raf_dbs_boxes_are_about_its_photographs_alone(raf):
    boxes = raf / "basic/Annotation/boundingbox"
    for k in range(1, 8):
        write(boxes / f"train_{k:05d}_boundingbox.txt", f"{k}.5 2 30.25 40\n")
    source = read_source(raf)
    assert column(source, "box") == [(k + 0.5, 2, 30.25, 40) for k in range(1, 8)] + [None] * 7
    assert f"Without a box of the labelled face in {boxes}: 7 of 14." in source.notes
    assert column(read_source(raf, aligned=True), "box") == [None] * 14
    damaged = write(boxes / "test_0001_boundingbox.txt", "1 2 3\n")
    assert refusal(raf).startswith(f"{damaged} does not hold the four numbers of a box (")


def test_compound_raf_db_has_its_own_classes(raf):
    lines = "".join(f"train_{k:04d}.jpg {k}\n" for k in range(1, 12))
    write(raf / "compound/EmoLabel/list_patition_label.txt", lines)
    put(raf, *(f"compound/Image/aligned/train_{k:04d}_aligned.jpg" for k in range(1, 12)))
    assert "The compound expressions beside it are read with --layout raf-db-compound." in read_source(raf).notes
    for source in (read_source(raf, layout="raf-db-compound"), read_source(raf / "compound")):
        assert (source.layout, source.classes) == ("raf-db-compound", COMPOUND)
        assert column(source, "label") == list(COMPOUND)
    assert source.notes[-1] == (
        "Not as published for compound RAF-DB: train 11, published 3,162; test 0, published 792."
    )


def test_basic_raf_db_is_not_read_as_compound(raf):
    """Its numbers 1 to 7 would pass for compound expressions."""
    assert refusal(raf / "basic", layout="raf-db-compound") == (
        f"{raf / 'basic/EmoLabel/list_patition_label.txt'} is the list of the basic expressions: "
        "no number in it is above 7; give the folder of the compound ones"
    )


def test_damaged_raf_db_is_refused(raf):
    table = raf / "basic/EmoLabel/list_patition_label.txt"
    write(table, "train_00001.jpg 5\ntrain_00002.jpg\n")
    assert refusal(raf) == f"{table} is damaged: line 2 is 'train_00002.jpg', not a name and a number; copy it again"
    write(table, "train_00001.jpg 5\ntrain_00002.jpg 0\n")
    assert refusal(raf) == f"{table}: 1 line without a number from 1 to 7 (first train_00002.jpg 0); copy it again"
    write(table, "../../1.jpg 5\n")
    assert "may lead out of its folder (first ../../1.jpg)" in refusal(raf)
    write(table, "train_00001.jpg 5\n")
    for kind in ("original", "aligned"):
        (raf / "basic/Image" / kind).rename(raf / kind)
    assert refusal(raf) == f"{raf / 'basic'} has no Image/aligned; unpack Image/aligned.zip there"
    assert refusal(raf / "original", layout="raf-db") == (
        f"{raf / 'original'} is not RAF-DB: there is neither EmoLabel/list_patition_label.txt nor "
        "basic/EmoLabel/list_patition_label.txt in it"
    )


# --- AffectNet --------------------------------------------------------------------------------------------------

HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"


def hex_name(k):
    return f"{k % 3}/{k:056x}.jpg"


def affectnet_row(k, code):
    return f"{hex_name(k)},10,12,200,201,{';'.join(['61.5'] * 136)},{code},-0.1,0.2\n"


@pytest.fixture
def affectnet(tmp_path):
    """The first release: one training image a code, two for validation; its validation.csv often has no header."""
    home = tmp_path / "Manually_Annotated_file_lists"
    write(home / "training.csv", HEADER + "".join(affectnet_row(k, k) for k in range(11)))
    write(home / "validation.csv", affectnet_row(20, 6) + affectnet_row(21, 0))
    return put(tmp_path, *(f"Manually_Annotated_Images/{hex_name(k)}" for k in [*range(11), 20, 21]))


def test_affectnet_first_release(affectnet):
    source = read_source(affectnet)
    assert (source.layout, source.classes) == ("affectnet", (*SEVEN, "contempt"))
    assert column(source, "file")[1] == f"Manually_Annotated_Images/{hex_name(1)}"
    assert column(source, "label") == [*SEVEN, "contempt", None, None, None, "anger", "neutral"]
    assert column(source, "split") == ["train"] * 11 + ["val"] * 2
    assert set(column(source, "box")) == {(10, 12, 210, 213)}
    assert source.notes == (
        f"Read {affectnet} as layout affectnet: 13 images, 8 classes.",
        "Without a label: 3 images of 13.",
        "AffectNet's validation set is what papers test on; --val-from-train 0.05 names it test.",
        "validation.csv has no header; read as the release's.",
        "Not as published for AffectNet: train 8, published 287,651 (happiness 1, published 134,415); "
        "val 2, published 4,000 (happiness 0, published 500).",
    )


@pytest.mark.parametrize("home", ["", "Manually_Annotated_file_lists"])
@pytest.mark.parametrize("images", ["", "Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images"])
def test_affectnets_tables_and_images_may_lie_where_copies_have_them(tmp_path, home, images):
    write(tmp_path / home / "training.csv", HEADER + affectnet_row(1, 1) + affectnet_row(2, 2))
    put(tmp_path / images, hex_name(1), hex_name(2), "0/unlisted.jpg")
    source = read_source(tmp_path)
    assert source.layout == "affectnet"
    assert column(source, "file") == [f"{images}/{hex_name(k)}".lstrip("/") for k in (1, 2)]


def test_affectnets_rows_without_a_box_are_counted(affectnet):
    table = affectnet / "Manually_Annotated_file_lists/validation.csv"
    write(table, affectnet_row(20, 6) + affectnet_row(21, 0).replace(",200,", ",0,"))
    source = read_source(affectnet)
    assert column(source, "box")[-2:] == [(10, 12, 210, 213), None]
    assert f"Without a box of the labelled face in {table}: 1 of 2." in source.notes


def test_affectnet_7_and_8_are_sets_of_classes(affectnet):
    eight = read_source(affectnet, classes=["affectnet-8"])
    assert column(eight, "label") == column(read_source(affectnet), "label")
    seven = read_source(affectnet, classes=["affectnet-7"])
    assert seven.classes == SEVEN
    assert column(seven, "label")[7] is None
    assert "Label left out as not among --classes: 1 image of contempt." in seven.notes
    assert seven.notes[-1].startswith("Not as published for AffectNet: train 7, published 283,901 (")


def test_affectnet_of_2021(tmp_path):
    for k in range(8):
        put(tmp_path, f"train_set/images/{k}.jpg", f"val_set/images/{k}.jpg")
        for split, code in (("train_set", k), ("val_set", 7 - k)):
            folder = tmp_path / split / "annotations"
            folder.mkdir(exist_ok=True)
            for kind, value in (("exp", str(code)), ("val", "-0.17"), ("aro", "0.3")):
                np.save(folder / f"{k}_{kind}.npy", np.array(value))  # text without a dimension, as distributed
    source = read_source(tmp_path)
    assert (source.layout, source.classes) == ("affectnet-2021", (*SEVEN, "contempt"))
    assert column(source, "file")[:2] == ["train_set/images/0.jpg", "train_set/images/1.jpg"]
    assert column(source, "label") == [*AFFECTNET[:8], *AFFECTNET[7::-1]]
    assert column(source, "split") == ["train"] * 8 + ["val"] * 8

    (tmp_path / "train_set/annotations/3_exp.npy").unlink()
    again = read_source(tmp_path)
    assert column(again, "label")[3:5] == [None, "fear"]
    assert f"Without an annotation in {tmp_path / 'train_set/annotations'}: 1 image." in again.notes
    bad = tmp_path / "train_set/annotations/4_exp.npy"
    np.save(bad, np.array({"a": 1}), allow_pickle=True)
    assert refusal(tmp_path).startswith(f"{bad} holds no number (")
    np.save(bad, np.array("12"))
    assert refusal(tmp_path) == (
        f"{tmp_path / 'train_set/annotations'}: 1 expression that AffectNet does not have "
        "(first '12' of train_set/images/4.jpg); they are 0 to 10"
    )


def test_affectnet_of_2021_by_a_table_of_its_numbers(tmp_path):
    put(tmp_path, *(f"train_set/images/{k}.jpg" for k in (4, 7, 11)))
    write(tmp_path / "train_set_annotation_without_lnd.csv", "number,exp,valence,arousal\n7,1,0,0\n11,2,0,0\n5,1,0,0\n")
    source = read_source(tmp_path)
    assert column(source, "file") == [f"train_set/images/{k}.jpg" for k in (7, 11, 5)]
    assert column(source, "label") == ["happiness", "sadness", "happiness"]
    assert "train_set is labelled by train_set_annotation_without_lnd.csv." in source.notes
    assert "val_set is absent." in source.notes
    assert any(note.startswith("Missing: 1 image") for note in source.notes)
    assert any(note.startswith("Left out: 1 image") for note in source.notes)


def test_what_is_not_affectnet_is_refused(tmp_path):
    put(tmp_path, "sad/1.jpg")
    assert refusal(tmp_path, layout="affectnet") == (
        f"{tmp_path} is not AffectNet's first release: it has neither training.csv nor validation.csv"
    )
    assert refusal(tmp_path, layout="affectnet-2021") == (
        f"{tmp_path} is not AffectNet's release of 2021: train_set/ or val_set/ with images/ and annotations/ is needed"
    )
    write(tmp_path / "training.csv", HEADER)
    assert refusal(tmp_path) == (
        f"{tmp_path} labels none of its 0 images; put them into class folders, or give a table with their labels"
    )
    table = write(tmp_path / "training.csv", "a,b\n1,2\n")
    assert refusal(tmp_path, layout="affectnet").startswith(f"{table} has 2 columns; AffectNet's have 9: subDirectory_")


# --- numbered class folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "order"),
    [
        ("efficientface", dict(enumerate(SEVEN))),
        ("raf-db", dict(enumerate(RAF_NATIVE, 1))),
        ("raf-db-from-0", dict(enumerate(RAF_NATIVE))),
        ("caer-s", dict(enumerate(sorted(SEVEN)))),
        ("fer2013", dict(enumerate(["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]))),
        ("affectnet-7", dict(enumerate(SEVEN))),
        ("affectnet-8", dict(enumerate((*SEVEN, "contempt")))),
        ("ferplus", dict(enumerate(FERPLUS_COLUMNS[:8]))),
    ],
)
def test_numbers_follow_a_data_sets_order_by_its_name(tmp_path, classes, order):
    put(tmp_path, *(f"train/{number}/{name}.jpg" for number, name in order.items()))
    source = read_source(tmp_path, classes=[classes])
    assert column(source, "file") == [f"train/{number}/{label}.jpg" for number, label in order.items()]
    assert column(source, "label") == list(order.values())


def test_numbers_outside_a_data_sets_order_are_refused(tmp_path):
    put(tmp_path, "train/0/a.jpg", "train/1/b.jpg")
    assert refusal(tmp_path, classes=["raf-db"]) == (
        f"{tmp_path}: label '0' of 1 image (first train/0/a.jpg): integer labels must lie between 1 and 7, "
        "as --classes has 7 names"
    )
    assert refusal(tmp_path, classes=["rafdb"]) == (
        "--classes rafdb names no known classes; give names with commas, or one of raf-db, raf-db-compound, "
        "raf-db-from-0, efficientface, affectnet-7, affectnet-8, caer-s, fer2013, ferplus, emotiefflib-8, py-feat, "
        "apvit"
    )


def test_the_published_counts_settle_the_order_of_numbers(tmp_path):
    """RAF-DB as the authors' README arranges it, all of train: no other order has these counts."""
    counts = RAF_DB_BASIC.labels["train"]
    table = pd.DataFrame(
        {
            "path": [f"{name}/{k}.jpg" for name in SEVEN for k in range(counts[name])],
            "label": [number for number, name in enumerate(SEVEN) for _ in range(counts[name])],
            "split": "train",
        }
    )
    table.to_csv(tmp_path / "labels.csv", index=False)
    put(tmp_path, "neutral/0.jpg", "neutral/1.jpg")
    source = read_source(tmp_path)
    assert source.notes[1] == "Numbered as efficientface: so train has the published counts of RAF-DB."
    assert source.notes[-1] == (
        "Not as published for RAF-DB: train 12,271; test 0, published 3,068 (happiness 0, published 1,185)."
    )
    assert Counter(source.rows.label) == counts

    # a copy that lacks one: its numbers need an order, and then it is told what is missing
    table.drop(0).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(FerError, match="the order of integer labels is unknown"):
        read_source(tmp_path)
    assert read_source(tmp_path, classes=["efficientface"]).notes[-1] == (
        "Not as published for RAF-DB: train 12,270, published 12,271 (neutral 2,523, published 2,524); "
        "test 0, published 3,068 (happiness 0, published 1,185)."
    )
    table.iloc[1:].to_csv(tmp_path / "labels.csv", index=False)
    assert "the order of integer labels is unknown" in refusal(tmp_path)


def test_published_counts_add_up():
    assert sum(RAF_DB_BASIC.labels["train"].values()) == 12271
    assert sum(RAF_DB_BASIC.labels["test"].values()) == 3068
    train = AFFECTNET_COUNTS.labels["train"]
    assert sum(train.values()) - train["contempt"] == 283901  # the paper's AffectNet-7
    assert [sum(FER_2013.labels[split].values()) for split in ("train", "val", "test")] == [28709, 3589, 3589]


# --- CAER-S, FED-RO ---------------------------------------------------------------------------------------------


def test_caer_s(tmp_path):
    folders = ["Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"]
    put(tmp_path, *(f"{split}/{name}/0001.png" for split in ("train", "test") for name in folders))
    source = read_source(tmp_path)
    assert (source.layout, source.classes) == ("caer-s", SEVEN)
    assert column(source, "split") == ["test"] * 7 + ["train"] * 7
    assert column(source, "label")[:2] == ["anger", "disgust"]
    assert source.notes[1:] == (
        "CAER-S has whole film frames, and its authors do not say whose face is meant in a group.",
        "Not as published for CAER-S: train 7, published 48,995; test 7, published 20,987.",
    )


def test_fed_ro_is_all_for_testing(tmp_path):
    put(tmp_path, *(f"{name}/occ_img_{k}.jpg" for k, name in enumerate(["anger", "happy", "neural", "sad"])))
    source = read_source(tmp_path)
    assert (source.layout, source.classes) == ("fed-ro", ("neutral", "happiness", "sadness", "anger"))
    assert column(source, "split") == ["test"] * 4
    assert source.notes[-1] == "Not as published for FED-RO: test 4, published 400."


# --- FER2013 ----------------------------------------------------------------------------------------------------


def pixel_text(seed, side=48):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)
    return pixels, " ".join(map(str, pixels.ravel()))


USAGES = ["Training", "Training", "PublicTest", "PrivateTest"]


@pytest.mark.parametrize(
    ("name", "header"),
    [("fer2013.csv", "emotion,pixels,Usage"), ("icml_face_data.csv", "emotion, Usage, pixels")],
)
def test_fer2013_pixels_come_out_as_they_went_in(tmp_path, name, header):
    cells = [{"emotion": k, "pixels": pixel_text(k)[1], "Usage": USAGES[k]} for k in range(4)]
    order = [column.strip() for column in header.split(",")]
    rows = "\n".join(",".join(str(row[column]) for column in order) for row in cells)
    table = write(tmp_path / name, f"{header}\n{rows}\n")
    for path in (tmp_path, table):
        source = read_source(path)
        assert (source.layout, source.root) == ("fer2013", tmp_path)
        assert column(source, "file") == [f"{name}/{k}" for k in range(4)]
        assert column(source, "label") == ["anger", "disgust", "fear", "happiness"]
        assert column(source, "split") == ["train", "train", "val", "test"]
    for k, file in enumerate(column(source, "file")):
        picture = decode_photo(source.photos.read(file))
        assert np.array_equal(picture, np.repeat(pixel_text(k)[0][..., None], 3, axis=2))
    assert len({source.photos.mark(file) for file in column(source, "file")}) == 4


def test_fer2013_in_two_tables_of_which_one_has_no_labels(tmp_path):
    write(tmp_path / "train.csv", f"emotion,pixels\n6,{pixel_text(0)[1]}\n0,{pixel_text(1)[1]}\n")
    write(tmp_path / "test.csv", f"pixels\n{pixel_text(2)[1]}\n")
    source = read_source(tmp_path)
    assert column(source, "file") == ["train.csv/0", "train.csv/1", "test.csv/0"]
    assert column(source, "label") == ["neutral", "anger", None]
    assert column(source, "split") == ["train", "train", "test"]


def test_fer2013_with_damaged_rows(tmp_path):
    table = write(
        tmp_path / "fer2013.csv", "emotion,pixels,Usage\n0,1 2 3 4,Training\n1,1 2 3,Training\n2,1 2 3 256,T\n"
    )
    source = read_source(tmp_path)
    assert "Damaged pixels: 2 images." in source.notes
    assert decode_photo(source.photos.read("fer2013.csv/0"))[..., 0].tolist() == [[1, 2], [3, 4]]
    for row in (1, 2):
        with pytest.raises(Unreadable, match=re.escape("damaged (not the numbers 0 to 255 of a square picture)")):
            source.photos.read(f"fer2013.csv/{row}")
    write(table, "emotion,pixels,Usage\n0,1 2 3 4,Training\n9,1 2 3 4,Training\n")
    assert refusal(tmp_path) == (
        f"{table}: 1 row with an emotion that FER2013 does not have (first row 1: '9'); they are 0 to 6"
    )
    write(table, "emotion,pixels,Usage\n0,1 2 3 4\n")
    assert refusal(tmp_path).startswith(f"{table} is not a well-formed table: ")


def test_fer2013_in_class_folders_keeps_the_releases_splits(tmp_path):
    put(tmp_path, "train/angry/Training_10.jpg", "train/happy/Training_3.jpg")
    put(tmp_path, "test/angry/PrivateTest_1.jpg", "test/happy/PublicTest_2.jpg")
    source = read_source(tmp_path)
    assert source.layout == "fer2013"
    assert column(source, "file")[:2] == ["test/angry/PrivateTest_1.jpg", "test/happy/PublicTest_2.jpg"]
    assert column(source, "split") == ["test", "val", "train", "train"]
    assert column(source, "label") == ["anger", "happiness", "anger", "happiness"]


def test_what_is_not_fer2013_is_refused(tmp_path):
    put(tmp_path, "sad/1.jpg")
    assert refusal(tmp_path, layout="fer2013") == (
        f"{tmp_path} is not FER2013: no CSV with a column pixels is in it, and no class folders of it"
    )


def test_ferplus_out_of_the_two_tables(tmp_path):
    """Without the images that the release's script writes: row by row, though names skip rows and occur twice."""
    usages = ["Training", "Training", "Training", "PublicTest", "PrivateTest"]
    names = ["fer0000000.png", "", "fer0000001.png", "fer0028637.png", "fer0032220.png"]
    rows = "\n".join(f"0,{pixel_text(k)[1]},{usage}" for k, usage in enumerate(usages))
    write(tmp_path / "fer2013.csv", f"emotion,pixels,Usage\n{rows}\n")
    votes = "\n".join(
        f"{usage},{name},{'0,10,0,0,0,0,0,0,0,0' if name else '0,0,0,0,0,0,0,0,0,10'}"
        for usage, name in zip(usages, names, strict=True)
    )
    table = write(tmp_path / "fer2013new.csv", f"Usage,Image name,{','.join(FERPLUS_COLUMNS)}\n{votes}\n")
    source = read_source(tmp_path)
    assert source.layout == "ferplus"
    assert column(source, "file") == [
        "FER2013Train/fer0000000.png",
        "FER2013Train/fer0000001.png",
        "FER2013Valid/fer0028637.png",
        "FER2013Test/fer0032220.png",
    ]
    assert column(source, "split") == ["train", "train", "val", "test"]
    with pytest.raises(Unreadable, match="does not exist"):
        source.photos.read("FER2013Train/fer9999999.png")  # as label.csv might name one that is not in the tables
    picture = decode_photo(source.photos.read("FER2013Train/fer0000001.png"))
    assert np.array_equal(picture[..., 0], pixel_text(2)[0])
    write(table, table.read_text().rsplit("\n", 2)[0] + "\n")
    assert refusal(tmp_path) == (
        f"{tmp_path / 'fer2013.csv'} has 5 rows and fer2013new.csv 4; "
        "they go together row by row, so give both complete"
    )


def test_the_documentation_names_every_layout_and_every_set_of_classes():
    text = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text()
    for name in (*LAYOUTS, *CLASS_SETS):
        assert f"\n| `{name}` |" in text
    for published in PUBLISHED:
        numbers = [sum(counts.values()) for counts in published.labels.values()] or published.images.values()
        assert all(f"{number:,}" in text for number in numbers), published.name


# --- Hugging Face -----------------------------------------------------------------------------------------------


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return pixels, data.getvalue()


def write_parquet(path, images, row_group_size=2, metadata=None, **columns):
    """A table as `datasets` writes it, by hand: struct column `image`, other columns as given."""
    struct = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": struct, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path


def test_pictures_inside_parquet(tmp_path):
    features = '{"info": {"features": {"label": {"names": ["Happy", "sad", "angry"], "_type": "ClassLabel"}}}}'
    images = [
        {"bytes": png(k)[1], "path": name} for k, name in enumerate(["a.png", "/home/x/b.png", None, "..", "e.png"])
    ]
    write_parquet(
        tmp_path / "data/train-00000-of-00001.parquet",
        images,
        metadata={"huggingface": features},
        label=[0, 1, -1, 2, 1],
    )
    write_parquet(
        tmp_path / "data/validation-00000-of-00001.parquet",
        [{"bytes": None, "path": "gone.png"}],
        metadata={"huggingface": features},
        label=[0],
    )
    source = read_source(tmp_path)
    assert (source.layout, source.classes) == ("huggingface", ("happiness", "sadness", "anger"))
    train = "data/train-00000-of-00001.parquet"
    assert column(source, "file") == [
        f"{train}/0/a.png",
        f"{train}/1/b.png",
        f"{train}/2",
        f"{train}/3",
        f"{train}/4/e.png",
        "data/validation-00000-of-00001.parquet/0/gone.png",
    ]
    assert column(source, "label") == ["happiness", "sadness", None, "anger", "sadness", "happiness"]
    assert column(source, "split") == ["train"] * 5 + ["val"]
    assert "The images are inside 2 Parquet files." in source.notes
    for k, file in reversed(list(enumerate(column(source, "file")[:5]))):
        assert np.array_equal(decode_photo(source.photos.read(file)), png(k)[0])
    with pytest.raises(Unreadable, match="no bytes in the table"):
        source.photos.read(column(source, "file")[5])
    for name in (f"{train}/5", f"{train}/-1", f"{train}/²", train, "0", f"other/{train}/0/a.png", f"{train}/0/a/b"):
        assert source.photos.mark(name) is None
        with pytest.raises(Unreadable, match="does not exist"):
            source.photos.read(name)


@pytest.mark.parametrize("name", ["parquet", ".parquet", "x.PARQUET"])
def test_pictures_inside_a_file_that_is_called_parquet(name, tmp_path):
    write_parquet(
        tmp_path / name, [{"bytes": png(k)[1], "path": "a.png"} for k in range(3)], label=["sad", "fear", "sad"]
    )
    source = read_source(tmp_path / name)
    assert column(source, "file") == [f"{name}/{k}/a.png" for k in range(3)]
    for k, file in enumerate(column(source, "file")):
        assert np.array_equal(decode_photo(source.photos.read(file)), png(k)[0])


def test_a_table_of_which_columns_differ_in_length_is_refused(tmp_path, monkeypatch):
    write_parquet(tmp_path / "t.parquet", [{"bytes": png(0)[1]}] * 3, label=["sad", "fear", "sad"])
    monkeypatch.setattr(huggingface, "_names", lambda *args: iter(["t.parquet/0", "t.parquet/1"]))
    assert refusal(tmp_path) == (
        f"{tmp_path / 't.parquet'} is a damaged Parquet file (its columns differ in length); write it again"
    )


def test_a_small_table_that_unfolds_to_gigabytes_is_refused(tmp_path):
    """A text of 10,000 bytes that a dictionary holds once, in 100,000 rows."""
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["n" * 10_000]))
    pq.write_table(pa.table({"path": words, "label": ["sad"] * 100_000}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    assert refusal(tmp_path) == (
        f"{tmp_path / 't.parquet'} is a damaged Parquet file (it unfolds to more than 67,108,864 bytes, which its size "
        "does not justify); write it again"
    )


def test_pictures_inside_one_parquet_file_with_names_splits_and_votes(tmp_path):
    images = [{"bytes": png(k)[1], "path": f"{k}.png"} for k in range(3)]
    table = write_parquet(
        tmp_path / "faces.parquet",
        images,
        label=["Happy", "sad", "sad"],
        split=["train", None, "test"],
        group=["ann", "bob", "ann"],
        happy=[7, 1, 0],
        sad=[3, 9, 10],
    )
    source = read_source(table)
    assert (source.layout, source.root) == ("huggingface", tmp_path)
    assert column(source, "file") == ["faces.parquet/0/0.png", "faces.parquet/1/1.png", "faces.parquet/2/2.png"]
    assert column(source, "split") == ["train", None, "test"]
    assert column(source, "group") == ["ann", "bob", "ann"]
    assert np.array_equal(column(source, "votes"), [[7, 3], [1, 9], [0, 10]])


def test_integer_labels_in_parquet_without_names_need_an_order(tmp_path):
    images = [{"bytes": png(k)[1], "path": None} for k in range(2)]
    table = write_parquet(tmp_path / "train.parquet", images, label=[1, 7])
    assert "the order of integer labels is unknown" in refusal(table)
    assert column(read_source(table, classes=["raf-db"]), "label") == ["surprise", "neutral"]


def test_parquet_with_pictures_that_do_not_fit_is_refused(tmp_path):
    image = [{"bytes": png(0)[1], "path": None}]
    features = '{"info": {"features": {"label": {"names": ["happy", "sad"], "_type": "ClassLabel"}}}}'
    first = write_parquet(tmp_path / "a.parquet", image, metadata={"huggingface": features}, label=[2])
    assert refusal(first) == f"{first}: 1 label outside its 2 class names (first 2)"
    second = write_parquet(tmp_path / "b.parquet", image, emotion=["sad"])
    assert refusal(tmp_path) == f"{second} has other columns than {first}; give one data set at a time"
    bare = write_parquet(tmp_path / "bare/c.parquet", image * 2)
    assert refusal(bare) == (
        f"{bare} labels none of its 2 images; put them into class folders, or give a table with their labels"
    )
    put(tmp_path / "empty", "1.jpg", "folder.parquet/2.jpg")
    assert refusal(tmp_path / "empty", layout="huggingface") == (
        f"{tmp_path / 'empty'} holds no Parquet file with a column of images (structs of bytes and path)"
    )


@pytest.mark.slow
def test_what_the_datasets_library_writes_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["sad", "happy"])})
    rows = {"image": [{"bytes": png(k)[1], "path": f"{k}.png"} for k in range(4)], "label": [0, 1, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    source = read_source(tmp_path)
    assert column(source, "label") == ["sadness", "happiness", "happiness", "sadness"]
    assert column(source, "split") == ["test"] * 4
    assert np.array_equal(decode_photo(source.photos.read(column(source, "file")[3])), png(3)[0])


# --- Hugging Face's ImageFolder ------------------------------------------------------------------------------------


def test_metadata_beside_the_images_of_each_split(tmp_path):
    put(tmp_path, "train/a.jpg", "train/b.jpg", "test/sub/a.jpg", "test/c.jpg")
    write(tmp_path / "train/metadata.csv", "file_name,label\na.jpg,happy\nb.jpg,sad\n")
    lines = '{"file_name": "sub/a.jpg", "label": "sad"}\n\n{"label": null, "file_name": "c.jpg", "other": 1}\n'
    write(tmp_path / "test/metadata.jsonl", lines)
    source = read_source(tmp_path)
    assert source.layout == "imagefolder"
    assert list(zip(*(column(source, name) for name in ("file", "label", "split")), strict=True)) == [
        ("test/sub/a.jpg", "sadness", "test"),
        ("test/c.jpg", None, "test"),
        ("train/a.jpg", "happiness", "train"),
        ("train/b.jpg", "sadness", "train"),
    ]
    write(tmp_path / "test/metadata.jsonl", '{"file_name": "../train/a.jpg", "label": "sad"}')
    assert "1 path may lead out of its folder" in refusal(tmp_path)
    write(tmp_path / "test/metadata.jsonl", '{"file_name": "c.jpg", "fear": 3, "sad": 1}')
    assert refusal(tmp_path) == (
        f"{tmp_path}/train/metadata.csv has the columns file_name and label, and the table of another split others; "
        "name them alike"
    )
    write(tmp_path / "test/metadata.csv", "file_name,label\nc.jpg,sad\n")
    assert refusal(tmp_path) == (f"{tmp_path}/test holds 2 tables, metadata.csv and metadata.jsonl; keep one of them")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "no object"),
        ('{"path": {"a": 1}}', "column path holds more than a text or a number"),
        ('{"path": "' + "a" * 2**20 + '"}', "longer than 1,048,576 bytes"),
        ('{"path": "a.jpg"', "Expecting ',' delimiter: line 1 column 17 (char 16)"),
    ],
)
def test_lines_that_are_no_rows_are_told(line, reason, tmp_path):
    put(tmp_path, "a.jpg")
    table = write(tmp_path / "labels.jsonl", '{"path": "a.jpg", "label": "sad"}\n' + line)
    assert refusal(table) == (f"{table} has no row in line 2 ({reason}); write an object of JSON an image")
