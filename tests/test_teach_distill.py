"""`fer teach` and `fer distill` through their commands: what is on disk, what is refused, in which words."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import CLASSES, SMALL_TEACHER, sign_again, write_faces

from efficientface import FerError
from efficientface.cli import cli
from efficientface.data.faces import read_faces
from efficientface.data.views import draw_views
from efficientface.pipeline import label as labelling
from efficientface.pipeline.artifact import DIGEST, MANIFEST, digest_file, read_manifest
from efficientface.pipeline.config import TeachConfig
from efficientface.pipeline.inputs import read_inputs

COMMON = ["--size", "32", "--schedule", "onecycle", "--min-area", "0.5"]
# small batches: batch norm's running statistics need some fifty steps before they are worth judging by
TEACH = [*COMMON, "--teacher-arch", SMALL_TEACHER, "--epochs", "8", "--batch-size", "6", "--lr", "0.02"]
DISTILL = [*COMMON, "--epochs", "2", "--batch-size", "16"]


def fer(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def refused(result) -> str:
    """The one sentence that a command ends with."""
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    return lines[-1].removeprefix("Error: ")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    run = tmp_path_factory.mktemp("original") / "run"
    write_faces(run)
    result = fer("teach", run, *TEACH, "--views", 3, "--json")
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def run(original, tmp_path):
    """A taught run that a test may spoil."""
    return shutil.copytree(original, tmp_path / "run")


def frame(run, name="distributions"):
    return pd.concat([pd.read_parquet(path) for path in sorted((run / name).glob("*.parquet"))], ignore_index=True)


def test_the_cache_has_a_row_a_face_with_the_views_that_the_hash_draws(run):
    rows = frame(run)
    assert len(rows) == 60
    assert np.allclose(rows[list(CLASSES)].sum(axis=1), 1, atol=1e-6)
    boxes, flips = draw_views(0, list(rows["face_id"]), range(3), 64, 0.5)
    assert [[list(box) for box in face] for face in rows["view_box"]] == boxes.tolist()
    assert [list(face) for face in rows["view_flip"]] == flips.tolist()
    assert set(rows.loc[rows["split"] == "train", "fold"]) == {-1}
    assert set(rows.loc[rows["split"] != "train", "fold"]) == {-2}


def test_every_file_is_in_the_manifest_with_its_digest(run):
    for folder in (run / "teacher", run / "distributions"):
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {path.name for path in folder.iterdir()} - {MANIFEST, DIGEST}
        assert set(manifest["files"]) == files
        for name, entry in manifest["files"].items():
            assert entry == {"bytes": (folder / name).stat().st_size, "blake2b": digest_file(folder / name)}


def test_a_killed_labelling_goes_on_with_the_missing_shards(original, tmp_path):
    run = shutil.copytree(original, tmp_path / "run")
    whole, options = frame(run), [*TEACH, "--views", 3]
    shutil.rmtree(run / "distributions")
    from efficientface.pipeline import teach
    from efficientface.pipeline.config import TeachConfig

    config = TeachConfig(
        teacher_arch=SMALL_TEACHER, size=32, epochs=8, batch_size=6, schedule="onecycle", lr=0.02, min_area=0.5,
        views=3, shard_faces=20,
    )  # fmt: skip
    real, calls = labelling.write_shard, []

    def killed(shard, path):
        calls.append(len(shard))
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(shard, path)

    labelling.write_shard = killed
    try:
        with pytest.raises(KeyboardInterrupt):
            teach.run(run, config)
        assert not (run / "distributions" / MANIFEST).exists()
        assert [p.name for p in (run / "distributions").glob("*.parquet")] == ["part-00000.parquet"]
        teach.run(run, config)
    finally:
        labelling.write_shard = real
    assert calls == [20, 20, 20, 20]
    again = frame(run)
    assert np.abs(again[list(CLASSES)].to_numpy() - whole[list(CLASSES)].to_numpy()).max() < 1e-6
    assert [box.tolist() for face in again["view_box"] for box in face] == [
        box.tolist() for face in whole["view_box"] for box in face
    ]
    assert refused(fer("teach", run, *options, "--shard-faces", 8192)) == (
        f"{run}/distributions is finished with other settings (shard_faces 20, now 8192); "
        "give --cache NAME to write beside it, or remove it"
    )


def test_a_finished_stage_is_not_done_again(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    result = fer("teach", run, *TEACH, "--views", 3, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["faces"] == 60
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_another_teacher_is_not_mistaken_for_the_finished_one(run):
    assert refused(fer("teach", run, *TEACH, "--seed", 5)) == (
        f"{run}/teacher is finished with other settings (seed 0, now 5); "
        "give --checkpoint to use it as it is, or remove it to train anew"
    )


def test_a_cache_of_a_removed_teacher_stops_the_next_teacher_before_it_trains(run):
    shutil.rmtree(run / "teacher")
    assert refused(fer("teach", run, *TEACH)) == (
        f"{run}/distributions is finished and {run}/teacher is not, so another teacher made it; "
        "give --cache NAME to write beside it, or remove it"
    )
    assert not (run / "teacher").exists()


def test_a_teacher_of_another_run_labels_faces_it_has_not_seen(original, tmp_path):
    run = tmp_path / "other"
    write_faces(run, seed=1)
    result = fer("teach", run, "--checkpoint", original / "teacher", "--views", 0, "--cache", "borrowed")
    assert result.exit_code == 0, result.output
    rows = frame(run, "distributions-borrowed")
    assert set(rows["fold"]) == {-2}
    assert "view_box" not in rows
    assert not (run / "teacher").exists()


def test_the_order_of_classes_is_matched_by_name(original, tmp_path):
    run = tmp_path / "turned"
    write_faces(run, classes=("sadness", "neutral", "happiness"), seed=0)
    result = fer("teach", run, "--checkpoint", original / "teacher", "--views", 0, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["teacher"]["accuracy"] > 0.8


def test_a_permuted_class_list_is_found_and_its_remedy_named(original, tmp_path):
    run = shutil.copytree(original, tmp_path / "run")
    shutil.rmtree(run / "distributions")
    config = run / "teacher" / "config.json"
    described = json.loads(config.read_text())
    described["classes"] = ["happiness", "sadness", "neutral"]
    config.write_text(json.dumps(described))
    changed = f"{config} has {config.stat().st_size} bytes instead of "
    assert refused(fer("teach", run, "--checkpoint", run / "teacher")).startswith(changed)
    sign_again(run / "teacher", classes=described["classes"])
    message = refused(fer("teach", run, "--checkpoint", run / "teacher"))
    assert message.startswith("the teacher is right about ")
    assert message.endswith(
        "if its classes, now read as neutral, happiness, sadness, were sadness, neutral, happiness: were the labels "
        "or the teacher's classes in another order? Align again with the right ones, or train another teacher"
    )


def test_a_teacher_that_only_guesses_is_refused(original, tmp_path, monkeypatch):
    run = shutil.copytree(original, tmp_path / "run")
    shutil.rmtree(run / "distributions")
    monkeypatch.setattr(labelling, "predict", lambda model, faces, *a, **k: np.full((len(faces), 1, 3), 1 / 3))
    assert refused(fer("teach", run, *TEACH, "--views", 3)) == (
        "the teacher is right about 33.3% of a class's val faces on average (12 faces), no better than guessing among "
        "3 classes (33.3%); train it longer (--epochs), at a larger --size or with another --lr"
    )


def test_a_permutation_is_not_made_out_of_luck(run, monkeypatch):
    """Of the six orders of three classes the best always beats guessing; that alone accuses nobody."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(labelling, "predict", lambda model, faces, *a, **k: rng.dirichlet(np.ones(3), (len(faces), 1)))
    inputs = read_inputs(run)
    teachers = labelling.load_teachers([run / "teacher"], inputs.faces.classes, TeachConfig())
    told = []
    for _ in range(40):
        try:
            labelling.check_teacher(teachers, inputs, "val")
        except FerError as error:
            told.append("were the labels" in str(error))
    assert len(told) >= 10
    assert not any(told)


