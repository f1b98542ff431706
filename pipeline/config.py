"""Settings of the stages: every default is written here and nowhere else. No torch, so that --help is quick."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

from efficientface import FerError

# Settings that do not change the result: an interrupted training may go on with others.
MACHINE = ("device", "workers", "compile", "tensorboard", "mlflow", "preset", "recipe", "given")

# R, G, B mean and standard deviation (0-1) by which the authors' code normalises each data set
NORMALISATIONS = {
    "raf-db": ((0.57535914, 0.44928582, 0.40079932), (0.20735591, 0.18981615, 0.18132027)),
    "caer-s": ((0.35964426, 0.22359873, 0.19040863), (0.15188067, 0.11678473, 0.1103445)),
    "affectnet": ((0.55391484, 0.43522123, 0.3821877), (0.24837189, 0.21625527, 0.20221159)),
}


class Published(NamedTuple):
    """A data set for which the authors (zengqunzhao/EfficientFace) published weights."""

    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PUBLISHED = {
    "raf-db": Published(7, *NORMALISATIONS["raf-db"]),
    "caer-s": Published(7, *NORMALISATIONS["caer-s"]),
    "affectnet-7": Published(7, *NORMALISATIONS["affectnet"]),
    "affectnet-8": Published(8, *NORMALISATIONS["affectnet"]),
}


class Job(NamedTuple):
    """One of several independent jobs that together make an artifact, `--shard NUMBER/OF`, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, shard: int) -> bool:
        """Whether the shard of this number (from 0) is for this job to make."""
        return shard % self.of == self.number - 1


def parse_job(text: str) -> Job:
    """What --shard says: `2/4` is the second of four jobs."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise FerError(f"--shard {text} is not understood; give I/N, job I of N counted from 1, such as 1/4")
    return Job(int(number), int(of))


@dataclass(frozen=True)
class AlignConfig:
    layout: str | None = None  # recognised by itself when None; of several sources NAME=LAYOUT, with commas
    classes: tuple[str, ...] | None = None  # those that occur in the source when None; or one data set's name
    aligned: bool = False  # take images as faces that are aligned already: no detection, only resizing
    label_rule: str = "majority"  # FER+: `majority` or `votes`, the protocol's two ways from votes to a label
    val_from_train: float | None = None  # share of the training faces to carve; None: only where validation is missing
    keep: str = "largest"  # of several faces: `largest` or `all`
    crop: int = 224  # pixels a side
    eye_distance: float = 0.31  # share of the crop's width; ArcFace's template has 0.31
    encode: str = "jpeg"  # `jpeg` (quality 95, no chroma subsampling) or `png`
    min_face: int = 16  # pixels, the shorter side of the detected box in the photograph
    shard_faces: int = 8192  # photographs a shard
    workers: int = 0  # threads, or processes; 0: one a core
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("--keep", self.keep, ("largest", "all"))
        _one_of("--encode", self.encode, ("jpeg", "png"))
        _one_of("--label-rule", self.label_rule, ("majority", "votes"))
        _within("--crop", self.crop, 32, 1024)
        _within("--eye-distance", self.eye_distance, 0.1, 0.6)
        _within("--min-face", self.min_face, 1, 10_000)
        _within("--shard-faces", self.shard_faces, 1, 1_000_000)
        _machine(self.workers, self.seed)
        if self.val_from_train is not None:
            _within("--val-from-train", self.val_from_train, 0.001, 0.9)


@dataclass(frozen=True)
class TrainConfig:
    """What training a teacher, a student and an identity classifier have in common."""

    size: int = 224  # pixels a side that the network sees
    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.1  # belongs to equation (5)'s scale, which divides cross-entropy by the number of classes
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"  # `step`: times lr_factor every lr_step epochs; `onecycle`: up in a quarter, down to nothing
    lr_step: int = 30
    lr_factor: float = 0.1
    min_area: float = 0.08  # smallest share of the face that a random crop keeps; torchvision's default
    patience: int = 0  # stop after so many epochs without a better validation accuracy; 0: never
    choose_on: str = "val"  # the split that picks the best epoch; the authors pick it on `test`
    normalisation: str = "faces"  # mean and std: those of the run's faces, or a data set's in the authors' code
    sampling: str = "every"  # `every`: each face once an epoch; `balanced`: as many draws, classes equally likely
    label_smoothing: float = 0.0  # share of a single label spread over all classes
    class_weights: str = "none"  # of single labels; `balanced`: N / (classes x faces of the class)
    init: str = ""  # a finished model's folder to start from; its last layer only if it has the same classes
    preset: str | None = None  # where the settings come from, and
    recipe: str | None = None  # and which way of training is put over them
    given: tuple[str, ...] = ()  # those given beside them; see `with_preset`
    device: str = "cpu"
    precision: str = "fp32"  # `bf16` and `fp16` by autocast
    compile: bool = False  # the network by torch.compile
    workers: int = 0  # threads that decode and crop; 0: one a core
    tensorboard: bool = False  # the metrics in RUN/tensorboard/ too
    mlflow: bool = False  # and in MLflow's store
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("--schedule", self.schedule, ("step", "onecycle"))
        _one_of("--precision", self.precision, ("fp32", "bf16", "fp16"))
        _one_of("--normalisation", self.normalisation, ("faces", *NORMALISATIONS))
        _one_of("--sampling", self.sampling, ("every", "balanced"))
        _one_of("--class-weights", self.class_weights, ("none", "balanced"))
        _within("--label-smoothing", self.label_smoothing, 0.0, 0.9)
        if self.sampling == self.class_weights == "balanced":
            raise FerError("--sampling balanced and --class-weights balanced both even out the classes; give one")
        _within("--size", self.size, 32, 1024)
        _within("--epochs", self.epochs, 1, 100_000)
        _within("--batch-size", self.batch_size, 2, 65_536)
        _within("--min-area", self.min_area, 0.01, 1.0)
        _within("--lr", self.lr, 1e-12, 1e12)
        _within("--lr-step", self.lr_step, 1, 100_000)
        _within("--lr-factor", self.lr_factor, 1e-6, 1.0)
        _within("--momentum", self.momentum, 0.0, 0.9999)
        _within("--weight-decay", self.weight_decay, 0.0, 1.0)
        _within("--patience", self.patience, 0, 100_000)
        _machine(self.workers, self.seed)

    @property
    def origin(self) -> dict[str, Any]:
        """What a manifest's facts say of a preset and a recipe."""
        names = {"preset": self.preset, "recipe": self.recipe}
        return {what: {"name": name, "given": list(self.given)} for what, name in names.items() if name}


