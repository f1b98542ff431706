"""Readers of labelled photographs. They open tables only, so the photographs here are empty files."""

import os
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from small_sources import column, put, refusal, write

from efficientface import FerError
from efficientface.data.layouts.ferplus import FERPLUS_COLUMNS, ferplus_distribution, ferplus_majority
from efficientface.data.sources import Rows, read_source
from efficientface.data.splits import assign_splits
from efficientface.data.words import Words

ORDERS = (
    "raf-db, raf-db-compound, raf-db-from-0, efficientface, affectnet-7, affectnet-8, caer-s, fer2013, ferplus, "
    "emotiefflib-8, py-feat or apvit"
)


# --- class folders ---


def test_class_folders_give_labels_in_our_order_and_no_split(tmp_path):
    put(tmp_path, "Angry/2.PNG", "Angry/deep/er/1.jpg", "happy/1.jpeg", "happy/note.txt", "neural/1.webp")
    source = read_source(tmp_path)
    assert (source.root, source.layout) == (tmp_path, "folders")
    assert source.classes == ("neutral", "happiness", "anger")
    assert column(source, "file") == ["Angry/2.PNG", "Angry/deep/er/1.jpg", "happy/1.jpeg", "neural/1.webp"]
    assert column(source, "label") == ["anger", "anger", "happiness", "neutral"]
    for name in ("split", "group", "votes", "votes_other"):
        assert column(source, name) == [None] * 4
    assert source.notes == (f"Read {tmp_path} as layout folders: 4 images, 3 classes.",)


def test_split_folders_may_lie_above_class_folders(tmp_path):
    put(tmp_path, "train/sad/1.jpg", "Valid/fear/1.jpg", "test/sad/1.jpg", "test/fear/x/1.jpg")
    source = read_source(tmp_path)
    assert column(source, "file") == ["Valid/fear/1.jpg", "test/fear/x/1.jpg", "test/sad/1.jpg", "train/sad/1.jpg"]
    assert column(source, "split") == ["val", "test", "test", "train"]
    assert column(source, "label") == ["fear", "fear", "sadness", "sadness"]


def test_images_without_a_class_folder_have_no_label(tmp_path):
    put(tmp_path, "1.jpg", "test/2.jpg", "sad/3.jpg", "fear/4.jpg", "unknown/5.jpg", "Non-Face/6.jpg")
    source = read_source(tmp_path)
    labels = dict(zip(column(source, "file"), column(source, "label"), strict=True))
    assert [name for name, label in labels.items() if label is None] == [
        "1.jpg",
        "Non-Face/6.jpg",
        "test/2.jpg",
        "unknown/5.jpg",
    ]
    assert "Without a label: 4 images of 6." in source.notes


def test_hidden_files_are_passed_over_and_other_oddities_are_counted(tmp_path):
    outside = put(tmp_path / "elsewhere", "sad/secret.jpg")
    root = put(tmp_path / "photos", "sad/1.jpg", "fear/1.jpg", "sad/._1.jpg", ".cache/sad/1.jpg", "sad/dir.jpg/2.jpg")
    os.mkfifo(root / "fear/pipe.png")
    os.symlink(outside / "sad/secret.jpg", root / "sad/link.jpg")
    os.symlink(outside / "sad", root / "anger")
    os.symlink(root / "sad", root / "fear/again")
    os.symlink(root / "sad/1.jpg", root / "fear/same.jpg")
    source = read_source(root)
    assert column(source, "file") == ["fear/1.jpg", "fear/same.jpg", "sad/1.jpg"]
    assert source.notes[1:] == (
        f"Ignored below {root}: 2 x link that leads out of the source, 1 x link to a folder of the source, "
        "2 x non-file named like an image.",
    )


def test_names_that_are_not_utf8_are_kept(tmp_path):
    put(tmp_path, "sad/1.jpg", "fear/" + os.fsdecode(b"\xff.jpg"))
    assert os.fsencode(column(read_source(tmp_path), "file")[0]) == b"fear/\xff.jpg"


def test_numbered_class_folders_need_the_names_in_order(tmp_path):
    put(tmp_path, "train/0/a.jpg", "train/1/b.jpg", "train/1/c.jpg")
    assert refusal(tmp_path) == (
        f"{tmp_path}: label '0' of 1 image (first train/0/a.jpg; 1 other label too): the order of integer labels "
        "is unknown; give --classes with the class names in that order, beginning with the name of 0, "
        f"or one of {ORDERS}"
    )
    source = read_source(tmp_path, classes=["surprise", "Happy"])
    assert source.classes == ("happiness", "surprise")
    assert column(source, "label") == ["surprise", "happiness", "happiness"]
    put(tmp_path, "train/2/d.jpg")
    assert refusal(tmp_path, classes=["surprise", "happy"]) == (
        f"{tmp_path}: label '2' of 1 image (first train/2/d.jpg): integer labels must lie between 0 and 1, "
        "as --classes has 2 names"
    )


