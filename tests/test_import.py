"""`fer import`: checkpoints as the authors' code saves them become model folders; everything else gets a sentence."""

import hashlib
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import sign_again, write_faces
from safetensors.torch import save_file
from test_models import official_names, recompute, varied

from efficientface.cli import cli
from efficientface.models import build
from efficientface.models.efficientface import efficient_face
from efficientface.pipeline.artifact import HOST, MANIFEST, write_json
from efficientface.pipeline.checkpoint import CONFIG, load_model

CLASSES = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"]
RAF_DB = ["--dataset", "raf-db"]


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(*words) -> str:
    result = fer("import", *words)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


def imported(*words):
    result = fer("import", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def save(path, state, **how):
    """As their code saves: DataParallel's names, under `state_dict`."""
    torch.save({"state_dict": OrderedDict(state)}, path, **how)
    return path


def theirs(model):
    """A network's weights by the names of the authors' files."""
    return official_names(model.state_dict())


@pytest.fixture(scope="module")
def student():
    return varied(efficient_face(7))


@pytest.mark.parametrize("modulation", ["multiply", "add"])
@pytest.mark.parametrize("form", ["pth.tar", "old.tar", "safetensors"])
def test_a_student_answers_as_before(student, tmp_path, form, modulation):
    file = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file({name: tensor.clone() for name, tensor in theirs(student).items()}, file)
    else:  # before torch 1.6 a file was several pickles, not an archive
        save(file, theirs(student), _use_new_zipfile_serialization=form == "pth.tar")
    told = imported(file, tmp_path / "out", *RAF_DB, "--modulation", modulation)
    assert (told["kind"], told["arch"]) == ("student", "efficientface")
    assert told["modulation"] == modulation
    model, config = load_model(tmp_path / "out", "student")
    assert config["classes"] == CLASSES[:7]
    assert config["size"] == 224
    assert config["mean"] == [0.57535914, 0.44928582, 0.40079932]
    assert config["std"] == [0.20735591, 0.18981615, 0.18132027]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = recompute(student.state_dict(), images, modulation)
        assert (model(images) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_reference_answers_as_the_authors_code(tmp_path):
    folder = os.environ.get("EFFICIENTFACE_REFERENCE")
    if not folder:
        pytest.skip("EFFICIENTFACE_REFERENCE names no folder with answers of the authors' code")
    answers = np.load(Path(folder) / "official_format_efficientface_io.npz")
    images = torch.from_numpy(answers["images_uint8_nhwc"]).permute(0, 3, 1, 2)
    for modulation in ("multiply", "add"):
        out = tmp_path / modulation
        imported(Path(folder) / "official_format_efficientface.pth.tar", out, *RAF_DB, "--modulation", modulation)
        with torch.no_grad():
            logits = load_model(out)[0]((images / 255 - 0.5) / 0.25).numpy()
        np.testing.assert_allclose(logits, answers[f"logits_{modulation}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "count", "words", "kind", "dataset", "mean"),
    [
        ("resnet50", 7, ["--dataset", "caer-s"], "teacher", "caer-s", 0.35964426),
        ("resnet18", 8, [], "teacher", "affectnet-8", 0.55391484),
        ("resnet18", 7, ["--dataset", "affectnet-7", "--kind", "student"], "student", "affectnet-7", 0.55391484),
        ("efficientface", 8, [], "student", "affectnet-8", 0.55391484),
        ("baseline", 7, RAF_DB, "student", "raf-db", 0.57535914),
        ("baseline-local", 7, RAF_DB, "student", "raf-db", 0.57535914),
        ("baseline-modulator", 7, RAF_DB, "student", "raf-db", 0.57535914),
    ],
)
def test_what_a_file_holds_is_recognised(arch, count, words, kind, dataset, mean, tmp_path):
    model = varied(build(arch, count))
    file = save(tmp_path / "weights.tar", theirs(model))
    told = imported(file, tmp_path / "out", *words)
    assert (told["kind"], told["arch"], told["dataset"]) == (kind, arch, dataset)
    assert ("modulation" in told) == (arch in ("efficientface", "baseline-modulator"))
    again, config = load_model(tmp_path / "out")
    assert (config["classes"], config["mean"][0]) == (CLASSES[:count], mean)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["settings"]["blake2b"] == hashlib.blake2b(file.read_bytes(), digest_size=32).hexdigest()
    shown = fer("inspect", tmp_path / "out").stdout
    assert "elsewhere, and imported" in shown
    assert f"{arch}, " in shown


def test_identities_are_kept_without_a_normalisation(tmp_path):
    told = imported(save(tmp_path / "weights.tar", theirs(build("resnet18", 12_666))), tmp_path / "out")
    assert (told["kind"], told["classes"], told["mean"]) == ("identities", "12,666 people", None)
    model, config = load_model(tmp_path / "out", "identities")
    assert model.fc.out_features == len(config["classes"]) == 12_666
    assert "12,666 identities, first person-00000" in fer("inspect", tmp_path / "out").stdout


def test_counters_that_old_files_lack_are_filled_in(student, tmp_path):
    state = {name: tensor for name, tensor in theirs(student).items() if not name.endswith("num_batches_tracked")}
    imported(save(tmp_path / "weights.tar", state), tmp_path / "out", *RAF_DB)
    assert load_model(tmp_path / "out")[0].conv1[1].num_batches_tracked == 0


def test_other_classes_are_given_in_the_files_order(student, tmp_path):
    file, names = save(tmp_path / "weights.tar", theirs(student)), "Anger,Disgust,Fear,Happy,Neutral,Sad,Surprise"
    imported(file, tmp_path / "out", "--dataset", "caer-s", "--classes", names)
    assert load_model(tmp_path / "out")[1]["classes"] == [
        "anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise",
    ]  # fmt: skip
    assert refused(file, tmp_path / "other", *RAF_DB, "--classes", "a,b,b,c,d,e,f") == (
        f"{file} tells 7 classes apart; give --classes as many different names, in its order"
    )


@pytest.mark.slow
def test_an_imported_teacher_and_student_work_in_a_run(tmp_path):
    """A ResNet that has learned the faces, saved as the authors would, labels them again; then both are judged."""
    run, names = tmp_path / "run", ",".join(CLASSES[:3])
    write_faces(run)
    words = ["--size", 32, "--epochs", 8, "--batch-size", 6, "--lr", 0.02, "--min-area", 0.5, "--views", 1]
    assert fer("teach", run, "--teacher-arch", "resnet18", "--schedule", "onecycle", *words).exit_code == 0
    model, config = load_model(run / "teacher")
    file = save(tmp_path / "ldg.tar", theirs(model))
    imported(file, tmp_path / "ldg", *RAF_DB, "--classes", names)
    # it was trained at another size and on other pictures than the authors'
    write_json(tmp_path / "ldg" / CONFIG, config)
    sign_again(tmp_path / "ldg")
    result = fer("teach", run, "--checkpoint", tmp_path / "ldg", "--views", 1, "--cache", "imported", "--json")
    assert result.exit_code == 0, result.output
    again, before = (
        pd.concat(map(pd.read_parquet, sorted((run / cache).glob("*.parquet"))))
        for cache in ("distributions-imported", "distributions")
    )
    np.testing.assert_allclose(again[CLASSES[:3]], before[CLASSES[:3]], atol=1e-6)
    # what it was trained on is not known: all but the test faces count as seen
    assert dict(again.groupby("split")["fold"].unique().map(list)) == {"train": [-1], "val": [-1], "test": [-2]}

    student = save(tmp_path / "student.tar", theirs(varied(efficient_face(3))))
    imported(student, run / "students" / "theirs", *RAF_DB, "--classes", names)
    judged = json.loads(fer("evaluate", run, "--json").stdout)["models"]
    assert judged["theirs"]["arch"] == "efficientface"
    assert judged["theirs"]["chosen_on"] is None
    stages = {stage["stage"]: stage["state"] for stage in json.loads(fer("status", run, "--json").stdout)["stages"]}
    assert stages["students/theirs"] == "done"


def test_an_import_is_not_done_twice_and_covers_nothing(student, tmp_path):
    file, out = save(tmp_path / "weights.tar", theirs(student)), tmp_path / "out"
    out.mkdir()  # an empty one is free
    left = tmp_path / f".out.0.{HOST}.999999999.part"  # by a killed import
    left.mkdir()
    imported(file, out, *RAF_DB)
    assert not left.exists()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    imported(file, out, *RAF_DB)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert refused(file, out, "--dataset", "caer-s") == (
        f"{out} is finished and no import of {file} with these options; give another folder"
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert refused(file, other, *RAF_DB) == f"{other} is there already, with notes.txt; give a new folder"
    assert refused(file, file, *RAF_DB) == f"{file} is there already, a file; give a new folder"


class Recorder:
    """What an unpickler would run or need."""

    def __reduce__(self):
        return (os.system, ("touch /tmp/it-ran",))


def test_nothing_but_tensors_is_read(student, tmp_path):
    file = tmp_path / "recorder.tar"
    torch.save({"state_dict": theirs(student), "recorder": Recorder()}, file)
    assert refused(file, tmp_path / "out", *RAF_DB) == (
        f"{file} holds Python objects besides tensors, first posix.system, which may run anything when they are read; "
        "save its state_dict alone where you trust it, best as .safetensors"
    )
    file.write_bytes(pickle.dumps({"state_dict": Recorder()}))
    assert refused(file, tmp_path / "out", *RAF_DB).startswith(f"{file} ")
    assert not Path("/tmp/it-ran").exists()
    assert not (tmp_path / "out").exists()


class RecorderMeter:
    """As in the authors' script: losses and accuracies of each epoch."""

    def __init__(self):
        self.total_epoch, self.epoch_losses, self.best = 100, np.zeros((100, 2), np.float32), np.float64(88.36)


@pytest.mark.parametrize("new", [True, False])
def test_the_authors_recorder_is_passed_over(student, new, tmp_path, monkeypatch):
    monkeypatch.setattr(RecorderMeter, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "RecorderMeter", RecorderMeter, raising=False)
    content = {"epoch": 3, "state_dict": theirs(student), "best_acc": torch.tensor(88.36), "recorder": RecorderMeter()}
    torch.save(content, tmp_path / "whole.tar", _use_new_zipfile_serialization=new)
    with pytest.raises(pickle.UnpicklingError):  # torch alone refuses it
        torch.load(tmp_path / "whole.tar", weights_only=True)
    imported(tmp_path / "whole.tar", tmp_path / "out", *RAF_DB)
    again = load_model(tmp_path / "out")[0].state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in student.state_dict().items())

    torch.save({"state_dict": {"fc.bias": RecorderMeter()}}, tmp_path / "weights.tar")
    assert refused(tmp_path / "weights.tar", tmp_path / "other", *RAF_DB).endswith(
        "holds something else than a plain tensor of numbers as 'fc.bias'; it is no state dict"
    )


def damaged(file):
    return f"{file} is neither a checkpoint of torch nor of safetensors, or is damaged"


@pytest.mark.parametrize("name", ["weights.tar", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"PK\x03\x04 and more", b"{}" * 500])
def test_what_is_no_checkpoint_is_told(name, content, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    assert refused(file, tmp_path / "out", *RAF_DB) == damaged(file)


def test_a_cut_checkpoint_is_told(student, tmp_path):
    whole = save(tmp_path / "weights.tar", theirs(student)).read_bytes()
    file = tmp_path / "cut.tar"
    for length in (len(whole) // 2, len(whole) - 100):
        file.write_bytes(whole[:length])
        assert refused(file, tmp_path / "out", *RAF_DB) == damaged(file)


def test_sizes_that_cannot_be_are_told(student, tmp_path, monkeypatch):
    file = save(tmp_path / "weights.tar", theirs(student))
    forged = tmp_path / "forged.tar"
    with zipfile.ZipFile(file) as stored, zipfile.ZipFile(forged, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert refused(forged, tmp_path / "out", *RAF_DB) == (
        f"{forged} is a compressed archive, torch's checkpoints are not; it is damaged or forged"
    )
    state = theirs(student)
    state["module.fc.weight"] = torch.zeros(1).expand(10_000_000, 1024)  # one number on disk, 41 GB unfolded
    state["module.fc.bias"] = torch.zeros(1).expand(10_000_000)
    save(forged, state)
    assert refused(forged, tmp_path / "out", *RAF_DB) == (
        f"{forged} has tensors larger than itself; it is damaged or forged"
    )
    monkeypatch.setattr("efficientface.pipeline.import_weights.LARGEST", 1000)
    assert refused(file, tmp_path / "out", *RAF_DB) == (
        f"{file} has {file.stat().st_size:,} bytes, more than any checkpoint of these networks (1,000); not read"
    )
    missing = tmp_path / "missing.tar"
    assert refused(missing, tmp_path / "out") == (
        f"{missing} is not there or no file; give a checkpoint such as Pretrained_EfficientFace.tar"
    )


ALL = "efficientface, baseline, baseline-local, baseline-modulator, resnet18, resnet34, resnet50"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([torch.zeros(3)], "holds no state dict (tensors by name, alone or under `state_dict`)"),
        ({"state_dict": {}}, "holds no state dict (tensors by name, alone or under `state_dict`)"),
        ({"state_dict": {3: torch.zeros(3)}}, "holds no state dict (tensors by name, alone or under `state_dict`)"),
        ({"epoch": 3}, "holds something else than a plain tensor of numbers as 'epoch'; it is no state dict"),
        (
            {"x": torch.zeros(2, dtype=torch.complex64)},
            "holds something else than a plain tensor of numbers as 'x'; it is no state dict",
        ),
        (
            {"x": torch.zeros(2, 2).to_sparse()},
            "holds something else than a plain tensor of numbers as 'x'; it is no state dict",
        ),
        ({"x": torch.zeros(3)}, f"has no classifier, fc.bias, of two classes or more; it is none of {ALL}"),
        ({"fc.bias": torch.zeros(1)}, f"has no classifier, fc.bias, of two classes or more; it is none of {ALL}"),
        (
            {f"local.conv{k}_1.weight": torch.zeros(116, 1, 3, k) for k in range(1, 5)},
            f"is none of {ALL}: its local branches do not fit each other",
        ),
    ],
)
def test_what_is_no_state_dict_of_ours_is_told(content, sentence, tmp_path):
    file = tmp_path / "weights.tar"
    torch.save(content, file)
    assert refused(file, tmp_path / "out", *RAF_DB) == f"{file} {sentence}"


def test_the_nearest_network_is_named(student, tmp_path):
    state = theirs(student)
    del state["module.modulator.spatial_att.gate_s.gate_s_bn_di_0.weight"]
    state["module.conv5.0.weight"] = torch.zeros(1024, 464, 3, 3)
    state["module.surplus"] = torch.zeros(1)
    file = save(tmp_path / "weights.tar", state)
    assert refused(file, tmp_path / "out", *RAF_DB) == (
        f"{file} is none of {ALL}; for efficientface, 3 tensors are missing, too many or of another shape, "
        "first 'conv5.0.weight'"
    )


def test_weights_that_are_no_numbers_are_refused(student, tmp_path):
    state = theirs(student)
    state["module.conv5.1.bias"] = torch.full((1024,), torch.nan)
    file = save(tmp_path / "weights.tar", state)
    assert refused(file, tmp_path / "out", *RAF_DB) == (
        f"{file} has NaN or infinity in 1 of its tensors, first conv5.1.bias; nothing written"
    )
    assert not (tmp_path / "out").exists()


def test_what_the_file_cannot_tell_must_be_given(student, tmp_path):
    file, out = save(tmp_path / "weights.tar", theirs(student)), tmp_path / "out"
    assert refused(file, out) == (
        f"{file} does not say which images it was trained on (raf-db or caer-s or affectnet-7), so how to normalise "
        "them; give --dataset"
    )
    assert refused(file, out, "--dataset", "affectnet-8") == f"{file} tells 7 classes apart, affectnet-8 has 8"
    nine = save(tmp_path / "nine.tar", theirs(efficient_face(9)))
    assert refused(nine, out, *RAF_DB) == (
        f"{nine} tells 9 classes apart, the authors' 7 or 8; give --classes or --kind identities"
    )
    assert refused(nine, out, "--classes", "a,b,c,d,e,f,g,h,i") == (
        f"{nine} does not say which images it was trained on, so how to normalise them; give --dataset"
    )
