"""Size and speed of networks: parameters and multiply-adds beside the paper's figures, and what this device takes."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import nn

from efficientface import FerError
from efficientface.models import build, check_size
from efficientface.models.counting import count
from efficientface.pipeline.device import prepare
from efficientface.pipeline.progress import progress

log = logging.getLogger(__name__)

CLASSES = 7  # the paper's figures are for seven, also beside AffectNet-8
PAPER_SIZE = 224  # pixels
SECONDS = 1.0  # how long one speed is measured at least
LEAST_RUNS = 3


class Printed(NamedTuple):
    """A method of the paper's Tables 1 to 7 with its millions of parameters and of multiply-adds as they stand there.

    `>` marks a lower limit and `~` the authors' own reproduction. `arch` is None where nothing here is that network.
    """

    method: str
    arch: str | None
    parameters: str
    multiply_adds: str
    tables: tuple[int, ...]


PRINTED = (
    Printed("Baseline", "baseline", "1.26", "147.79", (1, 2)),
    Printed("Baseline + Local-Feature Extractor", "baseline-local", "1.27", "152.79", (1,)),
    Printed("Baseline + Channel-Spatial Modulator", "baseline-modulator", "1.27", "153.79", (1,)),
    Printed("EfficientFace", "efficientface", "1.28", "154.18", (1, 2, 3, 4, 5, 6, 7)),
    Printed("LDG", "resnet50", "23.52", "4109.48", (2,)),
    Printed("ResNet-50", "resnet50", "23.52", "4109.48", (4,)),
    Printed("ResNet-18", "resnet18", "11.18", "1818.56", (4, 6, 7)),
    Printed("MobileNet-V2", "mobilenet_v2", "2.23", "312.86", (4,)),
    Printed("Res2Net-50", "timm/res2net50_26w_4s", "23.66", "4278.60", (4,)),
    Printed("VGG-16", "vgg16", "134.29", "15479.79", (6,)),
    Printed("Weighted-Loss", "alexnet", "57.03", "710624.57", (5,)),
    Printed("Separate-Loss", None, "11.18", "1818.56", (3, 5)),
    Printed("DDA-Loss", None, "11.18", "1818.56", (3, 5)),
    Printed("SCN", None, "~11.18", "~1818.56", (3, 5)),
    Printed("RAN", None, "11.19", "14548.45", (3, 5, 6, 7)),
    Printed("LDL-ALSG", None, "23.52", "4109.48", (3, 5)),
    Printed("IPA2LT", None, ">23.52", ">4109.48", (3, 5)),
    Printed("gACNN", None, ">134.29", ">15479.79", (3, 5, 6)),
    Printed("CAER-Net-S", None, "~2.12", "~1717.65", (4,)),
    Printed("IPFR", None, "21.80", "5729.12", (5,)),
    Printed("FMPN", None, "21.80", "5729.117", (5,)),
    Printed("VGG-FACE", None, "145.00", "15490.46", (5,)),
    Printed("SNA-DFER", None, "~2.47", "~763.09", (5,)),
    Printed("VGGNet-Variant", None, "~6.54", "~80.44", (5,)),
    Printed("MobileNet-Variant", None, "~0.074", "~13.56", (5,)),
    Printed("ESR-9", None, "0.37", "1164.43", (5,)),
)


def run(
    archs: Sequence[str] = (),
    device: str = "cpu",
    size: int = PAPER_SIZE,
    batch_size: int = 16,
    measure: bool = True,
) -> dict[str, Any]:
    """Count and, if `measure`, time networks by name; without names, those of the paper's tables.

    Returns `rows`, one a method of the paper, or a network that it does not have. Multiply-adds are of one image of
    `size` pixels a side; speeds are those of fresh weights in fp32.
    """
    if not 1 <= size <= 4096 or not 1 <= batch_size <= 65_536:
        raise FerError(f"--size {size} or --batch-size {batch_size} is out of range; give at least 1")
    place = prepare(device)
    wanted = list(dict.fromkeys(archs or [row.arch for row in PRINTED if row.arch]))
    found: dict[str | None, dict[str, Any]] = {}
    with progress("profiling", len(wanted), "networks") as advance:
        for arch in wanted:
            try:
                found[arch] = profile_network(arch, place, size, batch_size, measure)
            except FerError as error:
                if archs:
                    raise
                log.warning("%s left out: %s", arch, error)
            advance(1)
    printed = [row for row in PRINTED if not archs or row.arch in found]
    others = [arch for arch in found if arch not in [row.arch for row in PRINTED]]
    rows = [as_printed(row, found.get(row.arch), size) for row in printed]
    return {
        "device": device if place.type == "cpu" else torch.cuda.get_device_name(place),
        "threads": torch.get_num_threads() if place.type == "cpu" else None,
        "torch": torch.__version__,
        "size": size,
        "classes": CLASSES,
        "batch_size": batch_size,
        "rows": rows + [{"method": None, "network": arch, **found[arch]} for arch in others],
    }


def as_printed(row: Printed, found: dict[str, Any] | None, size: int) -> dict[str, Any]:
    """A row of the result: the paper's figures as they are printed, and ours where the network is there."""
    twins = [other.arch for other in PRINTED if other.arch and other[2:4] == row[2:4]]
    said = {
        "method": row.method,
        "network": row.arch,
        "tables": list(row.tables),
        "paper_parameters_m": row.parameters,
        "paper_multiply_adds_m": row.multiply_adds,
        "same_figures_as": twins[0] if twins and row.arch is None else None,
    }
    if found is None:
        return said
    # at another size the paper says nothing
    difference = found["multiply_adds"] / 1e6 - float(row.multiply_adds) if size == PAPER_SIZE else None
    return said | {"difference_m": difference} | found


