"""`fer cache verify`, `diff` and `issues`: what they find, against figures worked out elsewhere."""

import csv
import io
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from conftest import CLASSES, SMALL_TEACHER, sign_again, write_faces
from scipy.spatial.distance import jensenshannon
from small_caches import make, writable, write_cache

from efficientface.cache.distributions import Distributions
from efficientface.cache.parquet import write_shard
from efficientface.cli import cli
from efficientface.data.faces import read_faces
from efficientface.pipeline.artifact import DIGEST, MANIFEST, reference_to, write_manifest
from efficientface.pipeline.caches import convert, open_cache
from efficientface.pipeline.verify import verify


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def about_faces(faces, views=2, fold=-2) -> Distributions:
    """Distributions about faces/ that are right about every label, with boxes inside a face of 64 pixels."""
    known = read_faces(sorted(faces.glob("*.parquet")), images=False)
    known = known.select(known.usable)
    made = make(known.face_id, views, classes=known.classes)
    size = np.random.default_rng(1).integers(1, 33, (len(known), views, 4)).astype(np.uint16)
    return replace(
        made,
        image_hash=known.image_hash,
        split=known.split,
        label=known.label,
        fold=np.full(len(known), fold, np.int8),
        canonical=(made.canonical + 2 * np.eye(len(known.classes))[known.label]).astype(np.float32) / 3,
        view_box=size,
    )


@pytest.fixture
def cache(run):
    faces = run / "faces"
    return write_cache(run / "distributions", about_faces(faces), 2, {"faces": {"path": "../faces", "manifest": ""}})


def states(result) -> dict[str, str]:
    return {check["check"]: check["state"] for check in result["checks"]}


def findings(path) -> list[str]:
    """What is found in a cache; the command says the same, and its exit status too."""
    done = fer("cache", "verify", path, "--json")
    result = json.loads(done.stdout)
    found = [finding for check in result["checks"] for finding in check["findings"]]
    assert done.exit_code == (1 if found else 0)
    assert result["ok"] == (not found)
    return found


def again(folder, cached, parts=2):
    """The cache in `folder` with other content and a manifest that belongs to it."""
    made_from = json.loads((folder / MANIFEST).read_text())["made_from"]
    shutil.rmtree(folder)
    return write_cache(folder, cached, parts, made_from)


# --- verify


def test_a_whole_cache_has_a_line_a_check(cache, tmp_path):
    done = fer("cache", "verify", cache)
    assert done.exit_code == 0, done.output
    assert [line.rstrip() for line in done.stdout.splitlines()] == [
        "ok          manifest       as manifest.blake2b says",
        "ok          files          2 with the right digests",
        "ok          shards         2, classes in order: neutral, happiness, sadness",
        "ok          rows           60 faces, 2 stored views a face",
        "ok          keys           60 face ids, each once",
        "ok          splits         train 36, val 12, test 12",
        "ok          pictures       none equal in two splits",
        "ok          distributions  finite, and each sums to 1",
        "ok          labels         60 faces with one; fold -2: 60",
        "ok          accuracy       test 100.0% of 12, train 100.0% of 36, val 100.0% of 12; chance 33.3%",
        "ok          faces          60 pictures hashed again, ids, splits and labels as there (its manifest is another "
        "now)",
        "ok          views          120, finite, each sums to 1, boxes inside the face of 64 pixels",
        "not checked teacher        no --teacher given",
    ]
    convert(cache, cache.parent / "cache.h5")
    assert states(verify(cache.parent / "cache.h5"))["faces"] == "ok"
    shutil.copytree(cache, tmp_path / "moved" / "away")
    assert states(verify(tmp_path / "moved" / "away"))["faces"] == "not checked"


def flips(path, count, seed):
    """The file with one bit of one byte turned, at the beginning, the end and many places between; then whole again."""
    whole, rng = path.read_bytes(), np.random.default_rng(seed)
    for place in {0, len(whole) - 1, *rng.integers(0, len(whole), count).tolist()}:
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        yield place
    path.write_bytes(whole)


