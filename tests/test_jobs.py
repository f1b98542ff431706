"""Independent jobs, --shard I/N, and fer merge: the files of one process, or one sentence and nothing written."""

import json
import shutil

import pytest
from click.testing import CliRunner
from conftest import SMALL_TEACHER, write_faces, write_photos
from filelock import FileLock

from efficientface.cli import cli
from efficientface.pipeline import align, label, teach

ALIGN = ["--aligned", "--crop", 32, "--shard-faces", 4]
TEACH = ["--teacher-arch", SMALL_TEACHER, "--size", 32, "--epochs", 8, "--batch-size", 6, "--lr", 0.02, "--views", 1]
TEACH += ["--schedule", "onecycle", "--min-area", 0.5, "--shard-faces", 25, "--workers", 1]


def fer(*words, status=0):
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.stdout if status == 0 else done.stderr.splitlines()[-1].removeprefix("Error: ")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """18 photographs, one of which cannot be read: five files of four."""
    return write_photos(tmp_path_factory.mktemp("photos"), 18)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """What one process makes of them."""
    run = tmp_path_factory.mktemp("whole")
    fer("align", photos, run, *ALIGN)
    return files_of(run / "faces")


def without_place(files):
    """Files of faces/ but for where the source lies, and so the digest of the manifest."""
    manifest = json.loads(files["manifest.json"])
    del manifest["made_from"]["source"]["path"]
    return {**files, "manifest.json": manifest, "manifest.blake2b": None}


def test_jobs_on_one_run_folder_leave_what_one_process_leaves(photos, whole, tmp_path):
    run = tmp_path / "run"
    for k in (3, 1, 2, 2):  # in any order, and twice
        told = json.loads(fer("align", photos, run, *ALIGN, "--shard", f"{k}/3", "--json"))
        assert told["rows"] == {1: 8, 2: 6, 3: 4}[k]
        assert not (run / "faces" / "manifest.json").exists()
    first = fer("merge", run)
    assert "17 faces" in first
    assert without_place(files_of(run / "faces")) == without_place(whole)
    assert fer("merge", run) == first
    assert fer("align", photos, run, *ALIGN, "--shard", "1/3") == first


def test_jobs_on_copies_are_gathered(photos, whole, tmp_path):
    runs = [tmp_path / name for name in "abc"]
    for k, run in enumerate(runs, 1):
        fer("align", photos, run, *ALIGN, "--shard", f"{k}/3")
    # part 1 and 4 are the second job's; a damaged file is as good as none
    (runs[1] / "faces" / "part-00004.parquet").write_bytes(b"cut off")
    before = files_of(runs[0] / "faces")
    assert fer("merge", *runs[:2], status=1) == (
        f"{runs[0]}/faces lacks 2 of 5 shards (first part-00002.parquet), the work of --shard 2/3 and 3/3; "
        "run fer align so again, or name the run folder that has them"
    )
    assert files_of(runs[0] / "faces") == before
    fer("align", photos, runs[1], *ALIGN, "--shard", "2/3")
    fer("merge", *runs)
    assert without_place(files_of(runs[0] / "faces")) == without_place(whole)