def profile_network(arch: str, place: torch.device, size: int, batch_size: int, measure: bool) -> dict[str, Any]:
    """Counts of one network, and its speed."""
    model = build(arch, CLASSES)
    check_size(model, arch, size)
    counts = count(model, size)
    found: dict[str, Any] = {
        "parameters": counts.parameters,
        "multiply_adds": counts.paper,
        "multiply_adds_torch": counts.torch,
        "uncounted": list(counts.uncounted),
    }
    if measure:
        model = model.to(place).to(memory_format=torch.channels_last)  # as `predict` runs it
        one, many = (seconds_a_batch(model, place, size, batch) for batch in (1, batch_size))
        found["latency_ms"] = spread(one * 1e3)
        found["images_per_second"] = spread(batch_size / many)
    return found


@torch.inference_mode()
def seconds_a_batch(model: nn.Module, place: torch.device, size: int, batch: int) -> np.ndarray:
    """(runs,) seconds of forward passes of `batch` images, after some that warm up."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(place, memory_format=torch.channels_last)
    finish: Callable[[], None] = torch.accelerator.synchronize if place.type != "cpu" else lambda: None

    def one() -> float:
        started = time.perf_counter()
        model(images)
        finish()
        return time.perf_counter() - started

    if one() < SECONDS:
        one()
        one()
    taken: list[float] = []
    while len(taken) < LEAST_RUNS or sum(taken) < SECONDS:
        taken.append(one())
    return np.array(taken)


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, and what a tenth of the runs lies below and above."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
    return {"median": median, "p10": low, "p90": high, "runs": len(values)}


def tables(result: dict[str, Any]) -> list[Any]:
    """The paper's rows with both ways of counting, then how fast each network is here."""
    size = result["size"]
    counted = Table("method", title=f"One image of {size} x {size} pixels, {CLASSES} classes; in millions")
    counted.add_column("network", no_wrap=True)
    for column in ("tables", "params", "paper", "mult-adds", "paper", "difference", "torch's"):
        counted.add_column(column, justify="right")
    speeds = Table("network", title=speed_title(result))
    for column in ("ms an image, alone", f"images/s, {result['batch_size']} at once"):
        speeds.add_column(column, justify="right")
    for row in result["rows"]:
        counted.add_row(*count_cells(row))
    notes = [
        f"{row['method']} has the figures of {row['same_figures_as']} in the paper"
        for row in result["rows"]
        if row.get("same_figures_as")
    ]
    notes += [
        f"{row['network']}: the paper's counting has no rule for {', '.join(row['uncounted'])}"
        for row in result["rows"]
        if row.get("uncounted")
    ]
    counted.caption = Text("\n".join(notes))
    measured = {row["network"]: row for row in result["rows"] if "latency_ms" in row}
    for network, row in measured.items():
        speeds.add_row(network, interval(row["latency_ms"]), interval(row["images_per_second"]))
    return [counted, *([speeds] if measured else [])]


def count_cells(row: dict[str, Any]) -> list[str]:
    """One line of the table of counts."""
    printed = [row.get("paper_parameters_m", ""), row.get("paper_multiply_adds_m", "")]
    numbers = ",".join(map(str, row.get("tables", [])))
    name = row["method"] or ""
    if "parameters" not in row:
        network = row["network"] or "not defined here"
        return [name, network, numbers, "", printed[0], "", printed[1], "", ""]
    difference = row.get("difference_m")
    return [
        name,
        row["network"],
        numbers,
        f"{row['parameters'] / 1e6:.2f}",
        printed[0],
        f"{row['multiply_adds'] / 1e6:.2f}",
        printed[1],
        "" if difference is None else f"{round(difference, 2) + 0:+.2f}",
        f"{row['multiply_adds_torch'] / 1e6:.2f}",
    ]


def speed_title(result: dict[str, Any]) -> Text:
    threads = f", {result['threads']} threads" if result["threads"] else ""
    return Text(f"{result['device']}{threads}, torch {result['torch']}, fp32: median [10 to 90 % of the runs]")


def interval(speed: dict[str, float]) -> str:
    digits = 2 if speed["median"] < 100 else 0
    median, low, high = (f"{speed[name]:,.{digits}f}" for name in ("median", "p10", "p90"))
    return rf"{median} \[{low}, {high}]"