def test_an_integer_may_stand_for_no_expression(tmp_path):
    put(tmp_path, "0/a.jpg", "1/b.jpg", "2/c.jpg")
    source = read_source(tmp_path, classes=["fear", "none", "sad"])
    assert source.classes == ("sadness", "fear")
    assert column(source, "label") == ["fear", None, "sadness"]


def test_own_classes_stand_behind_ours(tmp_path):
    put(tmp_path, "bored/1.jpg", "Deep_Thought/1.jpg", "happy/1.jpg", "sad/1.jpg")
    assert refusal(tmp_path) == (
        f"{tmp_path}: label 'Deep_Thought' of 1 image (first Deep_Thought/1.jpg; 1 other label too) is no known "
        "expression; give --classes with the names of all classes"
    )
    source = read_source(tmp_path, classes=["deep thought", "Bored", "happy"])
    assert source.classes == ("happiness", "deep thought", "Bored")
    assert column(source, "label") == ["deep thought", "Bored", "happiness", None]
    assert "Label left out as not among --classes: 1 image of sadness." in source.notes


def test_sources_that_cannot_be_used_are_refused_in_a_sentence(tmp_path):
    wanted = "give a folder of photographs or a table that names them"
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist; {wanted}"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(empty) == f"{empty} is an empty folder; {wanted}"
    bare = put(tmp_path / "bare", "sad/readme.txt", "sad/x.jpg/inner.png")
    assert refusal(bare) == (
        f"{bare} holds no images (jpg, jpeg, png, bmp, webp, tif, tiff) (1 x non-file named like an image); "
        "give the folder that holds them"
    )
    lone = put(tmp_path / "lone", "sad/1.jpg", "unknown/2.jpg")
    assert refusal(lone) == f"{lone} has the one class sadness; two or more are needed to learn from"
    plain = put(tmp_path / "plain", "1.jpg", "2.jpg")
    assert refusal(plain) == (
        f"{plain} labels none of its 2 images; put them into class folders, or give a table with their labels"
    )
    text = write(tmp_path / "notes.txt", "hello")
    assert (
        refusal(text) == f"{text} is no table of photographs; give a .csv, .tsv, .parquet or .jsonl file, or a folder"
    )


def test_options_that_mean_nothing_are_refused(tmp_path):
    put(tmp_path, "sad/1.jpg", "fear/1.jpg")
    assert refusal(tmp_path, layout="tree") == (
        "'tree' is not a layout; give one of raf-db, raf-db-compound, affectnet, affectnet-2021, ferplus, fer2013, "
        "caer-s, fed-ro, huggingface, imagefolder, table, folders or identities"
    )
    assert refusal(tmp_path, label_rule="mean") == "'mean' is not a rule for labels; give one of majority or votes"
    assert refusal(tmp_path, classes=["sad", "Sadness", "fear"]) == "--classes names a class twice: sad, Sadness, fear"
    assert refusal(tmp_path, classes=["sad", "none"]) == "--classes must name two classes or more, not 1"


def test_a_layout_that_does_not_fit_is_refused(tmp_path):
    put(tmp_path, "sad/1.jpg", "fear/1.jpg")
    assert refusal(tmp_path, layout="ferplus") == (
        f"{tmp_path} is not the FER+ release: it has none of the folders FER2013Train, FER2013Valid, FER2013Test"
    )
    assert refusal(tmp_path, layout="table") == (
        f"{tmp_path} holds no table; layout table needs a .csv, .tsv, .parquet or .jsonl file in it"
    )
    table = write(tmp_path / "t.csv", "file,label\nsad/1.jpg,sad\n")
    assert refusal(table, layout="folders") == f"{table} is a file; layout folders reads a folder of class folders"


# --- tables ---


@pytest.mark.parametrize("path_column", ["path", "file", "file_name", "Image"])
@pytest.mark.parametrize("label_column", ["label", "emotion", " Expression"])
def test_a_table_names_files_and_labels(tmp_path, path_column, label_column):
    put(tmp_path, "a/1.jpg", "2.gif")
    table = write(tmp_path / "t.csv", f"{path_column},{label_column}\na/1.jpg,Happy\n./2.gif,sad\n")
    source = read_source(table)
    assert (source.root, source.layout, source.classes) == (tmp_path, "table", ("happiness", "sadness"))
    assert column(source, "file") == ["a/1.jpg", "2.gif"]
    assert column(source, "label") == ["happiness", "sadness"]
    assert column(source, "split") == [None, None]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_byte_order_mark_and_windows_lines_are_understood(tmp_path, separator):
    put(tmp_path, "1.jpg", "2.jpg")
    rows = [["file", "label", "split", "group"], ["1.jpg", '"sad"', "Validation", "ann"], ["2.jpg", "fear", "", ""]]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = read_source(tmp_path / "t.csv")
    assert column(source, "label") == ["sadness", "fear"]
    assert column(source, "split") == ["val", None]
    assert column(source, "group") == ["ann", None]