@pytest.mark.parametrize("form", ["parquet", "folder of hdf5", "hdf5"])
def test_a_single_flipped_byte_anywhere_is_found(tmp_path, form):
    inside = np.full((9, 1, 4), 8, np.uint16)
    path = write_cache(tmp_path / "distributions", make([f"{k}" for k in range(9)], 1, view_box=inside))
    if form != "parquet":
        convert(path, tmp_path / "distributions.h5")
    if form == "folder of hdf5":
        manifest = json.loads((path / MANIFEST).read_text())
        shutil.rmtree(path)
        path.mkdir()
        shutil.move(tmp_path / "distributions.h5", path / "distributions.h5")
        about = {name: manifest[name] for name in ("kind", "classes", "made_from", "settings", "facts")}
        write_manifest(path, files=["distributions.h5"], **about)
    if form == "hdf5":
        path = tmp_path / "distributions.h5"
    assert verify(path)["ok"]
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        for place in flips(file, 20, 0):
            assert not verify(path)["ok"], f"{file.name}, byte {place}"
    assert verify(path)["ok"]


def test_the_digest_files_last_byte_counts_too(cache):
    for _ in flips(cache / DIGEST, 10, 1):
        assert not verify(cache)["ok"]


def test_everything_that_is_wrong_is_listed(cache):
    whole = writable(open_cache(cache).read())
    split = np.array(whole.split)
    split[1] = "test" if split[1] != "test" else "val"
    image_hash = np.array(whole.image_hash)
    image_hash[1] = image_hash[0]
    face_id = np.array(whole.face_id)
    face_id[5] = "../up.png"
    label = whole.label.copy()
    label[7] = (label[7] + 1) % 3
    whole.canonical[2] = np.nan
    whole.canonical[3] *= np.float32(1.01)
    whole.canonical[4] = (-0.5, 0.75, 0.75)
    whole.view_box[6, 1] = (60, 0, 5, 5)
    whole.view_distribution[8, 0] *= np.float32(0.5)
    fold = whole.fold.copy()
    fold[9] = -4
    again(cache, replace(whole, split=split, image_hash=image_hash, face_id=face_id, label=label, fold=fold))
    assert findings(cache) == [
        "1 face ids that lead out of their source, first ../up.png",
        "1 equal pictures in more than one split, first of face face-000.png",
        "1 canonical distributions that are not finite, first of face face-002.png",
        "1 canonical distributions with a negative probability, first of face face-004.png",
        "1 canonical distributions that do not sum to 1, first of face face-003.png",
        "1 folds below -3, first of face face-009.png",
        "1 distributions about another picture, first face-001.png",
        "1 faces in another split, first face-001.png",
        "1 faces without a distribution, first face-005.png",
        "1 faces with another label, first face-007.png",
        "1 distributions without a face, first ../up.png",
        "1 view boxes that are empty or reach beyond the face, first of face-006.png",
        "1 view distributions that do not sum to 1",
    ]


def test_a_sum_within_a_thousandth_is_none_of_its_findings(cache):
    whole = writable(open_cache(cache).read())
    whole.canonical[0] *= np.float32(1.0009)
    assert findings(again(cache, whole)) == []


def test_files_that_are_not_there_or_too_short_are_all_named(cache):
    (cache / "part-00000.parquet").unlink()
    second = cache / "part-00001.parquet"
    size = second.stat().st_size
    second.write_bytes(second.read_bytes()[:-7])
    assert findings(cache) == [
        "part-00000.parquet is missing",
        f"part-00001.parquet has {size - 7} bytes instead of {size}",
    ]


def test_a_damaged_shard_leaves_the_others_checked(cache):
    first = cache / "part-00000.parquet"
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    assert findings(cache) == [
        "part-00000.parquet does not have the digest that manifest.json says",
        "30 faces instead of 60",
        "30 faces without a distribution, first face-000.png",
    ]


def test_shards_that_do_not_fit_together(cache):
    whole, names = open_cache(cache).read(), ["part-00000.parquet", "part-00001.parquet"]
    turned = whole.in_order_of(CLASSES[::-1], "")
    write_shard(whole.select(np.arange(30)), cache / names[0])
    write_shard(
        replace(turned, view_box=turned.view_box[:, :1], view_flip=turned.view_flip[:, :1],
                view_distribution=turned.view_distribution[:, :1]).select(np.arange(29, 60)),
        cache / names[1],
    )  # fmt: skip
    write_manifest(
        cache, "distributions", files=names, classes=CLASSES, made_from={}, settings={},
        facts={"faces": 60, "views": 2},
    )  # fmt: skip
    assert findings(cache) == [
        "part-00001.parquet has the classes sadness, happiness, neutral, the manifest has neutral, happiness, sadness",
        "61 faces instead of 60",
        "shards of other numbers of views than 2: 1 with 1, 1 with 2",
        "1 face ids more than once, first face-029.png",
    ]


