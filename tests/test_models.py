"""EfficientFace against a plain recomputation and, where they are at hand, the authors' answers; its ablations."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from efficientface import FerError
from efficientface.models import build
from efficientface.models.efficientface import Depthwise, efficient_face, interleave, load_official


def varied(model, seed=0):
    """Weights and running statistics that make every layer count; fresh batch norms would be the identity."""
    draw = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            state[name] = torch.rand(tensor.shape, generator=draw) + 0.5
        elif tensor.ndim == 1:
            state[name] = torch.randn(tensor.shape, generator=draw) * 0.3 + name.endswith("weight")
        elif tensor.ndim > 1:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=draw) * (2 / fan_in) ** 0.5
    model.load_state_dict(state)
    return model.eval()


def recompute(state, x, modulation):
    """EfficientFace from the paper's figure 3 and ShuffleNet-V2's figure 3, one explicit operation after another.

    Takes the state dict of any of our variants, so names are all that it shares with the model.
    """

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (state[f"{name}.{key}"].view(1, -1, *[1] * (x.ndim - 2)) for key in keys)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def conv(x, name, **how):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **how)

    def pointwise(x, name, k):
        return norm(conv(x, f"{name}.{k}"), f"{name}.{k + 1}").clamp(min=0)

    def depthwise(x, name, k, stride):
        return norm(conv(x, f"{name}.{k}", stride=stride, padding=1, groups=x.shape[1]), f"{name}.{k + 1}")

    def branch2(x, name, stride):
        x = depthwise(pointwise(x, f"{name}.branch2", 0), f"{name}.branch2", 3, stride)
        return pointwise(x, f"{name}.branch2", 5)

    def shuffle(left, right):
        out = torch.empty(left.shape[0], 2 * left.shape[1], *left.shape[2:])
        for k in range(left.shape[1]):
            out[:, 2 * k], out[:, 2 * k + 1] = left[:, k], right[:, k]
        return out

    def stage(x, name, blocks):
        side = pointwise(depthwise(x, f"{name}.0.branch1", 0, 2), f"{name}.0.branch1", 2)
        x = shuffle(side, branch2(x, f"{name}.0", 2))
        for k in range(1, blocks):
            half = x.shape[1] // 2
            x = shuffle(x[:, :half], branch2(x[:, half:], f"{name}.{k}", 1))
        return x

    def local(x):
        height, width = x.shape[2] // 2, x.shape[3] // 2
        out = torch.empty(x.shape[0], 116, height, width)
        for quadrant, (right, bottom) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            part = x[:, :, bottom * height : (bottom + 1) * height, right * width : (right + 1) * width]
            for layer, stride in ((1, 2), (2, 1)):
                mine = slice(116 * quadrant, 116 * (quadrant + 1))
                weight = state[f"local.conv{layer}.weight"][mine]
                part = F.conv2d(part, weight, stride=stride, padding=1, groups=part.shape[1])
                mean, var, gain, shift = (
                    state[f"local.bn{layer}.{k}"][mine].view(1, -1, 1, 1)
                    for k in ("running_mean", "running_var", "weight", "bias")
                )
                part = ((part - mean) / torch.sqrt(var + 1e-5) * gain + shift).clamp(min=0)
            rows, columns = part.shape[2:]
            out[:, :, bottom * rows : (bottom + 1) * rows, right * columns : (right + 1) * columns] = part
        return out

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def modulate(x):
        channel = linear(x.mean(dim=(2, 3)), "modulator.channel.0")
        channel = linear(norm(channel, "modulator.channel.1").clamp(min=0), "modulator.channel.3")
        spatial = pointwise(x, "modulator.spatial", 0)
        for k in (3, 6):
            spatial = conv(spatial, f"modulator.spatial.{k}", padding=4, dilation=4)
            spatial = norm(spatial, f"modulator.spatial.{k + 1}").clamp(min=0)
        spatial = conv(spatial, "modulator.spatial.9").expand_as(x)
        channel = channel[:, :, None, None].expand_as(x)
        heat = channel * spatial if modulation == "multiply" else channel + spatial
        return x / (1 + torch.exp(-heat))

    x = norm(conv(x, "conv1.0", stride=2, padding=1), "conv1.1").clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1)
    x = modulate(stage(x, "stage2", 4)) + local(x)
    x = stage(stage(x, "stage3", 8), "stage4", 4)
    return linear(pointwise(x, "conv5", 0).mean(dim=(2, 3)), "fc")


@pytest.mark.parametrize("modulation", ["multiply", "add"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (224, 224), (48, 80)])
def test_computes_what_the_paper_draws(modulation, height, width):
    model = varied(efficient_face(7, modulation=modulation))
    unfused = efficient_face(7, modulation=modulation, fused=False).eval()
    unfused.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = recompute(model.state_dict(), images, modulation)
        tolerance = 1e-5 * expected.abs().max()
        for network in (model, unfused):
            assert (network(images) - expected).abs().max() < tolerance
            fast = network.to(memory_format=torch.channels_last)
            assert (fast(images.contiguous(memory_format=torch.channels_last)) - expected).abs().max() < tolerance
    assert expected.std() > 0.1  # logits that differ: a network gone dead would agree with anything


@pytest.mark.parametrize("modulation", ["multiply", "add"])
@pytest.mark.parametrize("fused", [True, False])
def test_answers_as_the_authors_code(modulation, fused):
    folder = os.environ.get("EFFICIENTFACE_REFERENCE")
    if not folder:
        pytest.skip("EFFICIENTFACE_REFERENCE names no folder with answers of the authors' code")
    file = torch.load(Path(folder) / "official_format_efficientface.pth.tar", weights_only=True)
    answers = np.load(Path(folder) / "official_format_efficientface_io.npz")
    model = efficient_face(7, modulation=modulation, fused=fused).eval()
    model.load_state_dict(load_official(file["state_dict"]))
    images = torch.from_numpy(answers["images_uint8_nhwc"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model((images / 255 - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(logits, answers[f"logits_{modulation}"], rtol=0, atol=1e-4)


def official_names(state):
    """Our state dict as a file of the authors' code would name it."""
    gate = {"channel": "channel_att.gate_c.gate_c_", "spatial": "spatial_att.gate_s.gate_s_"}
    parts = {
        "channel": {"0": "fc_0", "1": "bn_1", "3": "fc_final"},
        "spatial": {"0": "conv_reduce0", "1": "bn_reduce0", "3": "conv_di_0", "4": "bn_di_0",
                    "6": "conv_di_1", "7": "bn_di_1", "9": "conv_final"},
    }  # fmt: skip
    named = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "modulator":
            named[f"module.modulator.{gate[rest[0]]}{parts[rest[0]][rest[1]]}.{rest[2]}"] = tensor
        elif first == "local":
            kind, layer = rest[0][:-1], rest[0][-1]
            for k in range(4):
                part = tensor[116 * k : 116 * (k + 1)] if tensor.ndim else tensor
                named[f"module.local.{kind}{k + 1}_{layer}.{rest[1]}"] = part
        else:
            named[f"module.{name}"] = tensor
    return named


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_reads_the_authors_names(prefix):
    state = varied(efficient_face(7)).state_dict()
    theirs = {name.replace("module.", prefix): tensor for name, tensor in official_names(state).items()}
    ours = load_official(theirs)
    assert len(theirs) == 418  # as many as the authors' checkpoints hold
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], state[name]) for name in state)


