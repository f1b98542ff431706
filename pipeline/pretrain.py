"""Before the three stages: a network learns to tell people apart, and `--init` starts a teacher or student from it."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from efficientface import FerError
from efficientface.pipeline.checkpoint import (
    BESIDE,
    finish_model,
    fresh_model,
    init_reference,
    network_options,
    trained_before,
)
from efficientface.pipeline.config import MACHINE, PretrainConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs, check_classes, read_inputs
from efficientface.pipeline.ranks import agree, joined, leads, meet, writing
from efficientface.pipeline.train import fit, label_lessons, label_objective

log = logging.getLogger(__name__)


def run(run: Path, config: PretrainConfig) -> dict[str, Any]:
    """Write RUN/identities/NAME from RUN/faces, whose labels are people; returns the best epoch's metrics and where.

    Only layout `identities` labels people. They are told apart on other pictures of the same people, split val.
    """
    with joined(config.device) as device:
        config = replace(config, device=device)
        prepare(device)
        network_options(config.arch, config.modulation)  # what cannot be is told before anything is read
        inputs = read_inputs(run)
        layout = inputs.manifest["settings"].get("layout")
        if layout != "identities":
            raise FerError(
                f"{inputs.folder} has labels that are no people's names (layout {layout or 'recognised by itself'}); "
                "run fer align SOURCE RUN --layout identities first"
            )
        agree(run, asdict(config))
        folder = run / "identities" / (config.name or config.arch)
        with writing(folder, run, "fer pretrain", "give --name to train beside it"):
            return write_network(inputs, folder, config)


def write_network(inputs: Inputs, folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """Train RUN/identities/NAME, or find it trained already."""
    made_from = {"faces": inputs.reference(folder), **init_reference(config.init, folder)}
    init, config = config.init, replace(config, init=made_from.get("init", {}).get("path", ""))
    settings = {name: value for name, value in asdict(config).items() if name not in MACHINE}
    if trained := trained_before(folder, "identities", made_from, settings, config, BESIDE):
        return {"identities": str(folder), **trained["facts"]["best"]}

    train, judge = inputs.labelled("train"), inputs.labelled(config.choose_on)
    check_classes(train, inputs.folder)
    torch.manual_seed(config.seed)
    options = network_options(config.arch, config.modulation)
    model, asked = fresh_model(config.arch, train.classes, config.size, options, init)
    log.info("identities: %s on %d faces of %d people", config.arch, len(train), len(train.classes))
    digests = {f"{name}_manifest": reference["manifest"] for name, reference in made_from.items()}
    facts = {**inputs.facts_by(config.normalisation), **digests}
    lessons = label_lessons(train, inputs.facts["crop"], config)
    # divided by thousands of classes, as equation (5) would have it, no usual learning rate would move anything
    loss = label_objective(train, config, scale=1)
    weights, best = fit(model, train, lessons, loss, judge, config, facts, folder)
    if leads():
        finish_model(
            folder,
            "identities",
            weights,
            {**asked, "mean": facts["mean"], "std": facts["std"]},
            made_from=made_from,
            settings=settings,
            facts={
                "train_faces": len(train),
                "people": len(train.classes),
                "chosen_on": config.choose_on,
                "best": best,
            },
        )
    meet()
    return {"identities": str(folder), **best}