def test_a_teacher_that_always_says_the_same_is_refused(run, monkeypatch):
    """Though most faces may be of what it says."""
    inputs = read_inputs(run)
    faces = inputs.faces
    happy = replace(faces, label=np.where(faces.split == "val", np.minimum(faces.label, 1), faces.label))
    constant = np.array([[[0.2, 0.6, 0.2]]], np.float32)
    monkeypatch.setattr(labelling, "predict", lambda model, faces, *a, **k: constant.repeat(len(faces), 0))
    teachers = labelling.load_teachers([run / "teacher"], happy.classes, TeachConfig())
    with pytest.raises(FerError, match=r"right about 50\.0% of a class's val faces on average .* among 2 classes"):
        labelling.check_teacher(teachers, replace(inputs, faces=happy), "val")


def test_a_teacher_of_other_classes_is_refused(original, tmp_path):
    run = tmp_path / "other"
    write_faces(run, classes=("neutral", "happiness", "anger"))
    assert refused(fer("teach", run, "--checkpoint", original / "teacher")) == (
        f"{original}/teacher answers for the classes neutral, happiness, sadness, "
        "faces/ has neutral, happiness, anger; give a teacher of the same classes, or fer align --classes"
    )


def test_a_student_is_trained_without_the_teacher(run):
    shutil.rmtree(run / "teacher")
    code = (
        "import sys; from efficientface.cli import cli\n"
        f"cli(['distill', {str(run)!r}, *{DISTILL!r}, '--epochs', '1'], standalone_mode=False)\n"
        "assert not [m for m in sys.modules if m.endswith('pipeline.teach') or m.endswith('models.teacher')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (run / "students" / "ldl" / MANIFEST).exists()


def test_single_labels_need_no_cache(tmp_path):
    run = tmp_path / "run"
    write_faces(run)
    result = fer("distill", run, *DISTILL, "--loss", "sll", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["student"] == str(run / "students" / "sll")


def test_replay_gives_every_epoch_another_stored_view_with_its_answer(run):
    from efficientface.cache.parquet import read_shards
    from efficientface.pipeline.config import DistillConfig
    from efficientface.pipeline.distill import replay

    cached = read_shards(sorted((run / "distributions").glob("*.parquet")))
    rows = np.arange(len(cached))
    lessons = replay(cached, 64, DistillConfig(seed=3))
    seen = np.stack([lessons(rows, np.full_like(rows, epoch)).targets for epoch in range(3)], 1)
    for n in range(len(cached)):
        order = [int(np.flatnonzero((cached.view_distribution[n] == seen[n, e]).all(-1))[0]) for e in range(3)]
        assert sorted(order) == [0, 1, 2]
        assert np.array_equal(lessons(np.array([n]), np.array([7])).boxes[0, 0], cached.view_box[n, order[7 % 3]])
    other = replay(cached, 64, DistillConfig(seed=4))
    assert not np.array_equal(other(rows, 0 * rows).boxes, lessons(rows, 0 * rows).boxes)


def test_per_image_use_crops_freely_and_keeps_the_canonical_distribution(original, tmp_path):
    run = shutil.copytree(original, tmp_path / "run")
    assert fer("teach", run, *TEACH, "--views", 0, "--cache", "whole").exit_code == 0
    result = fer("distill", run, *DISTILL, "--cache", "whole", "--name", "free")
    assert result.exit_code == 0, result.output


def test_a_cache_of_other_pictures_is_refused(run):
    faces = run / "faces"
    shutil.rmtree(faces)
    write_faces(run, seed=9)
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{run}/distributions is about other pictures than faces/ for 60 of 60 faces, "
        "first face-000.png (image_hash differs); run fer teach again"
    )


def test_a_cache_that_lacks_faces_is_refused(run):
    shutil.rmtree(run / "faces")
    write_faces(run, count=75)
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{run}/distributions has no distribution for 15 of 75 faces, first face-060.png; run fer teach again"
    )


