"""How time and memory of all but the networks grow with the number of faces; prints a Markdown table.

    python benchmarks/scale.py --faces 10000 100000                      (or make bench)
    python benchmarks/scale.py --faces 30000 100000 300000               (the table of docs/scaling.md)
    python benchmarks/scale.py --faces 10000000                          (half an hour, 8 GB of it on disk)
    python benchmarks/scale.py --faces 30000 60000 120000 --picture-bytes 60000   (pictures of 2 to 7 GB)

The program's own code runs on made-up photographs: the plan of `fer align` and its end, the labelling of `fer teach`,
both verifying commands, the join of faces with their distributions, and what an epoch of `fer distill` shows. Two
things are stand-ins: a picture is its own name (so nothing is detected or decoded), and a teacher's answer is noise
about the label. Sources are Parquet tables with the pictures inside, train, val and test 8 : 1 : 1. Each stage has a
process of its own; a step's peak is the largest resident size while it ran, libraries (0.5 GB) included; only Linux
tells it. Where other work shares the processor, its seconds (CPU) tell more than those on the wall; the exponent k, of
time = faces ** k, is theirs. `own` is the peak without what is mapped from files (pictures beyond 2 GiB, columns beyond
4 MiB), which the system drops from memory where others need it.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from efficientface.data.faces import Faces, hash_image, schema
from efficientface.pipeline import align, distill, label, train, verify, verify_run
from efficientface.pipeline.artifact import replacing, write_text
from efficientface.pipeline.checkpoint import METRICS, finish_model, fresh_model
from efficientface.pipeline.config import AlignConfig, DistillConfig, TeachConfig
from efficientface.pipeline.inputs import Inputs, read_inputs
from efficientface.pipeline.photographs import Photo
from efficientface.pipeline.photographs import read_inputs as read_photographs

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
TABLES = ("train",) * 8 + ("val", "test")


class Step(NamedTuple):
    """What was measured: seconds on the wall, seconds of the processor, and in GB the peaks of what lies in memory.

    `own` is without what is mapped from files, which the system drops where memory is short.
    """

    name: str
    seconds: float
    cpu: float
    peak: float
    own: float


# In a process of its own, which nothing keeps waiting: the largest sum of these lines, in kB, until input ends.
WATCH = """
import select, sys
def size():
    with open(f"/proc/{sys.argv[1]}/status") as status:
        return sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssShmem")))
largest = size()
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0.005)[0]:
    largest = max(largest, size())
print(max(largest, size()))
"""


class Steps(list[Step]):
    """The steps of a stage in their order."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        watch = [sys.executable, "-S", "-E", "-c", WATCH, str(os.getpid())]
        with subprocess.Popen(watch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            watching.stdout.readline()
            began, worked = time.perf_counter(), time.process_time()
            yield
            seconds, cpu = time.perf_counter() - began, time.process_time() - worked
            own = int(watching.communicate()[0]) * 1024 / 1e9
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9
        self.append(Step(name, seconds, cpu, peak, own))
        print(f"    {name:<40}{seconds:10.2f} s {cpu:10.2f} s CPU {peak:8.2f} GB, own {own:.2f}", flush=True)


# --- what is made up -------------------------------------------------------------------------------------------


def write_source(source: Path, count: int, picture_of: Callable[[str], bytes] = str.encode) -> None:
    """`count` photographs in ten tables; the bytes of each are its name, or what `picture_of` makes of that."""
    rng = np.random.default_rng(0)
    source.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(count), len(TABLES))):
        names = [f"face-{row:09d}.jpg" for row in rows.tolist()]
        image = pa.StructArray.from_arrays(
            [pa.array(map(picture_of, names), pa.binary()), pa.array(names)], ["bytes", "path"]
        )
        of_class = pa.array(CLASSES).take(pa.array(rng.integers(0, len(CLASSES), len(rows))))
        table = pa.table({"image": image, "label": of_class})
        # as `datasets` has them: two row groups of pictures are in memory while their faces are aligned
        pq.write_table(table, source / f"{TABLES[number]}-{number:05d}.parquet", row_group_size=1000)


