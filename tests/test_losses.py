"""What is learned and how often: losses, targets, weights and draws, each against its formula written out in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_faces
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from efficientface import FerError
from efficientface.cache.distributions import tempered
from efficientface.data.batches import view_batches
from efficientface.data.faces import Faces
from efficientface.data.views import draw_views
from efficientface.pipeline import checkpoint, distill, train
from efficientface.pipeline.config import DistillConfig, TeachConfig, TrainConfig
from efficientface.pipeline.losses import balanced_weights, distribution_loss, label_loss, tempered_divergence

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5))
TARGET = RNG.dirichlet(np.ones(5), 6)
LABEL = np.array([0, 0, 0, 1, 4, 4])


def softmax(values):
    raised = np.exp(values - values.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def of(loss, *arrays, **settings):
    return loss(*(torch.from_numpy(array) for array in arrays), **settings).item()


def faces(label):
    """Faces without pictures."""
    ids = np.array([f"face-{k}" for k in range(len(label))], object)
    nothing = np.full(len(label), None, object)
    votes = np.full((len(label), 5), np.nan)
    classes = tuple("abcde")
    return Faces(
        classes,
        ids,
        ids,
        nothing,
        label,
        votes,
        nothing,
        nothing,
        np.ones(len(label), bool),
        np.arange(len(label)),
        None,
    )


# --- losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_tempered_divergence_by_its_formula(temperature):
    target = tempered(TARGET, temperature).astype(float)
    target[0] = [1, 0, 0, 0, 0]  # where p is 0, p log p is 0
    answer = softmax(LOGITS / temperature)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(target > 0, target * np.log(target / answer), 0)
    written_out = temperature**2 * terms.sum() / (6 * 5)
    assert of(tempered_divergence, LOGITS, target, temperature=temperature) == pytest.approx(written_out)


def test_untempered_divergence_pulls_like_equation_5():
    gradients = []
    for loss in (distribution_loss, lambda *args: tempered_divergence(*args, temperature=1.0)):
        logits = torch.from_numpy(LOGITS.copy()).requires_grad_()
        loss(logits, torch.from_numpy(TARGET)).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


def test_no_divergence_from_the_same_tempered_distribution():
    assert of(tempered_divergence, LOGITS, softmax(LOGITS / 3), temperature=3.0) == pytest.approx(0, abs=1e-15)


def test_label_loss_by_its_formula():
    smoothing, weights = 0.1, np.array([0.5, 2.0, 1.0, 1.0, 1.5])
    target = np.eye(5)[LABEL] * (1 - smoothing) + smoothing / 5
    losses = -(target * np.log(softmax(LOGITS))).sum(1)
    assert of(label_loss, LOGITS, LABEL) == pytest.approx(-np.log(softmax(LOGITS))[np.arange(6), LABEL].mean())
    assert of(label_loss, LOGITS, LABEL, smoothing=smoothing) == pytest.approx(losses.mean())
    weighted = of(label_loss, LOGITS, LABEL, smoothing=smoothing, weights=torch.from_numpy(weights))
    assert weighted == pytest.approx((weights[LABEL] * losses).mean())


def test_single_labels_are_equation_5_of_a_one_hot_target():
    onehot = np.eye(5)[LABEL]
    loss = train.label_objective(faces(LABEL), TrainConfig(), scale=1 / 5)
    assert of(loss, LOGITS, LABEL) == pytest.approx(of(distribution_loss, LOGITS, onehot))


def test_balanced_weights_are_scikit_learns():
    by_sklearn = compute_class_weight("balanced", classes=np.array([0, 1, 4]), y=LABEL)
    np.testing.assert_allclose(balanced_weights(LABEL, 5), [*by_sklearn[:2], 0, 0, by_sklearn[2]], rtol=1e-6)
    assert balanced_weights(LABEL, 5)[LABEL].mean() == pytest.approx(1)


def test_a_step_with_class_weights_does_not_depend_on_how_the_batch_is_divided():
    loss = train.label_objective(faces(LABEL), TrainConfig(class_weights="balanced"), scale=1)
    halves = [of(loss, LOGITS[k::2], LABEL[k::2]) for k in (0, 1)]
    assert np.mean(halves) == pytest.approx(of(loss, LOGITS, LABEL))


def test_the_label_is_mixed_into_tempered_distributions_of_labelled_faces():
    label = np.array([2, -1, 0])
    given = train.Lesson(np.zeros((2, 1, 4)), np.zeros((2, 1)), TARGET[:2].astype(np.float32))
    lessons = distill.with_labels(distill.with_temperature(lambda rows, turns: given, 2.0), faces(label), 0.3)
    targets = lessons(np.array([0, 1]), np.array([0, 0])).targets
    np.testing.assert_allclose(targets[0], 0.7 * tempered(TARGET[0], 2.0) + 0.3 * np.eye(5)[2], atol=1e-6)
    np.testing.assert_allclose(targets[1], tempered(TARGET[1], 2.0), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "options", "sentence"),
    [
        (DistillConfig, {"label_smoothing": 0.1},
         "--label-smoothing is about single labels, --loss ldl learns distributions; leave one of them out"),
        (DistillConfig, {"loss": "kl", "class_weights": "balanced"},
         "--class-weights is about single labels, --loss kl learns distributions; leave one of them out"),
        (DistillConfig, {"loss": "sll", "label_weight": 0.5},
         "--label-weight is about distributions, --loss sll learns single labels; leave one of them out"),
        (DistillConfig, {"sampling": "balanced", "unlabelled": True},
         "--sampling balanced goes by labels; leave out --unlabelled"),
        (DistillConfig, {"loss": "sll", "unlabelled": True},
         "--unlabelled needs --loss ldl or kl: single-label learning has nothing to learn from them"),
        (DistillConfig, {"label_weight": 1.5}, "--label-weight 1.5 is out of range; give a number from 0.0 to 1.0"),
        (TeachConfig, {"sampling": "balanced", "class_weights": "balanced"},
         "--sampling balanced and --class-weights balanced both even out the classes; give one"),
        (TeachConfig, {"sampling": "some"}, "--sampling some is not known; choose from every, balanced"),
        (TeachConfig, {"normalisation": "ck+"},
         "--normalisation ck+ is not known; choose from faces, raf-db, caer-s, affectnet"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(config, options, sentence):
    with pytest.raises(FerError) as error:
        config(**options)
    assert str(error.value) == sentence


# --- sampling -------------------------------------------------------------------------------------------------


def test_balanced_draws_give_every_class_the_same_chance_and_every_face_of_a_class():
    label = np.repeat([0, 1, 2], [900, 90, 10])
    drawn = np.stack([train.epoch_order(label, TrainConfig(sampling="balanced"), epoch) for epoch in range(40)])
    assert drawn.shape == (40, 1000)
    share = np.bincount(label[drawn].ravel()) / drawn.size
    np.testing.assert_allclose(share, 1 / 3, atol=4 * np.sqrt(2 / 9 / drawn.size))
    # the weight of a face in the sampler that the paper names: 1 / faces of its class, normalised
    expected = 1 / np.bincount(label)[label]
    counts = np.bincount(drawn.ravel(), minlength=1000)
    z = (counts - drawn.size * expected / 3) / np.sqrt(drawn.size * expected / 3)
    assert np.abs(z).max() < 5


def test_draws_depend_on_seed_and_epoch_alone():
    config = TrainConfig(sampling="balanced", seed=2)
    assert np.array_equal(train.epoch_order(LABEL, config, 3), train.epoch_order(LABEL, config, 3))
    long = np.arange(1000) % 5
    others = [(config, 4), (replace(config, seed=1), 3)]
    assert not any(np.array_equal(train.epoch_order(long, config, 3), train.epoch_order(long, *o)) for o in others)


def test_a_face_that_comes_again_is_counted():
    shown = np.array([5, 0, 7])
    assert train.showings(np.array([0, 2, 0, 1, 0]), shown).tolist() == [5, 7, 6, 0, 7]


def test_each_showing_of_a_face_has_a_crop_of_its_own():
    config = TrainConfig(seed=4)
    people = faces(LABEL)
    rows, turns = np.array([3, 1, 3, 3]), np.array([0, 8, 1, 2])
    lesson = train.label_lessons(people, 64, config)(rows, turns)
    for place, (row, turn) in enumerate(zip(rows, turns, strict=True)):
        boxes, flips = draw_views(4, [people.face_id[row]], [turn], 64)
        assert np.array_equal(lesson.boxes[place], boxes[0])
        assert np.array_equal(lesson.flips[place], flips[0])
    assert lesson.targets.tolist() == LABEL[rows].tolist()


def test_a_batch_may_show_a_face_twice(run):
    from efficientface.pipeline.inputs import read_inputs

    read = read_inputs(run).faces
    shown = np.array([7, 2, 7])
    boxes = np.array([[[0, 0, 64, 64]], [[0, 0, 64, 64]], [[8, 8, 32, 32]]], np.uint16)
    flips = np.zeros((3, 1), bool)
    [(places, images)] = view_batches(read, [np.arange(3)], boxes, flips, 32, 1, shown)
    for place in places:
        rows = shown[place : place + 1]
        [(_, alone)] = view_batches(read.select(rows), [np.array([0])], boxes[[place]], flips[[place]], 32, 1)
        assert torch.equal(images[place], alone[0])


def with_dropout(arch, classes, **options):
    """A small network that draws at random in training."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(48, classes))


@pytest.mark.parametrize("loss", ["sll", "kl"])
def test_balanced_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path, monkeypatch, loss):
    import json

    from safetensors.torch import load_file

    run = tmp_path / "run"
    write_faces(run)
    config = DistillConfig(
        loss=loss, sampling="balanced", epochs=3, batch_size=16, size=32, min_area=0.5, workers=1,
        **({"temperature": 2.0, "label_weight": 0.2, "cache": "votes"} if loss == "kl" else {}),
    )  # fmt: skip
    if loss == "sll":
        monkeypatch.setattr(checkpoint, "build", with_dropout)
    if loss == "kl":
        from efficientface.pipeline import teach

        teach.run(run, TeachConfig(source="votes", cache="votes"))
    distill.run(run, replace(config, name="whole"))
    real, calls = train.train_epoch, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill.run(run, replace(config, name="halves"))
    distill.run(run, replace(config, name="halves"))
    whole, halves = (load_file(run / "students" / name / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    settings = json.loads((run / "students" / "whole" / "manifest.json").read_text())["settings"]
    assert (settings["sampling"], settings["loss"]) == ("balanced", loss)