def test_a_folder_is_read_by_the_table_in_it_with_paths_from_images(tmp_path):
    put(tmp_path, "images/1.jpg", "images/2.jpg", "images/more.jpg", "other/more.png")
    write(tmp_path / "labels.csv", "image,emotion,split\n2.jpg,fear,train\n1.jpg,sad,test\n3.jpg,sad,pilot\n")
    source = read_source(tmp_path)
    assert column(source, "file") == ["images/2.jpg", "images/1.jpg", "images/3.jpg"]
    assert column(source, "split") == ["train", "test", "pilot"]
    assert source.notes == (
        f"Read {tmp_path / 'labels.csv'} as layout table: 3 images, 2 classes.",
        f"Missing: 1 image that {tmp_path / 'labels.csv'} names (first images/3.jpg).",
        f"Left out: 2 images that {tmp_path / 'labels.csv'} does not name.",
    )
    assert column(read_source(tmp_path / "labels.csv"), "file") == column(source, "file")


def test_empty_labels_and_names_for_none_are_no_label(tmp_path):
    files = [f"{i}.jpg" for i in range(6)]
    put(tmp_path, *files)
    labels = ["sad", "", "NaN", "Uncertain", " NF ", "fear"]
    pd.DataFrame({"file": files, "label": labels}).to_csv(tmp_path / "t.csv", index=False)
    assert column(read_source(tmp_path / "t.csv"), "label") == ["sadness", None, None, None, None, "fear"]


