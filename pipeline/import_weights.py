"""A model folder from a checkpoint of the authors' code, or of another with the same names; only tensors are read.

What zengqunzhao/EfficientFace publishes: EfficientFace trained on RAF-DB, CAER-S and AffectNet, the LDG, and networks
that tell 12,666 people of MS-Celeb-1M apart.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientface import FerError, untrusted
from efficientface.data.labels import EXPRESSIONS, expression
from efficientface.models import ABLATIONS, MODULATED, build
from efficientface.models.efficientface import load_official
from efficientface.pipeline.artifact import digest_file, is_finished, read_manifest, replacing, write_text
from efficientface.pipeline.checkpoint import METRICS, finish_model
from efficientface.pipeline.config import PUBLISHED

log = logging.getLogger(__name__)

LARGEST = 2 * 1024**3  # bytes; a VGG-16 that knows 12,666 people takes 0.75 GB, with its momentum twice that
IDENTITIES = 12_666  # people of MS-Celeb-1M that the authors pre-train on
SIZE = 224  # pixels a side in all of the authors' training
PLAIN = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
KNOWN = (*ABLATIONS, "resnet18", "resnet34", "resnet50")


def run(
    file: Path,
    out: Path,
    dataset: str | None = None,
    kind: str | None = None,
    classes: Sequence[str] | None = None,
    modulation: str = "multiply",
) -> dict[str, Any]:
    """Write the weights in `file` to the model folder `out`; returns what it is.

    `dataset`, a name of PUBLISHED, decides the normalisation. `kind` is teacher for a ResNet, student for the others,
    identities for 12,666 classes, if not given; `classes` are the authors'. `modulation` cannot be read from the file.
    """
    arch, count, state = recognise(read_tensors(file), file)
    kind = kind or ("identities" if count == IDENTITIES else "teacher" if arch.startswith("resnet") else "student")
    names = name_classes(file, count, kind, classes)
    dataset = dataset or guess_dataset(file, count, kind)
    if dataset and classes is None and count != PUBLISHED[dataset].classes:
        raise FerError(f"{file} tells {count:,} classes apart, {dataset} has {PUBLISHED[dataset].classes}")
    mean, std = (list(PUBLISHED[dataset].mean), list(PUBLISHED[dataset].std)) if dataset else (None, None)
    options = {"modulation": modulation} if arch in MODULATED else {}
    settings = {
        ("teacher_arch" if kind == "teacher" else "arch"): arch,
        **options,
        "dataset": dataset,
        "classes": list(names),
        "size": SIZE,
        "blake2b": digest_file(file),
    }
    told: dict[str, Any] = {"model": str(out), "kind": kind, "arch": arch, **options, "dataset": dataset, "size": SIZE}
    told |= {"classes": f"{count:,} people" if kind == "identities" else ", ".join(names), "mean": mean, "std": std}
    out = Path(os.path.abspath(out))  # `.` has no name to be replaced by
    if is_finished(out):
        if read_manifest(out, kind)["settings"] != settings:
            raise FerError(f"{out} is finished and no import of {file} with these options; give another folder")
        log.info("already imported, %s", out)
        return told
    strange = [path.name for path in out.iterdir()] if out.is_dir() else []
    if strange or out.is_file():
        raise FerError(f"{out} is there already, {'with ' + min(strange) if strange else 'a file'}; give a new folder")
    model = build(arch, count, **options)
    model.load_state_dict(state)
    weights = model.state_dict()
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise FerError(
            f"{file} has NaN or infinity in {len(broken)} of its tensors, first {broken[0]}; nothing written"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, new=True) as part:
        part.mkdir()
        write_text(part / METRICS, "")  # of its training nothing is known
        finish_model(
            part,
            kind,
            weights,
            {"arch": arch, "options": options, "classes": list(names), "size": SIZE, "mean": mean, "std": std},
            made_from={"file": {"path": os.path.relpath(file, out).replace(os.sep, "/")}},
            settings=settings,
            facts={"imported": True},
        )
    return told


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of torch's (plain, or under `state_dict`) or of safetensors, on the CPU."""
    if not file.is_file():
        raise FerError(f"{file} is not there or no file; give a checkpoint such as Pretrained_EfficientFace.tar")
    size = file.stat().st_size
    if size > LARGEST:
        raise FerError(f"{file} has {size:,} bytes, more than any checkpoint of these networks ({LARGEST:,}); not read")
    try:
        is_safe = file.suffix == ".safetensors"
        content: Any = untrusted.read_safetensors(file) if is_safe else untrusted.read_pickled_tensors(file)
    except untrusted.ForeignObject as error:
        raise FerError(
            f"{file} holds Python objects besides tensors, first {error}, which may run anything when they are "
            "read; save its state_dict alone where you trust it, best as .safetensors"
        ) from error
    except untrusted.Compressed as error:
        raise FerError(
            f"{file} is a compressed archive, torch's checkpoints are not; it is damaged or forged"
        ) from error
    except (OSError, ValueError) as error:
        raise FerError(f"{file} is neither a checkpoint of torch nor of safetensors, or is damaged") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(name, str) for name in state):
        raise FerError(f"{file} holds no state dict (tensors by name, alone or under `state_dict`)")
    for name, tensor in state.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.dtype not in PLAIN:
            raise FerError(
                f"{file} holds something else than a plain tensor of numbers as {name!r}; it is no state dict"
            )
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > size:
        raise FerError(f"{file} has tensors larger than itself; it is damaged or forged")
    return dict(state)