def test_answers_no_better_than_guessing_are_found(cache):
    whole = open_cache(cache).read()
    again(cache, replace(whole, canonical=np.roll(whole.canonical, 1, axis=1)))
    assert findings(cache) == [
        "train: the most probable class is the label of 0.0% of 36 faces, no better than guessing among 3 (33.3%); "
        "is the order of classes right?"
    ]


def test_pictures_are_hashed_again(run, cache):
    shutil.rmtree(run / "faces")
    write_faces(run, seed=5)
    assert findings(cache) == ["60 distributions about another picture, first face-000.png"]


def test_a_hostile_name_in_the_list_of_files_is_not_followed(cache):
    path = cache / MANIFEST
    path.write_text(path.read_text().replace('"part-00000.parquet"', '"../../part-00000.parquet"'))
    assert findings(cache)[1] == "manifest.json has no list of files with sizes and digests"


def test_there_is_nothing_to_verify(tmp_path):
    done = fer("cache", "verify", tmp_path / "none")
    assert (done.exit_code, done.stderr) == (1, f"Error: {tmp_path}/none does not exist; run fer teach first\n")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    run = tmp_path_factory.mktemp("original") / "run"
    write_faces(run)
    words = ["--size", 32, "--teacher-arch", SMALL_TEACHER, "--epochs", 8, "--batch-size", 6, "--lr", 0.02]
    assert fer("teach", run, *words, "--schedule", "onecycle", "--min-area", 0.5, "--views", 3).exit_code == 0
    return run


@pytest.fixture
def taught(original, tmp_path):
    """A run with a real teacher, which a test may spoil."""
    return shutil.copytree(original, tmp_path / "taught")


def test_the_teacher_is_asked_again(taught):
    folder, words = taught / "distributions", ("--teacher", taught / "teacher", "--sample", 30, "--json")
    done = fer("cache", "verify", folder, *words)
    told = json.loads(done.stdout)["checks"][-1]
    assert (done.exit_code, told["state"]) == (0, "ok"), told
    assert told["detail"].startswith("30 views answered again, largest difference ")
    assert float(told["detail"].split()[-1]) < 1e-5

    whole = open_cache(folder).read()
    blunter = whole.view_distribution + np.float32(0.01) * (1 / 3 - whole.view_distribution)
    again(folder, replace(whole, view_distribution=blunter))  # by less than a hundredth: as a GPU's cuts might
    assert fer("cache", "verify", folder, *words).exit_code == 1
    sign_again(folder, facts={**open_cache(folder).manifest["facts"], "device": "cuda"})
    assert fer("cache", "verify", folder, *words).exit_code == 0

    again(folder, replace(whole, view_flip=~whole.view_flip))  # each answer now stands by the mirrored view
    done = fer("cache", "verify", folder, *words)
    told = json.loads(done.stdout)["checks"][-1]
    assert (done.exit_code, told["state"]) == (1, "FAILED"), told

    done = fer("cache", "verify", folder, "--teacher", taught / "faces")
    assert done.exit_code == 1
    assert f"{taught}/faces holds faces, not teacher" in done.stdout


def test_a_teacher_of_a_fold_is_asked_about_its_own_faces(taught):
    folder, whole = taught / "distributions", open_cache(taught / "distributions").read()
    teacher = shutil.copytree(taught / "teacher", taught / "teacher" / "fold-1")
    fold = np.where(np.arange(60) % 2, 1, 0).astype(np.int8)
    spoiled = whole.canonical.copy()
    spoiled[fold == 0] = 1 / 3  # answered by another one
    references = json.loads((folder / MANIFEST).read_text())["made_from"]
    shutil.rmtree(folder)
    cached = replace(whole, fold=fold, canonical=spoiled).select(np.arange(60))
    views = {name: getattr(cached, name)[:, :0] for name in ("view_box", "view_flip", "view_distribution")}
    other = {"path": "../teacher/fold-0", "manifest": "0" * 64}
    made_from = {"faces": references["faces"], "teacher-0": other, "teacher-1": reference_to(teacher, folder)}
    write_cache(folder, replace(cached, **views), 1, made_from)
    told = verify(folder, [teacher], 40)["checks"][-1]
    assert told["state"] == "ok", told

    shutil.rmtree(folder)
    write_cache(folder, replace(cached, **views), 1, {"faces": references["faces"]})
    assert verify(folder, [teacher], 40)["checks"][-1]["detail"] == (
        f"{teacher} is not the teacher that the cache was made with (its manifest is another)"
    )