def test_a_cache_of_other_classes_is_refused(run):
    shutil.rmtree(run / "faces")
    write_faces(run, classes=("neutral", "happiness", "anger"))
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{run}/distributions has the classes neutral, happiness, sadness, the faces have neutral, happiness, anger; "
        "give a cache made from these faces (fer teach)"
    )


def test_a_half_written_cache_is_refused(run):
    (run / "distributions" / MANIFEST).unlink()
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{run}/distributions is unfinished (it has no manifest.json); run fer teach again to complete it"
    )


def test_a_lost_shard_is_named(run):
    shard = run / "faces" / "part-00001.parquet"
    shard.unlink()
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{shard} is missing; restore it, or remove {run}/faces and run fer align again"
    )


def test_a_truncated_shard_is_named(run):
    shard = run / "distributions" / "part-00000.parquet"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{shard} has {size - 1} bytes instead of {size}; "
        f"restore it, or remove {run}/distributions and run fer teach again"
    )


def test_options_not_given_are_those_of_what_is_finished(run):
    result = fer("teach", run, "--calibrate", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["calibration"]["split"] == "val"
    assert fer("teach", run, "--source", "0.5*votes+0.5*ldg", "--cache", "mixed").exit_code == 0
    assert read_manifest(run / "distributions-mixed", "distributions")["settings"]["min_area"] == 0.5
    assert refused(fer("teach", run, "--epochs", "9")) == (
        f"{run}/teacher is finished with other settings (epochs 8, now 9); "
        "give --checkpoint to use it as it is, or remove it to train anew"
    )


def test_a_damaged_model_is_not_asked(run):
    weights = run / "teacher" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000] + bytes([whole[5000] ^ 64]) + whole[5001:])
    assert refused(fer("teach", run, "--checkpoint", run / "teacher", "--cache", "again")) == (
        f"{weights} is damaged, or was changed after it was written; "
        f"restore it, or remove {run}/teacher and run fer teach again"
    )