def test_other_settings_of_a_second_job_are_named(photos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    fer("align", photos, run, *ALIGN, "--shard", "1/2")
    assert "was made with crop 32, not 64" in fer(
        "align", photos, run, *ALIGN, "--crop", 64, "--shard", "2/2", status=1
    )
    assert fer("align", photos, run, *ALIGN, "--shard", "2/3", status=1) == (
        f"{run}/faces was begun by 2 jobs, not 3; give --shard I/2"
    )
    assert "remove " in fer("align", photos, run, *ALIGN, "--shard", "2/2", "--replace", status=1)
    monkeypatch.setattr(align.cv2, "__version__", "0.1")
    assert "was begun with decoders" in fer("align", photos, run, *ALIGN, "--shard", "2/2", status=1)
    assert "lacks 2 of 5 shards" in fer("merge", run, status=1)


def test_the_same_job_twice_at_once_and_a_whole_run_beside_jobs_are_refused(photos, tmp_path):
    run = tmp_path / "run"
    fer("align", photos, run, *ALIGN, "--shard", "1/2")
    with FileLock(run / ".align-2-of-2.lock"):
        assert fer("align", photos, run, *ALIGN, "--shard", "2/2", status=1) == (
            f"another fer align --shard 2/2 is writing {run}/faces; wait for it, or choose another run folder"
        )
        fer("align", photos, run, *ALIGN, "--shard", "1/2")
    busy = f"another fer align is writing {run}/faces; wait for it, or choose another run folder"
    with FileLock(run / ".align.lock"):
        assert fer("align", photos, run, *ALIGN, "--shard", "2/2", status=1) == busy
    with align.among(run / "faces", run / align.LOCK, align.Job(2, 2), "fer align", "choose another run folder"):
        assert fer("merge", run, status=1) == busy
        assert fer("align", photos, run, *ALIGN, status=1) == busy


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/0"])
def test_a_job_that_is_none_is_refused(photos, tmp_path, text):
    told = fer("align", photos, tmp_path, f"--shard={text}", status=1)
    assert told == f"--shard {text} is not understood; give I/N, job I of N counted from 1, such as 1/4"


def test_one_process_goes_on_with_what_jobs_began(photos, whole, tmp_path):
    fer("align", photos, tmp_path, *ALIGN, "--shard", "2/2")
    fer("align", photos, tmp_path, *ALIGN)
    assert without_place(files_of(tmp_path / "faces")) == without_place(whole)


@pytest.mark.parametrize("source", ["votes", pytest.param("ldg", marks=pytest.mark.slow)])
def test_labelling_jobs_leave_what_one_process_leaves(tmp_path, source):
    run = tmp_path / "run"
    write_faces(run)
    words = [*TEACH, "--source", source]
    if source == "ldg":
        fer("teach", run, *words, "--train-only")
    copies = [shutil.copytree(run, tmp_path / name) for name in "ab"]
    fer("teach", run, *words)
    fer("teach", copies[0], *words, "--shard", "1/2")
    assert "was begun with seed 0, not 1" in fer("teach", copies[0], *words, "--seed", 1, "--shard", "2/2", status=1)
    assert fer("merge", copies[0], status=1) == (
        f"{copies[0]}/distributions lacks 1 of 3 shards (first part-00001.parquet), the work of --shard 2/2; "
        "run fer teach so again, or name the run folder that has them"
    )
    fer("teach", copies[1], *words, "--shard", "2/2")
    told = fer("merge", *copies)
    assert fer("merge", *copies) == told
    assert files_of(copies[0] / "distributions") == files_of(run / "distributions")


def test_training_may_be_all(tmp_path, monkeypatch):
    run = tmp_path / "run"
    write_faces(run)
    monkeypatch.setattr(teach, "train_teacher", lambda *_: None)
    assert f"{run}/teacher" in fer("teach", run, *TEACH, "--train-only")
    assert not (run / "distributions").exists()
    assert "--train-only trains a teacher" in fer("teach", run, "--source", "votes", "--train-only", status=1)


def test_jobs_need_a_teacher(tmp_path):
    run = tmp_path / "run"
    write_faces(run)
    assert fer("teach", run, *TEACH, "--shard", "1/2", status=1) == (
        f"{run}/teacher is not trained yet, and --shard only asks teachers; run fer teach --train-only first"
    )
    fer("teach", run, "--source", "votes", "--shard", "1/1")  # votes ask none
    assert "60" in fer("merge", run)


def test_there_is_something_to_merge(tmp_path):
    nothing = "holds nothing that jobs have made; run fer align or fer teach with --shard I/N first"
    assert fer("merge", tmp_path, status=1) == f"{tmp_path} {nothing}"
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / label.PLAN).write_text("{")
    assert fer("merge", tmp_path, status=1) == (
        f"{tmp_path}/faces/plan.json is damaged; remove {tmp_path}/faces and run its jobs again"
    )