# --- diff


@pytest.fixture
def pair(tmp_path):
    """Two caches that share 50 of their 60 faces, the second with its classes in another order."""
    ids = [f"f{k}" for k in range(70)]
    a, b = make(ids[:60], seed=1), make(ids[10:], seed=2)
    label = b.label.copy()
    label[:50] = a.label[10:]
    label[3] = (label[3] + 2) % 3
    hashes = np.array(b.image_hash)
    hashes[:50] = a.image_hash[10:]
    hashes[4] = "another"
    b = replace(b, label=label, image_hash=hashes)
    write_cache(tmp_path / "a", a)
    write_cache(tmp_path / "b", b.in_order_of(("surprise", "neutral", "happiness"), ""))
    return tmp_path / "a", tmp_path / "b", a, b


def test_diff_gives_the_figures_that_scipy_gives(pair):
    first, second, a, b = pair
    done = fer("cache", "diff", first, second, "--json", "--top", 3)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    p, q = a.canonical[10:].astype(float), b.canonical[:50].astype(float)
    ab, ba = scipy.stats.entropy(p, q, axis=1), scipy.stats.entropy(q, p, axis=1)
    js = jensenshannon(p, q, axis=1) ** 2
    same = p.argmax(1) == q.argmax(1)
    assert (result["faces"], result["only_in_a"], result["only_in_b"]) == (50, 10, 10)
    assert (result["other_picture"], result["other_label"]) == (1, 1)
    assert (result["agree"], result["share"]) == (same.sum(), pytest.approx(same.mean()))
    for name, values in (("kl_a_b", ab), ("kl_b_a", ba), ("js", js)):
        assert result[name]["mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert result[name]["max"] == pytest.approx(values.max(), rel=1e-5)
    most = np.argsort(-js)[:3]
    assert [row["face_id"] for row in result["moved"]] == [f"f{10 + k}" for k in most]
    assert result["moved"][0]["kl_a_b"] == pytest.approx(ab[most[0]], rel=1e-5)
    assert result["moved"][0]["top_b"] == b.classes[q[most[0]].argmax()]
    happy = a.label[10:] == 1
    row = result["by_class"][1]
    assert (row["class"], row["labelled"]) == ("happiness", happy.sum())
    assert row["agree"] == pytest.approx(same[happy].mean())
    assert row["mean_b"] == pytest.approx(q[:, 1].mean(), rel=1e-5)
    assert row["right_a"] == pytest.approx((p.argmax(1) == 1)[happy].mean())


def test_a_cache_does_not_differ_from_itself(pair):
    result = json.loads(fer("cache", "diff", pair[0], pair[0], "--json").stdout)
    assert (result["share"], result["js"]["max"], result["kl_a_b"]["max"]) == (1.0, 0.0, 0.0)


def test_diff_in_a_pipe(pair):
    rows = list(csv.DictReader(io.StringIO(fer("cache", "diff", *pair[:2], "--csv", "--top", 4).stdout)))
    told = json.loads(fer("cache", "diff", *pair[:2], "--json", "--top", 4).stdout)["moved"]
    assert [row["face_id"] for row in rows] == [row["face_id"] for row in told]
    assert [float(row["js"]) for row in rows] == [row["js"] for row in told]
    shown = fer("cache", "diff", *pair[:2]).stdout
    assert "50 in both; only in A 10, only in B 10" in shown
    assert "1 of them with another picture (image_hash) in B" in shown
    done = fer("cache", "diff", *pair[:2], "--csv", "--json")
    assert done.stderr == "Error: --json and --csv ask for two things; give one of them\n"


def test_caches_that_cannot_be_compared(pair, tmp_path):
    write_cache(tmp_path / "other", make(["x"], classes=("fear", "anger")), 1)
    write_cache(tmp_path / "apart", make(["x"]), 1)
    assert fer("cache", "diff", pair[0], tmp_path / "other").stderr == (
        f"Error: {pair[0]} has the classes neutral, happiness, surprise, {tmp_path}/other has fear, anger; "
        "only caches of the same classes can be compared\n"
    )
    assert fer("cache", "diff", pair[0], tmp_path / "apart").stderr == (
        f"Error: {pair[0]} and {tmp_path}/apart have no face in common (60 and 1 faces)\n"
    )


# --- issues


@pytest.fixture
def doubtful(tmp_path):
    """A cache whose teacher is sure and right, but for six faces with a label that was changed."""
    write_faces(tmp_path / "run", count=150)
    faces = tmp_path / "run" / "faces"
    right = about_faces(faces, views=0, fold=0)
    sure = np.full((150, 3), 0.02) + 0.94 * np.eye(3)[right.label]
    wrong = np.array([3, 17, 40, 77, 101, 149])
    label = right.label.copy()
    label[wrong] = (label[wrong] + 1) % 3
    sure[8] = (0.4, 0.35, 0.25)
    cached = replace(right, canonical=sure.astype(np.float32), label=label)
    folder = tmp_path / "run" / "distributions"
    write_cache(folder, cached, 1, {"faces": reference_to(faces, folder)})
    return folder, cached, wrong


def test_changed_labels_are_named(doubtful):
    folder, cached, wrong = doubtful
    done = fer("cache", "issues", folder, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert {row["face_id"] for row in result["label_errors"]} == set(cached.face_id[wrong])
    assert result["named"] == len(wrong)
    assert result["ambiguous"][0]["face_id"] == cached.face_id[8]
    rows = list(csv.DictReader(io.StringIO(fer("cache", "issues", folder, "--csv", "--top", 2).stdout)))
    assert [row["kind"] for row in rows] == ["label_errors", "label_errors", "ambiguous", "ambiguous"]


def test_what_people_say_about_the_named_faces(doubtful):
    folder, cached, wrong = doubtful
    result = json.loads(fer("cache", "issues", folder, "--json").stdout)
    faces = read_faces(sorted((folder.parent / "faces").glob("*.parquet")), images=False)
    votes = faces.votes[faces.usable]
    share = votes[np.arange(150), cached.label] / votes.sum(1)
    disagreed = share <= 0.5
    assert result["votes"]["all"]["disagreed"] == disagreed.sum()
    assert result["votes"]["all"]["share"] == pytest.approx(disagreed.mean())
    assert result["votes"]["named_first"]["faces"] == 6
    assert result["votes"]["named_first"]["disagreed"] == disagreed[wrong].sum()
    shown = fer("cache", "issues", folder).stdout
    assert f"{disagreed[wrong].sum()} of 6" in shown
    assert f"{disagreed.sum()} of 150" in shown


def test_answers_of_a_teacher_that_has_seen_the_faces_are_refused(doubtful):
    folder, cached, _ = doubtful
    fold = np.where(cached.split == "train", -1, -2).astype(np.int8)
    again(folder, replace(cached, fold=fold), 1)
    training = int((cached.split == "train").sum())
    assert fer("cache", "issues", folder).stderr == (
        f"Error: {folder} has answers about its {training} training faces only from a teacher that had trained on "
        "them, which say little about their labels; run fer teach RUN --folds 5 --cache oof, and give "
        "RUN/distributions-oof\n"
    )
    again(folder, replace(cached, fold=np.full(150, -3, np.int8)), 1)
    assert fer("cache", "issues", folder).stderr == (
        f"Error: {folder} has no labelled face that a teacher answered about without having trained on it; "
        "run fer teach RUN --folds 5 --cache oof, and give RUN/distributions-oof\n"
    )


def test_without_cleanlab(doubtful, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    done = fer("cache", "issues", doubtful[0])
    assert (done.exit_code, done.stderr) == (
        1, "Error: fer cache issues needs cleanlab; pip install 'efficientface[issues]'\n"
    )  # fmt: skip
