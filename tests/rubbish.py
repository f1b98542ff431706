"""Rubbish in: some thousand damaged, absurd and forged files, each given to what reads its kind. `make rubbish`.

A case is a kind, a name and a seed, and makes its own files out of good ones. Workers import torch once and run cases
one after the other; whoever takes over a minute is killed, and the peak of the memory is noted after every case.
"""

import csv
import ctypes
import hashlib
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from click.testing import CliRunner
from conftest import CLASSES, write_faces
from PIL import Image
from safetensors.torch import save_file
from small_caches import make, write_cache
from small_sources import column

from efficientface import FerError
from efficientface.cache.hdf5 import USER_BLOCK, user_block
from efficientface.cache.parquet import read_shards
from efficientface.cli import cli, sentence
from efficientface.data.faces import hash_image, read_faces
from efficientface.data.geometry import template
from efficientface.data.labels import expression
from efficientface.data.photos import PhotoFiles, Unreadable, decode_photo
from efficientface.data.sources import read_source
from efficientface.models import build
from efficientface.pipeline import align, label
from efficientface.pipeline.align import Aligner
from efficientface.pipeline.artifact import DIGEST, MANIFEST, read_sealed, write_json, write_sealed
from efficientface.pipeline.caches import convert, open_cache
from efficientface.pipeline.checkpoint import CONFIG, METRICS, WEIGHTS, Checkpoint, finish_model, load_model
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.import_weights import read_tensors
from efficientface.pipeline.inputs import inputs_in
from efficientface.pipeline.photographs import Photo
from efficientface.pipeline.recognise import Journal

SECONDS, MEMORY = 60, 2 * 1024**3  # of a case
WORKERS = 2
REFUSED, ROW, HARMLESS, AS_SAID = "refused in a sentence", "a row with a reason", "read right", "read as it now says"
CRASHED, HUNG, FAT, SWALLOWED = "crashed", "hung", "above 2 GB", "swallowed"
GOOD, BAD = (REFUSED, ROW, HARMLESS, AS_SAID), (CRASHED, HUNG, FAT, SWALLOWED)
ARCH = "shufflenet_v2_x0_5"


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    seed: int


# --- damage ------------------------------------------------------------------------------------------------------


