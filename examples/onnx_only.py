"""Asks an exported student about aligned faces with onnxruntime alone: python onnx_only.py student.onnx FACE..."""

import json
import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it tells its maker about every use otherwise; read at its import

import numpy as np
import onnxruntime
from PIL import Image

model, *files = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
if (about.get("format"), about.get("version")) != ("efficientface onnx", "1"):
    sys.exit(f"{model} is {about.get('format', 'not ours')} {about.get('version', '')}, not efficientface onnx 1")
classes, size, mean, std = (json.loads(about[name]) for name in ("classes", "size", "mean", "std"))
pictures = [Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for file in files]
faces = (np.stack([np.asarray(picture) for picture in pictures]) / 255 - mean) / std  # (N, size, size, 3) RGB
(probabilities,) = session.run(["probabilities"], {"faces": faces.transpose(0, 3, 1, 2).astype(np.float32)})
for file, p in zip(files, probabilities, strict=True):
    print(json.dumps({"file": file, **dict(zip(classes, p.tolist(), strict=True))}, ensure_ascii=False))