def test_a_parquet_table_reads_like_the_same_csv(tmp_path):
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    frame = pd.DataFrame(
        {
            "path": ["1.jpg", "2.jpg", "3.jpg"],
            "label": pd.Categorical(["sad", None, "fear"]),
            "group": [7, 7, 8],
            "fear": [0, 1, 9],
            "sad": [10, 2, 1],
            "NF": [0, 7, 0],
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    from_csv, from_parquet = read_source(tmp_path / "t.csv"), read_source(tmp_path / "t.parquet")
    assert column(from_parquet, "label") == ["sadness", None, "fear"]
    assert column(from_parquet, "group") == ["7", "7", "8"]
    assert np.array_equal(column(from_parquet, "votes"), [[10, 0], [2, 1], [1, 9]])
    assert np.array_equal(column(from_parquet, "votes_other"), [[0, 0], [0, 7], [0, 0]])
    for name in ("file", "label", "split", "group", "box"):
        assert column(from_csv, name) == column(from_parquet, name)
    for name in ("votes", "votes_other"):
        assert np.array_equal(column(from_csv, name), column(from_parquet, name))


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_integer_labels_in_parquet_follow_the_given_order(tmp_path, dtype):
    put(tmp_path, "1.jpg", "2.jpg")
    pd.DataFrame({"path": ["1.jpg", "2.jpg"], "label": pd.Series([1, 0], dtype=dtype)}).to_parquet(
        tmp_path / "t.parquet"
    )
    assert column(read_source(tmp_path / "t.parquet", classes=["sad", "fear"]), "label") == ["fear", "sadness"]


def test_votes_become_labels_by_the_rule(tmp_path):
    votes = {"1.jpg": "6,4,0", "2.jpg": "5,5,0", "3.jpg": "4,3,3", "4.jpg": "1,2,7", "5.jpg": "0,0,0"}
    put(tmp_path, *votes)
    rows = "\n".join(f"{file},{counts}" for file, counts in votes.items())
    table = write(tmp_path / "t.csv", f"file,happiness,sadness,unknown\n{rows}\n")
    majority, most = read_source(table), read_source(table, label_rule="votes")
    assert column(majority, "label") == ["happiness", None, None, None, None]
    assert column(most, "label") == ["happiness", None, "happiness", None, None]
    assert np.array_equal(column(majority, "votes"), [[6, 4], [5, 5], [4, 3], [1, 2], [0, 0]])
    assert majority.rows.votes.dtype == np.float32
    assert np.array_equal(column(majority, "votes_other"), [[0, 0], [0, 0], [3, 0], [7, 0], [0, 0]])
    assert majority.notes[-1] == (
        "The label is the class that has more than half of the votes; where there is none, no label."
    )


def test_a_label_column_goes_before_votes_and_classes_come_from_both(tmp_path):
    put(tmp_path, "1.jpg", "2.jpg")
    table = write(tmp_path / "t.csv", "file,label,sad,fear\n1.jpg,anger,9,1\n2.jpg,fear,8,2\n")
    source = read_source(table)
    assert source.classes == ("sadness", "fear", "anger")
    assert column(source, "label") == ["anger", "fear"]
    assert np.array_equal(column(source, "votes"), [[9, 1, 0], [8, 2, 0]])
    assert column(source, "votes_other") == [None, None]
    narrower = read_source(table, classes=["fear", "anger"])
    assert np.array_equal(column(narrower, "votes"), [[1, 0], [2, 0]])
    assert "Votes left out as not among --classes: sad." in narrower.notes


def test_a_table_without_a_needed_column_is_refused(tmp_path):
    put(tmp_path, "1.jpg")
    table = write(tmp_path / "t.csv", "name,label\n1.jpg,sad\n")
    assert refusal(tmp_path) == (
        f"{table} has no column with the images' paths: found name, label; "
        "name it one of path, file, file_name or image"
    )
    write(table, "file,feeling,fear\n1.jpg,sad,2\n")
    assert refusal(table) == (
        f"{table} has neither labels nor votes: found file, feeling, fear; name a label column one of label, "
        "emotion or expression, or give one column of votes a class"
    )


@pytest.mark.parametrize(
    ("header", "thing", "names"),
    [
        ("file,path,label", "path", "file, path"),
        ("file,label,emotion", "label", "label, emotion"),
        ("file,file,label", "path", "file, file"),
        ("file,happy,Happiness,sad", "votes for happiness", "happy, Happiness"),
    ],
)
def test_two_columns_for_one_thing_are_refused(tmp_path, header, thing, names):
    table = write(tmp_path / "t.csv", f"{header}\n{','.join('1' * len(header.split(',')))}\n")
    assert refusal(table) == f"{table} has 2 columns for the {thing}: {names}; keep one of them"


@pytest.mark.parametrize("path", ["../1.jpg", "a/../../1.jpg", "/etc/1.jpg", r"..\1.jpg", r"C:\1.jpg"])
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path, path):
    put(tmp_path, "1.jpg", "data/2.jpg")
    table = write(tmp_path / "data/t.csv", f"file,label\n2.jpg,sad\n{path},fear\n")
    assert refusal(table) == (
        f"{table}: 1 path may lead out of its folder (first {path}); give paths below it, without `..`"
    )


def test_named_images_behind_links_that_lead_out_are_refused(tmp_path):
    root = put(tmp_path / "in", "1.jpg")
    outside = put(tmp_path / "out", "2.jpg", "3.jpg")
    os.symlink(outside / "2.jpg", root / "2.jpg")
    os.symlink(outside, root / "linked")
    table = write(root / "t.csv", "file,label\n1.jpg,sad\n2.jpg,fear\nlinked/3.jpg,fear\n")
    assert refusal(table) == (
        f"{table} names 2 images behind links that lead out of {root} (first 2.jpg); copy them into it"
    )


def test_an_image_named_twice_is_refused(tmp_path):
    put(tmp_path, "1.jpg", "2.jpg")
    table = write(tmp_path / "t.csv", "file,label\n1.jpg,sad\n2.jpg,fear\n./2.jpg,sad\n1.jpg,sad\n")
    assert refusal(table) == f"{table} names 2 images again (first 2.jpg); keep one row an image"


def test_rows_without_a_path_are_refused(tmp_path):
    put(tmp_path, "1.jpg")
    table = write(tmp_path / "t.csv", "file,label\n1.jpg,sad\n,fear\n")
    assert refusal(table) == f"{table}: 1 row without a path (first row 2); fill or delete"


def test_a_table_whose_images_are_all_missing_is_refused(tmp_path):
    table = write(tmp_path / "t.csv", "file,label\n1.jpg,sad\n2.jpg,fear\n")
    assert refusal(table) == (
        f"{table} names 2 images, and none is there (first 1.jpg); put them where it says, relative to its folder"
    )


@pytest.mark.parametrize("bad", ["-1", "many", "", "nan", "inf"])
def test_votes_must_be_numbers_of_0_or_more(tmp_path, bad):
    put(tmp_path, "1.jpg", "2.jpg")
    table = write(tmp_path / "t.csv", f"file,sad,fear\n1.jpg,1,2\n2.jpg,3,{bad}\n")
    assert refusal(table) == (
        f"{table}: 1 row with votes that are no numbers of 0 or more (first 2.jpg: fear {bad!r}); correct them"
    )


def test_unknown_labels_are_counted_by_name(tmp_path):
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    table = write(tmp_path / "t.csv", "file,label\n1.jpg,sad\n2.jpg,bored\n3.jpg,bored\n")
    assert refusal(table) == (
        f"{table}: label 'bored' of 2 images (first 2.jpg) is no known expression; "
        "give --classes with the names of all classes"
    )
    write(table, "file,label\n1.jpg,3\n2.jpg,0\n3.jpg,3\n")
    assert refusal(table) == (
        f"{table}: label '3' of 2 images (first 1.jpg; 1 other label too): the order of integer labels is "
        f"unknown; give --classes with the class names in that order, beginning with the name of 0, or one of {ORDERS}"
    )


def test_several_tables_in_a_folder_are_refused_by_name(tmp_path):
    put(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "b.csv", "file,label\n1.jpg,sad\n2.jpg,fear\n")
    write(tmp_path / "a.tsv", "file\tlabel\n1.jpg\tsad\n2.jpg\tfear\n")
    write(tmp_path / "log.csv", "epoch,loss\n")
    write(tmp_path / "damaged.csv", "")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds 2 tables, a.tsv and b.csv; give the path of one of them as the source"
    )
    (tmp_path / "a.tsv").unlink()
    assert column(read_source(tmp_path), "label") == ["sadness", "fear"]