def recognise(read: dict[str, Tensor], file: Path) -> tuple[str, int, dict[str, Tensor]]:
    """The network whose names and shapes these are, its number of classes, and the tensors under our names.

    FerError says what the nearest network lacks. Batch norm's counters (num_batches_tracked) may be missing, as in the
    oldest files.
    """
    try:
        state = load_official(read)
    except RuntimeError as error:  # local branches of different shapes, which cannot be stacked
        raise FerError(f"{file} is none of {', '.join(KNOWN)}: its local branches do not fit each other") from error
    bias = state.get("fc.bias")
    if bias is None or bias.ndim != 1 or len(bias) < 2:
        raise FerError(f"{file} has no classifier, fc.bias, of two classes or more; it is none of {', '.join(KNOWN)}")
    differences = {}
    for arch in KNOWN:
        with torch.device("meta"):
            wanted = {name: tensor.shape for name, tensor in build(arch, len(bias)).state_dict().items()}
        needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
        wrong = {name for name in state.keys() & wanted.keys() if state[name].shape != wanted[name]}
        differences[arch] = wrong | (needed - state.keys()) | (state.keys() - wanted.keys())
        if not differences[arch]:
            return arch, len(bias), state
    nearest, wrong = min(differences.items(), key=lambda item: len(item[1]))
    raise FerError(
        f"{file} is none of {', '.join(KNOWN)}; for {nearest}, {len(wrong)} tensors are missing, too many or of "
        f"another shape, first {min(wrong)!r}"
    )


def name_classes(file: Path, count: int, kind: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in the order of the file's answers, which it does not tell: those given, else the authors'."""
    if classes is not None:
        names = tuple(expression(name) or name for name in classes)
        if len(names) != count or len(set(names)) != count or not all(names):
            raise FerError(
                f"{file} tells {count:,} classes apart; give --classes as many different names, in its order"
            )
        return names
    if kind == "identities":
        return tuple(f"person-{number:05d}" for number in range(count))
    if count not in (7, 8):
        raise FerError(
            f"{file} tells {count:,} classes apart, the authors' 7 or 8; give --classes or --kind identities"
        )
    return EXPRESSIONS[:count]


def guess_dataset(file: Path, count: int, kind: str) -> str | None:
    """The data set that the number of classes leaves; None for identities, whose normalisation nobody published."""
    if kind == "identities":
        return None
    fitting = [name for name, published in PUBLISHED.items() if published.classes == count]
    if len(fitting) == 1:
        return fitting[0]
    of = f" ({' or '.join(fitting)})" if fitting else ""
    raise FerError(f"{file} does not say which images it was trained on{of}, so how to normalise them; give --dataset")
