"""What is done for a GPU, on a CPU: faces kept and cut there, no waiting within an epoch, --compile."""

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import write_faces
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from efficientface import FerError
from efficientface.data import resident
from efficientface.data.batches import canonical, view_batches
from efficientface.data.views import cut, draw_views, render
from efficientface.models import build
from efficientface.pipeline import distill, train
from efficientface.pipeline.config import DistillConfig
from efficientface.pipeline.inputs import read_inputs

SLL = DistillConfig(
    loss="sll", arch="resnet18", size=32, epochs=2, batch_size=6, lr=0.1, schedule="onecycle", min_area=0.5, workers=1
)
GB = 10**9


@pytest.fixture
def as_gpu(monkeypatch):
    """The CPU does what a GPU does; call it with the bytes that are free, of 3 GB."""

    def free(count: int) -> None:
        monkeypatch.setattr(resident, "GPUS", ("cpu",))
        monkeypatch.setattr(resident, "free_memory", lambda device: (count, 3 * GB))

    return free


@pytest.fixture
def run(tmp_path):
    """Twenty faces, twelve of them for training."""
    write_faces(tmp_path / "run", 20)
    return tmp_path / "run"


@pytest.fixture
def faces(run):
    return read_inputs(run).faces


def views_of(faces, device="cpu"):
    """All views of all faces in two batches, of places in reverse order: (40, 32, 32, 3)."""
    boxes, flips = draw_views(0, faces.face_id, range(2), 64)
    shown = np.arange(20)[::-1].copy()
    order = [np.arange(0, 20, 2), np.arange(1, 20, 2)]
    images = [images for _, images in view_batches(faces, order, boxes, flips, 32, 1, shown, device)]
    assert all(
        batch.dtype == torch.uint8 and batch.is_contiguous(memory_format=torch.channels_last) for batch in images
    )
    return torch.cat(images).permute(0, 2, 3, 1).cpu().numpy().astype(int)


def weights(run, name):
    return load_file(run / "students" / name / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("size", [64, 112, 224])
def test_cut_gives_what_render_gives(size):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    noise[4:] = [cv2.GaussianBlur(face, (0, 0), 2) for face in noise[4:]]
    boxes, flips = draw_views(0, [f"{k}" for k in range(8)], range(2), 224)
    ours = cut(
        torch.from_numpy(noise).permute(0, 3, 1, 2), torch.from_numpy(boxes.astype(int)), torch.from_numpy(flips), size
    )
    theirs = np.stack([render(noise[n], boxes[n, k], bool(flips[n, k]), size) for n in range(8) for k in range(2)])
    differ = np.abs(ours.permute(0, 2, 3, 1).numpy().astype(int) - theirs)
    assert differ.max() <= 2
    assert differ.mean() < 0.01


def test_cut_leaves_a_whole_face_of_its_size_as_it_is_and_mirrors_exactly():
    face = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8))
    box = torch.tensor([[[0, 0, 64, 64]]])
    assert torch.equal(cut(face, box, torch.tensor([[False]]), 64), face)
    assert torch.equal(cut(face, box, torch.tensor([[True]]), 64), face.flip(3))


@pytest.mark.parametrize("kept", [True, False])
def test_batches_cut_on_the_device_are_those_of_the_cpu(faces, as_gpu, kept):
    expected = views_of(faces)
    as_gpu(2 * GB)
    if kept:
        [faces] = resident.resident([faces], "cpu", 1)
        assert isinstance(faces, resident.ResidentFaces)
    differ = np.abs(views_of(faces) - expected)
    assert differ.max() <= 2
    assert differ.mean() < 0.02


def test_a_part_of_kept_faces_has_its_own_pictures(faces, as_gpu):
    as_gpu(2 * GB)
    [kept] = resident.resident([faces], "cpu", 1)
    part = kept.select(np.array([7, 3]))
    for place in range(2):
        assert (part.pixels[place].permute(1, 2, 0).numpy() == part.image(place)).all()


def test_it_is_said_whether_the_faces_are_kept(faces, as_gpu, caplog):
    caplog.set_level("INFO")
    need = 2 * 20 * 64 * 64 * 3
    as_gpu(GB + need)
    assert all(isinstance(one, resident.ResidentFaces) for one in resident.resident([faces, faces], "cpu", 1))
    as_gpu(GB + need - 1)
    assert resident.resident([faces, faces], "cpu", 1) == [faces, faces]
    told = "40 faces are 0.0 GB decoded, cpu has 1.0 GB free, of which 1.0 GB stay for the network"
    said = [message for message in caplog.messages if not message.startswith("faces are decoded by threads")]
    assert said == [f"{told}: they are kept there", f"{told}: they are decoded again in every epoch"]


def test_jpeg_by_torchvision_is_jpeg_by_opencv(faces, as_gpu, caplog):
    as_gpu(2 * GB)
    caplog.set_level("INFO")
    encoded = [cv2.imencode(".jpg", faces.image(row))[1].tobytes() for row in range(20)]
    faces = replace(faces, images=pa.chunked_array([encoded], pa.binary()), place=np.arange(20))
    kept = resident.keep(faces, 64, torch.device("cpu"), 1)
    assert not caplog.messages
    assert (kept.pixels.permute(0, 2, 3, 1).numpy() == np.stack([faces.image(row) for row in range(20)])).all()