def test_a_part_missing_from_the_authors_file_is_noticed():
    theirs = official_names(efficient_face(7).state_dict())
    del theirs["module.local.conv3_1.weight"]
    with pytest.raises(RuntimeError, match="Missing key.*local.conv1.weight"):
        efficient_face(7).load_state_dict(load_official(theirs))


def test_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in efficient_face(7).parameters()) == 1_275_293
    assert sum(p.numel() for p in efficient_face(7, fused=False).parameters()) == 1_275_293


@pytest.mark.parametrize(
    ("arch", "millions"),
    [("baseline", 1.2608), ("baseline-local", 1.2718), ("baseline-modulator", 1.2651), ("efficientface", 1.2753)],
)
def test_ablations_have_the_papers_size(arch, millions):
    model = build(arch, 7)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 4) == millions
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("modulation", ["multiply", "add"])
def test_every_parameter_gets_a_gradient(fused, modulation):
    torch.manual_seed(0)
    model = efficient_face(7, modulation=modulation, fused=fused).train()
    F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 2, 4, 6])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_fused_and_unfused_train_alike():
    fused = varied(efficient_face(7))
    unfused = efficient_face(7, fused=False)
    unfused.load_state_dict(fused.state_dict())
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    for model in (fused.double().train(), unfused.double().train()):  # float64: rounding left out of it
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(images.double()), torch.arange(6)).backward()
            optimizer.step()
    other = unfused.state_dict()
    assert list(fused.state_dict()) == list(other)
    for name, tensor in fused.state_dict().items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_is_torchs_convolution_also_on_tiny_maps(size, stride):
    layer = Depthwise(6, stride).double().train()
    x = torch.randn(4, 6, size, size, dtype=torch.float64, requires_grad=True)
    by_torch = F.conv2d(x, layer.weight, stride=stride, padding=1, groups=6)
    ours, turn = layer(x), torch.randn_like(by_torch)
    torch.testing.assert_close(ours, by_torch)
    inputs = (x, layer.weight)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, turn), torch.autograd.grad(by_torch, inputs, turn))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_interleave_takes_channels_in_turn(layout):
    left, right = (torch.randn(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_() for _ in range(2))
    mixed = interleave(left, right)
    expected = torch.stack([part[:, k] for k in range(3) for part in (left, right)], 1)
    assert torch.equal(mixed, expected)
    turn = torch.randn_like(expected)
    ours, by_torch = (torch.autograd.grad(y, (left, right), turn) for y in (mixed, expected))
    assert all(torch.equal(a, b) for a, b in zip(ours, by_torch, strict=True))


def test_takes_grey_images():
    model = efficient_face(8, in_channels=1).eval()
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 8)


