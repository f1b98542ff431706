"""Offline distillation for facial-expression recognition: align, teach, cache, distill.

`Recognizer.load(FOLDER)(image)` is the Python way to a finished model's answers.
"""

import os
from typing import TYPE_CHECKING, Any

# OpenCV takes pictures of twelve times as many pixels by default; read when its library is loaded.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(89_478_485))
# Their makers are told about every use by default: onnxruntime's since 1.29, MLflow's since 3.2. Read then, too.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

if TYPE_CHECKING:
    from efficientface.pipeline.recognise import Face as Face
    from efficientface.pipeline.recognise import Recognizer as Recognizer

__version__ = "0.1.0"


class FerError(Exception):
    """Something the user can mend; the message is one sentence that says what, where, how many and what next."""


def __getattr__(name: str) -> Any:
    """The API's two names, imported when they are asked for: they take torch's seconds."""
    if name not in ("Face", "Recognizer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from efficientface.pipeline import recognise

    return getattr(recognise, name)
