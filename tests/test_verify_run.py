"""`fer verify` on a real small run: what is flipped, swapped, permuted or out of date is found, and nothing else."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES, picture, sign_again, write_faces
from flipped import HOSTILE, ORDERS, SWAPS, TEACH, fer, flipped, flips, made, permuted, stale, swapped, write_run
from PIL import Image
from test_inspect import write_model

from efficientface import FerError
from efficientface.cache.parquet import read_shard, write_shard
from efficientface.models import build
from efficientface.pipeline import align, evaluate
from efficientface.pipeline.artifact import DIGEST, MANIFEST, digest_of, read_sealed, write_json
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.verify_run import verify

AS_GIVEN = AlignConfig(aligned=True, crop=64, encode="png", workers=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("original"))


@pytest.fixture
def run(original, tmp_path):
    """A run that a test may spoil; its photographs lie beside it."""
    shutil.copytree(original, tmp_path / "all")
    return tmp_path / "all" / "run"


def findings(run):
    """What is wrong, by artifact and check."""
    checks = verify(run)["checks"]
    return {(c["artifact"], c["check"]): c["findings"] for c in checks if c["state"] == "FAILED"}


def states(run, check):
    return {c["artifact"]: (c["state"], c["detail"]) for c in verify(run)["checks"] if c["check"] == check}


# --- what is whole ---------------------------------------------------------------------------------------------


def test_a_whole_run_has_a_line_a_check_and_status_0(run):
    done = fer("verify", run)
    assert done.exit_code == 0, done.output
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[:9] == [
        "ok          faces                   manifest       as manifest.blake2b says",
        "ok          faces                   files          2 with the right digests",
        "ok          faces                   faces          61 pictures of 61 rows hashed again, ids once, labels of "
        "classes",
        "ok          faces                   duplicates     1 photographs in two splits, as duplicates.csv says",
        f"ok          faces                   sources        61 photographs hashed again below {run.parent}/source",
        f"ok          faces                   labels         as {run.parent}/source say",
        "ok          teacher                 manifest       as manifest.blake2b says",
        "ok          teacher                 files          4 with the right digests",
        "ok          teacher                 made from      faces as now",
    ]
    assert "ok          distributions-oof       made from      faces, teacher-0, teacher-1 as now" in lines
    assert "ok          distributions-oof       folds          as 2 teachers were trained" in lines
    assert "ok          students/ldl            made from      faces, distributions as now" in lines
    assert lines[-1] == "ok          evaluation/test.json    models         teacher, ldl, sll as now"
    assert {line.split()[0] for line in lines} == {"ok", "noted"}  # the equal pictures in two splits are noted


def test_json_and_csv_have_a_row_a_check(run):
    (run / "teacher" / "metrics.jsonl").write_text("")
    told = json.loads(fer("verify", run, "--json").stdout)
    assert (told["path"], told["ok"], told["failed"]) == (str(run), False, 1)
    done = fer("verify", run, "--csv")
    assert done.exit_code == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["artifact"], row["check"], row["state"]) for row in rows] == [
        (check["artifact"], check["check"], check["state"]) for check in told["checks"]
    ]
    failed = next(check for check in told["checks"] if check["state"] == "FAILED")
    assert failed["findings"][0].startswith("metrics.jsonl has 0 bytes instead of ")


def test_a_run_without_its_photographs_says_so_and_is_whole(run):
    shutil.rmtree(run.parent / "source")
    assert states(run, "sources") == {
        "faces": ("not checked", f"sources not checked: {run.parent}/source is not there")
    }
    assert verify(run)["ok"]
    (run.parent / "source").mkdir()
    away = f"sources not checked: {run.parent}/source holds none of the photographs"
    assert states(run, "sources") == {"faces": ("not checked", away)}


def test_a_run_without_its_teacher_or_faces_is_checked_as_far_as_it_goes(run):
    shutil.rmtree(run / "teacher")
    shutil.rmtree(run / "faces")
    assert verify(run)["ok"]
    assert states(run, "made from")["distributions"] == (
        "not checked",
        f"not there: faces ({run}/faces), teacher ({run}/teacher)",
    )
    assert states(run, "folds")["distributions-oof"] == (
        "not checked",
        "a teacher that was asked is not there as it was",
    )


def test_people_s_identities_and_a_converted_cache_are_checked_too(tmp_path):
    run = tmp_path / "people"
    faces = write_faces(run, layout="identities")
    model = build("efficientface", len(CLASSES))
    write_model(run / "identities" / "efficientface", "identities", {"faces": faces}, {}, model)
    assert verify(run)["ok"]
    assert states(run, "sources") == {"faces": ("not checked", "sources not checked: faces/ names none")}
    with open(run / "identities" / "efficientface" / "config.json", "r+b") as file:
        file.write(b"[")
    assert findings(run) == {
        ("identities/efficientface", "files"): ["config.json does not have the digest that manifest.json says"]
    }


# --- bytes -----------------------------------------------------------------------------------------------------


def missed(root, count):
    """How many bits were flipped, and which of them verify did not find."""
    tried = list(flips(root, count))
    assert verify(root / "run")["ok"]
    return len(tried), [flip for flip in tried if not flip.found]


def test_a_flipped_byte_of_any_file_is_found(run):
    names = {path.name for path in run.rglob("*")}
    assert {
        *(MANIFEST, DIGEST, "config.json", "metrics.jsonl", "model.safetensors", "trained_on.parquet"),
        *("part-00001.parquet", "distributions.h5", "duplicates.csv", "test.json", "confusion-ldl-test.png"),
    } <= names
    # what is there twice costs time and tells nothing
    for name in ("teacher/fold-0", "teacher/fold-1", "distributions-oof"):
        shutil.rmtree(run / name)
    tried, unfound = missed(run.parent, 0)
    assert tried > 100
    assert unfound == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_flipped_bytes_at_many_places_are_found(run, capsys):
    tried, unfound = missed(run.parent, 12)
    with capsys.disabled():
        print(f"\n{tried} single bits flipped in the files of a run, {tried - len(unfound)} found")
    assert unfound == []


def test_both_digests_of_an_interrupted_replacement_are_looked_at(tmp_path):
    run = tmp_path / "run"
    digest = write_faces(run, count=6, shards=1) / DIGEST
    one = digest.read_bytes()
    other = b"0123456789abcdef" * 4 + b"\n"
    for text in (other + one, one + other):
        digest.write_bytes(text)
        noted = "manifest.blake2b has a second digest, of a manifest that was being replaced"
        assert states(run, "manifest")["faces"] == ("noted", noted)
        rng = np.random.default_rng(0)
        for place in flipped(digest, range(0, 130, 9), rng):
            spoiled = digest.read_bytes()
            # nothing is left to compare the other digest with but that it is one
            harmless = one in spoiled and all(byte in b"0123456789abcdef\n" for byte in spoiled)
            harmless = harmless and spoiled.count(b"\n") == 2 and len(spoiled.split(b"\n")[0]) == 64
            assert verify(run)["ok"] == harmless, place
            assert harmless or ("faces", "manifest") in findings(run)


def test_files_that_changed_places_are_found(run):
    one, another = (run / name for name in SWAPS[0])
    assert one.stat().st_size == another.stat().st_size
    for pair in SWAPS:
        with swapped(run, *pair):
            assert not verify(run)["ok"], pair
    assert verify(run)["ok"]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "least"), [(permuted, 40), (stale, 4)])
def test_permuted_classes_and_stale_stages_of_any_artifact_are_found(run, spoil, least):
    found = dict(spoil(run))
    assert len(found) >= least
    assert all(found.values()), found
    assert verify(run)["ok"]


def test_a_lost_manifest_is_found_and_an_unfinished_stage_is_noted(run):
    (run / "students" / "sll" / MANIFEST).unlink()
    assert findings(run) == {
        ("students/sll", "manifest"): ["manifest.json is missing beside 4 files, first config.json"]
    }
    shutil.rmtree(run / "students" / "sll")
    (run / "distributions-next").mkdir()
    (run / "distributions-next" / "plan.json").write_text("{}")
    assert states(run, "manifest")["distributions-next"] == ("noted", "unfinished: the same command goes on with it")
    assert verify(run)["ok"]


# --- what does not fit -----------------------------------------------------------------------------------------


def edit(path, **told):
    write_json(path, {**json.loads(path.read_text()), **told})


@pytest.mark.parametrize("order", ORDERS)
def test_a_permuted_class_list_is_found_however_it_is_signed(run, order):
    student = run / "students" / "sll"
    edit(student / "config.json", classes=order)
    sign_again(student)
    assert findings(run)["students/sll", "model"] == [
        f"{student}/config.json has other classes than the manifest beside it; restore it"
    ]
    sign_again(student, classes=order)
    assert findings(run)["students/sll", "model"] == [
        f"the classes {', '.join(order)}, faces/ has {', '.join(CLASSES)}"
    ]


def test_permuted_classes_of_faces_and_of_a_cache_are_found(run):
    order = CLASSES[::-1]
    sign_again(run / "distributions-oof", classes=order)
    found = findings(run)
    assert found["distributions-oof", "shards"] == [
        f"part-00000.parquet has the classes {', '.join(CLASSES)}, the manifest has {', '.join(order)}"
    ]
    sign_again(run / "faces", classes=order)
    found = findings(run)
    assert found["faces", "faces"] == [
        f"part-0000{k}.parquet has other classes, or in another order, than manifest.json" for k in (0, 1)
    ]
    assert found["teacher", "made from"] == [f"made from other faces than {run}/faces holds now"]


def test_a_student_of_another_cache_and_what_is_stale_are_found(run):
    student = run / "students" / "ldl"
    about = json.loads((student / MANIFEST).read_text())["made_from"]
    about["distributions"]["manifest"] = digest_of(run / "distributions-oof")
    sign_again(student, made_from=about)
    assert findings(run) == {
        ("students/ldl", "made from"): [f"made from other distributions than {run}/distributions holds now"],
        ("evaluation/test.json", "models"): [
            "ldl was judged when it was another model than now; run fer evaluate again"
        ],
    }
    made("teach", run, *TEACH, "--calibrate")
    assert ("students/ldl", "made from") in findings(run)


def test_weights_that_do_not_fit_and_a_best_epoch_that_was_not_are_found(run):
    edit(run / "students" / "sll" / "config.json", arch="baseline")
    sign_again(run / "students" / "sll")
    assert "does not hold the weights that config.json describes" in findings(run)["students/sll", "model"][0]
    facts = json.loads((run / "teacher" / MANIFEST).read_text())["facts"]
    facts["best"]["val_accuracy"] = 0.999
    sign_again(run / "teacher", facts=facts)
    assert findings(run)["teacher", "model"] == ["the best epoch that the manifest tells of is not among the metrics"]


def test_a_teacher_of_other_faces_and_folds_that_are_not_true_are_found(run):
    shard = run / "distributions-oof" / "part-00000.parquet"
    part = read_shard(shard)
    write_shard(replace(part, fold=np.where(part.fold >= 0, 1 - part.fold, part.fold)), shard)
    sign_again(run / "distributions-oof")
    first = part.face_id[part.fold >= 0][0]
    count = int((part.fold >= 0).sum())
    assert findings(run) == {
        ("distributions-oof", "folds"): [
            f"{count} faces whose fold is not what their teachers were trained on, first {first}"
        ]
    }
    told = pq.read_table(run / "teacher" / "trained_on.parquet")
    ids = pa.array(["elsewhere.png", *told["face_id"].to_pylist()[1:]])
    pq.write_table(told.set_column(0, "face_id", ids), run / "teacher" / "trained_on.parquet")
    sign_again(run / "teacher")
    assert findings(run)["teacher", "trained on"] == [
        "1 faces that are not among the training faces of faces/, first elsewhere.png"
    ]
    pq.write_table(pa.table({"a": [1]}), run / "teacher" / "trained_on.parquet")
    sign_again(run / "teacher")
    assert findings(run)["teacher", "trained on"] == ["trained_on.parquet does not name faces and their pictures"]


def test_pictures_and_rows_of_faces_are_checked_though_signed_anew(run):
    shard = run / "faces" / "part-00001.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[0]["image_hash"] = "0" * 32
    rows[1]["label"] = 3
    rows[2]["face_id"] = rows[3]["face_id"]
    rows[4]["status"] = "lost"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), shard)
    sign_again(run / "faces")
    assert findings(run)["faces", "faces"] == [
        f"1 pictures that are not as their image_hash says, first {rows[0]['face_id']}",
        f"1 labels of no class, first {rows[1]['face_id']}",
        f"1 rows of no known status, first {rows[4]['face_id']}",
        f"1 face ids more than once, first {rows[3]['face_id']}",
    ]
    pq.write_table(table.slice(1), shard)
    sign_again(run / "faces")
    assert findings(run)["faces", "faces"][0] == "60 faces instead of 61"
    pq.write_table(table.drop_columns("status"), shard)
    sign_again(run / "faces")
    assert "does not have the columns of docs/files.md" in findings(run)["faces", "faces"][0]


def test_an_evaluation_has_to_be_about_its_split_and_pictures(run):
    results = run / "evaluation"
    shutil.copy(results / "test.json", results / "val.json")
    assert findings(run) == {("evaluation/val.json", "models"): ["it is about the split test"]}
    (results / "test.json").unlink()
    (results / "val.json").unlink()
    noted = ("noted", "3 of no result that is there, first confusion-ldl-test.png")
    assert states(run, "pictures")["evaluation"] == noted
    write_json(results / "test.json", {"models": {}})
    unsigned = "test.json is not as the digest at its end says, or has none; make it again"
    assert findings(run) == {("evaluation/test.json", "digest"): [unsigned]}
    evaluate.run(run, names=["ldl"], png=False)
    text = (results / "test.json").read_bytes()
    (results / "test.json").write_bytes(text.replace(b"\n", b"\r", 1))
    assert findings(run) == {("evaluation/test.json", "digest"): [unsigned]}
    (results / "test.json").write_bytes(text)
    assert read_sealed(results / "test.json")["pictures"] == {}
    assert verify(run)["ok"]


# --- photographs -----------------------------------------------------------------------------------------------


def test_a_photograph_that_changed_after_alignment_is_found(run):
    folder = run.parent / "source" / "train" / "sadness"
    whole = (folder / HOSTILE).read_bytes()
    (folder / HOSTILE).write_bytes(whole[:-1] + b"\0")
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"")
    assert findings(run) == {
        ("faces", "sources"): [
            "1 photographs that are not there any more, first train/sadness/0.png",
            "1 photographs that cannot be read any more, first train/sadness/1.png",
            "1 photographs that were changed since, first train/sadness/x%0A<script>alert(1)%1B[2J.png",
        ]
    }


def test_no_photograph_outside_of_the_source_is_opened(run):
    folder = run.parent / "source" / "train" / "sadness"
    shutil.move(folder / "0.png", run.parent / "outside.png")
    (folder / "0.png").symlink_to(run.parent / "outside.png")
    os.mkfifo(folder / "pipe")
    (folder / "1.png").unlink()
    os.link(folder / "pipe", folder / "1.png")  # opened, it would wait for ever
    assert findings(run)["faces", "sources"] == [
        "1 photographs that lead out of their source, first train/sadness/0.png",
        "1 photographs that are not there any more, first train/sadness/1.png",
    ]
    for number, shard in enumerate(sorted((run / "faces").glob("*.parquet"))):
        table = pq.read_table(shard)
        rows = table.to_pylist()
        rows[0]["face_id"] = ("../outside.png", f"{run.parent}/outside.png")[number]
        rows[1]["face_id"] = f"a%00{number}"
        pq.write_table(pa.Table.from_pylist(rows, table.schema), shard)
    sign_again(run / "faces")
    assert "3 photographs that lead out of their source, first ../outside.png" in findings(run)["faces", "sources"]


def test_each_of_several_sources_is_checked(tmp_path):
    rng = np.random.default_rng(1)
    for source in ("one", "two"):
        for label, name in enumerate(CLASSES[:2]):
            (tmp_path / source / name).mkdir(parents=True)
            for k in range(3):
                Image.fromarray(picture(label, rng)).save(tmp_path / source / name / f"{k}.png")
    run = tmp_path / "run"
    align.run({"one": tmp_path / "one", "two": tmp_path / "two"}, run, AS_GIVEN)
    assert verify(run)["ok"]
    shutil.rmtree(tmp_path / "one")
    with open(tmp_path / "two" / "neutral" / "2.png", "ab") as file:
        file.write(b"\0")
    told = [(c["state"], c["detail"]) for c in verify(run)["checks"] if c["check"] == "sources"]
    assert told == [
        ("not checked", f"sources not checked: {tmp_path}/one is not there"),
        ("FAILED", "1 photographs that were changed since, first two/neutral/2.png"),
    ]


@pytest.mark.parametrize("given", ["", "other.csv"])
def test_a_label_that_was_changed_in_its_table_is_found(given, tmp_path):
    rng, source, run = np.random.default_rng(3), tmp_path / "source", tmp_path / "run"
    source.mkdir()
    for k in range(6):
        Image.fromarray(picture(k % 2, rng)).save(source / f"{k}.png")
    table = source / (given or "labels.csv")
    table.write_text("path,label\n" + "".join(f"{k}.png,{CLASSES[k % 2]}\n" for k in range(6)))
    align.run(source / given, run, replace(AS_GIVEN, val_from_train=0.3))
    assert verify(run)["ok"]
    assert states(run, "labels") == {"faces": ("ok", f"as {source / given} say")}
    table.write_text(table.read_text().replace(f"4.png,{CLASSES[0]}", f"4.png,{CLASSES[1]}"))
    assert findings(run) == {
        ("faces", "labels"): ["source: other photographs, labels, splits or boxes than faces/ were made from"]
    }
    table.write_bytes(b"nothing")
    (found,) = findings(run)["faces", "labels"]
    assert found.startswith("the sources cannot be read as they were (")


@pytest.mark.parametrize("layout", ["fer2013", "huggingface"])
def test_photographs_inside_tables_are_read_again(tmp_path, layout):
    rng, source, run = np.random.default_rng(2), tmp_path / "source", tmp_path / "run"
    source.mkdir()
    pixels = rng.integers(0, 256, (12, 48, 48), np.uint8)

    def write(pixels):
        if layout == "fer2013":
            usage = ["Training"] * 6 + ["PublicTest"] * 3 + ["PrivateTest"] * 3
            rows = [f"{k % 7},{' '.join(map(str, p.ravel()))},{usage[k]}" for k, p in enumerate(pixels)]
            (source / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n")
            return
        pictures = []
        for k, face in enumerate(pixels):
            file = io.BytesIO()
            Image.fromarray(face).save(file, "png")
            pictures.append({"bytes": file.getvalue(), "path": f"{k}.png"})
        labels = [CLASSES[k % 3] for k in range(len(pixels))]
        pq.write_table(pa.table({"image": pictures, "label": labels}), source / "train.parquet")

    write(pixels)
    align.run(source, run, AS_GIVEN)
    where = f"12 photographs hashed again below {source}"
    assert states(run, "sources") == {"faces": ("ok", where)}
    write(np.concatenate([pixels[:4], 255 - pixels[4:5], pixels[5:-1]]))
    face = "fer2013.csv/4" if layout == "fer2013" else "train.parquet/4/4.png"
    last = "fer2013.csv/11" if layout == "fer2013" else "train.parquet/11/11.png"
    assert findings(run)["faces", "sources"] == [
        f"1 photographs that were changed since, first {face}",
        f"1 photographs that are not there any more, first {last}",
    ]


# --- words -----------------------------------------------------------------------------------------------------


def test_names_stay_text_on_one_line(run):
    (run / "students" / "sll").rename(run / "students" / "s\n<script>\x1b[2J")
    (run / "students" / "s\n<script>\x1b[2J" / "no\nte").write_text("")
    (run.parent / "source" / "train" / "sadness" / HOSTILE).write_bytes(b"GIF89a")
    done = fer("verify", run)
    assert done.exit_code == 1
    assert all(line.startswith(("ok ", "noted ", "FAILED ", "not checked ")) for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
    assert "students/s\\n<script>\\x1b[2J" in done.stdout
    assert "not of the artifact: no\\nte" in done.stdout


def test_what_is_no_run_is_said(run, tmp_path):
    def refusal(path):
        with pytest.raises(FerError) as error:
            verify(path)
        return str(error.value)

    assert refusal(run / "faces") == f"{run}/faces is an artifact (faces); give the run that it lies in, {run}"
    assert "does not exist; give a run folder" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == (
        f"{tmp_path}/empty holds nothing that fer align, fer teach or fer distill wrote; give a run folder"
    )
