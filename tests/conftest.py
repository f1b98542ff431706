"""Small real artifacts for the tests, made through the program's own writers."""

import json

import cv2
import numpy as np
import pytest
import torch

from efficientface.data.faces import face_table, hash_image
from efficientface.pipeline.artifact import MANIFEST, replacing, write_manifest

CLASSES = ("neutral", "happiness", "sadness")
# Made for tests: 0.4 M parameters, and a ninth of the time of a ResNet-18. It knows the pictures below after 5 epochs.
SMALL_TEACHER = "timm/test_resnet"

torch.set_num_threads(1)


def picture(label: int, rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """(side, side, 3) uint8 noise with a bright bar whose height tells the class: learned in a few epochs."""
    image = rng.integers(0, 90, (side, side, 3), dtype=np.uint8)
    top = (2 * label + 1) * side // 8
    image[top : top + side // 8, side // 4 : 3 * side // 4] += 150
    return image


def write_faces(
    run, count: int = 60, classes=CLASSES, seed: int = 0, shards: int = 2, crop: int = 64, layout=None, unlabelled=()
):
    """RUN/faces with `count` pictures over all classes: about 60 % train, 20 % val, 20 % test; returns its folder."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        label = k % len(classes)
        # what a class looks like goes by its name, so that a teacher can be asked about faces in another order
        shape = CLASSES.index(classes[label]) if classes[label] in CLASSES else label
        data = cv2.imencode(".png", picture(shape, rng, crop))[1].tobytes()
        votes = rng.multinomial(10, np.full(len(classes), 1 / len(classes))).astype(np.float32)
        rows.append(
            {
                "face_id": f"face-{k:03d}.png",
                "image": {"bytes": data, "path": f"face-{k:03d}.png"},
                "image_hash": hash_image(data),
                "split": ("train", "train", "train", "val", "test")[(k // len(classes)) % 5],
                "label": None if f"face-{k:03d}.png" in unlabelled else label,
                "votes": None if layout == "identities" else votes.tolist(),
                "source": f"face-{k:03d}.png",
                "n_faces": 1,
                "status": "found",
            }
        )
    rows.append({"face_id": "wall.png", "source": "wall.png", "split": "train", "n_faces": 0, "status": "no face"})
    folder = run / "faces"
    folder.mkdir(parents=True)
    names = []
    for k, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        names.append(f"part-{k:05d}.parquet")
        with replacing(folder / names[-1]) as path:
            pq.write_table(face_table([rows[j] for j in part], classes), path)
    write_manifest(
        folder,
        "faces",
        files=names,
        classes=classes,
        made_from={},
        settings={"crop": crop, **({"layout": layout} if layout else {})},
        facts={"mean": [0.4, 0.4, 0.4], "std": [0.25, 0.25, 0.25]},
    )
    return folder


def write_photos(root, count: int = 18):
    """Class folders with `count` pictures, the last of them cut off; returns `root`."""
    rng = np.random.default_rng(0)
    for k in range(count):
        path = root / CLASSES[k % len(CLASSES)] / f"{k:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = cv2.imencode(".png", picture(k % len(CLASSES), rng))[1].tobytes()
        path.write_bytes(data[: len(data) // 2] if k == count - 1 else data)
    return root


@pytest.fixture
def run(tmp_path):
    """A run folder with aligned faces."""
    write_faces(tmp_path / "run")
    return tmp_path / "run"


def sign_again(folder, **told):
    """Write a model's manifest anew: its files were changed on purpose."""
    made = json.loads((folder / MANIFEST).read_text())
    about = {name: made[name] for name in ("classes", "made_from", "settings", "facts")} | told
    write_manifest(folder, made["kind"], files=list(made["files"]), **about)