@dataclass(frozen=True)
class TeachConfig(TrainConfig):
    teacher_arch: str = "resnet50"
    views: int = 10  # stored beside the canonical one; 0: per-image use only
    label_batch: int = 64  # faces a forward pass when labelling; fixed, so that answers do not depend on who asks
    label_precision: str = "fp32"  # of the teacher's answers; `bf16` by autocast, compared with fp32 on some faces
    shard_faces: int = 8192
    cache: str = ""  # writes distributions-NAME/ instead of distributions/
    format: str = "parquet"  # of the cache: `parquet` (shards) or `hdf5` (one file); the content is the same
    source: str = "ldg"  # of the distributions: ldg, votes, smooth:E, or a weighted sum such as 0.5*votes+0.5*ldg
    folds: int = 0  # teachers trained out of fold, each answering for the faces it has not seen; 0: one, for all faces
    calibrate: bool = False  # fit a temperature on `choose_on` and note it in the cache's manifest
    covers: str = "all"  # faces that get a distribution: `all`, or `train`, the labelled training faces

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = parse_source(self.source)
        if self.folds and "ldg" not in weights:
            raise FerError(f"--folds trains teachers, but --source {self.source} asks none; leave one of them out")
        if self.calibrate and self.source != "ldg":
            raise FerError(f"--calibrate is about a teacher's answers, not about --source {self.source}; leave it out")
        if self.calibrate and self.covers == "train" and not self.folds and self.choose_on != "train":
            raise FerError(
                f"--calibrate needs answers about {self.choose_on} faces, which --covers train leaves out; give "
                "--covers all, with --cache NAME beside a finished cache"
            )
        if self.folds:
            _within("--folds", self.folds, 2, 100)
        _one_of("--covers", self.covers, ("all", "train"))
        _one_of("--format", self.format, ("parquet", "hdf5"))
        _one_of("--label-precision", self.label_precision, ("fp32", "bf16"))
        _within("--views", self.views, 0, 1000)
        _within("--label-batch", self.label_batch, 1, 65_536)
        _within("--shard-faces", self.shard_faces, 1, 1_000_000)
        _name("--cache", self.cache)


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    arch: str = "efficientface"
    modulation: str = "multiply"  # the authors' code; `add` is the paper's equation (1)
    loss: str = "ldl"  # equation (5) on cached distributions; `kl`: tempered divergence to them; `sll`: single labels
    cache: str = ""  # reads distributions-NAME/ instead of distributions/
    name: str = ""  # students/NAME; the loss's name when empty
    unlabelled: bool = False  # also train on faces that have a distribution but no label
    temperature: float = 1.0  # the target is softmax(log p / T) of the cached p; only `kl` tempers the student too
    label_weight: float = 0.0  # W: the target is (1 - W) of the distribution plus W of the label
    calibrated: bool = False  # take the temperature that `fer teach --calibrate` noted in the cache
    live: bool = False  # ask RUN/teacher about every crop of every epoch, as the authors do, instead of the cache
    label_batch: int = 64  # --live: views in one forward pass of the teacher

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("--loss", self.loss, ("ldl", "kl", "sll"))
        _one_of("--modulation", self.modulation, ("multiply", "add"))
        _name("--cache", self.cache)
        _name("--name", self.name)
        if self.unlabelled and self.loss == "sll":
            raise FerError("--unlabelled needs --loss ldl or kl: single-label learning has nothing to learn from them")
        if self.unlabelled and self.sampling == "balanced":
            raise FerError("--sampling balanced goes by labels; leave out --unlabelled")
        _within("--label-batch", self.label_batch, 1, 65_536)
        _within("--temperature", self.temperature, 0.05, 100.0)
        _within("--label-weight", self.label_weight, 0.0, 1.0)
        if self.calibrated and self.temperature != 1.0:
            raise FerError("--calibrated and --temperature each set the temperature; give one of them")
        about = {
            "distributions": ("temperature", "calibrated", "live", "label_weight"),
            "single labels": ("label_smoothing", "class_weights"),
        }
        learns = "single labels" if self.loss == "sll" else "distributions"
        for what, names in about.items():
            for name in names:
                if what != learns and getattr(self, name) != getattr(DistillConfig, name):
                    option = name.replace("_", "-")
                    raise FerError(
                        f"--{option} is about {what}, --loss {self.loss} learns {learns}; leave one of them out"
                    )
        if self.live and (self.cache or self.calibrated):
            raise FerError("--live asks the teacher and reads no cache; leave out --cache and --calibrated")


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """As the others, but that the loss is the plain cross-entropy: `lr` is not on equation (5)'s scale."""

    arch: str = "resnet50"
    modulation: str = "multiply"  # as in DistillConfig
    name: str = ""  # identities/NAME; the network's name when empty

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("--modulation", self.modulation, ("multiply", "add"))
        _name("--name", self.name)