def write_shards(
    folder: Path,
    photos: Sequence[Photo],
    plan: str,
    config: AlignConfig,
    picture_of: Callable[[str], bytes] = str.encode,
) -> list[Path]:
    """The shards of faces/ that `fer align` would write, without looking at a photograph; `picture_of` its name."""
    rng = np.random.default_rng(1)
    facts = {"plan": plan, "pixels": {"train": np.ones((3, 3), int).tolist()}}
    columns, shards = schema(CLASSES), []

    def numbers(count: int, each: int) -> pa.Array:
        return pa.ListArray.from_arrays(np.arange(0, count * each + 1, each), rng.random(count * each, np.float32))

    for number, start in enumerate(range(0, len(photos), config.shard_faces)):
        part = photos[start : start + config.shard_faces]
        n, names = len(part), pa.array([photo.name for photo in part])
        pictures = [picture_of(photo.name.rpartition("/")[2]) for photo in part]
        hashes = pa.array([hash_image(picture) for picture in pictures])
        sketches = rng.bytes(32 * n).hex()
        known = {
            "face_id": pa.array([align.face_id(photo.name) for photo in part]),
            "image": pa.StructArray.from_arrays([pa.array(pictures), pa.nulls(n, pa.string())], ["bytes", "path"]),
            "image_hash": hashes,
            "split": pa.array([photo.inherited["split"] for photo in part]),
            "label": pa.array([photo.inherited["label"] for photo in part]),
            "source": names,
            "source_hash": hashes,
            "source_dhash": pa.array([sketches[k : k + 64] for k in range(0, 64 * n, 64)]),
            "box": numbers(n, 4),
            "landmarks": numbers(n, 10),
            "matrix": numbers(n, 6),
            "n_faces": pa.array(np.ones(n, np.int32)),
            "status": pa.array(["found"] * n),
        }
        arrays = [known.get(field.name, pa.nulls(n, field.type)) for field in columns]
        shards.append(folder / f"part-{number:05d}.parquet")
        with replacing(shards[-1]) as path, pq.ParquetWriter(path, columns, use_dictionary=["split", "status"]) as file:
            file.write_table(pa.Table.from_arrays(arrays, schema=columns))
            file.add_key_value_metadata({align.SHARD_KEY: json.dumps(facts)})
    return shards


def write_teacher(inputs: Inputs, folder: Path) -> None:
    """A network that nobody trained, said to have been trained on the training faces."""
    folder.mkdir()
    model, config = fresh_model("efficientface", CLASSES, 64, {}, "")
    faces = inputs.labelled("train")
    with replacing(folder / label.TRAINED_ON) as part:
        columns = {name: pa.array(getattr(faces, name), pa.string()) for name in ("face_id", "image_hash")}
        pq.write_table(pa.table(columns), part)
    write_text(folder / METRICS, "")
    told: dict[str, Any] = {
        "made_from": {"faces": label.reference_to(inputs.folder, folder)},
        "settings": {},
        "facts": {},
    }
    known = {**config, "mean": [0.5] * 3, "std": [0.25] * 3}
    finish_model(folder, "teacher", model.state_dict(), known, files=[label.TRAINED_ON], **told)


def answers(
    teachers: Any, faces: Faces, boxes: np.ndarray, flips: np.ndarray, fold: np.ndarray, advance: Any = None
) -> np.ndarray:
    """In place of `Teachers.ask`: noise, and more probability for the label."""
    noise = np.random.default_rng(2).standard_normal((*boxes.shape[:2], len(CLASSES)), np.float32)
    noise[np.arange(len(faces)), :, faces.label] += 2
    raised = np.exp(noise)
    return raised / raised.sum(-1, keepdims=True)


# --- the stages ------------------------------------------------------------------------------------------------


def sourcing(root: Path, count: int, views: int, picture_of: Callable[[str], bytes] = str.encode) -> Steps:
    write_source(root / "source", count, picture_of)
    return Steps()


def planning(root: Path, count: int, views: int, picture_of: Callable[[str], bytes] = str.encode) -> Steps:
    steps, config, folder = Steps(), AlignConfig(aligned=True), root / "run" / "faces"
    folder.mkdir(parents=True)
    with steps.step("align: plan"):
        inputs = read_photographs({"": root / "source"}, config)
        plan = align.plan_of(inputs, config, folder)
        align.begin(folder, plan)
    with steps.step("align: faces/ written by the stand-in"):
        write_shards(folder, inputs.photos, plan["digest"], config, picture_of)
    return steps


def finishing(root: Path, count: int, views: int) -> Steps:
    steps, folder = Steps(), root / "run" / "faces"
    plan = align.read_plan(folder / align.PLAN)
    shards = [folder / name for name in align.shard_names(plan)]
    with steps.step("align: duplicates"):
        found = align.report_duplicates(shards, CLASSES, root / "run" / align.DUPLICATES)
    with steps.step("align: counts and manifest"), mock.patch.object(align, "report_duplicates", return_value=found):
        align.finish(folder, root / "run", plan)
    return steps


def labelling(root: Path, count: int, views: int) -> Steps:
    steps, run = Steps(), root / "run"
    with steps.step("teach: faces/ read"):
        inputs = read_inputs(run)
    write_teacher(inputs, run / "teacher")
    with steps.step("teach: distributions/ written"), mock.patch.object(label.Teachers, "ask", answers):
        label.cache_distributions(inputs, [run / "teacher"], None, run / "distributions", TeachConfig(views=views))
    shutil.copytree(run / "distributions", run / "more")
    with steps.step("teach: a view added"), mock.patch.object(label.Teachers, "ask", answers):
        label.add_views(inputs, run / "more", 1, TeachConfig())
    shutil.rmtree(run / "more")
    return steps