def _place(size: int, region: str, rng: random.Random) -> int:
    """A byte's place in the first, middle or last part of a file."""
    edge = max(1, min(size // 8, 96))
    first, last = {"header": (0, edge), "body": (edge, size - edge), "footer": (size - edge, size)}[region]
    return rng.randrange(min(first, size - 1), max(first + 1, last))


def flip(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at]


def zero(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :]


def double(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[: at + 48] + data[at : at + 48] + data[at + 48 :]


def drop(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + data[at + rng.randrange(1, 40) :]


def noise(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + rng.randbytes(len(data[at : at + 32])) + data[at + 32 :]


def huge(data: bytes, at: int, rng: random.Random) -> bytes:
    """An absurd size where a number may stand: the largest of four or eight bytes, or a varint of them."""
    number = rng.choice(
        [b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"\xff\xff\xff\xff\x0f", b"99999999999", b"\xff" * 8]
    )
    return data[:at] + number + data[at + len(number) :]


def insert(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + rng.choice([b"\0", b"[" * 5000, b'"', b"\xff\xfe", b"{}", rng.randbytes(9)]) + data[at:]


DAMAGES = {f.__name__: f for f in (flip, cut, zero, double, drop, noise, huge, insert)}
REGIONS = ("header", "body", "footer")
WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "twice": lambda data: data + data,
    "backwards": lambda data: data[::-1],
    "nesting": lambda data: b"[" * 100_000,
    "a million zeros": lambda data: bytes(1_000_000),
    "text": lambda data: b"I am no such file\n" * 40,
    "a picture": lambda data: photo_bytes("RGB", "PNG"),
}


def damaged(data: bytes, case: Case) -> bytes:
    """The bytes with the damage that the case's name tells: `flip in the body`, or one of WHOLE."""
    if case.name in WHOLE:
        return WHOLE[case.name](data)
    what, _, region = case.name.partition(" in the ")
    rng = random.Random(f"{case}")
    return DAMAGES[what](data, _place(len(data), region, rng), rng)


def names_of_damage() -> list[str]:
    return [f"{what} in the {region}" for what in DAMAGES for region in REGIONS] + list(WHOLE)


# --- good files --------------------------------------------------------------------------------------------------


def photo_bytes(mode: str, form: str, side: int = 40, **options: object) -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (side, side)).astype(np.uint16))
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return photo_bytes("RGB", "JPEG", exif=exif.tobytes())


def _animated(form: str) -> bytes:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue", "green")]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


PHOTOS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: photo_bytes("RGB", "JPEG"),
    "cmyk jpeg": lambda: photo_bytes("CMYK", "JPEG"),
    "turned jpeg": _turned,
    "progressive jpeg": lambda: photo_bytes("L", "JPEG", progressive=True),
    "png": lambda: photo_bytes("RGBA", "PNG"),
    "16-bit png": lambda: photo_bytes("I;16", "PNG"),
    "palette png": lambda: photo_bytes("P", "PNG"),
    "bilevel tiff": lambda: photo_bytes("1", "TIFF"),
    "deflated tiff": lambda: photo_bytes("RGB", "TIFF", compression="tiff_deflate"),
    "16-bit tiff": lambda: photo_bytes("I;16", "TIFF"),
    "bmp": lambda: photo_bytes("RGB", "BMP"),
    "webp": lambda: photo_bytes("RGB", "WEBP", lossless=True),
    "animated gif": lambda: _animated("GIF"),
    "animated webp": lambda: _animated("WEBP"),
    "pgm": lambda: photo_bytes("L", "PPM"),
}


def small_model(folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    network = build(ARCH, len(CLASSES))
    folder.mkdir(parents=True)
    line = {"epoch": 1, "loss": 1.0, "val_accuracy": 0.5, "val_cross_entropy": 1.0, "lr": 0.1}
    line |= {"seconds": 1.0, "faces_per_second": 9.5}
    (folder / METRICS).write_text(json.dumps(line) + "\n")
    settings = {"arch": ARCH, "loss": "sll", "epochs": 1, "size": 32}
    config = {"arch": ARCH, "options": {}, "classes": list(CLASSES), "size": 32, "mean": [0.5] * 3, "std": [0.2] * 3}
    finish_model(folder, kind, network.state_dict(), config, made_from={}, settings=settings, facts={"best": line})


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layer{k}.weight": torch.randn(8, 8) for k in range(4)} | {"fc.bias": torch.randn(7)}


TABLE = "path,label,split,happy,sad\n" + "".join(
    f"{word}-{k}.png,{word},{('train', 'test')[k % 2]},{k + (word == 'happy')},{word == 'sad':d}\n"
    for k in range(6)
    for word in ("happy", "sad", "neutral")
)


def prepare(base: Path) -> None:
    """One good file, or artifact, of each kind."""
    run = base / "run"
    write_faces(run, 12, crop=32, shards=1)
    small_model(run / "students" / "sll", "student")
    write_cache(run / "distributions", make([f"face-{k:03d}.png" for k in range(20)], classes=CLASSES), parts=1)
    convert(run / "distributions", base / "cache.h5")
    write_json(base / "plan.json", {"settings": {"views": 3, "seed": 0}, "made_from": {"faces": "ab"}, "source": "s"})
    (run / "evaluation").mkdir()
    write_sealed(run / "evaluation" / "test.json", {"split": "test", "models": {"sll": {"manifest": "x"}}})
    network, optimizer = tiny_training()
    best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Checkpoint(base / "checkpoint.safetensors").save(network, optimizer, best, PROGRESS)
    torch.save({"state_dict": tensors()}, base / "new.pth.tar")
    torch.save({"state_dict": tensors()}, base / "old.pth.tar", _use_new_zipfile_serialization=False)
    save_file(tensors(), base / "plain.safetensors")
    photographs(base / "table")
    (base / "table" / "list.csv").write_text(TABLE)
    for layout, write in LAYOUTS.items():
        write(base / layout)
    journal = Journal(base / "out.jsonl", "plan")
    journal.read()
    for k in range(8):
        journal.add([k], [[{"photo": f"{k}.jpg", "score": k / 8}]])


PROGRESS = {"settings": {"epochs": 3, "facts": {"mean": [0.5, 0.5, 0.5]}}, "lines": [{"epoch": 1, "val_accuracy": 0.5}]}


def tiny_training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = torch.nn.Linear(6, 5)
    return network, torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)


def photographs(folder: Path) -> None:
    folder.mkdir(parents=True)
    for k in range(6):
        for word in ("happy", "sad", "neutral"):
            (folder / f"{word}-{k}.png").write_bytes(photo_bytes("RGB", "PNG", 24))


# --- layouts of data sets ------------------------------------------------------------------------------------------


def _put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _rafdb(root: Path) -> None:
    names = [f"train_{k:05d}.jpg" for k in range(8)] + [f"test_{k:04d}.jpg" for k in range(4)]
    _put(root / "EmoLabel/list_patition_label.txt", "".join(f"{n} {k % 7 + 1}\n" for k, n in enumerate(names)))
    for name in names:
        _put(root / "Image/aligned" / name.replace(".", "_aligned."), photo_bytes("RGB", "JPEG", 24))


def _affectnet(root: Path) -> None:
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    rows = "".join(f"1/{k}.jpg,1,1,9,9,1;2;3,{k % 8},0.1,-0.2\n" for k in range(9))
    _put(root / "training.csv", f"{header}\n{rows}")
    for k in range(9):
        _put(root / "Manually_Annotated_Images/1" / f"{k}.jpg", photo_bytes("RGB", "JPEG", 24))


def _affectnet_2021(root: Path) -> None:
    for k in range(5):
        _put(root / "train_set/images" / f"{k}.jpg", photo_bytes("RGB", "JPEG", 24))
        (root / "train_set/annotations").mkdir(parents=True, exist_ok=True)
        np.save(root / "train_set/annotations" / f"{k}_exp.npy", np.array(str(k)))


def _fer2013(root: Path) -> None:
    rng = np.random.default_rng(0)
    usage = ("Training", "PublicTest", "PrivateTest")
    rows = [f"{k % 7},{' '.join(map(str, rng.integers(0, 256, 16)))},{usage[k % 3]}\n" for k in range(9)]
    _put(root / "fer2013.csv", "emotion,pixels,Usage\n" + "".join(rows))


def _ferplus(root: Path) -> None:
    rows = "".join(f'fer{k:07d}.png,"(0, 0, 48, 48)",{k % 3},8,0,1,0,0,0,0,{k % 2},0\n' for k in range(6))
    for folder in ("FER2013Train", "FER2013Valid"):
        _put(root / folder / "label.csv", rows)
        for k in range(6):
            _put(root / folder / f"fer{k:07d}.png", photo_bytes("L", "PNG", 24))


def _ferplus_new(root: Path) -> None:
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
    rows = "".join(f"Training,fer{k:07d}.png,{k % 3},8,0,1,0,0,0,0,0,0\n" for k in range(6))
    _put(root / "fer2013new.csv", header + rows)
    for k in range(6):
        _put(root / "FER2013Train" / f"fer{k:07d}.png", photo_bytes("L", "PNG", 24))


def _huggingface(root: Path) -> None:
    images = [{"bytes": photo_bytes("RGB", "PNG", 24), "path": f"{k}.png"} for k in range(6)]
    table = pa.table({"image": images, "label": ["happy", "sad", "fear"] * 2, "split": ["train"] * 6})
    root.mkdir(parents=True)
    pq.write_table(table, root / "train-00000-of-00001.parquet")


def _parquet_table(root: Path) -> None:
    photographs(root)
    pd.read_csv(io.StringIO(TABLE)).to_parquet(root / "list.parquet")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "raf-db": _rafdb,
    "affectnet": _affectnet,
    "affectnet-2021": _affectnet_2021,
    "fer2013": _fer2013,
    "ferplus": _ferplus,
    "ferplus-new": _ferplus_new,
    "huggingface": _huggingface,
    "parquet table": _parquet_table,
}
TABLES = {
    "raf-db": "EmoLabel/list_patition_label.txt",
    "affectnet": "training.csv",
    "affectnet-2021": "train_set/annotations/3_exp.npy",
    "fer2013": "fer2013.csv",
    "ferplus": "FER2013Train/label.csv",
    "ferplus-new": "fer2013new.csv",
    "huggingface": "train-00000-of-00001.parquet",
    "parquet table": "list.parquet",
}


# --- cases ---------------------------------------------------------------------------------------------------------
# Each takes the case, the folder of good files and an empty one, and returns what came of it. A FerError is a refusal.


def copied(base: Path, work: Path, name: str) -> Path:
    """A copy to be damaged, the files of which that stay as they are being links to the same bytes."""
    shutil.copytree(base / name, work / name, copy_function=os.link, dirs_exist_ok=True)
    return work / name


def rewrite(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be a second name of the good file
    path.write_bytes(data)


def fer(*words: object, input: bytes | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command; an exception that it does not turn into a sentence goes on."""
    result = CliRunner().invoke(cli, [str(word) for word in words], input=input, catch_exceptions=False)
    if result.exit_code and not result.stderr.strip() and not result.stdout.strip():
        raise AssertionError("a status without a word")
    return result.exit_code, result.stdout, result.stderr


def checked_command(*words: object) -> str:
    """REFUSED if the command says why it cannot; `ran` else."""
    status, _, err = fer(*words)
    if status:
        raise FerError(err.strip().splitlines()[-1].removeprefix("Error: "))
    return "ran"


ARTIFACT_FILES = {
    "faces": ("run/faces", "part-00000.parquet", inputs_in),
    "faces manifest": ("run/faces", MANIFEST, inputs_in),
    "faces digest": ("run/faces", DIGEST, inputs_in),
    "distributions": ("run/distributions", "part-00000.parquet", lambda folder: open_cache(folder).read()),
    "distributions manifest": ("run/distributions", MANIFEST, lambda folder: open_cache(folder).read()),
    "weights": ("run/students/sll", WEIGHTS, load_model),
    "config": ("run/students/sll", CONFIG, load_model),
    "metrics": ("run/students/sll", METRICS, lambda folder: checked_command("inspect", folder)),
    "model manifest": ("run/students/sll", MANIFEST, load_model),
}


def artifact_file(case: Case, base: Path, work: Path) -> str:
    """A file that a manifest vouches for: any byte that is another is found by who reads it."""
    name, file, read = ARTIFACT_FILES[case.kind.removeprefix("damaged ")]
    folder = copied(base, work, name)
    good = (folder / file).read_bytes()
    bad = damaged(good, case)
    rewrite(folder / file, bad)
    read(folder)
    # a digest's file may have a second line
    same = bad == good or file == DIGEST and bad.split(b"\n")[:1] == good.split(b"\n")[:1]
    return HARMLESS if same else SWALLOWED


def sign(folder: Path, manifest: dict) -> None:
    for name, entry in manifest.get("files", {}).items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=32).hexdigest()}
    seal(folder, json.dumps(manifest).encode())


def seal(folder: Path, text: bytes) -> None:
    rewrite(folder / MANIFEST, text)
    rewrite(folder / DIGEST, hashlib.blake2b(text, digest_size=32).hexdigest().encode() + b"\n")


def signed_file(case: Case, base: Path, work: Path) -> str:
    """The same with the manifest made anew, as a forger or a broken program would: content is refused, or is valid."""
    name, file, read = ARTIFACT_FILES[case.kind.removeprefix("signed ")]
    folder = copied(base, work, name)
    rewrite(folder / file, damaged((folder / file).read_bytes(), case))
    if file == MANIFEST:
        seal(folder, (folder / file).read_bytes())
    else:
        sign(folder, json.loads((folder / MANIFEST).read_bytes()))
    found = read(folder)
    if case.kind == "signed faces":
        for row in range(len(found.faces)):
            assert found.faces.image(row).shape[2] == 3
    return AS_SAID


def signed_hdf5(case: Case, base: Path, work: Path) -> str:
    path = work / "cache.h5"
    data = damaged((base / "cache.h5").read_bytes()[USER_BLOCK:], case)
    path.write_bytes(bytes(USER_BLOCK) + data)
    with open(path, "r+b") as raw:
        block = user_block(raw)
        raw.seek(0)
        raw.write(block)
    found = open_cache(path).read()
    found.check("it")
    return AS_SAID


def damaged_hdf5(case: Case, base: Path, work: Path) -> str:
    path = work / "cache.h5"
    good = (base / "cache.h5").read_bytes()
    path.write_bytes(damaged(good, case))
    open_cache(path).read()
    return HARMLESS if path.read_bytes() == good else SWALLOWED


def bare_shard(case: Case, base: Path, work: Path) -> str:
    """A Parquet shard without any manifest: the page checksums are all there is."""
    faces = "faces" in case.kind
    good = base / "run" / ("faces" if faces else "distributions") / "part-00000.parquet"
    path = work / "part.parquet"
    path.write_bytes(damaged(good.read_bytes(), case))
    if faces:
        found, whole = read_faces([path]), read_faces([good])
        hashes = [hash_image(found.images[int(k)].as_buffer()) for k in found.place[found.usable]]
        same = found.face_id.tolist() == whole.face_id.tolist() and hashes == found.image_hash[found.usable].tolist()
    else:
        found, whole = read_shards([path]), read_shards([good])
        names = ("face_id", "canonical", "view_distribution", "view_box", "fold", "label")
        same = all(np.array_equal(getattr(found, name), getattr(whole, name)) for name in names)
    return HARMLESS if same else AS_SAID  # the footer, with the metadata, has no checksum


def damaged_checkpoint(case: Case, base: Path, work: Path) -> str:
    path = work / "checkpoint.safetensors"
    path.write_bytes(damaged((base / path.name).read_bytes(), case))
    network, optimizer = tiny_training()
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    progress = Checkpoint(path).progress()
    torch.nn.init.zeros_(network.weight)
    Checkpoint(path).load(network, optimizer)
    same = all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    return HARMLESS if same and progress == PROGRESS else SWALLOWED


def damaged_plan(case: Case, base: Path, work: Path) -> str:
    good = (base / "plan.json").read_bytes()
    plan = json.loads(good)
    (work / "plan.json").write_bytes(damaged(good, case))
    found = (work / "plan.json").read_bytes()
    if "align" in case.kind:
        align.begin(work, plan)
    else:
        label._begin(work, plan)
    try:
        kept = json.loads(found)
    except ValueError:
        return SWALLOWED
    return HARMLESS if all(kept.get(part) == plan[part] for part in ("settings",)) else SWALLOWED


def damaged_evaluation(case: Case, base: Path, work: Path) -> str:
    run = copied(base, work, "run")
    path = run / "evaluation" / "test.json"
    good = path.read_bytes()
    rewrite(path, damaged(good, case))
    status, out, _ = fer("status", run, "--json")
    assert status == 0
    stage = json.loads(out)["stages"][-1]
    read_sealed(path)
    return HARMLESS if path.read_bytes() == good and stage["state"] == "stale" else SWALLOWED


def damaged_journal(case: Case, base: Path, work: Path) -> str:
    """Photographs of which the note is damaged are looked at again."""
    path = work / ".out.jsonl.begun"
    path.write_bytes(damaged((base / path.name).read_bytes(), case))
    whole = Journal(base / "out.jsonl", "plan").read()
    found = Journal(work / "out.jsonl", "plan").read()
    assert len(whole) == 8
    return HARMLESS if found.items() <= whole.items() else SWALLOWED


def damaged_import(case: Case, base: Path, work: Path) -> str:
    name = case.kind.removeprefix("damaged ")
    path = work / name
    good = (base / name).read_bytes()
    path.write_bytes(damaged(good, case))
    found, whole = read_tensors(path), tensors()
    if found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole):
        return HARMLESS
    return SWALLOWED if name.startswith("new") else AS_SAID  # the others have no checksum


def photo(case: Case, base: Path, work: Path) -> str:
    kind, _, name = case.name.partition(": ")
    data = PHOTOS[kind]()
    if name:
        data = damaged(data, Case(case.kind, name, case.seed))
    path = work / ("x" + random.Random(case.seed).choice([".jpg", ".png", ".tif"]))  # mostly the wrong ending
    path.write_bytes(data)
    return looked_at(path)


def looked_at(path: Path) -> str:
    """A photograph's row, held against what Pillow alone makes of it."""
    aligner = Aligner(
        {"": PhotoFiles(path.parent)}, AlignConfig(aligned=True, crop=32, min_face=1), None, template(32, 0.4)
    )
    rows = aligner.rows(Photo("", path.name, None, {}))
    assert len(rows) == 1
    if rows[0]["status"] != "as given":
        assert rows[0]["reason"], "no reason"
        assert "image" not in rows[0]
        return ROW
    with Image.open(path) as image:
        if path.stat().st_size < 2**20 > image.size[0] * image.size[1]:
            seen, expected = decode_photo(path.read_bytes()).astype(int), by_pillow(image)
            assert seen.shape == expected.shape
            if abs(seen - expected).max() > 1:
                return SWALLOWED
    return HARMLESS


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def by_pillow(image: Image.Image) -> np.ndarray:
    """(H, W, 3) int, 0-255: upright, over white, 16 bits by their full range."""
    image.load()
    turn = TURNS.get(image.getexif().get(0x0112, 1))
    if image.mode.startswith("I"):
        grey = np.asarray(image.transpose(turn) if turn is not None else image) / 257
        return np.repeat(grey.round().astype(int)[..., None], 3, 2)
    shown = image
    if image.has_transparency_data:
        seen_through = image.convert("RGBA")
        shown = Image.new("RGB", image.size, "white")
        shown.paste(seen_through, mask=seen_through.getchannel("A"))
    return np.asarray((shown.transpose(turn) if turn is not None else shown).convert("RGB")).astype(int)


def bomb(case: Case, base: Path, work: Path) -> str:
    """Pictures that say to be large: in their header alone, or truly, of a few bytes."""
    width, height = {"wide": (60_000, 2), "tall": (1, 50_000), "just fits": (9400, 9400)}.get(
        case.name, (60_000, 60_000)
    )
    form = "PNG"
    if case.name == "16-bit just fits":
        image = Image.fromarray(np.zeros((9400, 9400), np.uint16))
    elif case.name == "transparent turned just fits":
        image = Image.new("RGBA", (9400, 9400))
    elif case.name in ("wide", "tall", "just fits"):
        image = Image.new("L", (width, height))
    else:
        data = bytearray(photo_bytes("L", case.name.split()[0]))
        if case.name.startswith("PNG"):
            import zlib

            data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
            data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
        elif case.name.startswith("BMP"):
            data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
        elif case.name.startswith("PPM"):
            data = bytearray(b"P5 60000 60000 255\n" + bytes(100))
        else:
            data[6:10] = b"\xff\xff\xff\xff"  # GIF
        (work / "x.png").write_bytes(data)
        return looked_at(work / "x.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(work / "x.png", form, compress_level=1, exif=exif)
    del image
    return looked_at(work / "x.png")


ODD_NAMES = {
    "newline": "a\nb",
    "quotes": "'\"`",
    "emoji": "\N{GRINNING FACE}\u200d\ufe0f",
    "formula": "=cmd|' C calc'!A0",
    "escape sequence": "\x1b[31mred\x1b]0;title\x07",
    "markup": "<img src=x onerror=alert(1)>",
    "rich markup": "[bold red][link=x]y[blink]",
    "percent": "%2e%2e%2f",
    "backslash": "a\\..\\x",
    "255 bytes": "n" * 251,
    "invalid UTF-8": os.fsdecode(b"\xff\xfe\x80"),
    "right to left": "\u202egpj",
    "spaces": "   ",
    "dash": "-rf",
    "hash": "a#1",
}


def odd_name(case: Case, base: Path, work: Path) -> str:
    """A photograph of an odd name among others, in a folder that is aligned: it has a row, and steers no terminal."""
    source = work / "photos"
    for word in ("happy", "sad"):
        (source / word).mkdir(parents=True)
        for k in range(3):
            (source / word / f"{k}.png").write_bytes(photo_bytes("RGB", "PNG", 48))
    what, _, where = case.name.partition(" of a ")
    name = ODD_NAMES[what]
    if where == "damaged file":
        (source / "happy" / f"{name}.jpg").write_bytes(b"rubbish")
    elif where == "file":
        (source / "happy" / f"{name}.jpg").write_bytes(photo_bytes("RGB", "PNG", 48))
    elif where == "folder":
        (source / "happy" / name).mkdir()
        (source / "happy" / name / "1.jpg").write_bytes(photo_bytes("RGB", "PNG", 48))
    else:
        (source / name).mkdir()
        (source / name / "1.jpg").write_bytes(photo_bytes("RGB", "PNG", 48))
    status, out, err = fer("align", "--aligned", source, work / "run", "--crop", 32)
    assert not {*(out + err)} & {"\x1b", "\x07", "\r"}, "a control character on the terminal"
    if status:
        return REFUSED
    table = pq.read_table(work / "run/faces/part-00000.parquet").to_pandas()
    assert len(table) == 7, f"{len(table)} rows"
    assert table["face_id"].is_unique
    if where == "damaged file":
        assert (table["status"] == "unreadable").sum() == 1
        return ROW
    return HARMLESS


ODD_FILES = {
    "a folder": lambda path: path.mkdir(),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a loop of links": lambda path: (path.symlink_to("other.jpg"), path.with_name("other.jpg").symlink_to(path.name)),
    "a link to the folder above": lambda path: path.symlink_to(".."),
    "a link out": lambda path: path.symlink_to("/etc/passwd"),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to a pipe": lambda path: (os.mkfifo(path.with_name("p")), path.symlink_to("p")),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a process's memory": lambda path: path.symlink_to("/proc/self/mem"),
    "empty": lambda path: path.touch(),
    "sparse, a terabyte": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "a name in capitals": lambda path: path.with_name("0.PNG").write_bytes(photo_bytes("RGB", "PNG", 48)),
}


def odd_file(case: Case, base: Path, work: Path) -> str:
    """What is no photograph at all in a place where one should be: in a folder, a table, a list."""
    what, _, where = case.name.partition(" in a ")
    source = work / "photos"
    for word in ("happy", "sad"):
        (source / word).mkdir(parents=True)
        for k in range(2):
            (source / word / f"{k}.png").write_bytes(photo_bytes("RGB", "PNG", 48))
    odd = source / "happy" / "x.jpg"
    ODD_FILES[what](odd)
    named = "happy/0.PNG" if what == "a name in capitals" else "happy/x.jpg"
    files = [f"{word}/{k}.png" for word in ("happy", "sad") for k in range(2)] + [named]
    if where == "list":
        (source / "list.txt").write_text("\n".join(files))
        status, out, _ = fer("predict", source / "list.txt", "--model", base / "run/students/aligned", "--json")
        if status:
            return REFUSED
        rows = json.loads(out)["rows"]
        assert len(rows) == 5
        return ROW if rows[-1]["status"] == "unreadable" and rows[-1]["reason"] else HARMLESS
    if where == "table":
        (source / "list.csv").write_text("path,label\n" + "".join(f"{f},{f.partition('/')[0]}\n" for f in files))
        status, _, _ = fer("align", "--aligned", source / "list.csv", work / "run", "--crop", 32)
    else:
        status, _, err = fer("align", "--aligned", source, work / "run", "--crop", 32)
    if status:
        return REFUSED
    table = pq.read_table(work / "run/faces/part-00000.parquet").to_pandas()
    if len(table) == 4:  # told in a note as ignored
        assert where == "folder"
        assert any(
            "gnored" in note for note in json.loads((work / "run/faces/manifest.json").read_text())["facts"]["notes"]
        )
        return ROW
    assert len(table) == 5
    odd_row = table[table["source"] == named].iloc[0]
    return ROW if odd_row["status"] == "unreadable" and odd_row["reason"] else HARMLESS


ODD_ARGUMENTS = (
    "a pipe",
    "a link to a device",
    "a folder",
    "empty",
    "a link to itself",
    "sparse, a terabyte",
    "a process's memory",
)
COMMANDS = {
    "align a table": lambda path, base: ["align", path.with_name("x.csv"), path.parent / "run"],
    "align a Parquet table": lambda path, base: ["align", path.with_name("x.parquet"), path.parent / "run"],
    "predict a photograph": lambda path, base: ["predict", path, "--model", base / "run/students/aligned"],
    "predict a list": lambda path, base: ["predict", path.with_name("x.txt"), "--model", base / "run/students/aligned"],
    "import weights": lambda path, base: ["import", path, path.parent / "out"],
    "import safetensors": lambda path, base: ["import", path.with_name("x.safetensors"), path.parent / "out"],
    "inspect a cache": lambda path, base: ["inspect", path.with_name("x.h5")],
    "verify a cache": lambda path, base: ["cache", "verify", path.with_name("x.h5")],
    "predict with it": lambda path, base: ["predict", base / "table/happy-0.png", "--model", path.with_name("x.onnx")],
    "evaluate a subset": lambda path, base: ["evaluate", base / "run", "--subset", path.with_name("x.txt")],
}


def odd_argument(case: Case, base: Path, work: Path) -> str:
    """What is no file, given to a command that wants one."""
    what, _, command = case.name.rpartition(" to ")
    words = COMMANDS[command](work / "x.jpg", base)
    path = next(word for word in words if isinstance(word, Path) and word.parent == work and word.name[0] == "x")
    ODD_FILES[what](path)
    status, out, err = fer(*words)
    if status:
        return REFUSED
    return ROW if command == "predict a photograph" and "unreadable" in out else SWALLOWED


def said(row: dict[str, str]) -> str | None:
    """The label that a row gives, or more than half of its votes."""
    if "label" in row:
        return expression(row["label"] or "")
    votes = {expression(name): float(row[name]) for name in ("happy", "sad")}
    first = max(votes, key=lambda name: votes[name])
    return first if votes[first] > sum(votes.values()) / 2 else None


def table(case: Case, base: Path, work: Path) -> str:
    """A table of another form, or damaged; labels are held against what csv alone reads."""
    folder = copied(base, work, "table")
    good = TABLE.encode()
    bad = TABLE_FORMS[case.name](good) if case.name in TABLE_FORMS else damaged(good, case)
    rewrite(folder / "list.csv", bad)
    source = read_source(folder / "list.csv", "table")
    labels = dict(zip(source.rows.file, source.rows.label, strict=True))
    text = bad.decode("utf-8-sig")
    separator = max(",;\t", key=text.splitlines()[0].count)
    rows = [row for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)]
    rows = [{str(k).strip().lower(): v for k, v in row.items()} for row in rows]
    expected = {os.path.normpath(row["path"]): said(row) for row in rows if row.get("path")}
    if labels != expected:
        raise AssertionError(f"{len(labels)} rows of {len(expected)}: {set(labels.items()) ^ set(expected.items())}")
    right = all(value == expression(file.split("-")[0]) for file, value in labels.items()) and len(labels) == 18
    return HARMLESS if right else AS_SAID


def _columns(order: str) -> Callable[[bytes], bytes]:
    """The table with these of its columns; a letter that it has not makes an empty one."""
    names = {"p": "path", "l": "label", "s": "split", "h": "happy", "d": "sad"}

    def make_it(data: bytes) -> bytes:
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        lines = [",".join(names.get(letter, letter) for letter in order)]
        lines += [",".join(row.get(names.get(letter, ""), "") for letter in order) for row in rows]
        return ("\n".join(lines) + "\n").encode()

    return make_it


def _put_in(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new, 1)


TABLE_FORMS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "CR alone": lambda data: data.replace(b"\n", b"\r"),
    "semicolons": lambda data: data.replace(b",", b";"),
    "tabs": lambda data: data.replace(b",", b"\t"),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "mark, CRLF and semicolons": lambda data: b"\xef\xbb\xbf" + data.replace(b",", b";").replace(b"\n", b"\r\n"),
    "no last line end": lambda data: data.rstrip(b"\n"),
    "blank lines": lambda data: data.replace(b"\n", b"\n\n"),
    "header alone": lambda data: data.split(b"\n")[0] + b"\n",
    "no header": lambda data: data.split(b"\n", 1)[1],
    "two headers": lambda data: data.split(b"\n")[0] + b"\n" + data,
    "NaN votes": _put_in(b",1,0\n", b",NaN,0\n"),
    "negative votes": _put_in(b",1,0\n", b",-1,0\n"),
    "infinite votes": _put_in(b",1,0\n", b",inf,0\n"),
    "votes beyond float32": _put_in(b",1,0\n", b",1e300,0\n"),
    "votes in words": _put_in(b",1,0\n", b",one,0\n"),
    "a hexadecimal vote": _put_in(b",1,0\n", b",0x10,0\n"),
    "NaN label": _put_in(b",happy,", b",NaN,"),
    "empty label": _put_in(b",happy,", b",,"),
    "a label of 9,000 digits": _put_in(b",happy,", b"," + b"9" * 9000 + b","),
    "a label of a megabyte": _put_in(b",happy,", b"," + b"x" * 1_000_000 + b","),
    "a line of two megabytes first": lambda data: b"x" * 2_000_000 + data,
    "a header of 100,000 columns": lambda data: b"," * 100_000 + data,
    "unknown label": _put_in(b",happy,", b",dancing,"),
    "integer label": _put_in(b",happy,", b",3,"),
    "escape sequence as label": _put_in(b",happy,", b",\x1b[2J,"),
    "NUL": _put_in(b"happy-0", b"happy\0-0"),
    "invalid UTF-8": _put_in(b",happy,", b",h\xffppy,"),
    "open quote": _put_in(b",happy,", b',"happy,'),
    "quote within": _put_in(b",happy,", b',ha"ppy,'),
    "quoted newline": _put_in(b",happy,", b',"happy\n",'),
    "a cell more": _put_in(b",1,0\n", b",1,0,7\n"),
    "a cell less": _put_in(b",1,0\n", b",1\n"),
    "path above": _put_in(b"happy-0.png", b"../happy-0.png"),
    "absolute path": _put_in(b"happy-0.png", b"/etc/passwd"),
    "Windows path": _put_in(b"happy-0.png", b"C:\\happy-0.png"),
    "address": _put_in(b"happy-0.png", b"http://example.invalid/happy-0.png"),
    "empty path": _put_in(b"happy-0.png", b""),
    "path of 5,000 bytes": _put_in(b"happy-0.png", b"n" * 5000),
    "the folder itself": _put_in(b"happy-0.png", b"."),
    "twice the same": _put_in(b"happy-1.png", b"happy-0.png"),
    "names in other capitals": lambda data: data.replace(b"path,label", b"Path , LABEL"),
    **{f"columns {order}": _columns(order) for order in (
        "lp", "dhslp", "phd", "p", "l", "ppl", "pll", "plx", "xxpl", "plh", "plss", "plhh", "plhhdd", "", "plshdplshd",
    )},
}  # fmt: skip


def layout(case: Case, base: Path, work: Path) -> str:
    """A data set's own table, damaged: it is refused, or every image has one known label and a picture or a reason."""
    name = case.kind.removeprefix("layout ")
    root = copied(base, work, name)
    path = root / TABLES[name]
    rewrite(path, damaged(path.read_bytes(), case))
    asked = {"ferplus-new": "ferplus", "parquet table": "table"}.get(name, name)
    whole, source = read_source(base / name, asked), read_source(root, asked)
    names = ("file", "label", "split", "group", "votes", "votes_other", "box")
    if all(str(column(source, name)) == str(column(whole, name)) for name in names):
        return HARMLESS
    if set(whole.rows.file) - set(source.rows.file) and source.notes == whole.notes:
        return SWALLOWED
    reasons = 0
    assert len(source.rows)
    for file, label_ in zip(source.rows.file, source.rows.label, strict=True):
        assert label_ is None or label_ in source.classes
        try:
            source.photos.read(file)
        except Unreadable as error:
            reasons += bool(str(error))
    return ROW if reasons else AS_SAID


# values of every type, to stand where another is expected
STRANGE = (
    None, True, 0, -1, 10**30, 1.5, 1e300, "", "x", "../../..", "/etc/passwd", "\x1b[2J", "a\0b", [], {}, [[]],
    ["a", "a"], [None], {"": {}}, {"../x": {"bytes": 1, "blake2b": "00"}}, {"path": "/etc"}, "9" * 5000,
)  # fmt: skip


def strange_json(case: Case, base: Path, work: Path) -> str:
    """A manifest or config.json in which one value is of another kind, signed; everything that reads it is asked."""
    rng = random.Random(f"{case}")
    run = copied(base, work, "run")
    name = {"faces": "faces", "cache": "distributions"}.get(case.name, "students/sll")
    file = CONFIG if case.name == "config" else MANIFEST
    folder = run / name
    value = json.loads((folder / file).read_bytes())
    places: list[tuple[dict | list, object]] = []

    def collect(node: object) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in items:
            places.append((node, key))  # type: ignore[arg-type]
            collect(item)

    collect(value)
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]  # type: ignore[arg-type]
    else:
        holder[key] = rng.choice(STRANGE)  # type: ignore[index,call-overload]
    if file == MANIFEST:
        seal(folder, json.dumps(value).encode())
    else:
        rewrite(folder / file, json.dumps(value).encode())
        sign(folder, json.loads((folder / MANIFEST).read_bytes()))
    told = []
    words = [["status", run], ["inspect", folder], ["verify", run]]
    words += [["inspect", folder, "--csv"]] if name == "distributions" else []
    for command in words:
        status, out, err = fer(*command)
        assert "\x1b" not in out + err, "a control character on the terminal"
        if command[0] == "inspect":  # the good run is no whole one to verify either
            told.append(status)
    for read in ({"faces": inputs_in, "distributions": lambda f: open_cache(f).read()}.get(name, load_model),):
        try:
            read(folder)
        except FerError:
            told.append(1)
    return REFUSED if any(told) else AS_SAID


IMPORTED = ("new.pth.tar", "old.pth.tar", "plain.safetensors")
KINDS: dict[str, tuple[Callable[[Case, Path, Path], str], Callable[[], list[str]], int]] = {
    **{f"damaged {name}": (artifact_file, names_of_damage, 2) for name in ARTIFACT_FILES},
    **{f"signed {name}": (signed_file, names_of_damage, 2) for name in ARTIFACT_FILES if "digest" not in name},
    "damaged cache.h5": (damaged_hdf5, names_of_damage, 3),
    "signed cache.h5": (signed_hdf5, names_of_damage, 3),
    "bare shard of faces": (bare_shard, names_of_damage, 4),
    "bare shard of distributions": (bare_shard, names_of_damage, 4),
    "damaged checkpoint": (damaged_checkpoint, names_of_damage, 3),
    "damaged plan of align": (damaged_plan, names_of_damage, 1),
    "damaged plan of teach": (damaged_plan, names_of_damage, 1),
    "damaged evaluation": (damaged_evaluation, names_of_damage, 1),
    "damaged journal": (damaged_journal, names_of_damage, 2),
    **{f"damaged {name}": (damaged_import, names_of_damage, 3) for name in IMPORTED},
    "photograph": (
        photo,
        lambda: [*PHOTOS, *(f"{kind}: {name}" for kind in PHOTOS for name in names_of_damage())],
        1,
    ),
    "large picture": (
        bomb,
        lambda: ["wide", "tall", "just fits", "16-bit just fits", "transparent turned just fits",
                 "PNG header", "BMP header", "PPM header", "GIF header"],
        1,
    ),
    "odd name": (
        odd_name,
        lambda: [f"{name} of a {where}" for name in ODD_NAMES for where in ("file", "damaged file", "folder", "class")],
        1,
    ),
    "odd file": (
        odd_file,
        lambda: [f"{what} in a {where}" for what in ODD_FILES for where in ("folder", "table", "list")],
        1,
    ),
    "odd argument": (
        odd_argument,
        lambda: [f"{what} to {command}" for what in ODD_ARGUMENTS for command in COMMANDS],
        1,
    ),
    "table": (table, lambda: [*TABLE_FORMS, *names_of_damage()], 3),
    **{f"layout {name}": (layout, names_of_damage, 2) for name in LAYOUTS},
    "strange JSON": (strange_json, lambda: ["faces", "cache", "model", "config"], 60),
}  # fmt: skip


def all_cases() -> list[Case]:
    return [
        Case(kind, name, seed)
        for kind, (_, names, seeds) in KINDS.items()
        for name in names()
        for seed in range(1 if name in WHOLE or name in TABLE_FORMS else seeds)
    ]


def peak() -> int:
    """Bytes of the largest memory since `forget_peak`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Begin anew, without what earlier cases freed and the allocator kept."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def run_case(case: Case, base: Path) -> tuple[str, str]:
    """What came of a case, and the sentence or the traceback."""
    work = Path(tempfile.mkdtemp(dir=base.parent))
    forget_peak()
    try:
        outcome, detail = KINDS[case.kind][0](case, base, work), ""
    except FerError as error:
        outcome, detail = REFUSED, sentence(error)
        if not detail.strip() or len(detail) > 3000:
            outcome = SWALLOWED
    except Exception:
        outcome, detail = CRASHED, traceback.format_exc()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return (FAT, f"{peak():,}") if peak() > MEMORY else (outcome, detail)


def prepared(folder: Path) -> Path:
    """The folder of good files below `folder`, made once."""
    base = folder / "good"
    prepare(base)
    run = folder / "of-aligned"
    write_faces(run, 6, crop=32, shards=1)
    manifest = json.loads((run / "faces" / MANIFEST).read_bytes())
    manifest["settings"] |= {"aligned": True, "min_face": 1}
    sign(run / "faces", manifest)
    small_model(base / "run/students/aligned", "student")
    told = json.loads((base / "run/students/aligned" / MANIFEST).read_bytes())
    digest = hashlib.blake2b((run / "faces" / MANIFEST).read_bytes(), digest_size=32).hexdigest()
    told["made_from"] = {
        "faces": {"path": os.path.relpath(run / "faces", base / "run/students/aligned"), "manifest": digest}
    }
    sign(base / "run/students/aligned", told)
    return base


def serve(pipe, base: Path) -> None:  # type: ignore[no-untyped-def]
    """A worker: cases in, outcomes out."""
    torch.set_num_threads(1)
    resource.setrlimit(
        resource.RLIMIT_AS, (16 * 1024**3,) * 2
    )  # a case that goes wrong shall not take the machine along
    warnings.simplefilter("ignore")
    os.environ["RANK"] = "0"
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    pipe.send(None)
    while (case := pipe.recv()) is not None:
        pipe.send(run_case(case, base))


def run_all(cases: list[Case], base: Path, workers: int = WORKERS) -> Iterator[tuple[Case, str, str]]:
    """Every case with its outcome, by several processes; one that hangs or dies is replaced."""
    context = get_context("spawn")
    waiting = cases[::-1]
    running: dict = {}  # connection: (process, its case or None while it starts, when it began)

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, base), daemon=True)
        process.start()
        theirs.close()
        running[ours] = process, None, time.monotonic()

    for _ in range(min(workers, len(cases))):
        start()
    while running:
        for pipe in wait(list(running), timeout=1):
            process, case, _ = running[pipe]
            try:
                answer = pipe.recv()
            except EOFError:
                process.join()
                del running[pipe]
                if case is not None:
                    yield case, CRASHED, f"the process ended with {process.exitcode}"
                start()
                continue
            if case is not None:
                yield case, *answer
            if case is not None and answer[0] == FAT:  # what it holds on to would count for the next
                process.kill()
                process.join()
                del running[pipe]
                start()
            elif waiting:
                running[pipe] = process, waiting.pop(), time.monotonic()
                pipe.send(running[pipe][1])
            else:
                pipe.send(None)
                process.join()
                del running[pipe]
        for pipe, (process, case, began) in list(running.items()):
            if case is not None and time.monotonic() - began > SECONDS:
                process.kill()
                process.join()
                del running[pipe]
                yield case, HUNG, f"over {SECONDS} s"
                start()


def main() -> None:
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    cases = [case for case in all_cases() if pattern in case.kind]
    random.Random(0).shuffle(cases)  # slow kinds spread over the workers
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS if pattern in kind}
    with tempfile.TemporaryDirectory() as folder:
        base = prepared(Path(folder))
        for case, outcome, detail in run_all(cases, base):
            counts[case.kind][outcome] += 1
            if outcome in BAD:
                print(f"{outcome}: {case}\n{detail}", file=sys.stderr, flush=True)
    columns = (*GOOD, *BAD)
    print(f"| {'kind':28} | cases | " + " | ".join(columns) + " |")
    print(f"| {'---':28} | ----: | " + " | ".join("---:" for _ in columns) + " |")
    total: Counter[str] = Counter()
    for kind, found in [*counts.items(), ("all", total)]:
        cells = " | ".join(f"{found[name]:>{len(name)},}" for name in columns)
        print(f"| {kind:28} | {found.total():5,} | {cells} |")
        total += found if kind != "all" else Counter()
    sys.exit(any(total[name] for name in BAD))


if __name__ == "__main__":
    main()