def test_a_changed_manifest_is_noticed(run):
    path = run / "faces" / MANIFEST
    path.write_text(path.read_text().replace('"crop": 64', '"crop": 65'))
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{path} was changed after it was written (see manifest.blake2b); "
        f"restore it, or remove {run}/faces and run fer align again"
    )


def test_a_digest_that_is_gone_is_named(run):
    (run / "faces" / "manifest.blake2b").unlink()
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{run}/faces/manifest.blake2b is missing; restore it, or remove {run}/faces and run fer align again"
    )


def test_stages_in_the_wrong_order_say_which_comes_first(tmp_path):
    assert refused(fer("teach", tmp_path / "run")) == f"{tmp_path}/run/faces does not exist; run fer align first"
    write_faces(tmp_path / "run")
    assert refused(fer("distill", tmp_path / "run")) == (
        f"{tmp_path}/run/distributions does not exist; run fer teach first"
    )


def test_an_artifact_in_anothers_place_is_refused(run):
    shutil.rmtree(run / "distributions")
    shutil.copytree(run / "faces", run / "distributions")
    assert refused(fer("distill", run, *DISTILL)) == (
        f"{run}/distributions holds faces, not distributions; give the folder that fer teach wrote"
    )


def test_one_class_only_is_refused(tmp_path):
    run = tmp_path / "run"
    write_faces(run, classes=("fear",), count=30)
    sentence = (
        f"{run}/faces has training faces of one class only (fear, 18 faces); "
        "nothing can be learned from that; add faces of other classes and run fer align again"
    )
    assert refused(fer("teach", run, *TEACH)) == sentence
    assert refused(fer("distill", run, *DISTILL, "--loss", "sll")) == sentence