def verifying_cache(root: Path, count: int, views: int) -> Steps:
    steps = Steps()
    with steps.step("fer cache verify"):
        result = verify.verify(root / "run" / "distributions")
    assert result["ok"], result
    return steps


def verifying_run(root: Path, count: int, views: int) -> Steps:
    steps = Steps()
    with steps.step("fer verify"):
        result = verify_run.verify(root / "run")
    assert result["ok"], result
    return steps


def distilling(root: Path, count: int, views: int) -> Steps:
    steps, config, cache = Steps(), DistillConfig(), root / "run" / "distributions"
    with steps.step("distill: faces/ read"):
        inputs = read_inputs(root / "run")
    with steps.step("distill: distributions/ read and joined"):
        cached = distill.read_distributions(cache, inputs)
        faces = distill.training_faces(inputs, cached, config)
        rows = cached.rows_of(faces.face_id, faces.image_hash, str(cache))
        lessons = distill.replay(cached, inputs.facts["crop"], config, rows)
    shown = np.zeros(len(faces), np.int64)
    with steps.step("distill: an epoch's order"):
        order = train.epoch_order(faces.label, config, 0)
        turns = train.showings(order, shown)
    with steps.step("distill: an epoch's views and targets"):
        lessons(order, turns)
    with steps.step("distill: an epoch's order, balanced"):
        balanced = train.epoch_order(faces.label, DistillConfig(sampling="balanced"), 0)
        train.showings(balanced, shown)
    with steps.step("distill: an epoch of fresh crops"):
        train.free_crops(faces.face_id, inputs.facts["crop"], config)(order, turns)
    return steps


STAGES = (sourcing, planning, finishing, labelling, verifying_cache, verifying_run, distilling)


def padded(size: int, name: str) -> bytes:
    """A picture of so many bytes, or more where its name is longer."""
    return name.encode().ljust(size, b"\0")


def measure(count: int, views: int, root: str | None = None, apart: bool = True, size: int = 0) -> Steps:
    """All stages with `count` photographs of `size` bytes, each in a process of its own if `apart`; nothing is left."""
    folder, steps = Path(tempfile.mkdtemp(dir=root)), Steps()
    try:
        for stage in STAGES:
            about = (folder, count, views, *([partial(padded, size)] if stage in (sourcing, planning) else []))
            if apart:
                with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                    steps += pool.submit(stage, *about).result()
            else:
                steps += stage(*about)
        for name in ("faces", "distributions"):
            sizes = [file.stat().st_size for file in (folder / "run" / name).iterdir()]
            print(f"    {name}/: {len(sizes):,} files, {sum(sizes) / count:,.0f} bytes a face", flush=True)
    finally:
        shutil.rmtree(folder)
    return steps


def exponent(counts: Sequence[int], values: Sequence[float]) -> float:
    """k of the power law count ** k that fits best: 1 is proportional to the number of faces."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def print_table(counts: Sequence[int], found: Sequence[Steps]) -> None:
    """The steps of all sizes side by side, with the exponents of time and of the process's own memory."""
    sizes = " | ".join(f"{count:,}: s | CPU s | GB | own" for count in counts)
    print(f"\n| step | {sizes} | exponent | of own |\n| --- |{' ---: |' * (4 * len(found) + 2)}")
    for steps in zip(*found, strict=True):
        cells = [f"{s.seconds:,.2f} | {s.cpu:,.2f} | {s.peak:.2f} | {s.own:.2f}" for s in steps]
        if len(steps) > 1:
            cells += [f"{exponent(counts, values):.2f}" for values in ([s.cpu for s in steps], [s.own for s in steps])]
        print(f"| {steps[0].name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--views", type=int, default=TeachConfig.views, help="stored views a face")
    parser.add_argument("--picture-bytes", type=int, default=0, help="of each stored face; 0: those of its name")
    parser.add_argument("--folder", help="where to write; the system's temporary folder if not given")
    options = parser.parse_args()
    found: list[Steps] = []
    for count in options.faces:
        print(f"{count:,} faces, {options.views} views", flush=True)
        found.append(measure(count, options.views, options.folder, size=options.picture_bytes))
    print_table(options.faces, found)
    for count, all_steps in zip(options.faces, found, strict=True):
        seconds, cpu = sum(step.seconds for step in all_steps), sum(step.cpu for step in all_steps)
        peak, own = max(step.peak for step in all_steps), max(step.own for step in all_steps)
        print(f"{count:,} faces: {seconds:,.0f} s, {cpu:,.0f} s CPU, peak {peak:.2f} GB, own {own:.2f} GB")


if __name__ == "__main__":
    main()
