"""The `fer` command: read options, call one stage, print what it returns. Nothing here imports torch."""

import csv
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from efficientface import FerError, __version__
from efficientface.pipeline.artifact import MODELS
from efficientface.pipeline.config import PUBLISHED, AlignConfig, DemoConfig, DistillConfig, TeachConfig, TrainConfig

LEADS = os.environ.get("RANK", "0") == "0"  # torchrun numbers its processes
PATH = click.Path(path_type=Path)
Command = TypeVar("Command", bound=Callable[..., Any])


class FerGroup(click.Group):
    """Shows a FerError as one line, status 1. Any other error is our bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FerError as error:
            raise click.ClickException(str(error)) from error


def setting(config: type, name: str, text: str, **more: Any) -> Callable[[Command], Command]:
    """An option of the name, type and default of a configuration's field."""
    default = getattr(config, name)
    more.setdefault("type", type(default))
    return click.option(f"--{name.replace('_', '-')}", name, default=default, help=text, **more)


def training_settings(config: type[TrainConfig]) -> Callable[[Command], Command]:
    """The options that training a teacher and training a student share."""
    options = [
        setting(config, "size", "Pixels a side that the network sees."),
        setting(config, "epochs", "Passes over the training faces."),
        setting(config, "batch_size", "Faces in one step."),
        setting(config, "lr", "SGD's first (step) or highest (onecycle) learning rate, on equation (5)'s scale."),
        setting(config, "momentum", "SGD's momentum."),
        setting(config, "weight_decay", "L2 penalty on all weights."),
        setting(config, "schedule", "How the learning rate falls.", type=click.Choice(["step", "onecycle"])),
        setting(config, "lr_step", "Epochs between two tenfold cuts of --lr (step)."),
        setting(config, "min_area", "Smallest share of the face that a random crop keeps."),
        setting(config, "patience", "Stop after so many epochs without a better validation accuracy; 0 never."),
        setting(config, "choose_on", "Split that picks the best epoch; the paper's authors pick it on test."),
        setting(config, "device", "Where to compute: cpu, cuda, cuda:1 ..."),
        setting(config, "precision", "Of training, by autocast.", type=click.Choice(["fp32", "bf16", "fp16"])),
        setting(config, "workers", "Threads that decode and crop; 0 is one a core."),
        setting(config, "seed", "Seeds weights, order of faces and crops."),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def output_options(command: Command) -> Command:
    """--json and --csv of the commands that look into things."""
    return click.option("--csv", "as_csv", is_flag=True, help="Print the main table as CSV.")(JSON(command))


@click.group(cls=FerGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="fer")
def cli() -> None:
    """Facial-expression recognition with small networks, distilled offline.

    \b
    fer align    photographs -> upright faces
    fer teach    faces -> a teacher and every face's label distribution
    fer distill  faces and distributions -> a small student
    """
    # to stderr; stdout is for results; under torchrun the first process speaks for all
    logging.basicConfig(level=logging.INFO if LEADS else logging.WARNING, format="%(message)s")


@cli.command()
@click.argument("source", type=PATH)
@click.argument("run", type=PATH)
@setting(AlignConfig, "layout", "How SOURCE is laid out; recognised by itself if not given.", type=str)
@click.option("--classes", help="Class names in order, with commas; those that occur in SOURCE if not given.")
@setting(AlignConfig, "label_rule", "FER+: from votes to a label.", type=click.Choice(["majority", "votes"]))
@setting(AlignConfig, "val_from_train", "Share of the training faces carved as validation.", type=float)
@setting(AlignConfig, "keep", "Of several faces.", type=click.Choice(["largest", "all"]))
@setting(AlignConfig, "crop", "Pixels a side of the aligned face.")
@setting(AlignConfig, "eye_distance", "Distance of the eyes as a share of the crop's width; more is tighter.")
@setting(AlignConfig, "encode", "How faces are stored.", type=click.Choice(["jpeg", "png"]))
@setting(AlignConfig, "min_face", "Smallest face taken, pixels of the photograph.")
@setting(AlignConfig, "workers", "Threads that detect; 0 is one a core.")
@setting(AlignConfig, "seed", "Seeds the carving of splits.")
@click.option("--replace", is_flag=True, help="Remove what RUN/faces holds and start over.")
@JSON
def align(source: Path, run: Path, as_json: bool, classes: str | None, replace: bool, **options: Any) -> None:
    """Detect and align the faces of SOURCE (a folder, or a CSV or Parquet table) into RUN/faces.

    \b
    Example:
        fer align photos/ runs/first
    """
    from efficientface.pipeline import align as stage
    from efficientface.pipeline import show

    names = tuple(name.strip() for name in classes.split(",")) if classes else None
    result = stage.run(source, run, AlignConfig(classes=names, **options), replace)
    _print(result, as_json, show.alignment)


@cli.command()
@click.argument("run", type=PATH)
@setting(TeachConfig, "teacher_arch", "The LDG's network, by torchvision's name or as timm/NAME.", metavar="NAME")
@setting(TeachConfig, "views", "Replay views stored beside the canonical one; 0 for per-image use.")
@setting(TeachConfig, "cache", "Write distributions-NAME/ instead of distributions/.", metavar="NAME")
@setting(TeachConfig, "format", "Of the cache: shards, or one file.", type=click.Choice(["parquet", "hdf5"]))
@setting(TeachConfig, "source", "What distributions are: ldg, votes, smooth:E, or a sum such as 0.5*votes+0.5*ldg.")
@setting(TeachConfig, "folds", "Teachers trained out of fold, each asked about faces it has not seen; 0 for one.")
@click.option("--calibrate", is_flag=True, help="Fit a temperature on --choose-on and note it in the cache.")
@click.option("--add-views", "more_views", type=click.IntRange(1), help="Only add so many views to a finished cache.")
@click.option(
    "--checkpoint",
    "checkpoints",
    type=PATH,
    multiple=True,
    help="A finished teacher's folder: no training, ask this one. Several are averaged.",
)
@setting(TeachConfig, "label_smoothing", "Share of each training label spread over all classes.")
@setting(TeachConfig, "label_batch", "Views in one forward pass while labelling.")
@training_settings(TeachConfig)
@JSON
def teach(run: Path, checkpoints: tuple[Path, ...], more_views: int | None, as_json: bool, **options: Any) -> None:
    """Train the label distribution generator on RUN/faces and cache its answer about every face.

    \b
    Example:
        fer teach runs/first --epochs 40 --views 10
    """
    from efficientface.pipeline import show
    from efficientface.pipeline import teach as stage

    _print(stage.run(run, TeachConfig(**options), checkpoints, more_views or 0), as_json, show.facts)


@cli.command()
@click.argument("run", type=PATH)
@setting(
    DistillConfig,
    "arch",
    "efficientface, baseline, baseline-local, baseline-modulator, a name of torchvision's, or timm/NAME.",
    metavar="NAME",
)
@setting(
    DistillConfig,
    "modulation",
    "EfficientFace: authors' code or equation (1).",
    type=click.Choice(["multiply", "add"]),
)
@setting(DistillConfig, "loss", "ldl: cached distributions; sll: single labels.", type=click.Choice(["ldl", "sll"]))
@setting(DistillConfig, "cache", "Read distributions-NAME/ instead of distributions/.", metavar="NAME")
@setting(DistillConfig, "name", "Write students/NAME; the loss's name if not given.", metavar="NAME")
@setting(DistillConfig, "temperature", "T of the targets softmax(log p / T) (ldl); more than 1 is softer.")
@click.option("--calibrated", is_flag=True, help="The temperature that `fer teach --calibrate` noted in the cache.")
@click.option("--live", is_flag=True, help="Ask RUN/teacher about every crop, as the authors do, not the cache.")
@setting(DistillConfig, "label_batch", "Views in one forward pass of the teacher (--live).")
@click.option("--unlabelled", is_flag=True, help="Also train on faces without a label (ldl).")
@training_settings(DistillConfig)
@JSON
def distill(run: Path, as_json: bool, **options: Any) -> None:
    """Train a student on RUN's cached distributions; the teacher is not loaded.

    \b
    Example:
        fer distill runs/first --epochs 40 --name first-student
    """
    from efficientface.pipeline import distill as stage
    from efficientface.pipeline import show

    _print(stage.run(run, DistillConfig(**options)), as_json, show.facts)


@cli.command()
@click.argument("run", type=PATH)
@click.option("--split", default="test", help="Split whose labelled faces are judged.")
@click.option("--device", default="cpu", help="Where to compute.")
@click.option("--names", help="Only these models, with commas: teacher, or students by name.")
@output_options
def evaluate(run: Path, split: str, device: str, names: str | None, as_csv: bool, as_json: bool) -> None:
    """Judge the teacher and every student of RUN on one split, by labels and by distributions.

    \b
    Example:
        fer evaluate runs/first --split test
    """
    from efficientface.pipeline import evaluate as stage

    chosen = [name.strip() for name in names.split(",")] if names else None
    result = stage.run(run, split, device=device, names=chosen)
    _print(result, as_json, stage.tables, stage.rows(result) if as_csv else None)


@cli.command()
@click.argument("path", type=PATH)
@click.option("--face", metavar="ID", help="One face as bars.")
@click.option("--top", type=click.Choice(["ambiguous", "disagreeing"]), help="The faces that are most so.")
@click.option("--count", "-n", default=10, help="How many faces --top shows.")
@click.option("--html", type=PATH, metavar="FILE", help="Write a page about all distributions, to open in a browser.")
@click.option("--sample", type=int, metavar="N", help="Faces with a picture in the page (1200); 0 for none.")
@click.option("--student", multiple=True, metavar="NAME", help="Student asked for the page (repeatable); all if none.")
@click.option("--no-students", is_flag=True, help="Ask no student for the page.")
@output_options
def inspect(
    path: Path,
    face: str | None,
    top: str | None,
    count: int,
    html: Path | None,
    sample: int | None,
    student: tuple[str, ...],
    no_students: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Look into an artifact: a folder of faces, distributions, a teacher or a student.

    \b
    Example:
        fer inspect runs/first/distributions --top ambiguous
        fer inspect runs/first --html faces.html
    """
    from efficientface.pipeline import inspect as stage

    if html is not None:
        from efficientface.pipeline import page

        if face is not None or top is not None:
            raise FerError("--html shows all faces; leave --face and --top out")
        if student and no_students:
            raise FerError("--student and --no-students contradict each other; give one of them")
        students = list(student) or ([] if no_students else None)
        result = page.run(path, html, page.SAMPLE if sample is None else sample, students)
        _print(result, as_json, page.tables, [result] if as_csv else None)
        return
    if sample is not None or student or no_students:
        raise FerError("--sample, --student and --no-students are about the page; give --html FILE as well")
    result = stage.run(path, face=face, top=top, count=count)
    _print(result, as_json, stage.tables, stage.rows(result) if as_csv else None)


@cli.group("cache")
def cache_group() -> None:
    """Look after cached distributions: convert, verify, compare, find doubtful labels."""


@cache_group.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@JSON
def convert(source: Path, target: Path, as_json: bool) -> None:
    """Write the cache SOURCE as TARGET: one HDF5 file if it ends in .h5, else a folder of Parquet shards.

    \b
    Example:
        fer cache convert runs/first/distributions first.h5
    """
    from efficientface.pipeline import caches, show

    _print(caches.convert(source, target), as_json, show.facts)


@cache_group.command()
@click.argument("path", type=PATH)
@click.option("--teacher", type=PATH, help="The teacher that made it: asked again about some views.")
@click.option("--sample", default=100, help="How many random views the teacher is asked about.")
@output_options
@click.pass_context
def verify(ctx: click.Context, path: Path, teacher: Path | None, sample: int, as_csv: bool, as_json: bool) -> None:
    """Check a cache: every byte, every number, and the faces it is about if they are there. Status 1 if not all right.

    \b
    Example:
        fer cache verify runs/first/distributions --teacher runs/first/teacher
    """
    from efficientface.pipeline import verify as stage

    result = stage.verify(path, teacher, sample)
    _print(result, as_json, stage.tables, result["checks"] if as_csv else None)
    if not result["ok"]:
        ctx.exit(1)


@cache_group.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--top", default=10, help="How many of the faces that moved most.")
@output_options
def diff(a: Path, b: Path, top: int, as_csv: bool, as_json: bool) -> None:
    """Compare two caches of the same faces: divergence, agreement, class by class, and the faces that moved most.

    \b
    Example:
        fer cache diff runs/first/distributions runs/first/distributions-oof
    """
    from efficientface.pipeline import compare as stage

    result = stage.diff(a, b, top)
    _print(result, as_json, stage.tables, result["moved"] if as_csv else None)


@cache_group.command()
@click.argument("path", type=PATH)
@click.option("--top", default=20, help="How many faces of each kind.")
@output_options
def issues(path: Path, top: int, as_csv: bool, as_json: bool) -> None:
    """Name likely label errors and ambiguous faces, by teachers that had not seen them (needs cleanlab).

    \b
    Example:
        fer cache issues runs/first/distributions-oof --top 50
    """
    from efficientface.pipeline import issues as stage

    result = stage.issues(path, top)
    kinds = ("label_errors", "ambiguous")
    rows = [{"kind": kind, **face} for kind in kinds for face in result[kind]] if as_csv else None
    _print(result, as_json, stage.tables, rows)


@cli.command()
@click.argument("run", type=PATH)
@output_options
def status(run: Path, as_csv: bool, as_json: bool) -> None:
    """Say which stages of RUN are done, stale or missing, and the next command.

    \b
    Example:
        fer status runs/first
    """
    from efficientface.pipeline import status as stage

    result = stage.status(run)
    _print(result, as_json, stage.status_tables, result["stages"] if as_csv else None)


@cli.command("import")
@click.argument("file", type=PATH)
@click.argument("out", type=PATH)
@click.option("--dataset", type=click.Choice(list(PUBLISHED)), help="What it was trained on: decides normalisation.")
@click.option("--kind", type=click.Choice(MODELS), help="By network and number of classes if not given.")
@click.option("--classes", help="Class names in the file's order, with commas; the authors' order if not given.")
@setting(
    DistillConfig, "modulation", "The authors' weights need their product.", type=click.Choice(["multiply", "add"])
)
@JSON
def import_weights(file: Path, out: Path, classes: str | None, as_json: bool, **options: Any) -> None:
    """Make a model folder OUT of a checkpoint of the authors' code (.pth.tar or .safetensors); nothing is unpickled.

    \b
    Example:
        fer import Pretrained_LDG.tar ldg --dataset raf-db
        fer teach runs/first --checkpoint ldg
    """
    from efficientface.pipeline import import_weights as stage
    from efficientface.pipeline import show

    names = tuple(name.strip() for name in classes.split(",")) if classes else None
    _print(stage.run(file, out, classes=names, **options), as_json, show.facts)


@cli.command()
@click.argument("archs", nargs=-1, metavar="[ARCH]...")
@click.option("--device", default="cpu", help="Where to measure.")
@click.option("--size", default=224, help="Pixels a side of the image; the paper's figures are for 224.")
@click.option("--batch-size", default=16, help="Images at once, for images a second.")
@click.option("--count-only", is_flag=True, help="Measure no time.")
@output_options
def profile(archs: tuple[str, ...], count_only: bool, as_csv: bool, as_json: bool, **options: Any) -> None:
    """Count parameters and multiply-adds of networks beside the paper's figures, and measure how fast they are here.

    Without ARCH, the networks of the paper's Tables 1 to 7.

    \b
    Example:
        fer profile efficientface resnet50 --device cuda
    """
    from efficientface.pipeline import profile as stage

    result = stage.run(archs, measure=not count_only, **options)
    _print(result, as_json, stage.tables, result["rows"] if as_csv else None)


@cli.command()
@click.argument("run", type=PATH, default=DemoConfig.run)
@click.option("--images", type=PATH, help="Only draw: leave the faces in this folder as labelled photographs.")
@setting(DemoConfig, "count", "Faces to draw.")
@setting(DemoConfig, "teacher_arch", "The LDG's network.", metavar="NAME")
@setting(DemoConfig, "size", "Pixels a side that the networks see.")
@setting(DemoConfig, "teacher_epochs", "Passes of the LDG's training.")
@setting(DemoConfig, "epochs", "Passes of each student's training.")
@setting(DemoConfig, "device", "Where to compute.")
@setting(DemoConfig, "seed", "Seeds everything.")
@JSON
def demo(run: Path, images: Path | None, as_json: bool, **options: Any) -> None:
    """Draw faces and take them through every stage, in RUN.

    A resnet18 LDG and 64 pixels keep it short; --teacher-arch resnet50 --size 224 is the paper's setting.

    \b
    Example:
        fer demo --count 300
    """
    from efficientface.pipeline import demo as stage

    config = DemoConfig(**options)
    if images is not None:
        click.echo(stage.draw(images, config))
        return
    _print(stage.run(run, config), as_json, stage.tables)


def _print(
    result: dict[str, Any],
    as_json: bool,
    tables: Callable[[dict[str, Any]], list[Any]],
    csv_rows: list[dict[str, Any]] | None = None,
) -> None:
    """A stage's result on stdout, as JSON or as tables, or of its rows those that CSV was asked for."""
    if not LEADS:
        return
    if csv_rows is not None:
        if as_json:
            raise FerError("--json and --csv ask for two things; give one of them")
        from efficientface.pipeline.show import flat

        rows = [flat(row) for row in csv_rows]
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    if as_json:
        click.echo(json.dumps(result, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    # without a terminal: wide enough that no row is folded, so that lines can be searched
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    for table in tables(result):
        console.print(table, soft_wrap=isinstance(table, Text))  # no line breaks in a command that will be copied


def main() -> None:
    """The installed command."""
    cli(prog_name="fer")


if __name__ == "__main__":
    main()