@pytest.mark.parametrize(("height", "width"), [(100, 100), (61, 64), (224, 230)])
def test_refuses_a_size_that_cannot_be_cut(height, width):
    with pytest.raises(FerError) as error:
        efficient_face(7)(torch.zeros(1, 3, height, width))
    assert str(error.value) == (
        f"EfficientFace cannot take images of {height} x {width} pixels: its four local patches need "
        "sides that 16 divides; choose a --size such as 64, 112 or 224"
    )


def test_stays_in_channels_last():
    """A block that falls back to the other layout makes every convolution after it copy."""
    model = efficient_face(7).eval().to(memory_format=torch.channels_last)
    strayed = []

    def look(module, inputs, output):
        if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            strayed.append(type(module).__name__)

    for module in model.modules():
        module.register_forward_hook(look)
    model(torch.zeros(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    assert strayed == []


def test_exports_with_any_number_of_faces():
    model = varied(efficient_face(7)).double()  # an export keeps the other order of memory, which rounds otherwise
    batch = {0: torch.export.Dim("faces", min=1, max=1024)}
    program = torch.export.export(model, (torch.zeros(2, 3, 64, 64).double(),), dynamic_shapes=(batch,)).module()
    images = torch.randn(5, 3, 64, 64).double()
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(images))


def test_the_baseline_is_shufflenet():
    """Table 1's first row, against torchvision's network of the same names and shapes."""
    theirs = varied(torchvision.models.shufflenet_v2_x1_0(num_classes=7))
    ours = build("baseline", 7).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        # in fp32 the same sums are rounded otherwise in another order of memory
        torch.testing.assert_close(ours.double()(images.double()), theirs.double()(images.double()))


@pytest.mark.parametrize("modulation", ["multiply", "add"])
def test_an_ablation_leaves_out_what_it_names(modulation):
    """Where a part of EfficientFace adds nothing, the network without that part answers the same."""
    whole = varied(efficient_face(7, modulation=modulation))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    for arch, part in (("baseline-local", "modulator"), ("baseline-modulator", "local")):
        options = {"modulation": modulation} if arch == "baseline-modulator" else {}
        without = build(arch, 7, **options).eval()
        without.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith(part)})
        silent = whole.local.register_forward_hook(lambda module, inputs, output: 0 * output)
        through = whole.modulator.register_forward_hook(lambda module, inputs, output: inputs[0])
        (silent if part == "modulator" else through).remove()
        with torch.no_grad():
            torch.testing.assert_close(without(images), whole(images))
        silent.remove()
        through.remove()
