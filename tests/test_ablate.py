"""`fer ablate` with every network, two seeds and an epoch: what is trained, found again, and told."""

import json
import shutil

import numpy as np
import pytest
from conftest import SMALL_TEACHER, write_faces
from test_evaluate import write_model
from test_teach_distill import fer, refused

from efficientface import FerError
from efficientface.cache.distributions import NO_TEACHER, Distributions
from efficientface.cache.parquet import write_shard
from efficientface.data.faces import read_faces
from efficientface.pipeline import ablate, distill
from efficientface.pipeline.artifact import read_manifest, read_sealed, reference_to, write_manifest
from efficientface.pipeline.config import DistillConfig
from efficientface.pipeline.metrics import mcnemar

TINY = ["--size", "32", "--epochs", "1", "--batch-size", "36"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a teacher that knows nothing and a cache of even distributions, and what an ablation of it printed."""
    run = tmp_path_factory.mktemp("ablate") / "run"
    folder = write_faces(run)
    write_model(run, run / "teacher", "teacher")
    faces = read_faces(sorted(folder.glob("*.parquet")), images=False)
    faces = faces.select(faces.usable)
    count, classes = len(faces), len(faces.classes)
    cached = Distributions(
        classes=faces.classes,
        face_id=faces.face_id,
        image_hash=faces.image_hash,
        split=faces.split,
        label=faces.label,
        fold=np.full(count, NO_TEACHER, np.int8),
        canonical=np.full((count, classes), 1 / classes, np.float32),
        view_box=np.zeros((count, 0, 4), np.uint16),
        view_flip=np.zeros((count, 0), bool),
        view_distribution=np.zeros((count, 0, classes), np.float32),
    )
    cache = run / "distributions"
    cache.mkdir()
    write_shard(cached, cache / "part-00000.parquet")
    write_manifest(
        cache, "distributions", files=["part-00000.parquet"], classes=faces.classes,
        made_from={"faces": reference_to(folder, cache)}, settings={}, facts={"views": 0},
    )  # fmt: skip
    result = fer("ablate", run, *TINY, "--seeds", "0,1", "--json")
    assert result.exit_code == 0, result.output
    return run, json.loads(result.stdout)


def test_there_is_a_student_of_every_network_way_and_seed(made):
    run, result = made
    kinds = ["baseline-sll", "baseline-local-sll", "baseline-modulator-sll", "efficientface-sll"]
    kinds += ["baseline-ldl", "efficientface-ldl"]
    assert sorted(path.name for path in (run / "students").iterdir()) == sorted(
        f"ablate-{kind}-{seed}" for kind in kinds for seed in (0, 1)
    )
    rows = result["rows"]
    assert [(row["table"], row["arch"], row["loss"], len(row["models"])) for row in rows] == [
        (1, "baseline", "sll", 2),
        (1, "baseline-local", "sll", 2),
        (1, "baseline-modulator", "sll", 2),
        (1, "efficientface", "sll", 2),
        (2, SMALL_TEACHER, "sll", 1),
        (2, "baseline", "sll", 2),
        (2, "baseline", "ldl", 2),
        (2, "efficientface", "sll", 2),
        (2, "efficientface", "ldl", 2),
    ]
    assert rows[0]["models"] == rows[5]["models"]
    # with 7 classes these are the paper's 1.26, 1.27, 1.27 and 1.28 million
    parameters = [1_260_759, 1_271_777, 1_265_077, 1_275_293]
    assert [row["parameters"] + 4 * 1025 for row in rows[:4]] == pytest.approx(parameters, abs=60)
    assert read_sealed(run / "ablation" / "ablate-test.json") == result


def test_the_figures_are_those_of_fer_evaluate(made):
    run, result = made
    judged = json.loads(fer("evaluate", run, "--json").stdout)
    for row in result["rows"]:
        models = [judged["models"][name] for name in row["models"]]
        assert row["accuracies"] == [model["accuracy"] for model in models]
        assert row["accuracy"] == pytest.approx(np.mean(row["accuracies"]))
        if len(models) > 1:
            assert row["deviation"] == pytest.approx(abs(row["accuracies"][0] - row["accuracies"][1]) / 2**0.5)
        else:
            assert row["accuracy_interval"] == models[0]["accuracy_interval"]
    groups = {group["name"]: group for group in judged["seeds"]}
    first = result["rows"][0]
    assert groups["ablate-baseline-sll"]["accuracy"]["mean"] == pytest.approx(first["accuracy"])
    assert groups["ablate-baseline-sll"]["seeds"] == [0, 1]


def test_the_differences_are_the_papers_and_ours(made):
    found = {(line["table"], line["better"], line["worse"]): line for line in made[1]["differences"]}
    # what the paper's text says of its tables
    assert found[1, "Baseline + local", "Baseline"]["paper"] == {"RAF-DB": 1.34, "CAER-S": 1.16}
    assert found[1, "Baseline + modulator", "Baseline"]["paper"] == {"RAF-DB": 0.89, "CAER-S": 0.96}
    assert found[2, "EfficientFace (LDL)", "EfficientFace (SLL)"]["paper"] == {"RAF-DB": 2.7, "CAER-S": 1.36}
    rows = {(row["table"], row["method"]): row for row in made[1]["rows"]}
    for (table, better, worse), line in found.items():
        a, b = rows[table, better], rows[table, worse]
        assert line["difference"] == pytest.approx(a["accuracy"] - b["accuracy"])
        assert len(line["differences"]) == len(line["p"]) == 2
        assert line["interval"][0] <= line["difference"] <= line["interval"][1]


def test_an_interval_of_a_difference_by_hand():
    cells = ablate.TABLES[1]
    a = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    b = np.array([[1, 0, 0, 0], [1, 0, 0, 1]], bool)
    line = ablate.claim(1, cells[1], cells[0], a, b)
    paired = [0, 1, 0.5, -0.5]
    assert line["difference"] == pytest.approx(0.25)
    reach = 1.96 * np.std(paired) / 2
    assert line["interval"] == pytest.approx([0.25 - reach, 0.25 + reach])
    assert line["differences"] == [0.5, 0]
    assert line["p"] == [mcnemar(a[0], b[0])["p"], mcnemar(a[1], b[1])["p"]]


def test_finished_students_are_found_and_tables_printed(made, monkeypatch):
    run, _ = made
    before = {path: path.stat().st_mtime_ns for path in (run / "students").rglob("*")}
    monkeypatch.setattr(distill, "fit", lambda *_: pytest.fail("a finished student was trained again"))
    result = fer("ablate", run, *TINY)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in (run / "students").rglob("*")} == before
    for text in ("Table 1", "Baseline + local", "154.18", "88.36", "by seed", "+2.70", "pre-trained on MS-Celeb-1M"):
        assert text in result.stdout, text
    lines = fer("ablate", run, *TINY, "--csv").stdout.splitlines()
    assert lines[0].startswith("table,method,arch,loss,paper.parameters_m,paper.mflops,paper.RAF-DB,paper.CAER-S,")
    assert len(lines) == 10


def test_epochs_chosen_on_the_split_that_is_judged_are_told(made):
    def caption(result):
        return str(ablate.accuracy_table(result, 1).caption)

    result = made[1]
    peeking = {**result, "rows": [{**row, "chosen_on": "test"} for row in result["rows"]]}
    assert "too good" not in caption(result)
    assert "best epochs chosen on test itself, so too good" in caption(peeking)


@pytest.mark.parametrize(
    ("teacher", "students", "told"),
    [
        (True, True, "teacher and students"),
        (True, False, "the teacher"),
        (False, True, "the students"),
        (False, False, "none"),
    ],
)
def test_who_began_with_another_model_is_told(made, teacher, students, told):
    result = {**made[1], "started": {"teacher": teacher, "students": students}}
    assert f"of ours, {told} began with other models" in str(ablate.accuracy_table(result, 2).caption)
    assert made[1]["started"] == {"teacher": False, "students": False}


def test_a_student_of_other_settings_is_not_taken(made):
    run, _ = made
    assert refused(fer("ablate", run, *TINY, "--momentum", "0.8")) == (
        f"{run}/students/ablate-baseline-sll-0 is finished with other settings (momentum 0.9, now 0.8); "
        "give --name to train beside it, or remove it"
    )


def test_each_student_gets_what_is_about_it(made, tmp_path):
    run = shutil.copytree(made[0], tmp_path / "run")
    words = ["--seeds", "0", "--modulation", "add", "--label-smoothing", "0.1", "--class-weights", "balanced"]
    assert fer("ablate", run, *TINY, *words, "--name", "other", "--preset", "raf-db").exit_code == 0

    def settings(name):
        manifest = read_manifest(run / "students" / f"other-{name}-0", "student")["settings"]
        return [manifest[key] for key in ("modulation", "label_smoothing", "class_weights", "normalisation", "epochs")]

    assert settings("baseline-sll") == ["multiply", 0.1, "balanced", "raf-db", 1]
    assert settings("efficientface-sll") == ["add", 0.1, "balanced", "raf-db", 1]
    assert settings("efficientface-ldl") == ["add", 0.0, "none", "raf-db", 1]


def test_what_is_missing_is_said_before_anything_is_trained(run):
    assert refused(fer("ablate", run, *TINY)) == f"{run}/teacher does not exist; run fer teach first"
    write_model(run, run / "teacher", "teacher")
    assert refused(fer("ablate", run, *TINY)) == f"{run}/distributions does not exist; run fer teach first"
    assert not (run / "students").exists()


def test_numbers_that_are_none_are_refused(run):
    said = refused(fer("ablate", run, "--seeds", "a"))
    assert said == "--seeds a is not understood; give whole numbers with commas, such as 0,1"
    assert refused(fer("ablate", run, "--tables", "1,3")) == "--tables 3 is not known; choose from 1 and 2"
    with pytest.raises(FerError) as error:
        ablate.run(run, DistillConfig(), seeds=(0, 0))
    assert str(error.value) == "--seeds names no seed, or one twice; give different numbers with commas, such as 0,1"


def test_table_2_starts_from_other_models(made, tmp_path):
    run = shutil.copytree(made[0], tmp_path / "run")
    starts = [run / "students" / f"ablate-{arch}-sll-0" for arch in ("baseline", "efficientface")]
    assert refused(fer("ablate", run, *TINY, "--init", starts[0])) == (
        "--init gives baseline; table 2 needs a start of each of baseline, efficientface, once"
    )
    result = fer("ablate", run, *TINY, "--seeds", "1", "--init", starts[0], "--init", starts[1], "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert rows[0]["models"] == ["ablate-baseline-sll-1"]
    assert rows[5]["models"] == ["ablate-init-baseline-sll-1"]
    started = read_manifest(run / "students" / "ablate-init-efficientface-ldl-1", "student")
    assert started["made_from"]["init"] == reference_to(starts[1], run / "students" / "ablate-init-efficientface-ldl-1")
