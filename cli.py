"""The `fer` command: read options, call one stage, print what it returns. Nothing here imports torch."""

import csv
import errno
import functools
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from efficientface import FerError, __version__
from efficientface.pipeline.artifact import MODELS
from efficientface.pipeline.config import (
    CONFIGS,
    NORMALISATIONS,
    PRESETS,
    PUBLISHED,
    RECIPES,
    TOLD_BY,
    AlignConfig,
    DemoConfig,
    DistillConfig,
    Job,
    PretrainConfig,
    TeachConfig,
    TrainConfig,
    parse_job,
    with_preset,
)
from efficientface.pipeline.launch import SaidByAnother, numbers, speaks
from efficientface.untrusted import printable

PATH = click.Path(path_type=Path)


class RunFolder(click.Path):
    """A folder of this machine, or one at an address such as s3://BUCKET/RUN, of which a copy here takes its place."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or "://" not in value:
            return super().convert(value, param, ctx)
        if numbers()[1] > 1:
            raise FerError(f"{value} cannot be worked on by several processes; give a folder on this machine")
        from efficientface.pipeline import mirror

        return mirror.opened(value)


RUN = RunFolder(path_type=Path)
Command = TypeVar("Command", bound=Callable[..., Any])


GOES_ON = "what was finished is kept, the same command goes on from there"


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """What batch systems and `kill` send unwinds the program as Ctrl-C does, so that it can say how to go on."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interrupted(click.ClickException):
    """By a signal, which the exit status tells as shells count."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted ({signal.Signals(number).name}); {GOES_ON}")
        self.exit_code = 128 + number  # type: ignore[misc]


LONGEST = 2000  # characters of a sentence; a table may have a header of a megabyte


def sentence(error: Exception | str) -> str:
    """What an error says as one printable line that can be read."""
    text = printable(error)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} ... {text[-300:]}"


class OneLine(logging.Formatter):
    """A message is one line of text, whatever is in the names that it tells."""

    def format(self, record: logging.LogRecord) -> str:
        return sentence(super().format(record))


log = logging.getLogger("efficientface")
FILE_OF_OPTIONS = "efficientface.options"  # in click's context: the file that --config names, and its tables


class FerCommand(click.Command):
    """Takes from the file of --config what is not typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        path, tables = ctx.meta.get(FILE_OF_OPTIONS, (None, {}))
        words: list[str] = []
        above: click.Context | None = ctx
        while above is not None and above.parent is not None:
            words, above = [str(above.info_name), *words], above.parent
        for word in words:
            tables = tables.get(word, {})
        if isinstance(tables, list):
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            tables = _meant(path, words[-1], tables, given)
        options = _by_name(self)
        ctx.default_map = {str(options[name].name): value for name, value in tables.items()}
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        for name in _given():
            typed = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
            log.debug("%s %s, %s", name, ctx.params[name], "typed" if typed else f"from {ctx.meta[FILE_OF_OPTIONS][0]}")
        return super().invoke(ctx)


class FerGroup(click.Group):
    """Shows a FerError, and what the system refuses, as one line, status 1. Another error is our bug: a traceback."""

    command_class = FerCommand
    group_class = type

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with sigterm_as_ctrl_c():
                result = super().invoke(ctx)
                if elsewhere := sys.modules.get(MIRROR):
                    elsewhere.close()
                return result
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else signal.SIGINT
            if not speaks():
                ctx.exit(128 + number)
            raise Interrupted(number) from error
        except SaidByAnother:
            ctx.exit(1)
        except FerError as error:
            raise click.ClickException(by_address(sentence(error))) from error
        except click.ClickException:
            raise  # of a group in this one, which has told it
        except Exception as error:
            told = starved(error, self.get_command(ctx, ctx.invoked_subcommand or ""))
            if told is None:
                raise
            raise click.ClickException(by_address(sentence(told))) from error
        finally:
            if elsewhere := sys.modules.get(MIRROR):
                elsewhere.forget()


REMEDIES = {
    errno.ENOSPC: "make room there (df -h, df -i)",
    errno.EDQUOT: "make room in your quota",
    errno.EROFS: "give a folder on a disk that can be written",
}
# What libraries in C++ say that have no class of errors for it, of torch, OpenCV and ONNX Runtime.
FULL = r"DefaultCPUAllocator: (can't|not enough)|bad[_ ]alloc|Insufficient memory|Failed to allocate|can't start new th"
FULL_GPU = r"CUDA error: out of memory|CU\w+_STATUS_ALLOC_FAILED"


def starved(error: Exception, command: click.Command | None) -> str | None:
    """What the system or the machine did not give, as a sentence; None if the error is not of that kind."""
    if isinstance(error, BrokenPipeError):  # click knows what to do about it
        return None
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        named = isinstance(error.filename, str | bytes | os.PathLike)
        where = printable(os.fsdecode(error.filename)) if named else "the output"
        then = [REMEDIES[error.errno]] if error.errno in REMEDIES else []
        return "; ".join([f"{where}: {error.strerror or error}", *then, GOES_ON])
    if any(kind.__name__ == "BrokenProcessPool" for kind in type(error).__mro__):
        return f"a process of this command was killed, most likely because memory was full; free some; {GOES_ON}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError) or re.search(FULL_GPU, reason)
    if not on_gpu and not isinstance(error, MemoryError | OSError) and not re.search(FULL, reason):
        return None
    known = _by_name(command) if command is not None else {}
    ways = ["free some", *(["give another --device"] if on_gpu and "device" in known else [])]
    begin = ["a smaller --workers takes less"] if "workers" in known and not on_gpu else []
    if smaller := [f"--{name}" for name in ("batch-size", "label-batch", "size") if name in known]:
        begin.append(
            f"a smaller {' or '.join(smaller)} {'does, too' if begin else 'takes less'}, where nothing is begun yet"
        )
    where = "the GPU's memory" if on_gpu else "memory"
    reason = ". ".join(reason.split(". ")[:2])  # torch goes on about its settings
    return "; ".join([f"{where} is full ({reason})", " or ".join(ways), *begin, GOES_ON])


