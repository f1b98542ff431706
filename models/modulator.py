"""The channel-spatial modulator: how much of each channel, and of each place, goes on to stage 3.

After BAM (Park et al., BMVC 2018) as EfficientFace uses it: Zhao, Liu and Zhou, AAAI 2021, equations (1) and (2).
The paper adds the two branches before the sigmoid, the authors' code (zengqunzhao/EfficientFace) multiplies
them, and their published weights need the product; both are here.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Modulator(nn.Module):
    """x -> x * sigmoid(channel(x) op spatial(x)), op being * (`multiply`) or + (`add`)."""

    def __init__(self, channels: int, reduction: int = 16, modulation: str = "multiply") -> None:
        super().__init__()
        combine: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"multiply": torch.mul, "add": torch.add}
        if modulation not in combine:
            raise ValueError(f"modulation must be multiply or add, not {modulation!r}")
        self.combine = combine[modulation]
        hidden = channels // reduction
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels),
        )
        # the convolutions keep the biases that batch norm cancels: the authors' checkpoints hold them
        self.spatial = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel(x.mean((2, 3)))[:, :, None, None]  # (B, C, 1, 1)
        spatial = self.spatial(x)  # (B, 1, H, W)
        return x * torch.sigmoid(self.combine(channel, spatial))