def test_a_stray_table_does_not_hide_class_folders(tmp_path):
    put(tmp_path, "sad/1.jpg", "fear/1.jpg")
    write(tmp_path / "log.csv", "epoch,loss\n0,1.5\n")
    assert read_source(tmp_path).layout == "folders"


def test_damaged_tables_are_refused(tmp_path):
    table = tmp_path / "t.csv"
    table.write_bytes("file,label,été\n".encode("latin-1"))
    assert refusal(table) == f"{table} is not UTF-8 text; save it as CSV in UTF-8"
    write(table, "")
    assert refusal(table) == f"{table} begins with an empty line; its first line must name the columns"
    write(table, "file,label\n")
    assert refusal(table) == f"{table} has no rows; it needs one an image"
    write(table, "file,label\n1.jpg,sad\n2.jpg\n")
    assert refusal(table) == f"{table} is not a well-formed table: Row #3: Expected 2 columns, got 1: 2.jpg"
    table.write_bytes("file,label\n1.jpg,été\n".encode("latin-1"))
    assert refusal(table) == (
        f"{table} is not a well-formed table: In CSV column #1: Row #2: "
        "CSV conversion error to string: invalid UTF8 data"
    )
    parquet = write(tmp_path / "t.parquet", "not parquet")
    assert refusal(parquet) == f"{parquet} is no Parquet file, or a damaged one; write it again"
    pd.DataFrame({"image": [b"\xff\xd8"], "label": ["sad"]}).to_parquet(parquet)
    assert refusal(parquet) == (
        f"{parquet}: column image holds binary; text or numbers are needed, and paths for images"
    )


# --- FER+ ---

# votes for neutral happiness surprise sadness anger disgust fear contempt unknown NF, worked by hand:
# (votes, label by majority, distribution)
WORKED = {
    "all agree": ([0, 10, 0, 0, 0, 0, 0, 0, 0, 0], "happiness", {"happiness": 1}),
    "4 of 9 after the outlier": ([4, 0, 0, 1, 3, 2, 0, 0, 0, 0], None, {"neutral": 4 / 7, "anger": 3 / 7}),
    "outliers gone, 5 of 5": ([5, 1, 1, 1, 1, 0, 0, 0, 1, 0], "neutral", {"neutral": 1}),
    "exactly half": ([5, 0, 0, 5, 0, 0, 0, 0, 0, 0], None, {"neutral": 0.5, "sadness": 0.5}),
    "6 of 10 is under 75 %": ([0, 0, 6, 0, 0, 0, 4, 0, 0, 0], "surprise", {"surprise": 0.6, "fear": 0.4}),
    "8 of 10 is over 75 %": ([0, 0, 8, 0, 0, 0, 2, 0, 0, 0], "surprise", {"surprise": 1}),
    "two draw for second": ([4, 0, 0, 3, 3, 0, 0, 0, 0, 0], None, {"neutral": 0.4, "sadness": 0.3, "anger": 0.3}),
    "a fourth comes with a draw": ([4, 0, 0, 2, 2, 2, 0, 0, 0, 0], None, None),
    "five draw": ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], None, None),
    "unknown leads": ([2, 0, 0, 0, 0, 0, 0, 0, 6, 2], None, None),
    "no face": ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], None, None),
    "unknown draws with the first": ([4, 0, 0, 2, 0, 0, 0, 0, 4, 0], None, None),
    "unknown second, 6 of 9": ([6, 0, 0, 1, 0, 0, 0, 0, 3, 0], "neutral", {"neutral": 1}),
    "unknown second, 4 of 9": ([4, 0, 0, 2, 0, 0, 0, 0, 3, 1], None, None),
    "single votes only": ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None, None),
    "no votes": ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, None),
}


