"""`fer inspect` and `fer status`: figures against pandas and scipy, states against what is on disk."""

import io
import json
import math
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
from click.testing import CliRunner
from conftest import CLASSES, sign_again, write_faces
from rich.console import Console

from efficientface.cache import summary
from efficientface.cache.distributions import Distributions
from efficientface.cache.parquet import read_shards, write_shard
from efficientface.cli import cli
from efficientface.data.faces import face_table, read_faces
from efficientface.models import build
from efficientface.pipeline import align, checkpoint, inspect, status, teach, train
from efficientface.pipeline import label as labelling
from efficientface.pipeline.artifact import DIGEST, MANIFEST, reference_to, write_manifest
from efficientface.pipeline.checkpoint import Checkpoint, finish_model
from efficientface.pipeline.config import DistillConfig, TeachConfig

BEST = {"epoch": 2, "val_accuracy": 0.75, "val_cross_entropy": 0.5}


def write_cache(folder, faces, classes=CLASSES, views=2, seed=0, parts=2, **given):
    """distributions/ about the usable faces of `faces`, every tenth of them without a label."""
    rng = np.random.default_rng(seed)
    known = read_faces(sorted(faces.glob("*.parquet")), images=False)
    known = known.select(known.usable)
    n, c = len(known), len(classes)
    label = np.where(np.arange(n) % 10 == 9, -1, known.label)
    cached = Distributions(
        classes=tuple(classes),
        face_id=known.face_id,
        image_hash=known.image_hash,
        split=known.split,
        label=label,
        fold=np.where(known.split == "train", -1, -2).astype(np.int8),
        canonical=rng.dirichlet(np.full(c, 0.5), n).astype(np.float32),
        view_box=rng.integers(0, 64, (n, views, 4)).astype(np.uint16),
        view_flip=rng.random((n, views)) < 0.5,
        view_distribution=rng.dirichlet(np.full(c, 0.5), (n, views)).astype(np.float32),
    )
    return finish_cache(folder, replace(cached, **given), {"faces": reference_to(faces, folder)}, parts)


def finish_cache(folder, cached, made_from, parts=1, settings=None):
    """A cache in `folder` with a manifest."""
    folder.mkdir(parents=True)
    names = []
    for k, rows in enumerate(np.array_split(np.arange(len(cached)), parts)):
        names.append(f"part-{k:05d}.parquet")
        write_shard(cached.select(rows), folder / names[-1])
    write_manifest(
        folder,
        "distributions",
        files=names,
        classes=cached.classes,
        made_from=made_from,
        settings=settings or {"views": cached.views, "seed": 0, "min_area": 0.08, "label_batch": 64},
        facts={"faces": len(cached), "views": cached.views, "source": "teacher"},
    )
    return folder


def write_model(folder, kind, made_from, settings, model=None, lines=3, classes=CLASSES):
    """A teacher or a student; who only asks whether it is there gets a tiny network."""
    folder.mkdir(parents=True)
    model = model or torch.nn.Linear(2, 2)
    line = {"loss": 0.5, "lr": 0.1, "seconds": 2.0, "faces_per_second": 99.5, "val_cross_entropy": 0.5}
    metrics = [{"epoch": k + 1, **line, "val_accuracy": (0.5, 0.75, 0.625)[k % 3]} for k in range(lines)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    described = {"arch": "efficientface", "options": {}, "classes": list(classes), "size": 64}
    finish_model(
        folder,
        kind,
        model.state_dict(),
        {**described, "mean": [0.4] * 3, "std": [0.2] * 3},
        made_from={name: reference_to(path, folder) for name, path in made_from.items()},
        settings=settings,
        facts={"train_faces": 36, "chosen_on": "val", "best": BEST},
    )
    return folder


@pytest.fixture
def cache(run):
    return write_cache(run / "distributions", run / "faces")


@pytest.fixture
def whole(run, cache):
    """A run with a teacher, its distributions and a student."""
    shutil.rmtree(cache)
    settings = {k: v for k, v in asdict(TeachConfig(size=64, epochs=3)).items() if k not in teach.LABELLING}
    faces = run / "faces"
    write_model(run / "teacher", "teacher", {"faces": faces}, settings)
    made = write_cache(run / "distributions", faces)
    manifest = json.loads((made / MANIFEST).read_text())
    references = {**manifest["made_from"], "teacher": reference_to(run / "teacher", made)}
    cached = read_shards(sorted(made.glob("*.parquet")))
    shutil.rmtree(made)
    finish_cache(made, cached, references)
    write_model(
        run / "students" / "ldl", "student", {"faces": faces, "distributions": made}, asdict(DistillConfig(size=64))
    )
    return run


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def found(*words):
    """The JSON that a command prints; NaN and Infinity, which are no JSON, are refused."""
    done = fer(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout, parse_constant=pytest.fail)


def frame(folder):
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)