def test_a_face_of_another_size_or_damaged_ends_with_a_sentence(faces):
    other = cv2.imencode(".png", np.zeros((50, 40, 3), np.uint8))[1].tobytes()
    for data, said in (
        (other, "the stored face face-019.png is 50 x 40 pixels, others 64 x 64; run fer verify, then fer align again"),
        (b"no picture", "a stored face cannot be decoded; run fer verify, then fer align again"),
    ):
        encoded = [faces.encoded(row).to_pybytes() for row in range(19)] + [data]
        changed = replace(faces, images=pa.chunked_array([encoded], pa.binary()), place=np.arange(20))
        with pytest.raises(FerError) as error:
            resident.keep(changed, 64, torch.device("cpu"), 1)
        assert str(error.value) == said


def test_a_student_is_the_same_whether_faces_are_kept_or_copied_ahead(run, as_gpu):
    for name, free in (("kept", 2 * GB), ("copied", 0)):
        as_gpu(free)
        distill.run(run, replace(SLL, name=name))
    assert same(weights(run, "kept"), weights(run, "copied"))


class Waits(TorchDispatchMode):
    """Counts the operations that make the program wait for what a device computes."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def one_epoch(faces, steps, device="cpu", precision="fp32"):
    """So many steps of six faces on `device`."""
    config = replace(SLL, batch_size=6, device=device, precision=precision, class_weights="balanced")
    model = build("resnet18", 3).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=device == "cuda" or None)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    rows = np.arange(6 * steps) % len(faces)
    lesson = train.Lesson(*[np.repeat(part, 6 * steps, 0) for part in canonical(1, 64)], faces.label[rows])
    facts = {"mean": [0.4] * 3, "std": [0.25] * 3}
    loss = train.label_objective(faces, config, 1)
    return train.train_epoch(model, optimizer, scaler, faces, rows, lesson, loss, 0, config, facts, (0, 1))


@pytest.mark.parametrize("free", [0, 2 * GB])
def test_a_step_does_not_wait_for_the_device(faces, as_gpu, free):
    as_gpu(free)
    [faces] = resident.resident([faces], "cpu", 1)
    counts = []
    for steps in (1, 3):
        with Waits() as waits:
            one_epoch(faces, steps)
        counts.append(waits.count)
    assert counts[0] == counts[1] >= 1  # the epoch's mean loss, at its end


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_step_does_not_wait_for_a_gpu(faces, precision, kept):
    if kept:
        faces = resident.keep(faces, 64, torch.device("cuda"), 1)
    one_epoch(faces, 3, "cuda", precision)  # what is made once
    counts = []
    for steps in (1, 5):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as waits:
                one_epoch(faces, steps, "cuda", precision)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(len(waits))
    assert counts[0] == counts[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kept", [True, False])
def test_a_gpu_cuts_as_the_cpu_does(faces, kept):
    expected = views_of(faces)
    if kept:
        faces = resident.keep(faces, 64, torch.device("cuda"), 1)
    differ = np.abs(views_of(faces, device="cuda") - expected)
    assert differ.max() <= 2
    assert differ.mean() < 0.02


def interrupted(run, config, monkeypatch):
    """Two epochs of a training, the second after an interruption and without --compile."""
    real = train.train_epoch

    def once(*args):
        monkeypatch.setattr(train, "train_epoch", stop)
        return real(*args)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_epoch", once)
    with pytest.raises(KeyboardInterrupt):
        distill.run(run, config)
    monkeypatch.setattr(train, "train_epoch", real)
    distill.run(run, replace(config, compile=False))


def test_a_compiled_training_is_resumed_without_and_leaves_the_same_names(run, monkeypatch):
    distill.run(run, replace(SLL, name="plain"))
    # traced, and run as it is: what a compiler would make of it rounds otherwise
    monkeypatch.setattr(
        torch, "compile", partial(lambda compile, model, **_: compile(model, backend="eager"), torch.compile)
    )
    interrupted(run, replace(SLL, name="compiled", compile=True), monkeypatch)
    assert same(weights(run, "plain"), weights(run, "compiled"))


def test_where_nothing_compiles_a_sentence_says_so(run, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no compiler")

    monkeypatch.setattr(
        torch, "compile", partial(lambda compile, model, **_: compile(model, backend=broken), torch.compile)
    )
    with pytest.raises(FerError, match=r"^--compile does not work here \(no compiler\); leave it out$"):
        distill.run(run, replace(SLL, name="compiled", compile=True))


@pytest.mark.slow
def test_compile_trains_what_is_trained_without(run, monkeypatch):
    one_step = replace(SLL, batch_size=100)  # an epoch is a step: later ones begin with weights rounded otherwise
    distill.run(run, replace(one_step, name="plain"))
    interrupted(run, replace(one_step, name="compiled", compile=True), monkeypatch)
    plain, compiled = weights(run, "plain"), weights(run, "compiled")
    assert plain.keys() == compiled.keys()
    first = [
        json.loads((run / "students" / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("plain", "compiled")
    ]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=1e-3)


def benchmark(monkeypatch, *options):
    path = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    module.main()


def test_the_benchmark_says_that_there_is_no_gpu(monkeypatch):
    with pytest.raises(SystemExit) as error:
        benchmark(monkeypatch, "--device", "cuda:99")
    assert str(error.value).startswith("--device cuda:99 cannot be used here (")
    assert str(error.value).endswith("--device cpu --small shows that this program runs")


def test_the_benchmark_runs_small_on_a_cpu(monkeypatch, as_gpu, capsys):
    as_gpu(2 * GB)
    benchmark(monkeypatch, "--device", "cpu", "--small")
    printed = capsys.readouterr().out
    for part in ("Peak", "Decoding to the device", "Cutting", "The student's step", "Labelling by", "1 epochs, whole"):
        assert f"\n{part}" in printed or f", {part}\n" in printed
    assert "| fp16 eager |" in printed
