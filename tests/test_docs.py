"""The documentation is held to the code."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from write_cli_reference import reference

from efficientface.cache import parquet
from efficientface.cli import cli
from efficientface.data import faces
from efficientface.pipeline import artifact

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FILES = (ROOT / "docs" / "files.md").read_text()


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example_and_a_place_in_the_readme(name):
    text = CliRunner().invoke(cli, [name, "--help"]).output
    assert f"Example:\n    fer {name} " in text.replace("  Example", "Example").replace("\n      fer", "\n    fer")
    assert f"fer {name}" in README
    for parameter in cli.commands[name].params:
        assert not isinstance(parameter, click.Option) or parameter.help, f"{parameter.name} has no help"


def test_the_command_reference_is_what_the_commands_say():
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "run make docs"


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
    for name in (*parquet.KEYS, *parquet.VIEWS):
        assert re.search(rf"^\| .*`{name}`", FILES, re.M), name
    for status in faces.STATUSES:
        assert f"`{status}`" in FILES


def test_the_versions_in_the_docs_are_the_codes():
    stated = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", FILES, re.M))
    assert stated == {
        "manifest": str(artifact.VERSION),
        "faces": str(faces.VERSION),
        "distributions": str(parquet.VERSION),
    }


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_every_module():
    for part in ("cache", "data", "models", "pipeline"):
        for module in (ROOT / part).glob("[!_]*.py"):
            assert f"{part}/{module.name}" in README, f"{part}/{module.name}"
