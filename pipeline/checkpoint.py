"""Models on disk: weights and what is needed to use them; and the checkpoint of an unfinished training.

Weights are safetensors, the rest is JSON: nothing here unpickles.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from efficientface import FerError, untrusted
from efficientface.models import MODULATED, build, check_size
from efficientface.pipeline.artifact import (
    CONFIG,
    METRICS,
    MODELS,
    check_files,
    is_finished,
    read_config,
    read_manifest,
    read_metrics,
    reference_to,
    refuse_other,
    remove_file,
    replacing,
    write_json,
    write_manifest,
)
from efficientface.pipeline.config import DistillConfig, TrainConfig
from efficientface.pipeline.curves import Curves

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
BESIDE = "give --name to train beside it, or remove it"
CHECKPOINT = "checkpoint.safetensors"  # only while training


def finish_model(
    folder: Path,
    kind: str,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    *,
    files: Sequence[str] = (),
    made_from: dict[str, Any],
    settings: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Turn a training's folder into an artifact: weights, config.json (all that is needed to ask), manifest.

    config: arch, options, classes, size, mean and std; `files` are data files of the artifact written before.
    """
    write_json(folder / CONFIG, config)
    with replacing(folder / WEIGHTS) as part:
        save_tensors({name: tensor.contiguous() for name, tensor in weights.items()}, part)
    write_manifest(
        folder,
        kind,
        files=[WEIGHTS, CONFIG, METRICS, *files],
        classes=config["classes"],
        made_from=made_from,
        settings=settings,
        facts=facts,
    )
    (folder / CHECKPOINT).unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors as safetensors; OSError where the disk does not take them.

    By way of memory: the library's own writer leaves a temporary file of its own beside `path` when it is killed.
    """
    path.write_bytes(save(tensors, metadata))


def load_model(folder: Path, kind: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A finished model in eval mode on the CPU, and its config.

    `kind` is one of MODELS; None takes any. FerError where folder, weights or config do not fit, or a byte is another.
    """
    manifest = read_manifest(folder, kind or _model_kind(folder))
    check_files(folder, manifest, digests=True)
    try:
        config = read_config(folder)
        model = build(config["arch"], len(config["classes"]), **config["options"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FerError(f"{folder / CONFIG} does not describe a model ({error}); restore it") from error
    if config["classes"] != manifest["classes"]:
        raise FerError(f"{folder / CONFIG} has other classes than the manifest beside it; restore it")
    try:
        model.load_state_dict(untrusted.read_safetensors(folder / WEIGHTS))
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise FerError(f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes ({first})") from error
    return model.eval(), config


def trained_before(
    folder: Path, kind: str, made_from: dict[str, Any], settings: dict[str, Any], config: TrainConfig, remedy: str
) -> dict[str, Any] | None:
    """The manifest of a network that is trained already; FerError if from other things or by other settings.

    None where it is still to be trained. Its curves are drawn now if they were not asked for then.
    """
    if not is_finished(folder):
        return None
    manifest = read_manifest(folder, kind)
    refuse_other(folder, manifest, made_from, settings, remedy)
    check_files(folder, manifest)
    remove_file(folder / CHECKPOINT)  # killed between the manifest and this, finish_model left it
    log.info("%s: already trained, %s", kind, folder)
    Curves(folder, config).tell(read_metrics(folder), finished=True)
    return manifest


def network_options(arch: str, modulation: str) -> dict[str, str]:
    """The options that `build` takes for a network; FerError where another modulation is asked than it can have."""
    if arch in MODULATED:
        return {"modulation": modulation}
    if modulation != DistillConfig.modulation:
        raise FerError(f"--modulation {modulation} is about the modulator, which {arch} has not; leave it out")
    return {}


def fresh_model(
    arch: str, classes: Sequence[str], size: int, options: dict[str, str], init: str
) -> tuple[nn.Module, dict[str, Any]]:
    """A network to train, with the weights of --init if one is given, and its config but for mean and std.

    FerError where it cannot take images of `size` pixels a side, or `init` is another network.
    """
    asked: dict[str, Any] = {"arch": arch, "options": options, "classes": list(classes), "size": size}
    model = build(arch, len(classes), **options)
    check_size(model, arch, size)
    if init:
        start_from(init, model, asked)
    return model, asked


def init_reference(init: str, folder: Path) -> dict[str, dict[str, str]]:
    """The entry of a model's made_from that says which finished model --init gave; none without one."""
    if not init:
        return {}
    read_manifest(Path(init), _model_kind(Path(init)))
    return {"init": reference_to(Path(init), folder)}


def start_from(init: str, model: nn.Module, config: dict[str, Any]) -> None:
    """Give `model`, which `config` describes, the weights of the finished model --init, of whatever kind, in place.

    The last layer, which is what changes its shape with the number of classes, keeps its fresh weights; but if the
    classes are the same, it is taken over too, matched by their names.
    """
    source, found = load_model(Path(init))
    if _network(found) != _network(config):
        raise FerError(f"--init {init} is {_network(found)}, not {_network(config)}; give a model of the same network")
    classes = config["classes"]
    weights, fresh = source.state_dict(), model.state_dict()
    wider = build(config["arch"], len(classes) + 1, **config["options"]).state_dict()
    for name in (name for name, tensor in fresh.items() if tensor.shape != wider[name].shape):
        if set(classes) == set(found["classes"]):
            weights[name] = weights[name][[found["classes"].index(c) for c in classes]]
        else:
            weights[name] = fresh[name]
    model.load_state_dict(weights)


def _network(config: dict[str, Any]) -> str:
    """A network in words, such as `efficientface (modulation add)`."""
    options = ", ".join(f"{name} {value}" for name, value in sorted(config["options"].items()))
    return config["arch"] + (f" ({options})" if options else "")


def _model_kind(folder: Path) -> str:
    """What a model's manifest says that it is, unchecked: read_manifest then says what is wrong."""
    try:
        kind = untrusted.read_json(folder / "manifest.json")["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return "student"
    return kind if kind in MODELS else "student"


class Checkpoint:
    """What an interrupted training goes on from: one file, switched in one rename an epoch.

    It holds the weights, the optimiser's momentum and the best epoch's weights, and in its header a digest of these and
    the progress: the metrics lines so far, the loss scaler's state, and the settings, which must be the same to go on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        best: dict[str, Tensor],
        progress: dict[str, Any],
    ) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for k, group in enumerate(optimizer.param_groups):
            for j, parameter in enumerate(group["params"]):
                momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if momentum is not None:
                    tensors[f"momentum.{k}.{j}"] = momentum
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with replacing(self.path) as part:
            told = json.dumps(progress)
            save_tensors(tensors, part, {"progress": told, "digest": _digest(tensors, told)})

    def progress(self) -> dict[str, Any]:
        """What was done when it was saved, and with which settings."""
        try:
            with untrusted.safetensors_file(self.path, "pt") as file:
                progress = untrusted.parse_json((file.metadata() or {})["progress"], nan=True)
            if not isinstance(progress["settings"], dict) or not isinstance(progress["lines"], list):
                raise TypeError("its settings and lines are none")
            return progress
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._useless(error) from error

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Restore model and optimiser in place; return the best epoch's weights."""
        try:
            with untrusted.safetensors_file(self.path, "pt") as file:
                told = file.metadata() or {}
            tensors = untrusted.read_safetensors(self.path)
            if _digest(tensors, told.get("progress", "")) != told.get("digest"):
                raise ValueError("it is damaged")
            model.load_state_dict(_under(tensors, "model."))
        except (OSError, ValueError, RuntimeError) as error:
            raise self._useless(error) from error
        for k, group in enumerate(optimizer.param_groups):
            for j, parameter in enumerate(group["params"]):
                if f"momentum.{k}.{j}" in tensors:
                    momentum = tensors[f"momentum.{k}.{j}"].to(parameter.device)
                    # the memory layout of the weight: a channels_last step stays bit-equal after a resume
                    optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        return _under(tensors, "best.")

    def _useless(self, error: Exception) -> FerError:
        reason = str(error).splitlines()[0]
        return FerError(f"{self.path} cannot be resumed from ({reason}); remove it to train from the start")


def _digest(tensors: dict[str, Tensor], progress: str) -> str:
    """blake2b of the progress and of all names and values."""
    digest = hashlib.blake2b(progress.encode(), digest_size=32)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + b"\0")
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
