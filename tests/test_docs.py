"""The documentation is held to the code."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from small_caches import CLASSES, make, write_cache

from efficientface.cache import hdf5, parquet
from efficientface.cli import cli
from efficientface.data import faces
from efficientface.pipeline import artifact, export, recognise, watch
from efficientface.pipeline.caches import convert

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FILES = (ROOT / "docs" / "files.md").read_text()


def commands(group: click.Group, words: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """Every command by what is typed after `fer`, those of groups included, the groups themselves not."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, (*words, name))
        else:
            found[" ".join((*words, name))] = command
    return found


@pytest.mark.parametrize("name", sorted(commands(cli)))
def test_every_command_has_help_with_an_example_and_a_place_in_the_readme(name):
    text = CliRunner().invoke(cli, [*name.split(), "--help"]).output
    assert f"Example:\n    fer {name} " in text.replace("  Example", "Example").replace("\n      fer", "\n    fer")
    assert f"fer {name}" in README
    for parameter in commands(cli)[name].params:
        assert not isinstance(parameter, click.Option) or parameter.help, f"{parameter.name} has no help"


def test_the_command_reference_is_what_the_commands_say():
    # in a process of its own: click keeps a help option that another test may have made without our names
    check = [sys.executable, ROOT / "tests" / "write_cli_reference.py", "--check", ROOT / "docs" / "cli.md"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom efficientface.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "assert not {'torch', 'cv2', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_column_is_described():
    for field in faces.schema(["neutral", "fear"]):
        assert re.search(rf"^\| .*`{field.name}`", FILES, re.M), field.name
    for name in (*parquet.KEYS, *parquet.VIEWS, *recognise.COLUMNS, *watch.VIDEO_COLUMNS):
        assert re.search(rf"^\| .*`{name}`", FILES, re.M), name
    for status in faces.STATUSES:
        assert f"`{status}`" in FILES


def test_an_hdf5_file_is_what_the_docs_say(tmp_path):
    """Every attribute and dataset of a real file has its row, with its type and shape; the docs have no other."""
    part = FILES.split("## distributions/distributions.h5")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in re.findall(r"^\|.*\|$", part, re.M)]
    attributes = {row[0].strip("`"): row[1] for row in rows if len(row) == 3 and row[0].startswith("`")}
    datasets = {row[0].strip("`"): row[1:3] for row in rows if len(row) == 4 and row[1] not in ("type", "---")}
    convert(write_cache(tmp_path / "distributions", make(["a", "b", "c"], views=2)), tmp_path / "cache.h5")
    raw = (tmp_path / "cache.h5").read_bytes()
    lines = raw[: hdf5.USER_BLOCK].rstrip(b"\0").decode().splitlines()
    assert f"the line `{lines[0]}`" in part
    assert lines[1].startswith(re.search(r"line `(blake2b[^`]*)`", part.replace("\n", " "))[1])
    assert lines[1].split()[-1] == hashlib.blake2b(raw[512:], digest_size=32).hexdigest()
    with h5py.File(tmp_path / "cache.h5") as file:
        assert set(file.attrs) == set(attributes)
        for name, kind in attributes.items():
            value = file.attrs[name]
            assert kind == {str: "string", np.int64: "int64", np.ndarray: "strings"}[type(value)], name
        assert set(file) - set(CLASSES) == set(datasets) - {"one dataset a class, by its name"}
        for name in file:
            kind, shape = datasets["one dataset a class, by its name" if name in CLASSES else name]
            sizes = {"N": 3, "V": 2, "C": 3, "4": 4}
            assert file[name].shape == tuple(sizes[letter] for letter in shape.split(" x ")), name
            found = h5py.check_string_dtype(file[name].dtype)
            stated = "text" if found else str(file[name].dtype)
            assert kind.replace("enumeration of int8, FALSE 0 and TRUE 1", "bool") == stated, name
            assert (file[name].compression is None) == (stated == "float32"), name
            assert "meaning" in file[name].attrs


def test_the_versions_in_the_docs_are_the_codes():
    stated = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", FILES, re.M))
    assert stated == {
        "manifest": str(artifact.VERSION),
        "faces": str(faces.VERSION),
        "distributions": str(parquet.VERSION),
        "hdf5": str(hdf5.VERSION),
        "predictions": str(recognise.VERSION),
        "onnx": str(export.VERSION),
    }


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_every_module():
    for part in ("cache", "data", "models", "pipeline"):
        for module in (ROOT / part).glob("[!_]*.py"):
            assert f"{part}/{module.name}" in README, f"{part}/{module.name}"


def test_nothing_is_left_to_be_filled_in():
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        left = re.findall(r"^[A-Z0-9]+[A-Z0-9-]{4,}$|\b(?:TODO|FIXME|TBD)\b", path.read_text(), re.M)
        assert not left, f"{path.name}: {left}"