MIRROR = "efficientface.pipeline.mirror"  # imported only where a run lies elsewhere


def by_address(text: str) -> str:
    """The text with a run's address where the copy's folder stands."""
    elsewhere = sys.modules.get(MIRROR)
    return elsewhere.by_address(text) if elsewhere else text


def setting(config: type, name: str, text: str, **more: Any) -> Callable[[Command], Command]:
    """An option of the name, type and default of a configuration's field."""
    default = getattr(config, name)
    more.setdefault("type", type(default))
    return click.option(f"--{name.replace('_', '-')}", name, default=default, help=text, **more)


def training_settings(config: type[TrainConfig]) -> Callable[[Command], Command]:
    """The options that training any network has."""
    scale = "" if config is PretrainConfig else ", on equation (5)'s scale"
    balanced = click.Choice(["none", "balanced"])
    options = [
        setting(config, "size", "Pixels a side that the network sees."),
        setting(config, "epochs", "Passes over the training faces."),
        setting(config, "batch_size", "Faces in one step."),
        setting(config, "lr", f"SGD's first (step) or highest (onecycle) learning rate{scale}."),
        setting(config, "momentum", "SGD's momentum."),
        setting(config, "weight_decay", "L2 penalty on all weights."),
        setting(config, "schedule", "How the learning rate falls.", type=click.Choice(["step", "onecycle"])),
        setting(config, "lr_step", "Epochs between two cuts of --lr (step)."),
        setting(config, "lr_factor", "What a cut multiplies --lr by (step)."),
        setting(config, "min_area", "Smallest share of the face that a random crop keeps."),
        setting(
            config,
            "normalisation",
            "Mean and standard deviation: of the run's faces, or what the authors' code has for a data set.",
            type=click.Choice(["faces", *NORMALISATIONS]),
        ),
        setting(
            config,
            "sampling",
            "Each face once an epoch, or as many draws with every class equally likely.",
            type=click.Choice(["every", "balanced"]),
        ),
        setting(config, "label_smoothing", "Share of each single label spread over all classes."),
        setting(config, "class_weights", "Of single labels; balanced: rare classes count more.", type=balanced),
        setting(config, "patience", "Stop after so many epochs without a better validation accuracy; 0 never."),
        setting(config, "choose_on", "Split that picks the best epoch; the paper's authors pick it on test."),
        setting(config, "device", "Where to compute: cpu, cuda, cuda:1 ..."),
        setting(config, "precision", "Of training, by autocast.", type=click.Choice(["fp32", "bf16", "fp16"])),
        setting(
            config,
            "compile",
            "By torch.compile: minutes to begin, then perhaps faster on a GPU.",
            is_flag=True,
        ),
        setting(config, "workers", "Threads that decode and crop; 0 is one a core."),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


PRESET = click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="The paper's and its authors' settings for a data set; ferplus, not in the paper, those of docs/results.md. "
    "What is given beside it wins.",
)
RECIPE = click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    help="A way of training, over the preset's: the paper's (the defaults), or a short one. "
    "What is given beside it wins.",
)


def configured(
    config: type[TrainConfig], options: dict[str, Any], before: dict[str, Any] | None = None, **fixed: Any
) -> Any:
    """The settings that the options make: with preset or recipe, or settings from `before`, what was typed wins.

    `fixed` are those that the command has no option for.
    """
    given = {name: value for name, value in options.items() if name in _given()} | fixed
    if options["preset"] is not None or options["recipe"] is not None:
        return with_preset(config, **{"preset": None, **given})
    known = {name: value for name, value in (before or {}).items() if name in options}
    return config(**{**options, **known, **given})


def _typed() -> list[str]:
    """Names of the parameters that stand on the command line."""
    context, source = click.get_current_context(), click.core.ParameterSource
    return [name for name in context.params if context.get_parameter_source(name) is source.COMMANDLINE]


def _given() -> list[str]:
    """Names of the parameters that stand on the command line or in the file of --config."""
    context, source = click.get_current_context(), click.core.ParameterSource
    given = (source.COMMANDLINE, source.DEFAULT_MAP)
    return [name for name in context.params if context.get_parameter_source(name) in given]


