"""EfficientFace, the student: ShuffleNet-V2 with a local-feature extractor and a channel-spatial modulator.

Zhao, Liu, Zhou: "Robust Lightweight Facial Expression Recognition Network with Label Distribution Training",
AAAI 2021, figure 3; backbone: Ma et al., "ShuffleNet V2", ECCV 2018. The authors' code is
zengqunzhao/EfficientFace; `load_official` takes its checkpoints. What differs from it: any input whose sides
16 divides (theirs needs 224 x 224), the four local branches run as one grouped convolution, the modulator may add
as in the paper's equation (1), and the parts have plainer names.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientface import FerError
from efficientface.models.modulator import Modulator

REPEATS = (4, 8, 4)  # blocks in stages 2, 3 and 4


class EfficientFace(nn.Module):
    """(B, in_channels, H, W) normalised images, 16 dividing H and W, to (B, num_classes) logits.

    widths: channels after conv1, stages 2, 3, 4, and conv5. `local` and `modulator` leave those parts out when False,
    which is the paper's ablation (table 1); without `local` any size will do. `fused` changes how the local
    branches are computed: neither the numbers nor the names in the state dict.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        widths: tuple[int, int, int, int, int],
        local: bool,
        modulator: bool,
        modulation: str,
        fused: bool,
    ) -> None:
        super().__init__()
        stem, low, middle, high, last = widths
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2 = stage(stem, low, REPEATS[0])
        self.stage3 = stage(low, middle, REPEATS[1])
        self.stage4 = stage(middle, high, REPEATS[2])
        extractor = LocalFeatures if fused else LocalBranches
        self.local = extractor(stem, low) if local else None
        self.modulator = Modulator(low, modulation=modulation) if modulator else nn.Identity()
        self.conv5 = pointwise(high, last)
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.local is not None:
            check_size(x)
        x = self.maxpool(self.conv1(x))  # (B, 29, H/4, W/4)
        features = self.modulator(self.stage2(x))  # (B, 116, H/8, W/8)
        if self.local is not None:
            features = features + self.local(x)
        x = self.stage4(self.stage3(features))  # (B, 464, H/32, W/32)
        return self.fc(self.conv5(x).mean((2, 3)))


def efficient_face(
    num_classes: int = 7,
    in_channels: int = 3,
    modulation: str = "multiply",
    *,
    local: bool = True,
    modulator: bool = True,
    widths: tuple[int, int, int, int, int] = (29, 116, 232, 464, 1024),
    fused: bool = True,
) -> EfficientFace:
    """The published network: 1,275,293 parameters with 7 classes."""
    return EfficientFace(num_classes, in_channels, widths, local, modulator, modulation, fused)


# The networks of table 1 as arguments of `efficient_face`. Only the baseline has ShuffleNet-V2's own stem width, 24:
# the other rows' printed multiply-adds come out at 29, which the local branches need (116 = 4 x 29).
ABLATIONS: dict[str, dict[str, Any]] = {
    "efficientface": {},
    "baseline": {"local": False, "modulator": False, "widths": (24, 116, 232, 464, 1024)},
    "baseline-local": {"modulator": False},
    "baseline-modulator": {"local": False},
}


def stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """A block that halves the map, then blocks that keep it."""
    return nn.Sequential(HalvingBlock(inputs, outputs), *(Block(outputs) for _ in range(blocks - 1)))


