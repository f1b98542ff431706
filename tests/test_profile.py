"""The paper's counting against written-out sums and the paper's own figures; `fer profile` through its command."""

import csv
import io
import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from efficientface.cli import cli
from efficientface.models import build
from efficientface.models.counting import count
from efficientface.pipeline import profile


def fer(*args):
    return CliRunner().invoke(cli, ["profile", *map(str, args)])


@pytest.mark.parametrize("row", [row for row in profile.PRINTED if row.arch], ids=lambda row: row.method)
def test_the_counting_gives_the_papers_figures(row):
    with torch.device("meta"):  # shapes alone: nothing is computed
        counts = count(build(row.arch, 7), 224)
    assert round(counts.parameters / 1e6, 2) == float(row.parameters)
    millions = counts.paper / 1e6
    if row.arch == "baseline-modulator":  # the one row that does not come out: printed 153.79
        assert round(millions, 2) == 152.18
    elif row.arch == "alexnet":  # printed a thousandfold
        assert round(millions, 2) == pytest.approx(float(row.multiply_adds) / 1e3, abs=0.01)
    else:
        assert millions == pytest.approx(float(row.multiply_adds), abs=0.0051)
    assert counts.uncounted == ()


def test_every_rule_is_the_written_out_sum():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 8 x 8 x 8 results of 3 x 3 x 3 products and a bias
        nn.BatchNorm2d(8),  # two operations for each of the 8 x 8 x 8
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 1), groups=4, padding=(1, 0), bias=False),  # 8 x 8 x 8 results of 2 x 3 products
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),  # one for each of 8 x 2 x 2
        nn.ConvTranspose2d(8, 4, 2, stride=2),  # 4 x 4 x 4, in thop's way: 8 x 2 x 2 products and a bias each
        nn.AdaptiveAvgPool2d(2),  # 4 x 2 x 2 results of 2 x 2 summands and a division
        nn.Flatten(),
        nn.Linear(16, 5),  # 5 results of 16 products; the bias is not counted
        nn.BatchNorm1d(5),  # two for each of 5
    )
    counts = count(model, 16)
    assert counts.paper == (
        512 * (27 + 1) + 2 * 512 + 512 * 6 + 8 * 2 * 2 + 64 * (32 + 1) + 16 * (4 + 1) + 5 * 16 + 2 * 5
    )
    # torch counts products alone, a transposed convolution's by its input: 8 x 2 x 2 pixels, 4 x 2 x 2 products each
    assert counts.torch == 512 * 27 + 512 * 6 + 32 * 16 + 5 * 16
    parameters = (216 + 8) + 16 + 8 * 2 * 3 + (8 * 4 * 4 + 4) + (80 + 5) + 10
    assert counts.parameters == parameters


def test_modules_without_a_rule_are_named():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.GroupNorm(2, 4), nn.PReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    counts = count(model, 4)
    assert counts.uncounted == ("GroupNorm", "PReLU")
    assert counts.paper == 4 * 16 * 3 + 3 * 64


def test_torchs_counter_sees_attention():
    """Fused kernels would hide it: 16 tokens of width 8, four projections, and 16 x 16 products of both kinds."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)

    tokens = (16 // 4) ** 2
    assert count(Attention(), 16).torch == tokens * 8 * 48 + 4 * tokens * 8 * 8 + 2 * tokens * tokens * 8


def test_every_row_of_the_papers_tables_is_there(monkeypatch):
    result = profile.run(["efficientface"], size=64, measure=False)
    assert [row["method"] for row in result["rows"]] == ["EfficientFace"]
    monkeypatch.setattr(profile, "profile_network", lambda *args: {
        "parameters": 1, "multiply_adds": 1, "multiply_adds_torch": 1, "uncounted": []
    })  # fmt: skip
    result = profile.run(measure=False)
    rows = {row["method"]: row for row in result["rows"]}
    assert len(rows) == len(profile.PRINTED) == 26
    assert {number for row in result["rows"] for number in row["tables"]} == {1, 2, 3, 4, 5, 6, 7}
    assert rows["gACNN"] == {
        "method": "gACNN", "network": None, "tables": [3, 5, 6], "paper_parameters_m": ">134.29",
        "paper_multiply_adds_m": ">15479.79", "same_figures_as": None,
    }  # fmt: skip
    assert rows["DDA-Loss"]["same_figures_as"] == "resnet18"
    assert rows["SCN"]["same_figures_as"] is None  # `~` is the authors' own reproduction
    assert profile.count_cells(rows["RAN"]) == [
        "RAN", "not defined here", "3,5,6,7", "", "11.19", "", "14548.45", "", "",
    ]  # fmt: skip


def test_the_command_counts_and_measures():
    result = fer("efficientface", "timm/test_resnet", "--size", 64, "--batch-size", 2, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    ours, other = told["rows"]
    assert (ours["method"], ours["network"], ours["parameters"]) == ("EfficientFace", "efficientface", 1_275_293)
    assert ours["difference_m"] is None  # the paper counts at 224 pixels
    assert (other["method"], other["network"]) == (None, "timm/test_resnet")
    for row in told["rows"]:
        for speed in (row["latency_ms"], row["images_per_second"]):
            assert 0 < speed["p10"] <= speed["median"] <= speed["p90"]
            assert speed["runs"] >= profile.LEAST_RUNS


def test_csv_and_tables_hold_the_same_figures():
    words = ("baseline-modulator", "--count-only")
    (row,) = csv.DictReader(io.StringIO(fer(*words, "--csv").stdout))
    assert (row["parameters"], row["multiply_adds"], row["paper_multiply_adds_m"]) == ("1265085", "152175758", "153.79")
    assert float(row["difference_m"]) == pytest.approx(-1.61, abs=0.005)
    table = fer(*words).stdout
    assert all(cell in table for cell in ("152.18", "153.79", "-1.61", "148.09"))
    assert "ms an image" not in table


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["resnet5"], "architecture 'resnet5' is not known; did you mean resnet50 or resnet152 or resnet34?"),
        (["baseline", "--size", 0], "--size 0 or --batch-size 16 is out of range; give at least 1"),
        (["baseline", "--device", "abacus"], "--device abacus cannot be used here ("),
    ],
)
def test_what_cannot_be_profiled_is_told_in_a_sentence(words, sentence):
    result = fer(*words)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"Error: {sentence}")


def test_a_network_of_the_tables_that_cannot_be_counted_is_left_out(monkeypatch, caplog):
    from efficientface import FerError

    def only_baseline(arch, *args):
        if arch != "baseline":
            raise FerError(f"no {arch} here")
        return {"parameters": 1, "multiply_adds": 1, "multiply_adds_torch": 1, "uncounted": []}

    monkeypatch.setattr(profile, "profile_network", only_baseline)
    rows = {row["method"]: row for row in profile.run()["rows"]}
    assert len(rows) == 26
    assert "parameters" in rows["Baseline"]
    assert "parameters" not in rows["VGG-16"]
    assert "vgg16 left out: no vgg16 here" in caplog.text
