"""What training reads: the faces of a run, whole and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficientface import FerError, untrusted
from efficientface.data.faces import Faces, read_faces
from efficientface.pipeline.artifact import data_files, digest_of, read_manifest, reference_to
from efficientface.pipeline.config import NORMALISATIONS


@dataclass(frozen=True)
class Inputs:
    """The usable faces of a run (N rows with an image), what its manifest says of all, and the digest of that."""

    folder: Path
    faces: Faces
    manifest: dict[str, Any]
    digest: str

    @property
    def facts(self) -> dict[str, Any]:
        """What turns a stored face into a network's input: crop in pixels, mean and std (RGB, 0-1)."""
        facts = self.manifest["facts"]
        return {"crop": self.manifest["settings"]["crop"], "mean": facts["mean"], "std": facts["std"]}

    def reference(self, from_folder: Path) -> dict[str, str]:
        """As reference_to, but to the faces that were read, by which others may lie in the folder now."""
        return reference_to(self.folder, from_folder) | {"manifest": self.digest}

    def facts_by(self, normalisation: str) -> dict[str, Any]:
        """The same with mean and std of a data set of NORMALISATIONS; `faces` are the run's own."""
        if normalisation == "faces":
            return self.facts
        mean, std = NORMALISATIONS[normalisation]
        return {**self.facts, "mean": list(mean), "std": list(std)}

    def labelled(self, split: str, without: np.ndarray | None = None) -> Faces:
        """The faces of a split that have a label, less those that `without` (N,) bool marks.

        FerError where training or judging could not begin.
        """
        rows = (self.faces.split == split) & (self.faces.label >= 0)
        if without is not None:
            rows &= ~without
        if not rows.any():
            splits = ", ".join(sorted(set(self.faces.split)))
            raise FerError(
                f"{self.folder} has no labelled faces in split {split} (splits: {splits}); "
                "run fer align on a source with labels, or with --val-from-train 0.1"
            )
        return self.faces.select(rows)


def read_inputs(run: Path) -> Inputs:
    """The usable faces of `run`/faces."""
    return inputs_in(run / "faces")


def inputs_in(folder: Path) -> Inputs:
    """The usable faces of a folder that fer align wrote."""
    manifest = read_manifest(folder, "faces")
    digest = digest_of(folder)
    facts, crop = manifest["facts"], manifest["settings"].get("crop")
    if type(crop) is not int or not all(untrusted.are_numbers(facts.get(name), 3) for name in ("mean", "std")):
        raise FerError(f"{folder} does not say crop, mean and std of its faces; restore it, or run fer align again")
    faces = read_faces(data_files(folder, manifest))
    if manifest != read_manifest(folder, "faces") or digest != digest_of(folder):
        raise FerError(f"{folder} was replaced while it was read; run the same command again")
    return Inputs(folder, faces.select(faces.usable), manifest, digest)


def check_classes(train: Faces, folder: Path) -> None:
    """Training needs at least two classes."""
    present = np.unique(train.label)
    if len(present) < 2:
        raise FerError(
            f"{folder} has training faces of one class only ({train.classes[present[0]]}, {len(train)} faces); "
            "nothing can be learned from that; add faces of other classes and run fer align again"
        )