@pytest.mark.parametrize("case", WORKED)
def test_ferplus_rules_agree_with_rows_worked_by_hand(case):
    votes, label, distribution = WORKED[case]
    expected = -1 if label is None else FERPLUS_COLUMNS.index(label)
    assert ferplus_majority(np.array([votes])).tolist() == [expected]
    expected = [(distribution or {}).get(name, 0) for name in FERPLUS_COLUMNS[:8]]
    np.testing.assert_allclose(ferplus_distribution(np.array([votes])), [expected], atol=1e-12)


def protocol_distribution(row):
    """The protocol's loop as its text reads, one row: the largest count and its equals, again and again."""
    left = [0 if count == 1 else count for count in row]
    total, taken, stop = sum(left), {}, False
    while sum(taken.values()) < 0.75 * total and len(taken) < 3 and not stop:
        largest = max(left)
        for place in [place for place, count in enumerate(left) if count == largest]:
            if place >= 8:
                stop = True
                break
            taken[place], left[place] = largest, 0
    share = sum(taken.values())
    if share <= 0.5 * total or len(taken) > 3:
        return [0] * 8
    return [taken.get(place, 0) / share for place in range(8)]


def test_ferplus_distribution_is_the_protocols_loop_for_any_votes():
    rng = np.random.default_rng(0)
    votes = np.array([rng.multinomial(10, rng.dirichlet(np.full(10, 0.4))) for _ in range(2000)])
    expected = np.array([protocol_distribution(row.tolist()) for row in votes])
    assert 0 < (expected.sum(axis=1) == 0).sum() < len(votes)
    np.testing.assert_allclose(ferplus_distribution(votes), expected, atol=1e-12)


def label_csv(cases, first=0):
    rows = enumerate(cases, first)
    return "".join(f'fer{i:07d}.png,"(0, 0, 48, 48)",{",".join(map(str, WORKED[case][0]))}\n' for i, case in rows)


@pytest.fixture
def ferplus(tmp_path):
    """Train with every worked row, Valid with three of them; Test is absent."""
    write(tmp_path / "FER2013Train/label.csv", label_csv(WORKED))
    put(tmp_path, *(f"FER2013Train/fer{i:07d}.png" for i in range(len(WORKED))))
    write(tmp_path / "FER2013Valid/label.csv", label_csv(["exactly half", "all agree", "no face"], 30))
    return put(tmp_path, *(f"FER2013Valid/fer{i:07d}.png" for i in range(30, 33)))


def test_ferplus_by_majority(ferplus):
    source = read_source(ferplus)
    assert (source.layout, source.root) == ("ferplus", ferplus)
    assert source.classes == (
        "neutral",
        "happiness",
        "sadness",
        "surprise",
        "fear",
        "disgust",
        "anger",
        "contempt",
    )
    assert column(source, "file")[:2] == ["FER2013Train/fer0000000.png", "FER2013Train/fer0000001.png"]
    assert column(source, "split") == ["train"] * len(WORKED) + ["val"] * 3
    assert column(source, "label") == [label for _, label, _ in WORKED.values()] + [None, "happiness", None]
    assert source.notes == (
        f"Read {ferplus} as layout ferplus: 19 images, 8 classes.",
        "Without a label: 13 images of 19.",
        "FER2013Train is train, by label.csv: the majority rule keeps 5 labels of 16, published 25,045.",
        "FER2013Valid is val, by label.csv: the majority rule keeps 1 label of 3, published 3,191.",
        "FER2013Test is absent, so there is no test as published.",
        "Not as published for FER+: train 16, published 28,558; val 3, published 3,579; test 0, published 3,573.",
    )


def test_ferplus_by_votes_labels_train_by_the_distribution_and_the_rest_by_majority(ferplus):
    source = read_source(ferplus, label_rule="votes")
    # a draw goes to the first column, as in the protocol
    expected = [max(shares, key=shares.get) if shares else None for _, _, shares in WORKED.values()]
    assert column(source, "label") == [*expected, None, "happiness", None]


def test_ferplus_keeps_the_raw_votes_in_our_order(ferplus):
    source = read_source(ferplus)
    assert dict(zip(source.classes, source.rows.votes[1], strict=True)) == {
        "neutral": 4,
        "happiness": 0,
        "sadness": 1,
        "surprise": 0,
        "fear": 0,
        "disgust": 2,
        "anger": 3,
        "contempt": 0,
    }
    assert source.rows.votes_other[9].tolist() == [6, 2]


