"""The training loop: deterministic, resumable to the bit, and every face once an epoch."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL_TEACHER, write_faces
from determinism import waiting
from safetensors.torch import load_file

from efficientface import FerError
from efficientface.pipeline import distill, teach, train
from efficientface.pipeline.artifact import MANIFEST
from efficientface.pipeline.checkpoint import CHECKPOINT
from efficientface.pipeline.config import DistillConfig, TeachConfig, TrainConfig
from efficientface.pipeline.inputs import read_inputs
from efficientface.pipeline.losses import distribution_loss

SMALL = {"size": 32, "schedule": "onecycle", "min_area": 0.5, "workers": 1}
TEACH = TeachConfig(teacher_arch=SMALL_TEACHER, epochs=8, batch_size=6, views=3, lr=0.02, **SMALL)
DISTILL = DistillConfig(epochs=3, batch_size=16, lr=0.1, **SMALL)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run with faces, teacher and distributions; tests may add students but change nothing."""
    run = tmp_path_factory.mktemp("taught") / "run"
    write_faces(run)
    teach.run(run, TEACH)
    return run


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_is_equation_5():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 7, generator=generator), torch.rand(6, 7, generator=generator)
    target /= target.sum(1, keepdim=True)
    written_out = 0.0
    for i in range(6):
        exponentials = [math.exp(v) for v in logits[i].tolist()]
        for j in range(7):
            written_out -= target[i, j].item() * math.log(exponentials[j] / sum(exponentials))
    assert distribution_loss(logits, target).item() == pytest.approx(written_out / (6 * 7), rel=1e-6)


def test_the_loss_of_a_certain_and_right_answer_is_nothing():
    target = torch.eye(3)
    assert distribution_loss(100 * target, target).item() == pytest.approx(0, abs=1e-30)


def test_the_loss_falls_on_eight_faces():
    from efficientface.models import build

    torch.manual_seed(0)
    model, images = build("efficientface", 3), torch.randn(8, 3, 32, 32)
    target = torch.eye(3)[torch.arange(8) % 3]
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = distribution_loss(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_one_cycle_is_torchs():
    config = TrainConfig(schedule="onecycle", epochs=4, lr=0.3)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 0.3, momentum=0.9)
    # torch places its peak one step early and its end on the last step: compared with as many steps as hide it
    steps = 4000
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=steps, pct_start=0.25, cycle_momentum=False, final_div_factor=1e4
    )
    for step in range(steps - 1):
        ours = train.learning_rate(config, 4 * step / steps)
        assert ours == pytest.approx(schedule.get_last_lr()[0], abs=3e-4)
        optimizer.step()
        schedule.step()


def test_the_step_schedule_is_the_authors():
    config = TrainConfig()
    assert [round(train.learning_rate(config, e), 10) for e in (0, 29.99, 30, 59, 60, 99)] == [
        0.1, 0.1, 0.01, 0.01, 0.001, 0.0001,
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "size"), [(100, 16), (97, 16), (5, 8), (33, 16)])
def test_every_face_comes_once_an_epoch(count, size):
    config = TrainConfig(seed=3)
    orders = [train.epoch_order(np.zeros(count, int), config, epoch) for epoch in (2, 3)]
    assert sorted(orders[0]) == list(range(count))
    assert not np.array_equal(*orders)
    batches = train.global_batches(count, size)
    assert np.array_equal(np.concatenate(batches), np.arange(count))
    assert min(map(len, batches)) >= 2


def test_the_teacher_learns_and_says_how_well(taught):
    facts = json.loads((taught / "distributions" / MANIFEST).read_text())["facts"]
    assert facts["teacher"]["accuracy"] > 0.8
    assert facts["faces"] == 60
    assert facts["fold_faces"] == {"-2": 24, "-1": 36}


def test_same_seed_same_student_and_another_seed_another(taught):
    """However many threads make its views, at whatever speed."""
    students = taught / "students"
    for name, seed, workers in (("one", 0, 1), ("two", 0, 3), ("three", 1, 1)):
        with waiting():
            distill.run(taught, replace(DISTILL, name=name, seed=seed, workers=workers))
    assert same(weights(students / "one"), weights(students / "two"))
    assert not same(weights(students / "one"), weights(students / "three"))


@pytest.mark.parametrize("format", ["parquet", "hdf5"])
def test_a_teacher_s_cache_is_the_same_file_with_any_number_of_threads_at_any_speed(taught, format):
    folders = [taught / f"distributions-{format}-{workers}" for workers in (1, 3)]
    for workers, folder in zip((1, 3), folders, strict=True):
        cache = folder.name.removeprefix("distributions-")
        with waiting():
            teach.run(taught, replace(TEACH, workers=workers, format=format, cache=cache))
    one, another = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert len(one) == 3  # manifest and digest
    assert one == another


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_interrupted_training_ends_as_if_it_had_not_been(taught, monkeypatch, precision):
    config = replace(DISTILL, precision=precision)
    distill.run(taught, replace(config, name=f"whole-{precision}"))
    real, calls = train.train_epoch, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill.run(taught, replace(config, name=f"halves-{precision}", workers=3))
    folder = taught / "students" / f"halves-{precision}"
    assert (folder / CHECKPOINT).exists()
    assert not (folder / MANIFEST).exists()
    distill.run(taught, replace(config, name=f"halves-{precision}"))
    assert len(calls) == 4, "the finished epochs were trained again"
    assert same(weights(folder), weights(taught / "students" / f"whole-{precision}"))
    ours, theirs = [
        [json.loads(line) for line in (taught / "students" / name / "metrics.jsonl").read_text().splitlines()]
        for name in (f"halves-{precision}", f"whole-{precision}")
    ]
    for line in ours + theirs:
        del line["seconds"], line["faces_per_second"]
    assert ours == theirs
    assert not (folder / CHECKPOINT).exists()


def test_a_checkpoint_of_other_settings_is_refused(taught, monkeypatch):
    folder = taught / "students" / "begun"
    monkeypatch.setattr(train, "_waited_enough", lambda lines, patience: len(lines) == 1 and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distill.run(taught, replace(DISTILL, name="begun"))
    monkeypatch.undo()
    with pytest.raises(FerError) as error:
        distill.run(taught, replace(DISTILL, name="begun", lr=0.2))
    assert str(error.value) == (
        f"{folder}/checkpoint.safetensors was begun with other settings (lr 0.1, now 0.2); "
        f"give the same settings to go on, or remove {folder} to start again"
    )


def test_an_answer_that_overflows_counts_as_wrong(taught, monkeypatch):
    faces = read_inputs(taught).labelled("val")
    answers = np.eye(3, dtype=np.float32)[faces.label][:, None]
    answers[faces.label == 0] = np.nan  # argmax alone would call these class 0, and right
    monkeypatch.setattr(train, "predict", lambda *args, **settings: answers)
    accuracy, entropy = train.judge_epoch(None, faces, DISTILL, {"crop": 64, "mean": None, "std": None})
    assert accuracy == pytest.approx((faces.label != 0).mean())
    assert math.isfinite(entropy)


def test_training_stops_when_validation_no_longer_improves(taught):
    distill.run(taught, replace(DISTILL, name="patient", epochs=40, lr=1e-9, patience=2))
    lines = (taught / "students" / "patient" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) < 40


def test_a_loss_that_is_no_number_ends_with_a_sentence(taught):
    with pytest.raises(FerError, match=r"^the loss is (nan|inf) in epoch \d+; start again with a smaller --lr than 1"):
        distill.run(taught, replace(DISTILL, name="wild", lr=1e12))