class Block(nn.Module):
    """ShuffleNet-V2's unit: one half of the channels passes, the other is convolved, then they are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch2 = nn.Sequential(*pointwise(half, half), *depthwise(half), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return interleave(left, self.branch2(right))


class HalvingBlock(nn.Module):
    """ShuffleNet-V2's unit for down-sampling: both branches see all channels and halve the map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.branch1 = nn.Sequential(*depthwise(inputs, stride=2), *pointwise(inputs, half))
        self.branch2 = nn.Sequential(*pointwise(inputs, half), *depthwise(half, stride=2), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        return interleave(self.branch1(x), self.branch2(x))


def pointwise(inputs: int, outputs: int) -> nn.Sequential:
    """1 x 1 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def depthwise(channels: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution of each channel by itself, batch norm."""
    return nn.Sequential(Depthwise(channels, stride), nn.BatchNorm2d(channels))


class Depthwise(nn.Conv2d):
    """3 x 3 convolution of each channel by itself, with a border of zeros.

    On a CPU oneDNN has a fast gradient only for maps that the kernel fits into: 2 x 2, at the end of a network that
    sees 64 pixels, takes 12 times as long. In training such a map gets its border beforehand.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and min(x.shape[2:]) < 3:
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, None, self.stride, groups=self.groups)
        return super().forward(x)


def interleave(left: Tensor, right: Tensor) -> Tensor:
    """Channels left 0, right 0, left 1, right 1 ... : both (B, C, H, W), the result (B, 2C, H, W).

    In channels_last memory it is one stack along the last axis. torch's own shuffle takes two passes and more; but to
    onnxruntime the other axes' order would be so many transpositions. No size becomes a number in an export.
    """
    if torch.compiler.is_exporting():
        return F.channel_shuffle(torch.cat((left, right), 1), 2)
    return torch.stack([x.permute(0, 2, 3, 1) for x in (left, right)], -1).flatten(3).permute(0, 3, 1, 2)


class LocalFeatures(nn.Module):
    """The local-feature extractor: each quadrant of the map has its own two depthwise convolutions.

    (B, C, H, W) with even H/2, W/2 to (B, D, H/2, W/2). The quadrants are stacked along the channels, so that the
    four branches are one grouped convolution; parameters are stacked in the same order: top left, bottom
    left, top right, bottom right.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        if outputs % inputs:
            raise ValueError(f"local features: stage 2's width {outputs} is no multiple of conv1's {inputs}")
        self.conv1 = nn.Conv2d(4 * inputs, 4 * outputs, 3, stride=2, padding=1, groups=4 * inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(4 * outputs)
        self.conv2 = Depthwise(4 * outputs)
        self.bn2 = nn.BatchNorm2d(4 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(quadrants(x), 1)  # (B, 4C, H/2, W/2)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)  # (B, 4D, H/4, W/4)
        return rejoin(x.chunk(4, 1))


class LocalBranches(nn.Module):
    """The same as LocalFeatures, drawn as in figure 3: four branches, one after another.

    Reads and writes the state dict of LocalFeatures, so that a file does not depend on how the network was run.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        if outputs % inputs:
            raise ValueError(f"local features: stage 2's width {outputs} is no multiple of conv1's {inputs}")
        self.branches = nn.ModuleList(LocalBranch(inputs, outputs) for _ in range(4))
        self.register_state_dict_post_hook(_stack_branches)
        self.register_load_state_dict_pre_hook(_split_branches)

    def forward(self, x: Tensor) -> Tensor:
        parts = quadrants(x)
        return rejoin([branch(part) for branch, part in zip(self.branches, parts, strict=True)])


class LocalBranch(nn.Module):
    """One quadrant: (B, C, H, W) to (B, D, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


def check_size(images: Tensor) -> None:
    """(B, channels, H, W): the local patches are H/8 x W/8 and their convolution halves them once more."""
    height, width = images.shape[2:]
    if height % 16 or width % 16:
        raise FerError(
            f"EfficientFace cannot take images of {height} x {width} pixels: its four local patches need "
            "sides that 16 divides; choose a --size such as 64, 112 or 224"
        )


def quadrants(x: Tensor) -> list[Tensor]:
    """(B, C, H, W) cut at half: top left, bottom left, top right, bottom right, the authors' order."""
    return [part for half in x.chunk(2, 3) for part in half.chunk(2, 2)]


def rejoin(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The inverse of `quadrants`."""
    return torch.cat((torch.cat(parts[:2], 2), torch.cat(parts[2:], 2)), 3)


def _stack_branches(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    first = f"{prefix}branches.0."
    for name in [name.removeprefix(first) for name in state if name.startswith(first)]:
        parts = [state.pop(f"{prefix}branches.{k}.{name}") for k in range(4)]
        state[prefix + name] = torch.cat(parts) if parts[0].ndim else parts[0]


def _split_branches(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in [name.removeprefix(prefix) for name in state if name.startswith(prefix)]:
        stacked = state.pop(prefix + name)
        for k, part in enumerate(stacked.chunk(4) if stacked.ndim else [stacked] * 4):
            state[f"{prefix}branches.{k}.{name}"] = part


OFFICIAL_NAMES = {
    "modulator.channel_att.gate_c.gate_c_fc_0": "modulator.channel.0",
    "modulator.channel_att.gate_c.gate_c_bn_1": "modulator.channel.1",
    "modulator.channel_att.gate_c.gate_c_fc_final": "modulator.channel.3",
    "modulator.spatial_att.gate_s.gate_s_conv_reduce0": "modulator.spatial.0",
    "modulator.spatial_att.gate_s.gate_s_bn_reduce0": "modulator.spatial.1",
    "modulator.spatial_att.gate_s.gate_s_conv_di_0": "modulator.spatial.3",
    "modulator.spatial_att.gate_s.gate_s_bn_di_0": "modulator.spatial.4",
    "modulator.spatial_att.gate_s.gate_s_conv_di_1": "modulator.spatial.6",
    "modulator.spatial_att.gate_s.gate_s_bn_di_1": "modulator.spatial.7",
    "modulator.spatial_att.gate_s.gate_s_conv_final": "modulator.spatial.9",
}


def load_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a checkpoint by the authors' code, under our names.

    Takes `torch.load(...)["state_dict"]`, with or without DataParallel's `module.` before each name. The local
    branches, numbered 1 to 4 there, are stacked; the modulator's parts are renamed; all else has the same name in
    both, a ResNet's too. load_state_dict then says what is missing or too much.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        local = re.fullmatch(r"local\.(conv|bn)([1-4])_([12]\..+)", name)
        if local:
            kind, branch, rest = local.groups()
            names = [f"local.{kind}{k}_{rest}" for k in range(1, 5)]
            if branch == "1" and all(other in plain for other in names):
                renamed[f"local.{kind}{rest}"] = torch.cat([plain[k] for k in names]) if tensor.ndim else tensor
        else:
            part, _, last = name.rpartition(".")
            renamed[f"{OFFICIAL_NAMES.get(part, part)}.{last}" if part else name] = tensor
    return renamed
