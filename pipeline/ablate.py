"""The paper's two ablations on one run: table 1, what each part of EfficientFace brings, and table 2, what
distributions bring. One alignment and one cache serve every student; a finished one is not trained again."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from efficientface import FerError
from efficientface.models import MODULATED
from efficientface.pipeline import distill
from efficientface.pipeline.artifact import make_folder, read_manifest, write_sealed
from efficientface.pipeline.caches import open_cache
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.config import DistillConfig
from efficientface.pipeline.evaluate import judge
from efficientface.pipeline.inputs import read_inputs
from efficientface.pipeline.metrics import mcnemar, share, spread
from efficientface.pipeline.ranks import joined, leads

log = logging.getLogger(__name__)

DATASETS = ("RAF-DB", "CAER-S")
TEACHER = "teacher"


class Cell(NamedTuple):
    """One row of the paper: a network, how it learned, and the paper's figures."""

    method: str
    arch: str  # of a student, or TEACHER, the run's
    loss: str
    params: float  # millions
    mflops: float
    accuracies: tuple[float, float]  # %, on DATASETS


# Zhao, Liu and Zhou, AAAI 2021, tables 1 and 2. Table 1 is trained from scratch on single labels; table 2's networks
# were pre-trained on MS-Celeb-1M.
TABLES = {
    1: (
        Cell("Baseline", "baseline", "sll", 1.26, 147.79, (82.23, 79.52)),
        Cell("Baseline + local", "baseline-local", "sll", 1.27, 152.79, (83.57, 80.68)),
        Cell("Baseline + modulator", "baseline-modulator", "sll", 1.27, 153.79, (83.12, 80.48)),
        Cell("EfficientFace (both)", "efficientface", "sll", 1.28, 154.18, (83.83, 81.48)),
    ),
    2: (
        Cell("LDG (SLL)", TEACHER, "sll", 23.52, 4109.48, (86.93, 84.81)),
        Cell("Baseline (SLL)", "baseline", "sll", 1.26, 147.79, (84.58, 84.06)),
        Cell("Baseline (LDL)", "baseline", "ldl", 1.26, 147.79, (87.87, 85.74)),
        Cell("EfficientFace (SLL)", "efficientface", "sll", 1.28, 154.18, (85.66, 84.51)),
        Cell("EfficientFace (LDL)", "efficientface", "ldl", 1.28, 154.18, (88.36, 85.87)),
    ),
}
TITLES = {
    1: "Table 1: the parts of EfficientFace, single labels, from scratch",
    2: "Table 2: single labels (SLL) and label distributions (LDL)",
}
# What the paper says of its tables: the row that is better, and the one that it is better than, by their place.
CLAIMS = {1: ((1, 0), (2, 0), (3, 0), (3, 1), (3, 2)), 2: ((2, 1), (4, 3), (3, 1), (4, 2), (4, 0))}


