"""Makes the page: its files, onnxruntime-web from npm, RetinaFace and an exported student in one folder to serve.

python build.py MODEL OUT     (MODEL: a finished model's folder, or a file of fer export --maps)
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from retinaface.weights import WEIGHTS

from efficientface import FerError
from efficientface.pipeline import export

HERE = Path(__file__).parent
PAGE = ("index.html", "page.css", "page.js")
MODULES = HERE / "node_modules"
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def run(model: Path, out: Path) -> None:
    """Write the page's folder `out`, whole or not at all; a former one is replaced, anything else is not."""
    if out.exists() and not (out / PAGE[0]).is_file():
        raise FerError(f"{out} exists and is no such page; remove it, or give another folder")
    if not out.parent.is_dir():
        raise FerError(f"{out.parent} does not exist; make that folder first, or write the page elsewhere")
    fetch()
    with TemporaryDirectory(prefix=".web-", dir=out.parent) as work:
        made = Path(work, "page")
        made.mkdir()
        if model.suffix.lower() == ".onnx" and model.is_file():
            shutil.copyfile(model, made / "student.onnx")
        else:
            export.run(model, made / "student.onnx", maps=True)
        (made / "retinaface.onnx").write_bytes(WEIGHTS)
        for file in PAGE:
            shutil.copyfile(HERE / file, made / file)
        for file in RUNTIME:
            shutil.copyfile(MODULES / "onnxruntime-web" / "dist" / file, made / file)
        if out.exists():
            out.rename(Path(work, "former"))
        made.rename(out)


def fetch() -> None:
    """Let npm fetch what package-lock.json names, by its digests, unless it is there."""
    wanted = json.loads((HERE / "package-lock.json").read_text())["packages"]
    there = MODULES / ".package-lock.json"  # which npm writes last
    del wanted[""]  # what lies here
    if there.is_file() and json.loads(there.read_text())["packages"] == wanted:
        return
    if shutil.which("npm") is None:
        raise FerError("onnxruntime-web is fetched by npm, which is not here; install it (Debian: apt-get install npm)")
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no reason given"])[0].removeprefix("npm error ")
        raise FerError(f"npm cannot fetch onnxruntime-web ({reason}); see that its registry can be reached")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder = Path(sys.argv[2])
    try:
        run(Path(sys.argv[1]), folder)
    except FerError as error:
        sys.exit(f"Error: {error}")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}, {size / 1e6:.1f} MB; serve it: python -m http.server --bind 127.0.0.1 --directory {folder} 8000")
    print("then open http://localhost:8000")