def test_ferplus_with_seven_classes_drops_the_eighth(ferplus):
    write(ferplus / "FER2013Valid/label.csv", 'fer0000030.png,"(0, 0, 48, 48)",0,0,0,0,0,0,1,9,0,0\n')
    source = read_source(ferplus, classes=["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"])
    assert source.rows.label[-1] is None
    assert source.rows.votes[-1].tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert "Label left out as not among --classes: 1 image of contempt." in source.notes
    assert f"Left out: 2 images that {ferplus / 'FER2013Valid/label.csv'} does not name." in source.notes


def test_ferplus_reads_fer2013new_where_label_csv_is_missing(tmp_path):
    votes = "10,0,0,0,0,0,0,0,0,0"
    write(
        tmp_path / "fer2013new.csv",
        f"Usage,Image name,{','.join(FERPLUS_COLUMNS)}\n"
        f"Training,a.png,{votes}\n"
        "Training,,0,0,0,0,0,0,0,0,0,10\n"
        f"PublicTest,v.png,{votes}\n"
        f"Training,b.png,{votes}\n"
        "Training,a.png,0,0,0,10,0,0,0,0,0,0\n"
        f"PrivateTest,t.png,{votes}\n",
    )
    put(tmp_path, "FER2013Train/a.png", "FER2013Train/b.png", "FER2013Test/t.png")
    source = read_source(tmp_path)
    assert column(source, "file") == ["FER2013Train/b.png", "FER2013Train/a.png", "FER2013Test/t.png"]
    assert column(source, "label") == ["neutral", "sadness", "neutral"]  # the later a.png is the one on disk
    assert column(source, "split") == ["train", "train", "test"]
    assert source.notes[1:] == (
        "FER2013Train is train, by fer2013new.csv: the majority rule keeps 2 labels of 2.",
        "Left out of fer2013new.csv for FER2013Train: 1 row without a file and 1 row whose file a later row replaces.",
        "FER2013Test is test, by fer2013new.csv: the majority rule keeps 1 label of 1.",
        "FER2013Valid is absent, so there is no val as published.",
        "Not as published for FER+: train 2, published 28,558; val 0, published 3,579; test 1, published 3,573.",
    )


def test_ferplus_without_its_tables_or_images_is_refused(tmp_path):
    put(tmp_path, "FER2013Train/a.png")
    assert refusal(tmp_path) == (
        f"{tmp_path / 'FER2013Train'} has no label.csv, and no fer2013new.csv lies beside the folder; add one"
    )
    table = write(tmp_path / "FER2013Train/label.csv", label_csv(["all agree", "no face"]))
    assert refusal(tmp_path) == (
        f"{table} names 2 images, and none is there (first FER2013Train/fer0000000.png); "
        "put them where it says, relative to its folder"
    )
    write(table, "a.png,1,2\n")
    assert refusal(tmp_path) == f"{table} is not a well-formed table: Row #1: Expected 12 columns, got 3: a.png,1,2"


# --- splits ---


def faces(labels, split=None, group=None, order=None):
    """Rows as of a Source, perhaps in another order; `split` and `group` may be one value for all."""
    count = len(labels)
    files = [f"{i:05d}.jpg" for i in range(count)]
    splits = split if isinstance(split, list) else [split] * count
    groups = group if isinstance(group, list) else [group] * count
    columns = (files, labels, splits, groups)
    return Rows(*(Words([values[i] for i in (range(count) if order is None else order)]) for values in columns))


MIXED = ["sadness"] * 60 + ["fear"] * 30 + ["anger"] * 10
SHUFFLED = np.random.default_rng(5).permutation(100)


def counts(rows):
    return Counter(rows.split)


def by_file(rows):
    return sorted(zip(rows.file, rows.split, strict=True))


def test_splits_that_are_given_stay(tmp_path):
    given = ["train"] * 50 + ["val"] * 20 + ["test"] * 20 + ["pilot"] * 10
    rows, notes = assign_splits(faces(MIXED, given))
    assert rows.split.tolist() == given
    assert notes == []


def test_without_splits_test_and_val_are_carved_by_label():
    rows, notes = assign_splits(faces([*MIXED, None, None]))
    assert counts(rows) == {"train": 72, "test": 20, "val": 10}
    assert Counter(rows.label[rows.split == "test"]) == {"sadness": 12, "fear": 6, "anger": 2}
    assert Counter(rows.label[rows.split == "val"]) == {"sadness": 6, "fear": 3, "anger": 1}
    assert rows.split.tolist()[-2:] == ["train", "train"]
    assert notes == [
        "The source gives no splits.",
        "Carved test: 20 of 100 labelled training faces, stratified by label, seed 0.",
        "Carved val: 10 of 80 labelled training faces, stratified by label, seed 0.",
    ]