# --- distributions


def test_the_figures_are_those_that_pandas_and_scipy_find(cache):
    result, table = found("inspect", cache), frame(cache)
    p = table[list(CLASSES)].astype(float)
    names = table.label.map(dict(enumerate(CLASSES)))
    right = p.idxmax(axis=1) == names
    nats = pd.Series(scipy.stats.entropy(p, axis=1))

    assert (result["faces"], result["views"], result["all"]["labelled"]) == (60, 2, int(names.notna().sum()))
    assert result["bytes"] == sum(path.stat().st_size for path in cache.glob("*.parquet"))
    assert {row["fold"]: row["faces"] for row in result["folds"]} == table.fold.value_counts().to_dict()
    assert {row["split"]: row["faces"] for row in result["splits"]} == table.split.value_counts().to_dict()
    for row in result["splits"]:
        mine = (table.split == row["split"]) & names.notna()
        assert (row["agree"], row["share"]) == (right[mine].sum(), pytest.approx(right[mine].mean()))
        assert row["entropy"] == pytest.approx(nats[table.split == row["split"]].mean())
    assert [row["label"] for row in result["labels"]] == [*CLASSES, None]
    for row in result["labels"]:
        mine = names == row["label"] if row["label"] else names.isna()
        assert row["faces"] == mine.sum()
        np.testing.assert_allclose(row["mean"], p[mine].mean(), rtol=1e-6)
        if row["label"]:
            assert row["share"] == pytest.approx(right[mine].mean())
    np.testing.assert_allclose(result["all"]["mean"], p.mean(), rtol=1e-6)
    spread = result["entropy"]
    assert spread["mean"] == pytest.approx(nats.mean(), rel=1e-6)
    assert spread["share_of_maximum"] == pytest.approx(nats.mean() / math.log(3), rel=1e-6)
    for name, share in {"min": 0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p95": 0.95, "max": 1}.items():
        assert spread[name] == pytest.approx(nats.quantile(share), rel=1e-5)
    assert result["largest_probability"]["mean"] == pytest.approx(p.max(axis=1).mean())


def test_three_faces_worked_by_hand(tmp_path):
    """A certain one, an even one of two classes, and one without a label; no face is labelled sadness."""
    cached = Distributions(
        classes=CLASSES,
        face_id=np.array(["a", "b", "c"], object),
        image_hash=np.array(["1", "2", "3"], object),
        split=np.array(["train", "train", "test"], object),
        label=np.array([0, 1, -1]),
        fold=np.array([0, 1, -3], np.int8),
        canonical=np.array([[1, 0, 0], [0.75, 0.25, 0], [0, 0.5, 0.5]], np.float32),
        view_box=np.empty((3, 0, 4), np.uint16),
        view_flip=np.empty((3, 0), bool),
        view_distribution=np.empty((3, 0, 3), np.float32),
    )
    folder = finish_cache(tmp_path / "distributions", cached, {})
    done = fer("inspect", folder)
    assert [line.rstrip() for line in done.stdout.splitlines()] == [
        f"distributions  {folder}",
        "made from       not said",
        "faces           3, 2 with a label",
        "stored views    none, for per-image use",
        "source          teacher",
        "fold            -3  1 faces: not from a teacher",
        "                 0  1 faces: answered by out-of-fold teacher 0",
        "                 1  1 faces: answered by out-of-fold teacher 1",
        "mean entropy    0.418 nats, 38.1% of the possible 1.099",
        "                min 0.000   p5 0.056   p25 0.281   median 0.562   p75 0.628   p95 0.680   max 0.693",
        "mean largest p  75.0%",
        f"size            {(folder / 'part-00000.parquet').stat().st_size / 1000:.1f} kB",
        "",
        "split  faces  with label  agree  share  entropy",
        "train      2           2      1  50.0%    0.281",
        "test       1           0                  0.693",
        "all        3           2      1  50.0%    0.418",
        "",
        "mean distribution of the faces of a label, in %",
        "label     faces  agree entropy neutral happiness sadness",
        "neutral       1 100.0%   0.000   100.0       0.0     0.0",
        "happiness     1   0.0%   0.562    75.0      25.0     0.0",
        "sadness       0",
        "no label      1          0.693     0.0      50.0    50.0",
        "all           3  50.0%   0.418    58.3      25.0    16.7",
    ]
    empty = found("inspect", folder)["labels"][2]
    assert empty == {"label": "sadness", "faces": 0, "agree": 0, "share": None, "entropy": None, "mean": [None] * 3}


def test_entropy_of_what_is_certain_is_nothing_and_of_what_is_even_the_logarithm():
    certain, even = np.eye(4, dtype=np.float32), np.full(4, 0.25, np.float32)
    assert not summary.entropy(certain).any()
    assert not np.signbit(summary.entropy(np.array([1 + 1e-7, 0], np.float32)))
    assert summary.entropy(even) == pytest.approx(math.log(4))


def test_the_most_ambiguous_faces_are_those_with_the_largest_entropy(cache):
    table = frame(cache)
    table["entropy"] = scipy.stats.entropy(table[list(CLASSES)].astype(float), axis=1)
    expected = table.nlargest(7, "entropy")
    result = found("inspect", cache, "--top", "ambiguous", "-n", 7)
    assert [face["face_id"] for face in result["faces"]] == expected.face_id.tolist()
    np.testing.assert_allclose([face["entropy"] for face in result["faces"]], expected.entropy, rtol=1e-6)
    assert result["of"] == 60


def test_the_most_disagreeing_faces_are_those_whose_label_is_least_probable(cache):
    table = frame(cache).dropna(subset="label")
    table["own"] = [row[CLASSES[int(row.label)]] for _, row in table.iterrows()]
    expected = table.nsmallest(10, "own")
    result = found("inspect", cache, "--top", "disagreeing")
    assert [face["face_id"] for face in result["faces"]] == expected.face_id.tolist()
    np.testing.assert_allclose([face["label_probability"] for face in result["faces"]], expected.own)
    assert result["of"] == len(table)
    shown = fer("inspect", cache, "--top", "disagreeing").stdout
    assert f"10 of {len(table)} faces by their label's probability, least first" in shown
    assert all(face in shown for face in expected.face_id)


def test_asking_for_more_faces_than_there_are_shows_them_all(cache):
    assert len(found("inspect", cache, "--top", "ambiguous", "-n", 1000)["faces"]) == 60


def test_one_face_with_its_votes_and_views(run, cache):
    face = "face-007.png"
    result = found("inspect", cache, "--face", face)
    row = frame(cache).set_index("face_id").loc[face]
    votes = frame(run / "faces").set_index("face_id").loc[face].votes
    np.testing.assert_allclose(list(result["distribution"].values()), row[list(CLASSES)].astype(float))
    assert result["votes"] == dict(zip(CLASSES, votes.tolist(), strict=True))
    assert (result["label"], result["split"], result["fold"]) == (CLASSES[int(row.label)], row.split, row.fold)
    for view, box, flip, p in zip(result["views"], row.view_box, row.view_flip, row.view_distribution, strict=True):
        assert (view["box"], view["flip"]) == (box.tolist(), flip)
        assert view["top"] == CLASSES[p.argmax()]
        np.testing.assert_allclose(list(view["distribution"].values()), p)
    assert found("inspect", run, "--face", face) == result, "a run's distributions are meant"


def test_a_bar_is_as_long_as_its_probability(cache):
    face = "face-007.png"
    p = frame(cache).set_index("face_id").loc[face][list(CLASSES)].astype(float)
    lines = fer("inspect", cache, "--face", face).stdout.splitlines()
    for name in CLASSES:
        line = next(line for line in lines if line.startswith(name))
        assert f"{p[name]:.1%}" in line
        lengths = " ▏▎▍▌▋▊▉█"
        bar = line.split("%")[0].removeprefix(name).replace("◂ label", "")
        eighths = sum(lengths.index(c) for c in bar if c in lengths)
        assert eighths == pytest.approx(8 * 20 * p[name], abs=1)  # half of forty cells, the votes have the rest


def test_votes_about_another_picture_are_left_out(run, cache):
    first = frame(cache).face_id[0]
    assert found("inspect", cache, "--face", first)["votes"] is not None
    shutil.rmtree(run / "faces")
    write_faces(run, seed=1)
    assert found("inspect", cache, "--face", first)["votes"] is None


def test_a_face_that_is_not_there(cache):
    def sentence(face):
        done = fer("inspect", cache, "--face", face)
        assert done.exit_code == 1
        return done.stderr

    begin = f"Error: {cache} has no face"
    assert sentence("face-07.png") == (
        f"{begin} face-07.png among its 60; did you mean face-057.png or face-047.png or face-037.png?\n"
    )
    assert sentence("042") == f"{begin} 042 among its 60; did you mean face-042.png?\n"
    assert sentence("\x1b[31m") == f"{begin} \\x1b[31m among its 60; its first is face-000.png\n"


def test_a_few_faces_a_line_each(cache):
    faces = inspect.some_faces(cache, 3)
    assert len(faces) == 3
    assert {face["split"] for face in faces} == {"test"}
    for width in (80, 130):
        console = Console(width=width, file=io.StringIO())
        console.print(*inspect.face_tables(faces))
        lines = console.file.getvalue().splitlines()
        assert len(lines) == 4
        for face, line in zip(faces, lines[1:], strict=True):
            assert line.startswith(f"{face['face_id']} ")
            assert f"{face['top']} " in line
            assert f"{face['top_probability']:.1%}" in line


def test_many_classes_are_told_in_words(tmp_path):
    classes = [f"class-{k}" for k in range(30)]
    faces = write_faces(tmp_path, 60, classes, shards=1)
    cache = write_cache(tmp_path / "distributions", faces, classes)
    row = found("inspect", cache)["labels"][0]
    first = int(np.argmax(row["mean"]))
    line = next(line for line in fer("inspect", cache).stdout.splitlines() if line.startswith("class-0 "))
    assert f"class-{first} {max(row['mean']):.0%}, " in line


def test_the_summary_does_without_the_views(run, cache):
    files = sorted(cache.glob("*.parquet"))
    read, without = read_shards(files), read_shards(files, views=False)
    assert (read.views, without.views) == (2, 0)
    for name in ("face_id", "image_hash", "split", "label", "fold", "canonical"):
        np.testing.assert_array_equal(getattr(read, name), getattr(without, name))


def test_a_class_may_be_called_as_it_likes(tmp_path):
    """Names with dots are no paths in Parquet, and none is rich's markup."""
    classes = ("[red]calm[/red]", "view_box.item", "label\x1b[2J")
    faces = write_faces(tmp_path, 30, classes)
    cache = write_cache(tmp_path / "distributions", faces, classes)
    for command in (("inspect", cache), ("inspect", faces), ("inspect", cache, "--top", "ambiguous")):
        shown = fer(*command).stdout
        assert "[red]calm[/red]" in shown
        assert "\x1b" not in shown
        assert "label\\x1b[2J" in shown
    shown = fer("inspect", cache, "--face", "face-003.png").stdout
    assert all(name in shown for name in ("[red]calm[/red] ◂ label", "view_box.item", "label\\x1b[2J"))


def test_ids_splits_and_reasons_are_text(tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    rows = [
        {
            "face_id": "[bold]x[/bold].png",
            "split": "[link=u]",
            "status": "no face",
            "reason": "\x07[blink]",
            "n_faces": 0,
        },
        {"face_id": ":smile:", "split": None, "status": "found", "image_hash": "0", "n_faces": 1, "source": "[/]"},
    ]
    pq.write_table(face_table(rows, CLASSES), faces / "part-00000.parquet")
    write_manifest(faces, "faces", files=["part-00000.parquet"], classes=CLASSES, made_from={}, settings={}, facts={})
    shown = fer("inspect", faces).stdout
    assert "\\x07[blink] (1)" in shown
    assert "first: [bold]x[/bold].png" in shown
    assert "no split" in shown
    shown = fer("inspect", faces, "--face", ":smile:").stdout
    assert "face  :smile:" in shown
    assert "source      [/]" in shown


# --- faces


def test_faces_are_counted_by_status_split_and_label(run):
    table = frame(run / "faces")
    usable = table[table.image_hash.notna()]
    result = found("inspect", run / "faces")
    assert (result["rows"], result["faces"], result["with_votes"]) == (61, 60, int(usable.votes.notna().sum()))
    assert {row["status"]: row["rows"] for row in result["statuses"]} == table.status.value_counts().to_dict()
    assert result["statuses"][1]["first"] == [{"face_id": "wall.png", "reason": None}]
    crossed = pd.crosstab(usable.label, usable.split)
    for index, row in enumerate(result["labels"]):
        assert (row["label"], row["splits"]) == (CLASSES[index], crossed.loc[index].to_dict())
    assert result["splits"] == {split: int(crossed[split].sum()) for split in ("train", "val", "test")}
    assert (result["mean"], result["settings"]) == ([0.4] * 3, {"crop": 64})
    shown = fer("inspect", run / "faces").stdout
    assert "rows       61, 60 of them with a face" in shown
    assert "no face     1   1.64%  first: wall.png" in shown


def test_a_row_of_faces(run):
    result = found("inspect", run / "faces", "--face", "wall.png")
    assert (result["status"], result["label"], result["votes"]) == ("no face", None, None)
    found_one = found("inspect", run, "--face", "face-004.png")  # no distributions yet: the run's faces are meant
    assert (found_one["path"], found_one["label"]) == (str(run / "faces"), "happiness")
    assert sum(found_one["votes"].values()) == 10
    assert "10 votes" in fer("inspect", run / "faces", "--face", "face-004.png").stdout


# --- teachers and students


def test_a_student_has_the_papers_parameters(run):
    model = build("efficientface", 7)
    folder = write_model(run / "students" / "one", "student", {"faces": run / "faces"}, asdict(DistillConfig()), model)
    result = found("inspect", folder)
    assert result["parameters"] == 1_275_293
    assert (result["best"], result["epochs"], result["val_accuracy"]) == (BEST, 3, [0.5, 0.75, 0.625])
    assert [line["epoch"] for line in result["last"]] == [1, 2, 3]
    shown = fer("inspect", folder).stdout
    assert "network     efficientface, 1,275,293 parameters" in shown
    assert "best epoch  2 of 3: 75.00% right on val, cross-entropy 0.500 nats" in shown
    assert "accuracy    50.0% ▁█▅ 62.5%" in shown


def test_an_artifact_of_other_faces_is_called_stale(whole):
    assert "stale" not in fer("inspect", whole / "teacher").stdout
    shutil.rmtree(whole / "faces")
    write_faces(whole, seed=1)
    assert found("inspect", whole / "teacher")["made_from"] == [
        {"name": "faces", "path": str(whole / "faces"), "state": "changed"}
    ]
    assert f"faces {whole / 'faces'} changed since: this artifact is stale" in " ".join(
        fer("inspect", whole / "teacher").stdout.split()
    )
    shutil.rmtree(whole / "faces")
    assert found("inspect", whole / "teacher")["made_from"][0]["state"] == "not there"


def test_weights_that_are_none_are_named(whole):
    folder = whole / "students" / "ldl"
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / "model.safetensors").write_bytes(b"x" * manifest["files"]["model.safetensors"]["bytes"])
    assert f"{folder / 'model.safetensors'} is damaged" in fer("inspect", folder).stderr
    sign_again(folder)
    done = fer("inspect", folder)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {folder} does not hold a model (")
    assert done.stderr.endswith("; restore it, or run its stage again\n")


# --- what is no artifact


def test_paths_that_are_no_artifacts(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (run / "teacher").mkdir()
    (run / "distributions").mkdir()
    (run / "distributions" / MANIFEST).write_text("[]")
    (run / "students" / "one").mkdir(parents=True)
    sentences = {
        tmp_path / "nowhere": (
            f"{tmp_path}/nowhere does not exist; give a run folder or an artifact in it, such as RUN/distributions"
        ),
        run / "faces" / MANIFEST: f"{run}/faces/manifest.json is a file; give the artifact's folder, {run}/faces",
        tmp_path / "photos": (
            f"{tmp_path}/photos is neither an artifact nor a run (looked for manifest.json, and for the folders faces, "
            "teacher, distributions and students); give a folder that fer align, teach or distill wrote"
        ),
        run / "teacher": f"{run}/teacher is unfinished (it has no manifest.json); run fer teach again to complete it",
        run / "distributions": (
            f"{run}/distributions/manifest.json does not say what the folder holds (looked for the kinds "
            "faces, teacher, distributions, student, identities); restore it, or run fer teach again"
        ),
        run / "students": f"{run}/students holds 1 students; give one, such as {run}/students/one",
    }
    for path, sentence in sentences.items():
        done = fer("inspect", path)
        assert (done.exit_code, done.stderr) == (1, f"Error: {sentence}\n")


def test_questions_that_an_artifact_cannot_answer(whole):
    sentences = {
        ("faces", "--top", "ambiguous"): (
            f"{whole}/faces holds faces, --top ranks distributions; give the folder that fer teach wrote"
        ),
        (
            "teacher",
            "--face",
            "x",
        ): f"{whole}/teacher is a teacher, --face looks into faces or distributions; give their folder",
        ("distributions", "--face", "x", "--top", "ambiguous"): "--face and --top ask for two things; give one of them",
        ("distributions", "--top", "ambiguous", "--count", "0"): "--count 0 is out of range; give a number from 1",
    }
    for (name, *words), sentence in sentences.items():
        done = fer("inspect", whole / name, *words)
        assert (done.exit_code, done.stderr) == (1, f"Error: {sentence}\n")


def test_distributions_without_labels_have_none_to_disagree_with(run):
    cache = write_cache(run / "distributions", run / "faces", label=np.full(60, -1))
    result = found("inspect", cache)
    assert (result["all"]["labelled"], result["all"]["share"]) == (0, None)
    done = fer("inspect", cache, "--top", "disagreeing")
    assert done.stderr == f"Error: {cache} has no labels to disagree with among its 60 faces; give --top ambiguous\n"


def test_a_label_that_is_no_class(run):
    cache = write_cache(run / "distributions", run / "faces", label=np.array([0] * 59 + [3]))
    assert fer("inspect", cache).stderr == (
        f"Error: {cache}/part-00001.parquet has 1 labels that are the number of none of its 3 classes, "
        "first of face face-059.png; restore it, or run fer teach again\n"
    )


# --- status


def states(run):
    return {row["stage"]: row["state"] for row in found("status", run)["stages"]}


def next_of(run):
    return found("status", run)["next"].replace(str(run), "RUN")


def given(line):
    """The settings that a printed command gives: click parses it as a shell would pass it."""
    _, name, *words = shlex.split(line.split(" && ")[-1])
    return cli.commands[name].make_context(name, words).params


def test_a_run_that_grows(run):
    faces = run / "faces"
    moved = run / "elsewhere"
    faces.rename(moved)
    missing = dict.fromkeys(("faces", "teacher", "distributions", "students", "evaluation"), "missing")
    assert states(run) == missing
    assert next_of(run) == "fer align SOURCE RUN"
    moved.rename(faces)
    assert states(run) == {**missing, "faces": "done"}
    assert next_of(run) == "fer teach RUN"
    settings = {k: v for k, v in asdict(TeachConfig(size=64, seed=3)).items() if k not in teach.LABELLING}
    teacher = write_model(run / "teacher", "teacher", {"faces": faces}, settings)
    # a teacher of other settings than the defaults would be refused by a plain fer teach
    assert next_of(run) == "fer teach RUN --checkpoint RUN/teacher --seed 3"
    cache = write_cache(run / "distributions", faces)
    assert next_of(run) == "fer distill RUN --size 64"
    sources = {"faces": faces, "distributions": cache}
    write_model(run / "students" / "ldl", "student", sources, asdict(DistillConfig(size=64)))
    assert states(run) == {
        **dict.fromkeys(("faces", "teacher", "distributions", "students/ldl"), "done"),
        "evaluation": "missing",
    }
    assert next_of(run) == "fer evaluate RUN"
    (run / "evaluation").mkdir()
    folders = {"teacher": run / "teacher", "ldl": run / "students" / "ldl"}
    judged = {name: {"manifest": (folder / DIGEST).read_text().strip()} for name, folder in folders.items()}
    (run / "evaluation" / "test.json").write_text(json.dumps({"models": judged}))
    assert states(run)["evaluation"] == "done"
    assert next_of(run) == "fer inspect RUN/distributions --top disagreeing"
    assert teacher.is_dir()


def test_details_tell_what_is_in_an_artifact(whole):
    details = {row["stage"]: row["detail"] for row in found("status", whole)["stages"]}
    assert details == {
        "faces": "3 classes, 64 pixels",
        "teacher": "resnet50, 75.0% on val after epoch 2",
        "distributions": "60 faces, 2 views beside the whole face, from teacher",
        "students/ldl": "efficientface, ldl, 75.0% on val after epoch 2",
        "evaluation": "",
    }
    inside = {row["stage"]: row["inside"] for row in found("inspect", whole)["stages"] if "inside" in row}
    assert list(inside) == ["faces", "teacher", "distributions", "students/ldl"]
    assert inside["faces"].startswith("a face from 98.4% of 61 rows, 60 with a label, ")


def test_other_faces_make_everything_after_them_stale(whole):
    write_cache(whole / "distributions-votes", whole / "faces", views=0)  # is not removed by the next command
    shutil.rmtree(whole / "faces")
    write_faces(whole, seed=1)
    assert states(whole) == {
        "faces": "done", "teacher": "stale", "distributions": "stale", "distributions-votes": "stale",
        "students/ldl": "stale", "evaluation": "missing",
    }  # fmt: skip
    details = {row["stage"]: row["detail"] for row in found("status", whole)["stages"]}
    assert details["teacher"].endswith("; made from other faces than there are now")
    assert next_of(whole) == "rm -r RUN/teacher RUN/distributions && fer teach RUN --size 64 --epochs 3 --views 2"
    shutil.rmtree(whole / "teacher")
    shutil.rmtree(whole / "distributions")
    write_cache(whole / "distributions", whole / "faces")
    assert next_of(whole) == "rm -r RUN/students/ldl && fer distill RUN --size 64"


def test_distributions_of_a_former_teacher_are_stale(whole):
    settings = json.loads((whole / "teacher" / MANIFEST).read_text())["settings"]
    shutil.rmtree(whole / "teacher")
    write_model(whole / "teacher", "teacher", {"faces": whole / "faces"}, {**settings, "seed": 1})
    assert states(whole)["distributions"] == "stale"
    assert next_of(whole) == ("rm -r RUN/distributions && fer teach RUN --checkpoint RUN/teacher --views 2")


def begin_training(folder, config, facts, epochs_done):
    """What an interrupted training leaves: a checkpoint of a small network."""
    folder.mkdir(parents=True)
    model = torch.nn.Linear(2, 2)
    settings = {k: v for k, v in asdict(config).items() if k not in train.MACHINE}
    lines = [{"epoch": k + 1, "val_accuracy": 0.25 * (k + 1)} for k in range(epochs_done)]
    progress = {"settings": {**settings, "facts": facts}, "lines": lines}
    no_momentum = SimpleNamespace(param_groups=[])  # importing torch's optimisers takes seconds
    Checkpoint(folder / checkpoint.CHECKPOINT).save(model, no_momentum, {}, progress)


def test_an_interrupted_teacher_goes_on_with_its_settings(run):
    config = TeachConfig(teacher_arch="resnet18", size=64, epochs=7, lr=0.2, schedule="onecycle", min_area=0.4, seed=5)
    begin_training(run / "teacher", config, {"faces": (run / "faces" / DIGEST).read_text().strip()}, 2)
    result = found("status", run)
    assert result["stages"][1] == {
        "stage": "teacher", "state": "unfinished", "detail": "2 of 7 epochs, best so far 50.0% on val",
    }  # fmt: skip
    parsed = given(result["next"])
    assert parsed["run"] == run
    assert {name: parsed[name] for name in parsed.keys() & asdict(config).keys()} == {
        name: value for name, value in asdict(config).items() if name in parsed
    }


def test_an_interrupted_student_goes_on_with_its_settings_and_name(whole):
    config = DistillConfig(name="second", unlabelled=True, epochs=9, modulation="add")
    digests = {f"{n}_manifest": (whole / n / DIGEST).read_text().strip() for n in ("faces", "distributions")}
    begin_training(whole / "students" / "second", config, digests, 1)
    assert states(whole)["students/second"] == "unfinished"
    parsed = given(found("status", whole)["next"])
    assert (parsed["name"], parsed["unlabelled"], parsed["epochs"], parsed["modulation"]) == ("second", True, 9, "add")


def test_a_training_begun_with_other_faces_cannot_go_on(run):
    begin_training(run / "teacher", TeachConfig(), {"faces": "0" * 64}, 2)
    assert states(run)["teacher"] == "stale"
    assert next_of(run) == "rm -r RUN/teacher && fer teach RUN"


def test_labelling_that_was_interrupted_goes_on(whole):
    cache = whole / "distributions"
    plan = {"settings": {"views": 2, "seed": 4, "min_area": 0.08, "covers": "train", "shard_faces": 8192}}
    (cache / MANIFEST).unlink()
    (cache / labelling.PLAN).write_text(json.dumps(plan))
    details = {row["stage"]: row["detail"] for row in found("status", whole)["stages"]}
    assert details["distributions"] == "1 shards with 60 faces"
    assert next_of(whole) == "fer teach RUN --checkpoint RUN/teacher --seed 4 --views 2 --covers train"


def test_alignment_that_was_interrupted_goes_on(run):
    faces = run / "faces"
    (faces / MANIFEST).unlink()
    (faces / align.PLAN).write_text(
        json.dumps({"settings": {"crop": 64, "classes": ["fear", "anger"], "layout": None}})
    )
    assert found("status", run)["stages"][0] == {
        "stage": "faces", "state": "unfinished", "detail": "2 shards with 61 faces",
    }  # fmt: skip
    assert next_of(run) == "fer align SOURCE RUN --classes fear,anger --crop 64"


def test_strange_files_are_moved_not_removed(run):
    (run / "distributions").mkdir()
    (run / "distributions" / "thesis.txt").write_text("mine")
    result = found("status", run)
    assert (
        result["stages"][2]["detail"]
        == "has files, but neither plan.json nor manifest.json, so fer teach cannot go on with it"
    )
    write_model(run / "teacher", "teacher", {"faces": run / "faces"}, {})
    assert next_of(run) == ("mv RUN/distributions RUN/distributions.other && fer teach RUN --checkpoint RUN/teacher")


def test_a_changed_manifest_is_damage(whole):
    path = whole / "students" / "ldl" / MANIFEST
    path.write_text(path.read_text().replace("0.75", "0.99"))
    row = found("status", whole)["stages"][3]
    assert (row["stage"], row["state"]) == ("students/ldl", "damaged")
    assert row["detail"] == (
        f"{path} was changed after it was written (see manifest.blake2b); "
        f"restore it, or remove {path.parent} and run fer distill again"
    )
    assert next_of(whole) == "rm -r RUN/students/ldl && fer distill RUN"


def test_named_caches_count(run):
    write_cache(run / "distributions-votes", run / "faces")
    assert states(run)["distributions-votes"] == "done"
    assert "distributions" not in states(run)
    assert next_of(run) == "fer distill RUN --cache votes"


def test_a_run_stands_for_its_only_cache(run):
    only = write_cache(run / "distributions-oof", run / "faces")
    assert found("inspect", run, "--top", "ambiguous")["path"] == str(only)
    write_cache(run / "distributions-votes", run / "faces")
    result = fer("inspect", run, "--top", "ambiguous")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {run} has no distributions/ but distributions-oof, distributions-votes; "
        f"give one of them, {run}/distributions-oof\n"
    )


def test_an_evaluation_older_than_a_student_is_stale(whole):
    sources = {"faces": whole / "faces"}
    folders = {"teacher": whole / "teacher", "ldl": whole / "students" / "ldl"}
    judged = {name: {"manifest": (folder / DIGEST).read_text().strip()} for name, folder in folders.items()}
    (whole / "evaluation").mkdir()
    for split in ("test", "a%2Fb"):
        (whole / "evaluation" / f"{split}.json").write_text(json.dumps({"models": judged}))
    write_model(whole / "teacher" / "fold-0", "teacher", sources, {})  # is never judged
    row = found("status", whole)["stages"][-1]
    assert (row["state"], row["detail"]) == ("done", "on a/b, test")
    (whole / "evaluation" / "a%2Fb.json").write_text("{}")
    row = found("status", whole)["stages"][-1]
    assert (row["state"], row["detail"]) == ("stale", "on a/b, test; without teacher, ldl as now on a/b")
    (whole / "evaluation" / "a%2Fb.json").unlink()
    write_model(whole / "students" / "sll", "student", sources, asdict(DistillConfig(loss="sll")))
    row = found("status", whole)["stages"][-1]
    assert (row["state"], row["detail"]) == ("stale", "on test; without sll as now on test")
    assert next_of(whole) == "fer evaluate RUN"


def test_the_next_command_is_printed_in_one_piece(run):
    far = run / "a folder with spaces" / ("deep" * 40)
    far.mkdir(parents=True)
    lines = fer("status", far).stdout.splitlines()
    assert lines[-1] == f"next: fer align SOURCE '{far}'"
    assert given(lines[-1].removeprefix("next: "))["run"] == far


def test_status_wants_a_run(whole, tmp_path):
    sentences = {
        tmp_path / "nowhere": (
            f"{tmp_path}/nowhere does not exist; give a run folder, "
            f"or make one with fer align SOURCE {tmp_path}/nowhere"
        ),
        whole / "students" / "ldl": (
            f"{whole}/students/ldl is an artifact (student); give the run that it lies in, {whole}"
        ),
    }
    for path, sentence in sentences.items():
        done = fer("status", path)
        assert (done.exit_code, done.stderr) == (1, f"Error: {sentence}\n")


def test_file_names_are_those_of_the_stages():
    assert (status.PLAN, status.PLAN) == (labelling.PLAN, align.PLAN)
    assert (status.CHECKPOINT, inspect.WEIGHTS) == (checkpoint.CHECKPOINT, checkpoint.WEIGHTS)


def test_looking_does_not_import_torch(whole):
    code = (
        "import sys; from efficientface.cli import cli\n"
        f"for words in (['inspect', {str(whole)!r}], ['status', {str(whole)!r}]): cli(words, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def read_csv(text):
    return pd.read_csv(io.StringIO(text), keep_default_na=False)


def test_csv_is_the_main_table_of_every_inspecting_command(whole):
    run = whole
    cached = pd.concat([pd.read_parquet(path) for path in sorted((run / "distributions").glob("*.parquet"))])
    labels = read_csv(fer("inspect", run / "distributions", "--csv").stdout)
    for name, group in cached.groupby("label"):
        row = labels[labels.label == CLASSES[int(name)]].iloc[0]
        assert int(row.faces) == len(group)
        assert float(row["mean.happiness"]) == pytest.approx(group.happiness.mean(), abs=1e-6)
    top = read_csv(fer("inspect", run / "distributions", "--top", "ambiguous", "--csv", "-n", 3).stdout)
    assert top.entropy.is_monotonic_decreasing
    assert len(top) == 3
    face = read_csv(fer("inspect", run / "distributions", "--face", top.face_id[0], "--csv").stdout)
    assert len(face) == 1 + len(cached.view_flip.iloc[0])
    stages = read_csv(fer("status", run, "--csv").stdout)
    assert stages.stage.tolist()[:2] == ["faces", "teacher"]
    epochs = read_csv(fer("inspect", run / "teacher", "--csv").stdout)
    assert epochs.epoch.tolist() == list(range(1, len(epochs) + 1))
    assert fer("inspect", run, "--csv", "--json").exit_code == 1