# The commands whose settings a run keeps; and where a run, or the file of --config, has several of a command, the
# options that say which.
CONFIGS: dict[str, type] = {
    "align": AlignConfig,
    "teach": TeachConfig,
    "distill": DistillConfig,
    "pretrain": PretrainConfig,
}
TOLD_BY = {"teach": ("cache",), "distill": ("name", "loss"), "pretrain": ("name", "arch")}

# The settings of the paper and of the authors' code: equation (5)'s scale, SGD, 100 epochs. They are this program's
# defaults too, and written out, so that a preset means the same when a default changes.
_PAPER: dict[str, Any] = {
    **{"size": 224, "epochs": 100, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    **{"schedule": "step", "lr_step": 30, "min_area": 0.08, "teacher_arch": "resnet50"},
    **{"arch": "efficientface", "modulation": "multiply", "loss": "ldl"},
}
# the paper oversamples where training is imbalanced and test is not (its footnote 1)
_AFFECTNET = {**_PAPER, "normalisation": "affectnet", "sampling": "balanced"}
# Not of the paper, which has no FER+: what docs/results.md uses.
_FERPLUS: dict[str, Any] = {"size": 80, "schedule": "onecycle", "min_area": 0.5, "teacher_arch": "resnet18"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "raf-db": dict.fromkeys(("teach", "distill"), {**_PAPER, "normalisation": "raf-db"}),
    "caer-s": dict.fromkeys(("teach", "distill"), {**_PAPER, "normalisation": "caer-s"}),
    "affectnet-7": dict.fromkeys(("teach", "distill"), _AFFECTNET),
    "affectnet-8": dict.fromkeys(("teach", "distill"), _AFFECTNET),
    "ferplus": {
        "teach": {**_FERPLUS, "epochs": 16, "lr": 0.8},
        "distill": {**_FERPLUS, "epochs": 30, "lr": 1.0},
    },
}
# Ways of training, for any data set and network: `paper` is the reference, and the defaults; `fast` is short, and its
# teacher is asked once a training face (docs/performance.md has what was tried for it).
_ONE_CYCLE: dict[str, Any] = {"schedule": "onecycle", "min_area": 0.5}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": dict.fromkeys(
        ("teach", "distill"),
        {
            **{"epochs": 100, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            **{"schedule": "step", "lr_step": 30, "min_area": 0.08},
        },
    ),
    "fast": {
        "teach": {**_ONE_CYCLE, "epochs": 16, "lr": 0.8, "views": 0, "covers": "train"},
        "distill": {**_ONE_CYCLE, "epochs": 4, "lr": 1.0, "batch_size": 64, "min_area": 0.8},
    },
}
Trained = TypeVar("Trained", bound=TrainConfig)