def _read_options(path: Path) -> dict[str, Any]:
    """The tables of a file for --config, every value checked; FerError names the file and the key."""
    import tomllib

    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise FerError(f"{path} cannot be read ({error.strerror}); give --config a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FerError(f"{path} is not TOML ({error}); mend it") from error
    _check_tables(path, tables, cli)
    return tables


def _check_tables(path: Path, tables: dict[str, Any], group: click.Group, within: str = "") -> None:
    for name, table in tables.items():
        command, words = group.commands.get(name), within + name
        if command is None:
            known = ", ".join(within + known for known in sorted(group.commands))
            raise FerError(f"{path}: {words!r} is no command of fer; tables are called {known}")
        several = isinstance(table, list) and words in TOLD_BY
        if not all(isinstance(one, dict) for one in (table if several else [table])):
            raise FerError(f"{path}: {words} is not a table; write [{words}] above its options")
        if isinstance(command, click.Group):
            _check_tables(path, table, command, words + ".")
            continue
        options = _by_name(command)
        for one in table if several else [table]:
            for key, value in one.items():
                if key not in options:
                    typed = f"fer {words.replace('.', ' ')}"
                    raise FerError(f"{path}: [{words}] has {key!r}, no option of {typed}; {typed} --help lists them")
                wanted = _wanted(options[key], value)
                if wanted:
                    raise FerError(f"{path}: {key} of [{words}] is {value!r}; give {wanted}")


def _by_name(command: click.Command) -> dict[str, click.Option]:
    """A command's options by their long names without the dashes."""
    options = [option for option in command.params if isinstance(option, click.Option)]
    return {max(option.opts, key=len).lstrip("-"): option for option in options}


def _wanted(option: click.Option, value: Any) -> str | None:
    """What an option takes in place of `value`; None where it takes that. Numbers are as strict as TOML has them."""
    if option.multiple or option.nargs != 1:
        count = "" if option.nargs == 1 else f"{option.nargs} "
        if not isinstance(value, list) or count and len(value) != option.nargs:
            return f"a list of {count}texts"
        return next((f"in it {wanted}" for one in value if (wanted := _one_wanted(option, one))), None)
    return _one_wanted(option, value)


def _one_wanted(option: click.Option, value: Any) -> str | None:
    kind = option.type
    if option.is_flag:
        return None if isinstance(value, bool) else "true or false"
    if isinstance(kind, click.Choice):
        return None if value in kind.choices else f"one of {', '.join(map(str, kind.choices))}"
    if kind is click.FLOAT:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if kind is click.INT or isinstance(kind, click.IntRange):
        fits = isinstance(value, int) and not isinstance(value, bool)
        low = getattr(kind, "min", None)
        return None if fits and (low is None or value >= low) else "a whole number" + (f" from {low}" if low else "")
    return None if isinstance(value, str) else "a text in quotes"


def _meant(path: Path, command: str, tables: list[dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    """Of several tables of a command the one that the typed options tell; without these the one with the defaults."""
    about = {option: getattr(CONFIGS[command], option) for option in TOLD_BY[command]}
    typed = {option: given[option] for option in about if given.get(option) is not None}
    fitting = [table for table in tables if all(table.get(o, about[o]) == value for o, value in typed.items())]
    if len(fitting) > 1:
        usual = {option: value for option, value in about.items() if option not in typed}
        fitting = [table for table in fitting if all(table.get(o, value) == value for o, value in usual.items())]
    if len(fitting) != 1:
        options = " or ".join(f"--{option}" for option in about)
        raise FerError(f"{path} has {len(tables)} tables [[{command}]]; say by {options} which is meant")
    return fitting[0]


def one_network(config: type[TrainConfig]) -> Callable[[Command], Command]:
    """--init, --seed and where curves are shown, of what trains one network."""
    init = "Start from a finished model's weights; its last layer only if the classes are the same."

    def decorate(command: Command) -> Command:
        command = setting(config, "seed", "Seeds weights, order of faces and crops.")(command)
        command = click.option(
            "--mlflow", is_flag=True, help="Tell MLflow each epoch (extra `mlflow`): RUN/mlflow.db."
        )(command)
        command = click.option("--tensorboard", is_flag=True, help="Leave the curves in RUN/tensorboard too.")(command)
        return setting(config, "init", init, metavar="FOLDER")(command)

    return decorate


ADDING = ("cache", "device", "workers")  # options that --add-views heeds

SHARD = click.option(
    "--shard",
    "job",
    metavar="I/N",
    help="Make only the files of job I of N, counted from 1; fer merge finishes when all are done.",
)
CLUSTER = click.option(
    "--cluster",
    metavar="WHERE",
    help="Make files on a Dask cluster: local, or a scheduler's address, tcp://HOST:8786 (needs the extra `cluster`).",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def output_options(command: Command) -> Command:
    """--json and --csv of the commands that look into things."""

    @functools.wraps(command)
    def checked(*args: Any, as_csv: bool, as_json: bool, **options: Any) -> Any:
        if as_csv and as_json:
            raise FerError("--json and --csv ask for two things; give one of them")
        return command(*args, as_csv=as_csv, as_json=as_json, **options)

    as_csv = click.option("--csv", "as_csv", is_flag=True, help="Print the main table as CSV.")
    return cast(Command, as_csv(JSON(checked)))


def model_options(command: Command) -> Command:
    """--names and --model of the commands that ask finished models."""
    names = click.option("--names", help="Only these models of RUN, with commas: teacher, or students by name.")
    others = click.option(
        "--model",
        "models",
        type=PATH,
        metavar="FOLDER",
        multiple=True,
        help="Also this one, of another run (repeatable).",
    )
    return names(others(command))


def _names(text: str | None) -> list[str] | None:
    """Names given with commas."""
    return [name.strip() for name in text.split(",")] if text else None


@click.group(cls=FerGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="fer")
@click.option(
    "--config",
    "file",
    type=PATH,
    metavar="FILE",
    help="TOML with options, a table a command; what is typed wins. fer status RUN --config prints one.",
)
@click.option("--quiet", "-q", is_flag=True, help="Only results, warnings and errors: no progress.")
@click.option(
    "--verbose", "-v", is_flag=True, help="Also the time of each message, and which options were given where."
)
@click.pass_context
def cli(ctx: click.Context, file: Path | None, quiet: bool, verbose: bool) -> None:
    """Facial-expression recognition with small networks, distilled offline.

    \b
    fer align    photographs -> upright faces
    fer teach    faces -> a teacher and every face's label distribution
    fer distill  faces and distributions -> a small student
    """
    if quiet and verbose:
        raise FerError("--quiet and --verbose contradict each other; give one of them")
    # to stderr; stdout is for results; of several processes the first one speaks for all
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(OneLine("%(asctime)s %(name)s: %(message)s" if verbose else "%(message)s"))
    logging.basicConfig(level=logging.INFO if speaks() else logging.WARNING, handlers=[to_stderr])
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose and speaks() else logging.NOTSET)
    if file is not None:
        ctx.meta[FILE_OF_OPTIONS] = file, _read_options(file)


@cli.command()
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]SOURCE...")
@click.argument("run", type=RUN)
@setting(
    AlignConfig,
    "layout",
    "How SOURCE is laid out (or NAME=LAYOUT,...); recognised if not given, but for identities.",
    type=str,
)
@click.option(
    "--classes",
    help="Class names in order, with commas, or a data set's: affectnet-7, raf-db ...; those that occur if not given.",
)
@click.option("--aligned", is_flag=True, help="SOURCE holds aligned faces: no detection, only resizing.")
@setting(AlignConfig, "label_rule", "FER+: from votes to a label.", type=click.Choice(["majority", "votes"]))
@setting(AlignConfig, "val_from_train", "Share of the training faces carved as validation.", type=float)
@setting(AlignConfig, "keep", "Of several faces.", type=click.Choice(["largest", "all"]))
@setting(AlignConfig, "crop", "Pixels a side of the aligned face.")
@setting(AlignConfig, "eye_distance", "Distance of the eyes as a share of the crop's width; more is tighter.")
@setting(AlignConfig, "encode", "How faces are stored.", type=click.Choice(["jpeg", "png"]))
@setting(AlignConfig, "min_face", "Smallest face taken, pixels of the photograph.")
@setting(
    AlignConfig,
    "workers",
    "Threads that detect; processes for 1,000 photographs or on a --cluster; 0: one a core.",
)
@setting(AlignConfig, "shard_faces", "Photographs in a file: what a job or a worker does at a time.")
@setting(AlignConfig, "seed", "Seeds the carving of splits.")
@click.option("--replace", is_flag=True, help="Remove what RUN/faces holds and start over.")
@SHARD
@CLUSTER
@JSON
def align(
    sources: tuple[str, ...],
    run: Path,
    as_json: bool,
    classes: str | None,
    replace: bool,
    job: str | None,
    cluster: str | None,
    **options: Any,
) -> None:
    """Detect and align the faces of SOURCE (a data set's folder, or a CSV or Parquet table) into RUN/faces.

    docs/datasets.md lists the layouts. Several sources each have a name, which begins the ids of their faces.

    \b
    Example:
        fer align photos/ runs/first
        fer align raf-db=RAF-DB affectnet=AffectNet runs/joint --classes affectnet-7
    """
    from efficientface.pipeline import align as stage
    from efficientface.pipeline import show
    from efficientface.pipeline.photographs import named_sources

    names = tuple(name.strip() for name in classes.split(",")) if classes else None
    config = AlignConfig(classes=names, **options)
    result = stage.run(named_sources(sources), run, config, replace, _job(job, cluster), cluster or "")
    _print(result, as_json, show.facts if "next" in result else show.alignment)


@cli.command()
@click.argument("run", type=RUN)
@setting(TeachConfig, "teacher_arch", "The LDG's network, by torchvision's name or as timm/NAME.", metavar="NAME")
@setting(TeachConfig, "views", "Replay views stored beside the canonical one; 0 for per-image use.")
@setting(TeachConfig, "cache", "Write distributions-NAME/ instead of distributions/.", metavar="NAME")
@setting(TeachConfig, "format", "Of the cache: shards, or one file.", type=click.Choice(["parquet", "hdf5"]))
@setting(TeachConfig, "source", "What distributions are: ldg, votes, smooth:E, or a sum such as 0.5*votes+0.5*ldg.")
@setting(TeachConfig, "folds", "Teachers trained out of fold, each asked about faces it has not seen; 0 for one.")
@setting(
    TeachConfig,
    "covers",
    "Faces that get a distribution; train: the labelled training faces.",
    type=click.Choice(["all", "train"]),
)
@click.option("--calibrate", is_flag=True, help="Fit a temperature on --choose-on and note it in the cache.")
@click.option("--add-views", "more_views", type=click.IntRange(1), help="Only add so many views to a finished cache.")
@click.option(
    "--checkpoint",
    "checkpoints",
    type=PATH,
    multiple=True,
    help="A finished teacher's folder: no training, ask this one. Several are averaged.",
)
@setting(TeachConfig, "label_batch", "Views in one forward pass while labelling, at most.")
@setting(
    TeachConfig,
    "label_precision",
    "Of the teacher's answers. bf16 is less exact: how much is measured, told and noted.",
    type=click.Choice(["fp32", "bf16"]),
)
@setting(TeachConfig, "shard_faces", "Faces in a file: what a job or a worker does at a time.")
@click.option("--train-only", is_flag=True, help="Stop when the teacher is trained; --shard needs it so.")
@SHARD
@CLUSTER
@PRESET
@RECIPE
@training_settings(TeachConfig)
@one_network(TeachConfig)
@JSON
def teach(
    run: Path,
    checkpoints: tuple[Path, ...],
    more_views: int | None,
    train_only: bool,
    job: str | None,
    cluster: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the label distribution generator on RUN/faces and cache its answer about every face.

    Options that are not given are those of RUN/teacher and of the cache, where these are finished.

    \b
    Example:
        fer teach runs/first --epochs 40 --views 10
    """
    from efficientface.pipeline import show
    from efficientface.pipeline import teach as stage
    from efficientface.pipeline.status import settings_before

    if more_views and (others := [n for n in _typed() if n not in ("run", "more_views", "as_json", *ADDING)]):
        named = ", ".join(
            f"--{ {'checkpoints': 'checkpoint', 'job': 'shard'}.get(name, name) }".replace("_", "-") for name in others
        )
        raise FerError(f"--add-views adds to a finished cache by the settings that it has; leave out {named}")
    if train_only and job:
        raise FerError("--train-only trains and --shard only asks teachers; give one of them")
    config = configured(TeachConfig, options, settings_before(run, options["cache"]))
    result = stage.run(run, config, checkpoints, more_views or 0, train_only, _job(job, cluster), cluster or "")
    _print(result, as_json, show.facts)


def _job(text: str | None, cluster: str | None) -> Job | None:
    """What --shard says; --cluster divides the work by itself."""
    if text and cluster:
        raise FerError("--shard is for machines without a cluster, and --cluster divides the files by itself; give one")
    return parse_job(text) if text else None


@cli.command()
@click.argument("run", type=RUN)
@click.argument("others", type=PATH, nargs=-1, metavar="[OTHER]...")
@JSON
def merge(run: Path, others: tuple[Path, ...], as_json: bool) -> None:
    """Finish what the jobs of fer align --shard or fer teach --shard have made in RUN, or each in a copy, OTHER.

    The result is that of one process. While a job's files are missing, nothing is written.

    \b
    Example:
        fer merge runs/first
        fer merge runs/first runs/first-of-node-2
    """
    from efficientface.pipeline import merge as stage

    _print(stage.run(run, others), as_json, stage.tables)


@cli.command()
@click.argument("run", type=RUN)
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
@setting(
    DistillConfig,
    "loss",
    "ldl: equation (5) on cached distributions; kl: tempered divergence to them; sll: single labels.",
    type=click.Choice(["ldl", "kl", "sll"]),
)
@setting(DistillConfig, "cache", "Read distributions-NAME/ instead of distributions/.", metavar="NAME")
@setting(DistillConfig, "name", "Write students/NAME; the loss's name if not given.", metavar="NAME")
@setting(DistillConfig, "temperature", "T of the targets softmax(log p / T), more is softer; kl: also of the student.")
@setting(DistillConfig, "label_weight", "Share of the label in the target, beside the distribution (ldl, kl).")
@click.option("--calibrated", is_flag=True, help="The temperature that `fer teach --calibrate` noted in the cache.")
@click.option("--live", is_flag=True, help="Ask RUN/teacher about every crop, as the authors do, not the cache.")
@setting(DistillConfig, "label_batch", "Views in one forward pass of the teacher (--live), at most.")
@click.option("--unlabelled", is_flag=True, help="Also train on faces without a label (ldl, kl).")
@PRESET
@RECIPE
@training_settings(DistillConfig)
@one_network(DistillConfig)
@JSON
def distill(run: Path, as_json: bool, **options: Any) -> None:
    """Train a student on RUN's cached distributions; the teacher is not loaded.

    \b
    Example:
        fer distill runs/first --epochs 40 --name first-student
    """
    from efficientface.pipeline import distill as stage
    from efficientface.pipeline import show

    _print(stage.run(run, configured(DistillConfig, options)), as_json, show.facts)


@cli.command()
@click.argument("run", type=RUN)
@click.option("--arch", default=PretrainConfig.arch, help="The network: that of the teacher or student to come.")
@setting(PretrainConfig, "modulation", "As of `fer distill`.", type=click.Choice(["multiply", "add"]))
@setting(PretrainConfig, "name", "Write identities/NAME; the network's name if not given.", metavar="NAME")
@training_settings(PretrainConfig)
@one_network(PretrainConfig)
@JSON
def pretrain(run: Path, as_json: bool, **options: Any) -> None:
    """Train a network to tell people apart, for `fer teach --init` and `fer distill --init` to start from.

    RUN is what `fer align SOURCE RUN --layout identities` made of a folder a person, or of a table.

    \b
    Example:
        fer pretrain runs/people --arch efficientface --epochs 30
    """
    from efficientface.pipeline import pretrain as stage
    from efficientface.pipeline import show

    _print(stage.run(run, PretrainConfig(**options)), as_json, show.facts)


@cli.command()
@click.argument("run", type=RUN)
@click.option("--split", default="test", help="Split whose labelled faces are judged.")
@click.option("--device", default="cpu", help="Where to compute.")
@model_options
@click.option(
    "--subset",
    "subsets",
    metavar="LIST",
    multiple=True,
    help="Also judge a part of the split (repeatable): a list of file names, pose:30 (yaw or pitch), yaw:30.",
)
@click.option("--compare", nargs=2, metavar="A B", help="McNemar's test between two of the models, by name.")
@click.option("--plots", type=PATH, metavar="DIR", help="Leave training curves and confusion matrices as PNG and SVG.")
@output_options
def evaluate(
    run: Path,
    split: str,
    device: str,
    names: str | None,
    models: tuple[Path, ...],
    subsets: tuple[str, ...],
    compare: tuple[str, str] | None,
    plots: Path | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Judge the teacher and every student of RUN on one split, by labels and by distributions.

    Students that differ only in their seed are also averaged.

    \b
    Example:
        fer evaluate runs/first --split test
        fer evaluate runs/raf --subset rafdb_occlusion_list.txt --subset pose:45 --compare ldl sll
    """
    from efficientface.pipeline import evaluate as stage

    result = stage.run(
        run, split, device=device, names=_names(names), models=models, subsets=subsets, compare=compare, plots=plots
    )
    _print(result, as_json, stage.tables, stage.rows(result) if as_csv else None)


@cli.command()
@click.argument("run", type=RUN)
@click.option("--seeds", default="0,1", help="A student of each network and way of learning for each, with commas.")
@click.option("--tables", "which", default="1,2", help="The paper's tables to make, with commas.")
@setting(DistillConfig, "cache", "Students of distributions read distributions-NAME/.", metavar="NAME")
@setting(
    DistillConfig,
    "modulation",
    "EfficientFace: authors' code or equation (1).",
    type=click.Choice(["multiply", "add"]),
)
@click.option(
    "--init",
    "inits",
    type=PATH,
    multiple=True,
    metavar="FOLDER",
    help="Table 2: start from these finished models, one a network, as the paper does.",
)
@click.option("--name", default="ablate", help="Students are called NAME-NETWORK-LOSS-SEED.", metavar="NAME")
@click.option("--split", default="test", help="Split whose labelled faces are judged.")
@PRESET
@RECIPE
@training_settings(DistillConfig)
@output_options
def ablate(
    run: Path,
    seeds: str,
    which: str,
    inits: tuple[Path, ...],
    name: str,
    split: str,
    as_csv: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train and judge the students of the paper's ablations, tables 1 and 2, on RUN's faces and distributions.

    Table 2 needs RUN/teacher and the cache, by fer teach. Interrupted, the same command goes on; students that are
    finished are not trained again.

    \b
    Example:
        fer ablate runs/first --seeds 0,1 --size 64 --epochs 30
    """
    from efficientface.pipeline import ablate as stage

    numbers = {option: _numbers(option, text) for option, text in (("--seeds", seeds), ("--tables", which))}
    # what is about single labels is for the students of single labels: the stage gives each what is its own
    config = configured(DistillConfig, options, name=name, loss="sll")
    result = stage.run(run, config, numbers["--seeds"], numbers["--tables"], name, split, inits)
    _print(result, as_json, stage.tables, result.get("rows") if as_csv else None)


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers given with commas."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise FerError(f"{option} {text} is not understood; give whole numbers with commas, such as 0,1") from error


@cli.command()
@click.argument("path", type=RUN)
@click.option("--face", metavar="ID", help="One face as bars.")
@click.option("--top", type=click.Choice(["ambiguous", "disagreeing"]), help="The faces that are most so.")
@click.option("--count", "-n", default=10, help="How many faces --top shows.")
@click.option("--html", type=PATH, metavar="FILE", help="Write a page about all distributions, to open in a browser.")
@click.option("--sheet", type=PATH, metavar="FILE", help="Draw random faces as a contact sheet, PNG or SVG.")
@click.option("--label", metavar="CLASS", help="Only faces of this label (--sheet).")
@click.option("--split", help="Only faces of this split (--sheet).")
@click.option("--seed", type=int, help="Another sheet for another number (0).")
@click.option("--sample", type=int, metavar="N", help="Faces with a picture in the page (1200), or on the sheet (20).")
@click.option("--student", multiple=True, metavar="NAME", help="Student asked for the page (repeatable); all if none.")
@click.option("--no-students", is_flag=True, help="Ask no student for the page.")
@output_options
def inspect(
    path: Path,
    face: str | None,
    top: str | None,
    count: int,
    html: Path | None,
    sheet: Path | None,
    label: str | None,
    split: str | None,
    seed: int | None,
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
        fer inspect runs/first/faces --label contempt --sample 20 --sheet contempt.png
    """
    from efficientface.pipeline import inspect as stage

    if sheet is not None:
        from efficientface.pipeline import sheet as drawing

        if html is not None or face is not None or top is not None or student or no_students:
            raise FerError(
                "--sheet draws random faces; of other options it takes --label, --split, --sample and --seed"
            )
        count = drawing.SAMPLE if sample is None else sample
        result = drawing.run(path, sheet, label, split, count, seed or 0)
        _print(result, as_json, drawing.tables, result["faces"] if as_csv else None)
        return
    if label is not None or split is not None or seed is not None:
        raise FerError("--label, --split and --seed are about the contact sheet; give --sheet FILE as well")
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


@cli.command()
@click.argument("run", type=RUN)
@click.option("--out", type=PATH, required=True, metavar="FILE", help="The picture, PNG or SVG by its name.")
@model_options
@click.option("--face", "faces", metavar="ID", multiple=True, help="A face of RUN (repeatable).")
@click.option(
    "--image", "images", type=PATH, metavar="FILE", multiple=True, help="Any photograph, aligned as RUN's (repeatable)."
)
@click.option("--sample", default=6, help="Without --face and --image: so many random faces of RUN.")
@click.option("--split", default="test", help="Split that these are from.")
@click.option("--label", metavar="CLASS", help="Label that these have; any if not given.")
@click.option("--seed", default=0, help="Other random faces for another number.")
@click.option("--of", default="predicted", metavar="CLASS", help="What maps are about: predicted, label, or a class.")
@click.option("--bars", is_flag=True, help="The distributions that the models give, in place of maps.")
@click.option("--device", default="cpu", help="Where to compute.")
@output_options
def explain(run: Path, names: str | None, as_csv: bool, as_json: bool, **options: Any) -> None:
    """Draw what models look at, class activation maps over faces side by side, or what they say (--bars).

    \b
    Example:
        fer explain runs/first --names ldl,sll --out maps.png
        fer explain runs/first --image me.jpg --bars --out me.svg
    """
    from efficientface.pipeline import explain as stage

    result = stage.run(run, names=_names(names), **options)
    _print(result, as_json, stage.tables, result["faces"] if as_csv else None)


@cli.command()
@click.argument("source")
@click.option("--model", type=PATH, required=True, metavar="FOLDER", help="A finished student or teacher.")
@click.option("--out", type=PATH, metavar="FILE", help="Write a table: .jsonl, .csv or .parquet.")
@click.option(
    "--annotate",
    type=PATH,
    metavar="DIR|FILE",
    help="Write the photographs with boxes and bars there; FILE for one (.jpg, .png) or a video (.mp4, .webm, .avi).",
)
@click.option("--keep", default="all", help="Of several faces.", type=click.Choice(["all", "largest"]))
@click.option("--device", default="cpu", help="Where to compute.")
@setting(AlignConfig, "workers", "Threads that detect; 0 is one a core.")
@click.option("--track", is_flag=True, help="Number the faces of a video or camera that are the same by their overlap.")
@click.option(
    "--smooth",
    default=0.0,
    metavar="SECONDS",
    help="Average the distributions of each face of a video or camera over about so long; includes --track.",
)
@output_options
def predict(source: str, as_csv: bool, as_json: bool, **options: Any) -> None:
    """Say what a model sees in every face of SOURCE: a photograph, a folder, a list (.txt), - for paths on standard
    input, a video, or camera:0.

    A camera's pictures are shown with their bars in a window; q, Escape, closing it or Ctrl-C ends the command. Faces
    are detected and aligned as those that the model learned from. Interrupted, the same command with --out goes on
    with the photographs that are missing; the table is written whole at the end.

    \b
    Example:
        fer predict me.jpg --model runs/first/students/ldl
        fer predict photos --model runs/first/students/ldl --out faces.csv --annotate seen
        fer predict clip.mp4 --model runs/first/students/ldl --smooth 0.5 --annotate seen.webm
        fer predict camera:0 --model runs/first/students/ldl
    """
    from efficientface.pipeline import recognise as stage

    result = stage.run(source, **options)
    rows = stage.csv_rows(result["rows"]) if "rows" in result else [result]
    _print(result, as_json, stage.tables, list(rows) if as_csv else None)


@cli.command()
@click.argument("student", type=PATH)
@click.argument("out", type=PATH)
@click.option("--fp16", is_flag=True, help="Store weights in half precision; computing stays in single.")
@click.option("--int8", is_flag=True, help="Compute in whole numbers of 8 bits, if that pays: measured beside fp32.")
@click.option("--force", is_flag=True, help="Write the int8 file even if it does not pay.")
@click.option("--maps", is_flag=True, help="Give class activation maps as well, as a second output.")
@JSON
def export(student: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Write a finished model as ONNX (OUT ends in .onnx) or TorchScript (.pt), checked against torch before it gets its
    name.

    ONNX needs the extra `export`.

    \b
    Example:
        fer export runs/first/students/ldl student.onnx
        fer export runs/first/students/ldl student.pt
    """
    from efficientface.pipeline import export as stage
    from efficientface.pipeline import show

    _print(stage.run(student, out, **options), as_json, show.facts)


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
@click.argument("path", type=RUN)
@click.option(
    "--teacher",
    "teachers",
    type=PATH,
    multiple=True,
    help="The teacher that made it: asked again about some views. Of several, each.",
)
@click.option("--sample", default=100, help="How many random views the teacher is asked about.")
@output_options
@click.pass_context
def verify(
    ctx: click.Context, path: Path, teachers: tuple[Path, ...], sample: int, as_csv: bool, as_json: bool
) -> None:
    """Check a cache: every byte, every number, and the faces it is about if they are there. Status 1 if not all right.

    \b
    Example:
        fer cache verify runs/first/distributions --teacher runs/first/teacher
    """
    from efficientface.pipeline import verify as stage

    result = stage.verify(path, teachers, sample)
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
@click.argument("path", type=RUN)
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
@click.argument("run", type=RUN)
@click.option(
    "--config", "as_config", is_flag=True, help="Print all settings of finished stages, as fer --config reads."
)
@output_options
@click.pass_context
def status(ctx: click.Context, run: Path, as_config: bool, as_csv: bool, as_json: bool) -> None:
    """Say which stages of RUN are done, stale or missing, and the next command.

    \b
    Example:
        fer status runs/first
        fer status runs/first --config > first.toml
    """
    from efficientface.pipeline import status as stage

    if as_config:
        from efficientface.pipeline.repeat import configuration

        if as_csv or as_json:
            raise FerError("--config prints TOML; leave out --json and --csv")
        _, given = ctx.meta.get(FILE_OF_OPTIONS, (None, {}))
        click.echo(configuration(run, given), nl=False)
        return
    result = stage.status(run)
    _print(result, as_json, stage.status_tables, result["stages"] if as_csv else None)


@cli.command()
@click.argument("run", type=RUN)
def dvc(run: Path) -> None:
    """Print a dvc.yaml of RUN's finished stages: the command of each, what it reads and what it leaves.

    Paths are relative to where you are, the folder for the file.

    \b
    Example:
        fer dvc runs/first > dvc.yaml
    """
    from efficientface.pipeline import repeat

    click.echo(repeat.dvc(run), nl=False)


@cli.command()
@click.argument("run", type=RUN)
@click.option("--out", type=PATH, metavar="FILE", help="The page; RUN/report.html if not given.")
@click.option("--no-faces", is_flag=True, help="Leave out every picture: faces are personal data.")
@click.option("--seed", default=0, help="Other faces for another number.")
@click.option("--latency", is_flag=True, help="Measure how long each network takes for a face; differs every time.")
@click.option("--device", default="cpu", help="Where to compute.")
@JSON
def report(run: Path, no_faces: bool, as_json: bool, **options: Any) -> None:
    """Write one HTML page about all of RUN, to show to others: faces, training, models, mistakes, cost, commands.

    What the run does not have yet is named as missing. Finished models are asked about the evaluated split.

    \b
    Example:
        fer report runs/first
        fer report runs/first --no-faces --out first.html
    """
    from efficientface.pipeline import report as stage

    _print(stage.run(run, faces=not no_faces, **options), as_json, stage.tables)


@cli.command()
@click.argument("path", type=RUN)
@click.option("--out", type=PATH, metavar="FILE", help="Write it there, such as README.md, instead of printing it.")
@click.option("--license", "licence", metavar="ID", help="Hugging Face's name of the licence that you choose.")
def card(path: Path, out: Path | None, licence: str | None) -> None:
    """Write the card of a model, or of the faces and distributions of a run, in Hugging Face's form.

    PATH is a model's folder, or a run. Every figure is from the artifacts; what they do not say is named as missing.

    \b
    Example:
        fer card runs/first/students/ldl --license cc-by-nc-4.0 --out README.md
        fer card runs/first
    """
    from efficientface.pipeline import card as stage

    result = stage.run(path, out, licence)
    click.echo(
        f"{result['kind']} card written to {result['card']}" if out is not None else result["text"], nl=out is not None
    )


@cli.command("verify")
@click.argument("run", type=RUN)
@output_options
@click.pass_context
def verify_run(ctx: click.Context, run: Path, as_csv: bool, as_json: bool) -> None:
    """Check all of RUN: every byte, each stage against what it was made from, and the photographs if they are there.

    A line a finding; status 1 if not all is right.

    \b
    Example:
        fer verify runs/first
    """
    from efficientface.pipeline import verify, verify_run

    result = verify_run.verify(run)
    _print(result, as_json, verify.tables, result["checks"] if as_csv else None)
    if not result["ok"]:
        ctx.exit(1)


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
@setting(DemoConfig, "identities", "With --images: faces of so many people, a folder each; 0: all are of others.")
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
    if config.identities and images is None:
        raise FerError("--identities is about drawing alone; give --images FOLDER as well")
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
    if not speaks():
        return
    if MIRROR in sys.modules:
        result, csv_rows = json.loads(by_address(json.dumps([result, csv_rows], ensure_ascii=False)))
    if csv_rows is not None:
        from efficientface.pipeline import show

        rows = show.csv_rows(csv_rows, sys.stdout.isatty())
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    if as_json:
        from efficientface.pipeline.show import json_text

        click.echo(json_text(result))
        return
    from rich.text import Text

    from efficientface.pipeline.show import PlainConsole

    # without a terminal: wide enough that no row is folded, so that lines can be searched
    console = PlainConsole(width=None if sys.stdout.isatty() else 130, highlight=False)
    for table in tables(result):
        console.print(table, soft_wrap=isinstance(table, Text))  # no line breaks in a command that will be copied


def main() -> None:
    """The installed command."""
    os.environ["PYTHONSAFEPATH"] = "1"  # processes that it starts import nothing from the current folder
    cli(prog_name="fer")


if __name__ == "__main__":
    main()