def test_a_name_cannot_leave_the_run(run):
    assert refused(fer("distill", run, "--name", "../up")) == (
        "--name '../up' cannot be a folder's name; use letters, digits, '-', '_' and '.'"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(run):
    for command in (("teach", run, *TEACH), ("distill", run, *DISTILL), ("evaluate", run)):
        sentence = refused(fer(*command, "--device", "cuda"))
        assert sentence.startswith("--device cuda cannot be used here (")
        assert sentence.endswith("); give another one, such as cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_and_its_student_answers_alike_on_the_cpu(run, precision):
    assert fer("distill", run, *DISTILL, "--device", "cuda", "--precision", precision).exit_code == 0
    scores = []
    for device in ("cpu", "cuda"):
        result = fer("evaluate", run, "--device", device, "--names", "ldl", "--json")
        assert result.exit_code == 0, result.output
        scores.append(json.loads(result.stdout)["models"]["ldl"]["distribution"]["cross_entropy"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-2)


def test_no_faces_of_the_wanted_split(run):
    assert refused(fer("distill", run, *DISTILL, "--choose-on", "dev")) == (
        f"{run}/faces has no labelled faces in split dev (splits: test, train, val); "
        "run fer align on a source with labels, or with --val-from-train 0.1"
    )


def test_faces_keep_rows_of_photographs_without_a_face(run):
    faces = read_faces(sorted((run / "faces").glob("*.parquet")))
    assert len(faces) == 61
    assert faces.face_id[~faces.usable].tolist() == ["wall.png"]


def test_hdf5_is_assembled_from_the_shards_and_trains_the_same_student(run, tmp_path):
    """Killed at each of its last steps, it goes on and ends with the same file; status says how to go on."""
    from efficientface.pipeline.caches import ONE_FILE, convert, open_cache

    words = ["teach", run, *TEACH, "--views", 3, "--cache", "one", "--format", "hdf5"]
    folder = run / "distributions-one"
    left = {}
    for step in ("assemble", "write_manifest", "clear"):
        real = getattr(labelling, step)

        def killed(*args, real=real, step=step, **kwargs):
            if step == "assemble":
                (folder / f".{ONE_FILE}.1.part").write_bytes(b"half")
            raise KeyboardInterrupt

        setattr(labelling, step, killed)
        try:
            assert fer(*words).exit_code == 130
        finally:
            setattr(labelling, step, real)
        left[step] = {path.name for path in folder.iterdir()}
        if step == "assemble":
            assert "--format hdf5" in json.loads(fer("status", run, "--json").stdout)["next"]
    assert ONE_FILE not in left["assemble"]
    assert ONE_FILE in left["write_manifest"]
    assert MANIFEST not in left["write_manifest"]
    assert {MANIFEST, "part-00000.parquet"} <= left["clear"]
    done = fer(*words, "--json")
    assert done.exit_code == 0, done.output
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {ONE_FILE, MANIFEST, DIGEST}
    assert refused(fer(*words[:-1], "parquet")) == (
        f"{folder} is finished with other settings (format hdf5, now parquet); "
        "give --cache NAME to write beside it, or remove it"
    )

    one, many = open_cache(folder), open_cache(run / "distributions")
    assert {k: v for k, v in one.manifest.items() if k != "files"} == {
        k: v for k, v in many.manifest.items() if k != "files"
    }
    convert(folder, run / "back")  # the files that fer teach would have written without --format hdf5
    for path in (run / "distributions").iterdir():
        assert (run / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    assert one.read().view_distribution.tobytes() == many.read().view_distribution.tobytes()
    ends = [json.loads(fer("distill", run, *DISTILL, "--name", n, *w, "--json").stdout)
            for n, w in (("many", ()), ("one", ("--cache", "one")))]  # fmt: skip
    assert ends[0]["val_cross_entropy"] == ends[1]["val_cross_entropy"]
    stages = {s["stage"]: s["state"] for s in json.loads(fer("status", run, "--json").stdout)["stages"]}
    assert stages["distributions-one"] == stages["students/one"] == "done"


def test_a_format_change_keeps_the_shards_that_are_there(run, monkeypatch):
    words = ["teach", run, *TEACH, "--views", 3, "--cache", "other"]
    with monkeypatch.context() as patched:
        patched.setattr(labelling, "finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert fer(*words).exit_code == 130
    monkeypatch.setattr(labelling, "write_shard", lambda *a: pytest.fail("asked again"))
    assert fer(*words, "--format", "hdf5").exit_code == 0


def test_class_names_that_hdf5_cannot_hold_stop_before_any_work(tmp_path):
    write_faces(tmp_path / "run", classes=("neutral", "happiness/joy"))
    assert refused(fer("teach", tmp_path / "run", *TEACH, "--format", "hdf5")) == (
        "class 'happiness/joy' cannot be a dataset's name in HDF5 (empty, '.', or with '/' or NUL); "
        "rename the class, or use Parquet"
    )
    assert not (tmp_path / "run" / "teacher").exists()