def test_a_missing_val_is_carved_from_train():
    rows, notes = assign_splits(faces(MIXED * 2, ["train"] * 100 + ["test"] * 100))
    assert counts(rows) == {"train": 90, "val": 10, "test": 100}
    assert set(rows.split[100:]) == {"test"}
    assert notes == ["Carved val: 10 of 100 labelled training faces, stratified by label, seed 0."]


@pytest.mark.parametrize(("other", "becomes"), [("train", "test"), ("test", "val-given")])
def test_val_from_train_renames_the_given_val(other, becomes):
    rows, notes = assign_splits(faces(MIXED * 3, ["train"] * 100 + ["val"] * 100 + [other] * 100), 0.2)
    assert set(rows.split[100:200]) == {becomes}
    in_train = 200 if other == "train" else 100
    assert counts(rows)["val"] == in_train / 5
    assert notes == [
        f"The source's own val is named {becomes}, as val is carved from train.",
        f"Carved val: {in_train // 5} of {in_train} labelled training faces, stratified by label, seed 0.",
    ]


def test_carving_depends_on_the_seed_and_not_on_the_order_of_rows():
    rows = faces(MIXED, "train")
    first, again, other = (assign_splits(rows, seed=seed)[0] for seed in (0, 0, 1))
    assert by_file(first) == by_file(again) != by_file(other)
    shuffled = assign_splits(faces(MIXED, "train", order=SHUFFLED))[0]
    assert by_file(shuffled) == by_file(first)
    assert set(rows.split) == {"train"}  # the caller's rows are left alone


@pytest.mark.parametrize("split", [None, "train"])
def test_groups_are_never_divided(split):
    groups = [f"person {i % 25}" for i in range(100)]
    labels = [*MIXED[:-5], *[None] * 5]
    rows, notes = assign_splits(faces(labels, split, groups))
    assert len(set(zip(rows.group, rows.split, strict=True))) == 25
    assert 5 <= counts(rows)["val"] <= 15
    assert any("stratified by label without dividing a group" in note for note in notes)
    shuffled = assign_splits(faces(labels, split, groups, SHUFFLED))[0]
    assert by_file(shuffled) == by_file(rows)


def test_faces_without_a_group_count_as_their_own():
    rows, _ = assign_splits(faces(MIXED, "train", ["ann"] * 50 + [None] * 50))
    assert set(rows.split[:50]) == {"train"}
    assert 5 <= counts(rows)["val"] <= 15


def test_given_splits_that_share_people_are_mentioned():
    rows, notes = assign_splits(faces(MIXED, ["train"] * 50 + ["val"] * 25 + ["test"] * 25, "ann"))
    assert notes == ["The given splits share people: 1 group in more than one."]


def test_classes_too_small_to_divide_stay_in_train():
    rows, notes = assign_splits(faces([*MIXED, "contempt"], ["train"] * 101))
    assert rows.split.tolist()[-1] == "train"
    assert notes == [
        "Carved val: 10 of 101 labelled training faces, stratified by label, seed 0.",
        "val has no face of contempt: too few to divide.",
        "There is no test split.",
    ]


@pytest.mark.parametrize("group", [None, "ann", ["ann", "bob", "cy", "di", "ed"]])
@pytest.mark.parametrize("labels", [list("aabbc"), list("aaaaa"), list("abcde"), [None] * 5, ["a", *[None] * 4]])
@pytest.mark.parametrize("split", [None, "train", ["val", "val", "train", "test", None]])
def test_tiny_sources_never_crash_and_keep_every_face(labels, group, split):
    for share in (None, 0.5, 0.99):
        rows, notes = assign_splits(faces(labels, split, group), share)
        assert len(rows) == 5
        assert set(rows.split) <= {"train", "val", "test", "val-given"}
        assert all(note.endswith(".") for note in notes)


def test_what_cannot_be_carved_is_said():
    assert assign_splits(faces(list("abcde"), "train"))[1] == [
        "No val was carved: no class has two of the 5 labelled training faces.",
        "There is no test split.",
    ]
    assert assign_splits(faces(MIXED, "train", "ann"))[1] == [
        "No val was carved: one group holds all of the 100 labelled training faces.",
        "There is no test split.",
    ]


def test_rows_without_a_split_beside_others_are_trained_on():
    rows, notes = assign_splits(faces(MIXED, ["test"] * 50 + ["val"] * 30 + [None] * 20))
    assert counts(rows) == {"test": 50, "val": 30, "train": 20}
    assert notes == ["Put into train: 20 images without a split."]


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(FerError) as error:
        assign_splits(faces(MIXED), share)
    assert str(error.value) == f"--val-from-train {share} is no share; give a number between 0 and 1"