def run(
    run: Path,
    config: DistillConfig,
    seeds: Sequence[int] = (0, 1),
    which: Sequence[int] = (1, 2),
    name: str = "ablate",
    split: str = "test",
    inits: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train the students of the paper's tables `which`, one a network, way of learning and seed; judge them on `split`.

    `config` is what they have in common. They are RUN/students/NAME-ARCH-LOSS-SEED. Table 2 needs RUN/teacher and the
    cache; its students start from the finished models `inits`, one a network, if there are any. Writes
    RUN/ablation/NAME-SPLIT.json and returns what it holds: the rows with the paper's figures, and the differences that
    the paper draws its conclusions from.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise FerError("--seeds names no seed, or one twice; give different numbers with commas, such as 0,1")
    unknown = [table for table in which if table not in TABLES]
    if unknown or not which:
        raise FerError(f"--tables {','.join(map(str, unknown))} is not known; choose from 1 and 2")
    which = sorted(set(which))
    # hours before it would otherwise be missed
    read_inputs(run).labelled(split)
    if 2 in which:
        read_manifest(run / TEACHER, "teacher")
        open_cache(run / (f"distributions-{config.cache}" if config.cache else "distributions"))
    starts = started_from(inits) if 2 in which else {}
    cells = [(table, cell) for table in which for cell in TABLES[table]]
    learners = {
        (table, cell): [student(config, name, cell, seed, starts if table == 2 else {}) for seed in seeds]
        for table, cell in cells
        if cell.arch != TEACHER
    }
    # a seed at a time, so that one is whole before the next begins; tables share students
    queue = {one.name: one for k in range(len(seeds)) for one in (configs[k] for configs in learners.values())}
    with joined(config.device):
        for done, (student_name, one) in enumerate(queue.items(), start=1):
            log.info("%d of %d: %s", done, len(queue), student_name)
            distill.run(run, one)
        result: dict[str, Any] = {}
        if leads():
            models = {cell: [one.name for one in learners[cell]] if cell in learners else [TEACHER] for cell in cells}
            # the paper's were pre-trained, teacher and students
            started = {"students": bool(starts), TEACHER: 2 in which and taught_from_another(run)}
            result = report(run, models, split, config.device) | {"seeds": list(seeds), "started": started}
            folder = run / "ablation"
            make_folder(folder)
            write_sealed(folder / f"{name}-{split}.json", result)
    return result


def taught_from_another(run: Path) -> bool:
    """Whether RUN's teacher began with another model's weights, or is one from elsewhere."""
    manifest = read_manifest(run / TEACHER, "teacher")
    return "init" in manifest["made_from"] or bool(manifest["facts"].get("imported"))


def started_from(inits: Sequence[Path]) -> dict[str, Path]:
    """Finished models by their network; FerError if table 2's networks would not all start from one."""
    starts = {load_model(folder)[1]["arch"]: folder for folder in inits}
    wanted = {cell.arch for cell in TABLES[2]} - {TEACHER}
    if starts and (set(starts) != wanted or len(inits) > len(starts)):
        given, needed = ", ".join(sorted(starts)), ", ".join(sorted(wanted))
        raise FerError(f"--init gives {given}; table 2 needs a start of each of {needed}, once")
    return starts


def student(config: DistillConfig, name: str, cell: Cell, seed: int, starts: Mapping[str, Path]) -> DistillConfig:
    """The settings of a cell's student, NAME-ARCH-LOSS-SEED: `config`, but for what makes the cell.

    What is about the other way of learning is left out, and the modulation where there is no modulator. One that starts
    from another model is called NAME-init-..., so that table 1 has its own.
    """
    given: dict[str, Any] = {
        "arch": cell.arch,
        "loss": cell.loss,
        "seed": seed,
        "name": f"{name}{'-init' if starts else ''}-{cell.arch}-{cell.loss}-{seed}",
        "init": str(starts.get(cell.arch, "")),
    }
    if cell.loss == "sll":
        given |= {
            "cache": "",
            "temperature": 1.0,
            "calibrated": False,
            "live": False,
            "unlabelled": False,
            "label_weight": 0.0,
        }
    else:
        given |= {"label_smoothing": 0.0, "class_weights": "none"}
    if cell.arch not in MODULATED:
        given["modulation"] = DistillConfig.modulation
    return replace(config, **given)


def report(run: Path, models: Mapping[tuple[int, Cell], Sequence[str]], split: str, device: str) -> dict[str, Any]:
    """The tables' rows and differences, from finished models: of each cell their names, one a seed."""
    names = dict.fromkeys(name for cell in models.values() for name in cell)
    folders = {name: run / TEACHER if name == TEACHER else run / "students" / name for name in names}
    judged, right = judge(run, split, folders, device)
    hits = {cell: np.array([right[""][name] for name in names]) for cell, names in models.items()}
    differences = []
    for table in dict.fromkeys(table for table, _ in models):
        cells = [(table, cell) for cell in TABLES[table]]
        differences += [
            claim(table, cells[a][1], cells[b][1], hits[cells[a]], hits[cells[b]]) for a, b in CLAIMS[table]
        ]
    facts = {key: judged[key] for key in ("run", "split", "count", "images", "classes")}
    rows = [row(table, cell, names, judged["models"]) for (table, cell), names in models.items()]
    return {**facts, "rows": rows, "differences": differences}


def row(table: int, cell: Cell, names: Sequence[str], models: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a table: the paper's figures, and ours as the mean over seeds.

    The interval is that of one model of the mean accuracy, for the faces that happen to be in the split; how far seeds
    lie apart is the deviation.
    """
    scores = [models[name] for name in names]
    accuracies = [score["accuracy"] for score in scores]
    count = scores[0]["count"]
    return {
        "table": table,
        "method": cell.method,
        "arch": scores[0]["arch"],
        "loss": cell.loss,
        "paper": {
            "parameters_m": cell.params,
            "mflops": cell.mflops,
            **dict(zip(DATASETS, cell.accuracies, strict=True)),
        },
        "parameters": scores[0]["parameters"],
        "models": list(names),
        "chosen_on": scores[0]["chosen_on"],
        **share(sum(accuracies) / len(accuracies) * count, count),
        "accuracies": accuracies,
        "deviation": spread(accuracies)["deviation"] if len(accuracies) > 1 else None,
        "macro_f1": float(np.mean([score["macro_f1"] for score in scores])),
        "all_images": float(np.mean([score["all_images"]["accuracy"] for score in scores])),
    }


def claim(table: int, better: Cell, worse: Cell, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """By how much the row that the paper finds better is better here. a, b: (seeds, N) bool, right about each face.

    The interval is of the mean over faces of the paired difference, each averaged over its seeds: for other faces, not
    for other seeds, whose own differences stand beside it. `p` is McNemar's, seed by seed.
    """
    paired = a.mean(0) - b.mean(0)
    difference, reach = float(paired.mean()), 1.96 * float(paired.std()) / len(paired) ** 0.5
    # a teacher, of which there is one, is compared with each student
    pairs = [(a[k % len(a)], b[k % len(b)]) for k in range(max(len(a), len(b)))]
    return {
        "table": table,
        "better": better.method,
        "worse": worse.method,
        "paper": {
            name: round(x - y, 2) for name, x, y in zip(DATASETS, better.accuracies, worse.accuracies, strict=True)
        },
        "difference": difference,
        "interval": [difference - reach, difference + reach],
        "differences": [float(one.mean() - other.mean()) for one, other in pairs],
        "p": [mcnemar(one, other)["p"] for one, other in pairs],
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """The paper's tables with ours beside them, then the differences."""
    shown: list[Any] = []
    for number in sorted({row["table"] for row in result["rows"]}):
        shown += [accuracy_table(result, number), difference_table(result, number)]
    return shown


def of_table(rows: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Those of one of the paper's tables."""
    return [line for line in rows if line["table"] == number]


def accuracy_table(result: dict[str, Any], number: int) -> Table:
    seeds = f"mean over {len(result['seeds'])} seeds" if len(result["seeds"]) > 1 else f"seed {result['seeds'][0]}"
    caption = f"here: {result['count']:,} faces of {result['split']}, {seeds}, [95 % interval over faces]"
    if number == 2:
        here = {(True, True): "teacher and students", (True, False): "the teacher", (False, True): "the students"}
        began = here.get((result["started"][TEACHER], result["started"]["students"]), "none")
        caption += "\nthe paper's networks of this table were pre-trained on MS-Celeb-1M; "
        caption += f"of ours, {began} began with other models"
    if any(line["chosen_on"] == result["split"] for line in of_table(result["rows"], number)):
        caption += f"\nbest epochs chosen on {result['split']} itself, so too good (as the authors chose theirs)"
    table = Table("method", title=TITLES[number], caption=Text(caption))
    for column in ("params M", "MFLOPs", *(f"{name} %" for name in DATASETS), "params here", "here %", "macro-F1 %"):
        table.add_column(column, justify="right")
    if len(result["seeds"]) > 1:
        table.add_column("by seed %", justify="right")
    for line in of_table(result["rows"], number):
        paper = line["paper"]
        low, high = line["accuracy_interval"]
        table.add_row(
            line["method"],
            f"{paper['parameters_m']:.2f}",
            f"{paper['mflops']:.2f}",
            *(f"{paper[name]:.2f}" for name in DATASETS),
            f"{line['parameters'] / 1e6:.2f}",
            Text(f"{100 * line['accuracy']:.2f} [{100 * low:.1f}, {100 * high:.1f}]"),
            f"{100 * line['macro_f1']:.2f}",
            *([" ".join(f"{100 * a:.2f}" for a in line["accuracies"])] if len(result["seeds"]) > 1 else []),
        )
    return table


def difference_table(result: dict[str, Any], number: int) -> Table:
    caption = "points; [95 % interval over faces, paired]; p by seed: McNemar's test, exact"
    table = Table("better than, by the paper", title=f"Table {number}: the differences", caption=Text(caption))
    for column in (*DATASETS, "here", "by seed", "p by seed"):
        table.add_column(column, justify="right")
    for line in of_table(result["differences"], number):
        low, high = line["interval"]
        table.add_row(
            f"{line['better']} > {line['worse']}",
            *(f"{line['paper'][name]:+.2f}" for name in DATASETS),
            Text(f"{100 * line['difference']:+.2f} [{100 * low:+.1f}, {100 * high:+.1f}]"),
            " ".join(f"{100 * d:+.2f}" for d in line["differences"]),
            " ".join(f"{p:.3f}" for p in line["p"]),
        )
    return table
