"""Fails if a wheel holds anything but the package's own modules, or lacks one: python check_wheel.py dist/x.whl."""

import sys
import zipfile
from pathlib import Path

PARTS = ("cache", "data", "models", "pipeline")


def main(wheel: str) -> None:
    root = Path(__file__).parent.parent
    expected = {
        f"efficientface/{name}" for name in ("__init__.py", "__main__.py", "cli.py", "py.typed", "untrusted.py")
    }
    modules = (path.relative_to(root) for part in PARTS for path in (root / part).rglob("*.py"))
    expected |= {f"efficientface/{path.as_posix()}" for path in modules}
    expected |= {f"efficientface/pipeline/web/{path.name}" for path in (root / "pipeline" / "web").iterdir()}
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    if held != expected:
        sys.exit(f"{wheel}: not expected {sorted(held - expected)}, missing {sorted(expected - held)}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        sys.exit(f"{wheel}: no licence")
    print(f"{wheel}: {len(held)} files and nothing else")


if __name__ == "__main__":
    main(sys.argv[1])