def with_preset(config: type[Trained], preset: str | None, recipe: str | None = None, **given: Any) -> Trained:
    """The settings of a preset, over them a recipe's, over these what is `given`; the run records all three."""
    stage = "teach" if issubclass(config, TeachConfig) else "distill"
    known: dict[str, Any] = {}
    for option, name, all_known in (("--preset", preset, PRESETS), ("--recipe", recipe, RECIPES)):
        if name is not None:
            _one_of(option, name, tuple(all_known))
            known |= all_known[name][stage]
    settings = {field.name: known[field.name] for field in fields(config) if field.name in known}
    return config(**{**settings, **given, "preset": preset, "recipe": recipe, "given": tuple(sorted(given))})


@dataclass(frozen=True)
class DemoConfig:
    """Small enough for two cores: about five minutes. The paper's setting is resnet50 at 224 pixels."""

    run: str = "runs/demo"
    count: int = 2000  # drawn faces
    identities: int = 0  # people drawn, a folder each; 0: every face is somebody else
    teacher_arch: str = "resnet18"
    size: int = 64
    teacher_epochs: int = 12
    epochs: int = 25  # of each student
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        _within("--count", self.count, 100, 10_000_000)
        if self.identities:
            _within("--identities", self.identities, 2, self.count // 2)


def parse_source(text: str) -> dict[str, float]:
    """What a distribution is made of, weights by name: `ldg`, `votes` or `smooth:E`; they sum to 1.

    `0.5*votes+0.5*ldg` is {"votes": 0.5, "ldg": 0.5}; a single name has the weight 1. smooth:E leaves 1 - E on the
    label and spreads E over all classes.
    """
    weights: dict[str, float] = {}
    for term in text.split("+"):
        weight, star, name = term.strip().rpartition("*")
        name = name.strip()
        kind, colon, share = name.partition(":")
        try:
            number = float(weight) if star else 1.0
            fits = name in ("ldg", "votes") or (kind == "smooth" and 0 <= float(share) < 1)
        except ValueError:
            fits = False
        if not fits or name in weights or not 0 < number <= 1:
            raise FerError(
                f"--source {text} is not understood at {term.strip() or 'its end'!r}; give ldg, votes, smooth:0.1, "
                "or a sum such as 0.5*votes+0.5*ldg"
            )
        weights[name] = number
    if abs(sum(weights.values()) - 1) > 1e-6:
        raise FerError(f"--source {text} has weights that sum to {sum(weights.values()):g}; let them sum to 1")
    return weights


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise FerError(f"{option} {value} is not known; choose from {', '.join(known)}")


def _within(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise FerError(f"{option} {value} is out of range; give a number from {low} to {high}")


def _machine(workers: int, seed: int) -> None:
    _within("--workers", workers, 0, 1024)
    _within("--seed", seed, 0, 2**32 - 1)  # what scikit-learn and PCG64 both take


def _name(option: str, value: str) -> None:
    """A name becomes a folder's name: nothing that could leave the run folder."""
    if value and not all(c.isalnum() or c in "-_." for c in value) or value.startswith("."):
        raise FerError(f"{option} {value!r} cannot be a folder's name; use letters, digits, '-', '_' and '.'")
