"""Where distributions come from: teachers in and out of fold, votes, labels, mixtures; more views; temperature."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from click.testing import CliRunner
from conftest import SMALL_TEACHER, write_faces
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from small_caches import make
from test_models import varied

from efficientface import FerError
from efficientface.cache.distributions import tempered
from efficientface.cli import cli
from efficientface.data.batches import canonical
from efficientface.data.faces import read_faces
from efficientface.models.efficientface import efficient_face
from efficientface.models.inference import for_inference
from efficientface.pipeline import distill, label, teach
from efficientface.pipeline.artifact import MANIFEST, data_files, digest_of, read_manifest
from efficientface.pipeline.caches import convert, open_cache
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.config import DistillConfig, TeachConfig, parse_source
from efficientface.pipeline.folds import assign_folds
from efficientface.pipeline.issues import issues
from efficientface.pipeline.predict import predict
from efficientface.pipeline.status import status
from efficientface.pipeline.verify import verify

SMALL = {"size": 32, "schedule": "onecycle", "min_area": 0.5, "workers": 1}
TEACH = TeachConfig(teacher_arch=SMALL_TEACHER, epochs=8, batch_size=6, views=3, lr=0.02, shard_faces=25, **SMALL)
DISTILL = DistillConfig(epochs=3, batch_size=16, lr=0.1, **SMALL)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    run = tmp_path_factory.mktemp("original") / "run"
    write_faces(run)
    teach.run(run, TEACH)
    return run


@pytest.fixture
def run(original, tmp_path):
    """A taught run that a test may spoil."""
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture(scope="module")
def folded(original, tmp_path_factory):
    """A run with a cache answered by teachers of three folds, faces 0 and 3 being of one person."""
    run = shutil.copytree(original, tmp_path_factory.mktemp("folded") / "run")
    teach.run(run, replace(TEACH, folds=3, cache="oof"))
    return run


def faces_of(run):
    faces = read_faces(data_files(run / "faces", read_manifest(run / "faces", "faces")))
    return faces.select(faces.usable)


def cached(path: Path, views: bool = True):
    return open_cache(path).read(views)


def weights(folder):
    return load_file(folder / "model.safetensors")


# --- sources --------------------------------------------------------------------------------------------------


def test_votes_are_stored_as_shares_and_need_no_teacher(run):
    shutil.rmtree(run / "teacher")
    result = teach.run(run, replace(TEACH, source="votes", cache="votes"))
    assert (result["faces"], result["views"], result["source"]) == (60, 0, "votes")
    stored, faces = cached(run / "distributions-votes"), faces_of(run)
    np.testing.assert_allclose(stored.canonical, faces.votes / faces.votes.sum(1, keepdims=True), atol=1e-7)
    assert set(stored.fold) == {-3}
    assert distill.run(run, replace(DISTILL, cache="votes", name="votes", epochs=1))["student"].endswith("votes")


def test_smoothed_labels_leave_most_on_the_label(run):
    teach.run(run, replace(TEACH, source="smooth:0.3", cache="smooth"))
    stored = cached(run / "distributions-smooth")
    by_hand = np.full((60, 3), 0.1)
    by_hand[np.arange(60), stored.label] += 0.7
    np.testing.assert_allclose(stored.canonical, by_hand, atol=1e-7)


def test_a_mixture_is_the_weighted_sum_view_by_view(run):
    teach.run(run, replace(TEACH, source="0.25*votes+0.75*ldg", cache="mixed"))
    plain, mixed, faces = cached(run / "distributions"), cached(run / "distributions-mixed"), faces_of(run)
    votes = faces.votes / faces.votes.sum(1, keepdims=True)
    np.testing.assert_allclose(mixed.canonical, 0.25 * votes + 0.75 * plain.canonical, atol=1e-6)
    np.testing.assert_allclose(
        mixed.view_distribution, 0.25 * votes[:, None] + 0.75 * plain.view_distribution, atol=1e-6
    )
    np.testing.assert_array_equal(mixed.fold, plain.fold)


def test_faces_without_votes_are_left_out_and_not_trained_on(tmp_path, monkeypatch):
    run = tmp_path / "run"
    write_faces(run)
    real = label.said_without_teacher

    def no_votes_for_some(faces, weights):
        known = real(faces, weights)
        known[faces.face_id == "face-009.png"] = np.nan  # of val: not trained on
        return known

    with monkeypatch.context() as patched:
        patched.setattr(label, "said_without_teacher", no_votes_for_some)
        assert teach.run(run, replace(TEACH, source="votes"))["faces"] == 59
    distill.run(run, replace(DISTILL, epochs=1))

    def no_votes_for_a_training_face(faces, weights):
        known = real(faces, weights)
        known[faces.face_id == "face-001.png"] = np.nan
        return known

    monkeypatch.setattr(label, "said_without_teacher", no_votes_for_a_training_face)
    teach.run(run, replace(TEACH, source="votes", cache="fewer"))
    checks = {check["check"]: check for check in verify(run / "distributions-fewer")["checks"]}
    assert checks["faces"]["state"] == "ok"
    assert checks["faces"]["detail"].endswith("; 1 faces left out, without votes or a label")
    distill.run(run, replace(DISTILL, cache="fewer", name="fewer"))
    assert read_manifest(run / "students" / "fewer", "student")["facts"]["train_faces"] == 35


def test_only_labelled_training_faces_are_asked_about_and_students_learn_the_same(tmp_path):
    run = tmp_path / "run"
    write_faces(run, unlabelled=["face-001.png", "face-009.png"])
    teach.run(run, TEACH)
    teach.run(run, replace(TEACH, covers="train", cache="fewer"))
    all_faces, fewer, faces = cached(run / "distributions"), cached(run / "distributions-fewer"), faces_of(run)
    wanted = (faces.split == "train") & (faces.label >= 0)
    assert fewer.face_id.tolist() == faces.face_id[wanted].tolist()
    assert open_cache(run / "distributions-fewer").manifest["facts"]["left_out"] == (~wanted).sum()
    same = all_faces.select(wanted)
    np.testing.assert_array_equal(fewer.view_box, same.view_box)
    np.testing.assert_allclose(fewer.view_distribution, same.view_distribution, atol=1e-6)
    checks = {check["check"]: check for check in verify(run / "distributions-fewer")["checks"]}
    assert checks["faces"]["state"] == "ok"
    assert checks["faces"]["detail"].endswith(f"; {(~wanted).sum()} faces left out, not labelled training faces")
    curves = [distill.run(run, replace(DISTILL, cache=name, name=f"from{name}"))["loss"] for name in ("", "fewer")]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    with pytest.raises(FerError, match=r"none of the 1 training faces without a label has a distribution; leave out"):
        distill.run(run, replace(DISTILL, cache="fewer", name="unlabelled", unlabelled=True))
    with pytest.raises(FerError, match="--calibrate needs answers about val faces, which --covers train leaves out"):
        replace(TEACH, covers="train", calibrate=True)
    shutil.rmtree(run / "faces")
    write_faces(run, unlabelled=["face-009.png"])  # one training face more has a label
    with pytest.raises(FerError, match=r"distributions-fewer has no distribution for 1 of 36 faces, first face-001"):
        distill.run(run, replace(DISTILL, cache="fewer", name="later"))


def test_a_cache_of_no_face_is_refused_before_a_teacher_is_trained(tmp_path):
    run = tmp_path / "run"
    write_faces(run, unlabelled=[f"face-{k:03d}.png" for k in range(60) if (k // 3) % 5 < 3])
    with pytest.raises(FerError, match="--covers train leaves none of the 60 faces of .* that --source ldg says some"):
        teach.run(run, replace(TEACH, covers="train"))
    assert not (run / "teacher").exists()


def test_labelling_that_an_older_program_began_goes_on(run):
    whole = cached(run / "distributions")
    shutil.rmtree(run / "distributions")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(label, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            teach.run(run, TEACH)
    path = run / "distributions" / label.PLAN
    plan = json.loads(path.read_text())
    del plan["settings"]["covers"]
    path.write_text(json.dumps(plan))
    with pytest.raises(FerError, match=r"begun with other settings \(covers all, now train\)"):
        teach.run(run, replace(TEACH, covers="train"))
    teach.run(run, TEACH)
    np.testing.assert_array_equal(cached(run / "distributions").canonical, whole.canonical)


def test_several_teachers_are_averaged(run, folded):
    second = folded / "teacher" / "fold-0"
    teach.run(run, replace(TEACH, cache="one"), [second])
    teach.run(run, replace(TEACH, cache="two"), [run / "teacher", second])
    a, b, both = (cached(run / name) for name in ("distributions", "distributions-one", "distributions-two"))
    np.testing.assert_allclose(both.view_distribution, (a.view_distribution + b.view_distribution) / 2, atol=1e-6)
    assert set(open_cache(run / "distributions-two").manifest["made_from"]) == {"faces", "teacher-0", "teacher-1"}
    # a face is seen when one of them was trained on it
    np.testing.assert_array_equal(both.fold, np.maximum(a.fold, b.fold))
    told = verify(run / "distributions-two", [run / "teacher", second], sample=10)["checks"][-1]
    assert told["state"] == "ok", told
    told = verify(run / "distributions-two", [second], sample=10)["checks"][-1]
    assert told["state"] == "FAILED"
    assert told["detail"] == "2 teachers were asked about every face; give each with --teacher"
    with pytest.raises(FerError, match=r"distributions-two was also made from teacher-0 .*; give --cache NAME"):
        label.refuse_other(
            run / "distributions-two",
            read_manifest(run / "distributions-two", "distributions"),
            {"faces": open_cache(run / "distributions-two").manifest["made_from"]["faces"]},
            {},
            label.OTHERWISE,
        )
    with pytest.raises(FerError, match="distributions-two was made from other teacher than there are now"):
        teach.run(run, replace(TEACH, cache="two"), [run / "teacher"])


def test_what_no_source_says_is_told_before_a_teacher_is_trained(run, monkeypatch):
    monkeypatch.setattr(label, "said_without_teacher", lambda faces, weights: np.full((len(faces), 3), np.nan))
    monkeypatch.setattr(teach, "train_teacher", lambda *_: pytest.fail("a teacher was trained"))
    with pytest.raises(FerError, match=r"--source 0\.5\*votes\+0\.5\*ldg says nothing about any of the 60 faces"):
        teach.run(run, replace(TEACH, source="0.5*votes+0.5*ldg", cache="mixed"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ldg", {"ldg": 1.0}),
        ("smooth:0.1", {"smooth:0.1": 1.0}),
        ("0.5*votes + 0.5*ldg", {"votes": 0.5, "ldg": 0.5}),
    ],
)
def test_a_source_is_read_as_a_sum(text, found):
    assert parse_source(text) == found


@pytest.mark.parametrize("text", ["", "teacher", "ldg+ldg", "2*ldg", "x*ldg", "smooth:1", "smooth", "nan*ldg", "ldg+"])
def test_a_source_that_is_none_is_refused(text):
    with pytest.raises(FerError, match="is not understood at"):
        TeachConfig(source=text)


def test_weights_sum_to_one():
    with pytest.raises(FerError, match=r"--source 0\.5\*votes\+0\.4\*ldg has weights that sum to 0\.9; let them sum"):
        TeachConfig(source="0.5*votes+0.4*ldg")


# --- folds ----------------------------------------------------------------------------------------------------


def test_every_training_face_is_answered_by_the_teacher_that_has_not_seen_it(folded):
    stored, faces = cached(folded / "distributions-oof"), faces_of(folded)
    training = stored.split == "train"
    assert set(stored.fold[training]) == {0, 1, 2}
    assert set(stored.fold[~training]) == {-2}
    crop = read_manifest(folded / "faces", "faces")["settings"]["crop"]
    answers = []
    for k in range(3):
        folder = folded / "teacher" / f"fold-{k}"
        seen = set(pq.read_table(folder / label.TRAINED_ON)["face_id"].to_pylist())
        held_out = set(stored.face_id[stored.fold == k])
        assert seen | held_out == set(stored.face_id[training])
        assert not seen & held_out
        model, told = load_model(folder, "teacher")
        asked = {name: told[name] for name in ("size", "mean", "std")}
        answers.append(predict(model, faces, *canonical(len(faces), crop), **asked)[:, 0])
    for k in range(3):
        rows = stored.fold == k
        np.testing.assert_allclose(stored.canonical[rows], answers[k][rows], atol=1e-6)
    np.testing.assert_allclose(stored.canonical[~training], np.mean(answers, 0)[~training], atol=1e-6)


def test_folds_are_stratified_and_keep_a_person_and_equal_pictures_together(run):
    faces = faces_of(run)
    group, hashes = np.array(faces.group), np.array(faces.image_hash)
    group[[0, 1, 2]] = "anna"
    group[[3, 4]] = "ben"
    hashes[15] = hashes[4]  # ben again, though nobody says so
    leaked = np.flatnonzero(faces.split == "test")[0]
    hashes[leaked] = hashes[4]  # tested on, but two of the three teachers have seen it
    fold = assign_folds(replace(faces, group=group, image_hash=hashes), 3, seed=0)
    assert len(set(fold[[0, 1, 2]])) == len(set(fold[[3, 4, 15]])) == 1
    assert fold[leaked] == fold[4]
    assert (np.delete(fold, leaked)[np.delete(faces.split, leaked) != "train"] == -2).all()
    with pytest.raises(FerError, match="no class has as many training faces as --folds 20, the largest has 12; give"):
        assign_folds(faces, 20, seed=0)
    train = faces.split == "train"
    counts = np.array([[((fold == k) & (faces.label == c) & train).sum() for c in range(3)] for k in range(3)])
    assert counts.sum() == 36
    assert np.ptp(counts, axis=0).max() <= 2
    np.testing.assert_array_equal(fold, assign_folds(replace(faces, group=group, image_hash=hashes), 3, seed=0))


def test_more_folds_than_people_are_refused(run):
    faces = faces_of(run)
    group = np.where(faces.label == 0, "anna", "ben").astype(object)
    with pytest.raises(FerError, match="the 36 labelled training faces are of 2 groups, too few for --folds 3"):
        assign_folds(replace(faces, group=group), 3, seed=0)


def test_a_cache_of_folds_is_shown_and_verified(folded):
    report = verify(folded / "distributions-oof", [folded / "teacher" / "fold-1"], sample=10)
    assert report["ok"], report
    assert {c["check"]: c["state"] for c in report["checks"]}["teacher"] == "ok"
    shown = CliRunner().invoke(cli, ["inspect", str(folded / "distributions-oof")])
    assert shown.exit_code == 0, shown.output
    assert "answered by out-of-fold teacher 1" in shown.stdout
    states = CliRunner().invoke(cli, ["status", str(folded), "--json"])
    stages = {stage["stage"]: stage["state"] for stage in json.loads(states.stdout)["stages"]}
    assert stages["distributions-oof"] == stages["teacher"] == "done"


def test_a_mixture_is_not_held_against_the_teacher_alone(run):
    teach.run(run, replace(TEACH, source="0.25*votes+0.75*ldg", cache="mixed"))
    report = verify(run / "distributions-mixed", [run / "teacher"], sample=10)
    assert report["ok"]
    assert report["checks"][-1]["detail"] == (
        "the distributions are 0.25*votes+0.75*ldg, not the answers of a teacher alone"
    )


def test_folds_without_a_teacher_of_all_faces_leave_that_one_missing(folded, tmp_path):
    run = shutil.copytree(folded, tmp_path / "run")
    for path in (run / "teacher").iterdir():
        if path.is_file():
            path.unlink()
    shutil.rmtree(run / "distributions")
    result = json.loads(CliRunner().invoke(cli, ["status", str(run), "--json"]).stdout)
    assert {stage["stage"]: stage["state"] for stage in result["stages"]}["teacher"] == "missing"
    assert result["next"] == f"fer distill {run} --cache oof"


@pytest.mark.slow
def test_an_interrupted_training_of_folds_goes_on_by_the_next_command(run, monkeypatch):
    from efficientface.pipeline import train

    real, judged = train.judge_epoch, []

    def killed(*args):
        if len(judged) == TEACH.epochs + 1:  # the second epoch of the second fold's teacher
            raise KeyboardInterrupt
        judged.append(real(*args))
        return judged[-1]

    with monkeypatch.context() as patched:
        patched.setattr(train, "judge_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            teach.run(run, replace(TEACH, folds=2, cache="oof"))
    result = json.loads(CliRunner().invoke(cli, ["status", str(run), "--json"]).stdout)
    states = {stage["stage"]: stage["state"] for stage in result["stages"]}
    assert (states["teacher/fold-0"], states["teacher/fold-1"]) == ("done", "unfinished")
    assert result["next"].startswith(f"fer teach {run} ")
    again = CliRunner().invoke(cli, [*result["next"].split()[1:], "--views", "0"])
    assert again.exit_code == 0, again.output
    assert (run / "distributions-oof" / MANIFEST).exists()


def test_folds_and_a_checkpoint_are_refused_together(run):
    with pytest.raises(FerError, match="--checkpoint gives a teacher to ask, --folds 3 has no use for it"):
        teach.run(run, replace(TEACH, folds=3, cache="oof"), [run / "teacher"])
    with pytest.raises(FerError, match="--folds trains teachers, but --source votes asks none"):
        replace(TEACH, folds=3, source="votes")


# --- how teachers are asked -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scripted", [True, False])
def test_a_teacher_made_faster_answers_the_same_whatever_the_batch(scripted):
    network = varied(torchvision.models.resnet18(num_classes=7))
    quick = for_inference(network, 64, scripted)
    assert quick is not network
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in quick.modules())
    images = torch.randn(5, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = network(images)
        for count in (5, 5, 2, 1, 5):  # TorchScript may change its mind after a few calls
            assert (quick(images[:count]) - expected[:count]).abs().max() < 1e-5 * expected.abs().max()
        assert torch.equal(quick(images), for_inference(network, 64, scripted)(images))


def test_a_network_that_torch_cannot_make_faster_is_asked_as_it_is(caplog):
    caplog.set_level("INFO")
    student = efficient_face(7).eval()
    assert for_inference(student, 64, scripted=False) is student
    assert "EfficientFace is asked as it is, torch cannot make it faster" in caplog.text


def test_bf16_is_asked_for_measured_and_noted(run, caplog):
    caplog.set_level("INFO")
    settings = replace(TEACH, views=0, label_precision="bf16", cache="half")
    teach.run(run, settings, [run / "teacher"])
    manifest = open_cache(run / "distributions-half").manifest
    half, exact = (cached(run / name).canonical for name in ("distributions-half", "distributions"))
    told = manifest["facts"]["against_fp32"]
    assert manifest["settings"]["label_precision"] == "bf16"
    assert told["faces"] == 60
    # the batches are others, which may change what bf16 rounds
    assert told["largest_difference"] == pytest.approx(np.abs(half - exact).max(), rel=0.5)
    assert told["largest_difference"] > 1e-5
    assert "in bf16 a probability differs from fp32 by" in caplog.text
    with pytest.raises(FerError, match=r"finished with other settings \(label_precision bf16, now fp32\)"):
        teach.run(run, replace(settings, label_precision="fp32"), [run / "teacher"])
    with pytest.raises(FerError, match="--label-precision fp16 is not known; choose from fp32, bf16"):
        replace(TEACH, label_precision="fp16")
    checked = verify(run / "distributions-half", teachers=[run / "teacher"])["checks"]
    assert {check["check"]: check["state"] for check in checked}["teacher"] == "ok"


# --- more views -----------------------------------------------------------------------------------------------


def test_damaged_bytes_are_never_signed_anew(run, tmp_path):
    """A flipped bit, which Parquet need not notice, would be as good as true once a new manifest has its digest."""
    shard = run / "distributions" / "part-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    damaged = rf"{shard} is damaged, or was changed after it was written; restore it, or remove"
    for work in (
        lambda: convert(run / "distributions", tmp_path / "whole.h5"),
        lambda: teach.run(run, TEACH, more_views=2),
        lambda: teach.run(run, replace(TEACH, calibrate=True)),
        lambda: distill.run(run, replace(DISTILL, name="damaged")),
    ):
        with pytest.raises(FerError, match=damaged):
            work()
    assert not (tmp_path / "whole.h5").exists()
    shard.unlink()
    with pytest.raises(FerError, match=rf"{shard} is missing; restore it, or remove"):
        teach.run(run, TEACH)


def test_labelling_goes_on_only_as_it_was_begun(run, monkeypatch):
    out, real, calls = run / "distributions-begun", label.write_shard, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(label, "write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            teach.run(run, replace(TEACH, cache="begun"))
    with pytest.raises(FerError, match=r"begun with other settings \(views 3, now 4\); give the same to go on"):
        teach.run(run, replace(TEACH, views=4, cache="begun"))
    assert (out / "part-00000.parquet").exists()
    plan = (out / "plan.json").read_text()
    (out / "plan.json").write_text(plan[:20])
    with pytest.raises(FerError, match=rf"{out}/plan.json is damaged; remove {out} and run fer teach again"):
        teach.run(run, replace(TEACH, cache="begun"))
    about = json.loads(plan)
    about["facts"]["device"] = "cuda"  # as if the first shard were a GPU's
    (out / "plan.json").write_text(json.dumps(about))
    (out / ".part-00001.parquet.999999999.part").write_bytes(b"of a process that was killed")
    teach.run(run, replace(TEACH, cache="begun"))
    assert not list(out.glob(".*"))
    assert read_manifest(out, "distributions")["facts"]["device"] == "cuda"
    np.testing.assert_array_equal(cached(out).view_distribution, cached(run / "distributions").view_distribution)


def test_labels_and_votes_are_no_judges_of_labels(run, folded):
    teach.run(run, replace(TEACH, source="0.5*votes+0.5*ldg", cache="mixed"))
    with pytest.raises(FerError, match=r"distributions-mixed holds 0\.5\*votes\+0\.5\*ldg, and labels or votes in a"):
        issues(run / "distributions-mixed")


def test_what_was_made_from_faces_says_which_were_read(run, tmp_path, monkeypatch):
    """Others take their place while the teacher is trained."""
    before, real = digest_of(run / "faces"), teach.cache_distributions

    def later(*args, **more):
        shutil.rmtree(run / "faces")
        write_faces(run, count=48)
        return real(*args, **more)

    shutil.rmtree(run / "distributions")
    monkeypatch.setattr(teach, "cache_distributions", later)
    teach.run(run, TEACH)
    assert digest_of(run / "faces") != before
    assert read_manifest(run / "distributions", "distributions")["made_from"]["faces"]["manifest"] == before
    assert {stage["stage"]: stage["state"] for stage in status(run)["stages"]}["distributions"] == "stale"


def test_a_cache_from_before_the_faces_were_split_anew_is_refused(run):
    made = read_manifest(run / "faces", "faces")
    faces = read_faces(data_files(run / "faces", made))
    faces = faces.select(faces.usable)
    split = np.array(faces.split)
    split[0] = "val"
    known = distill.Inputs(run / "faces", replace(faces, split=split), made, digest_of(run / "faces"))
    with pytest.raises(FerError, match=r"was made when 1 of 60 faces had another split, first face-000\.png; run fer"):
        distill.read_distributions(run / "distributions", known)


def test_added_views_are_those_that_more_views_would_have_had_from_the_start(run, monkeypatch):
    teach.run(run, replace(TEACH, views=5, cache="five"))
    before = cached(run / "distributions")
    real, asked = label.predict, []
    monkeypatch.setattr(label, "predict", lambda m, f, b, *a, **k: asked.append(b.shape[:2]) or real(m, f, b, *a, **k))
    result = CliRunner().invoke(cli, ["teach", str(run), "--add-views", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["views"] == 5
    assert asked == [(25, 2), (25, 2), (10, 2)]
    more, five = cached(run / "distributions"), cached(run / "distributions-five")
    np.testing.assert_array_equal(more.view_box, five.view_box)
    np.testing.assert_array_equal(more.view_flip, five.view_flip)
    np.testing.assert_array_equal(more.view_distribution[:, :3], before.view_distribution)
    np.testing.assert_allclose(more.view_distribution, five.view_distribution, atol=1e-6)
    assert len(list((run / "distributions").glob("part-*.parquet"))) == 3
    refused = CliRunner().invoke(
        cli, ["teach", str(run), "--add-views", "2", "--seed", "3", "--checkpoint", "elsewhere"]
    )
    assert refused.exit_code == 1
    assert "--add-views adds to a finished cache by the settings that it has; leave out " in refused.stderr
    assert {"--seed", "--checkpoint"} <= set(refused.stderr.replace(",", " ").split())


@pytest.mark.parametrize("step", ["write_shard", "read_back", "write_manifest", "clear"])
def test_adding_views_may_be_killed_anywhere(run, monkeypatch, step):
    before, real, calls = cached(run / "distributions"), getattr(label, step), []

    def killed(*args, **kwargs):
        calls.append(args)
        if step != "write_shard" or len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(label, step, killed)
        with pytest.raises(KeyboardInterrupt):
            teach.run(run, TEACH, more_views=2)
    now = cached(run / "distributions")
    assert now.views == (5 if step == "clear" else 3)
    np.testing.assert_array_equal(now.view_distribution[:, :3], before.view_distribution)
    writes = []
    write = label.write_shard
    monkeypatch.setattr(label, "write_shard", lambda *args: writes.append(args) or write(*args))
    assert teach.run(run, TEACH, more_views=2)["views"] == 5
    assert len(writes) == (1 if step == "write_shard" else 0)
    assert {path.name for path in (run / "distributions").iterdir()} == {
        MANIFEST, "manifest.blake2b", *(f"part-{k:05d}-views-5.parquet" for k in range(3)),
    }  # fmt: skip


def test_views_are_not_added_to_votes_nor_by_another_teacher(run, folded):
    teach.run(run, replace(TEACH, source="votes", cache="votes"))
    with pytest.raises(FerError, match="holds votes, the same for every view; views of it would say nothing"):
        teach.run(run, replace(TEACH, cache="votes"), more_views=2)
    shutil.rmtree(run / "teacher")
    shutil.copytree(folded / "teacher" / "fold-0", run / "teacher")
    with pytest.raises(FerError, match=r"teacher is not the teacher that .*distributions was made with; restore it"):
        teach.run(run, TEACH, more_views=2)


# --- the online way -------------------------------------------------------------------------------------------


def both_ways(run, batch: int, epochs: int, lr: float = 0.1):
    """Weights after training from a cache with a view an epoch, and with the teacher in the loop."""
    teach.run(run, replace(TEACH, views=epochs, label_batch=batch, cache="replayed"), [run / "teacher"])
    settings = replace(DISTILL, epochs=epochs, label_batch=batch, lr=lr)
    distill.run(run, replace(settings, cache="replayed", name="offline"))
    distill.run(run, replace(settings, live=True, name="online"))
    return weights(run / "students" / "offline"), weights(run / "students" / "online")


def test_offline_equals_online_to_the_bit_when_the_teacher_answers_one_view_at_a_time(run):
    offline, online = both_ways(run, batch=1, epochs=2)
    assert all(torch.equal(offline[name], online[name]) for name in offline)


def test_offline_equals_online_within_rounding_in_batches(run):
    offline, online = both_ways(run, batch=64, epochs=7, lr=0.02)  # 21 steps
    assert max((offline[name] - online[name]).abs().max() for name in offline) <= 1e-5


# --- temperature ----------------------------------------------------------------------------------------------


def test_tempered_by_hand():
    p = np.array([[0.64, 0.32, 0.04], [1.0, 0.0, 0.0]], np.float32)
    root = np.sqrt([0.64, 0.32, 0.04])
    np.testing.assert_allclose(tempered(p, 2.0), [root / root.sum(), [1, 0, 0]], atol=1e-7)
    assert tempered(p, 1.0) is p


def test_temperature_softens_what_the_student_learns(run):
    faces = faces_of(run)
    plain = distill.replay(cached(run / "distributions"), 64, DISTILL)
    soft = distill.with_temperature(plain, 3.0)
    rows = np.arange(60)
    for epoch in (0 * rows, 0 * rows + 1):
        boxes, flips, targets = soft(rows, epoch)
        logits = np.log(plain(rows, epoch).targets.astype(float)) / 3
        by_torch = torch.softmax(torch.from_numpy(logits), 1).numpy()
        np.testing.assert_allclose(targets, by_torch, atol=2e-6)
        np.testing.assert_array_equal(boxes, plain(rows, epoch).boxes)
    assert len(faces) == 60


def test_calibration_finds_the_temperature_that_made_the_labels():
    rng = np.random.default_rng(0)
    told = make([f"{k}" for k in range(6000)], views=0)
    meant = tempered(told.canonical, 2.0)
    drawn = (rng.random((6000, 1)) > meant.cumsum(1)).sum(1).clip(max=2)
    unseen = np.full(6000, -2, np.int8)
    judged = replace(told, label=drawn, split=np.array(["val"] * 6000, object), fold=unseen)
    found = label.calibrate(judged, "val", Path("x"))
    logits = torch.from_numpy(judged.canonical.astype(float)).log()
    by_torch = minimize_scalar(
        lambda t: torch.nn.functional.cross_entropy(logits / t, torch.from_numpy(drawn)).item(),
        bounds=(0.05, 20),
        method="bounded",
    )
    assert found["temperature"] == pytest.approx(by_torch.x, rel=1e-3)
    assert found["temperature"] == pytest.approx(2.0, rel=0.1)
    assert found["cross_entropy_after"] == pytest.approx(by_torch.fun, abs=1e-6)
    assert found["ece_after"] < found["ece_before"] / 3
    # of folds the mean of all teachers is not asked, be it sharper or not
    single = np.arange(6000) < 4000
    folded = replace(judged, fold=np.where(single, 1, -2).astype(np.int8), label=np.where(single, drawn, 0))
    mixed = label.calibrate(folded, "val", Path("x"))
    assert (mixed["split"], mixed["faces"]) == ("train, out of fold", 4000)
    assert mixed["temperature"] == pytest.approx(2.0, rel=0.1)


def test_calibration_is_noted_and_leaves_the_cache_as_it_is(run):
    before = cached(run / "distributions")
    teach.run(run, replace(TEACH, calibrate=True))
    noted = open_cache(run / "distributions").manifest["facts"]["calibration"]
    assert (noted["split"], noted["faces"]) == ("val", 12)
    np.testing.assert_array_equal(cached(run / "distributions").canonical, before.canonical)
    distill.run(run, replace(DISTILL, calibrated=True, epochs=1, name="calibrated"))
    facts = json.loads((run / "students" / "calibrated" / MANIFEST).read_text())["facts"]
    assert facts["temperature"] == noted["temperature"]
    teach.run(run, replace(TEACH, calibrate=True, choose_on="test"), [run / "teacher"])
    assert open_cache(run / "distributions").manifest["facts"]["calibration"]["split"] == "test"
    with pytest.raises(FerError, match="--calibrate is about a teacher's answers, not about --source votes; leave it"):
        replace(TEACH, calibrate=True, source="votes")
    # the same in one go
    teach.run(run, replace(TEACH, calibrate=True, cache="again"))
    assert open_cache(run / "distributions-again").manifest["facts"]["calibration"] == noted


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"calibrated": True}, "has no fitted temperature; run fer teach again with --calibrate"),
        ({"calibrated": True, "temperature": 2.0}, "--calibrated and --temperature each set the temperature"),
        ({"temperature": 2.0, "loss": "sll"}, "--temperature is about distributions, --loss sll learns single labels"),
        ({"live": True, "cache": "x"}, "--live asks the teacher and reads no cache"),
    ],
)
def test_contradictions_are_refused(run, options, sentence):
    with pytest.raises(FerError, match=sentence):
        distill.run(run, replace(DISTILL, **options))
