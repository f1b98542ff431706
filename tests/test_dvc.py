"""`fer dvc`: a dvc.yaml that the real DVC reads as the stages that they are."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import write_faces
from small_caches import make

from efficientface.cache.parquet import write_shard
from efficientface.cli import cli
from efficientface.pipeline.artifact import reference_to, write_manifest
from efficientface.pipeline.config import DistillConfig, TeachConfig


def model(folder: Path, kind: str, made_from: dict[str, Path], **settings):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    references = {name: reference_to(path, folder) for name, path in made_from.items()}
    write_manifest(
        folder, kind, files=["config.json"], classes=["a", "b"], made_from=references, settings=settings, facts={}
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run as its manifests tell it: photographs, a teacher, one out of fold, two caches, two students."""
    monkeypatch.chdir(tmp_path)
    run = Path("my run")
    write_faces(run)
    manifest = json.loads((run / "faces" / "manifest.json").read_text())
    write_manifest(
        run / "faces",
        "faces",
        files=list(manifest["files"]),
        classes=manifest["classes"],
        made_from={"source": {"path": "../../photos ${x}", "layout": "folders", "digest": "0"}},
        settings={"crop": 64, "eye_distance": 0.42},
        facts={},
    )
    Path("photos ${x}").mkdir()
    model(run / "teacher", "teacher", {"faces": run / "faces"}, size=48, seed=0, min_area=0.5)
    model(run / "teacher" / "fold-0", "teacher", {"faces": run / "faces"}, size=48, seed=0, min_area=0.5, epochs=9)
    for name, teacher, folds in (("distributions", "teacher", 0), ("distributions-oof", "teacher/fold-0", 2)):
        (run / name).mkdir()
        write_shard(make(["x"], views=2), run / name / "part-00000.parquet")
        references = {"faces": run / "faces", "teacher": run / teacher}
        write_manifest(
            run / name,
            "distributions",
            files=["part-00000.parquet"],
            classes=["neutral"],
            made_from={made: reference_to(path, run / name) for made, path in references.items()},
            settings={"source": "ldg", "folds": folds, "views": 2, "seed": 0, "min_area": 0.5},
            facts={},
        )
    for name, cache in (("ldl", "distributions"), ("a.b", "distributions-oof")):
        references = {"faces": run / "faces", "distributions": run / cache}
        model(run / "students" / name, "student", references, size=48, loss="ldl", name="" if name == "ldl" else name)
    return run


def printed(run) -> str:
    result = CliRunner().invoke(cli, ["dvc", str(run)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_stages_have_their_commands_inputs_and_outputs(run):
    stages = yaml.safe_load(printed(run))["stages"]
    assert list(stages) == ["align", "teach", "teach-oof", "distill-a_b", "distill-ldl"]
    assert stages["align"]["cmd"] == "fer align 'photos \\${x}' 'my run' --crop 64 --eye-distance 0.42"
    assert stages["align"]["deps"] == ["photos \\${x}"]
    assert stages["teach"]["outs"][0] == "my run/distributions"
    assert "my run/teacher/config.json" in stages["teach"]["outs"]
    assert stages["teach-oof"]["outs"] == ["my run/distributions-oof", "my run/teacher/fold-0"]
    assert "--epochs 9" in stages["teach-oof"]["cmd"]
    assert stages["distill-a_b"] == {
        "cmd": "fer distill 'my run' --size 48 --name a.b",
        "deps": ["my run/faces", "my run/distributions-oof"],
        "outs": ["my run/students/a.b"],
    }
    for stage, config in (("teach", TeachConfig), ("distill-ldl", DistillConfig)):
        words = shlex.split(stages[stage]["cmd"])
        assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= set(
            config.__dataclass_fields__
        )


@pytest.mark.slow
def test_dvc_reads_it(run):
    program = shutil.which("dvc")
    if program is None:
        pytest.skip("dvc is not installed; pip install dvc, in any environment on the PATH")
    Path("dvc.yaml").write_text(printed(run))
    home = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_TEST": "1"}

    def dvc(*words) -> str:
        done = subprocess.run([program, *words], capture_output=True, text=True, env=home)
        assert done.returncode == 0, done.stderr
        return done.stdout

    dvc("init", "--no-scm", "-q")
    assert dvc("stage", "list", "--name-only").split() == ["align", "teach", "teach-oof", "distill-a_b", "distill-ldl"]
    dot = dvc("dag", "--dot").replace('"', "")
    for edge in ("align -> teach", "teach -> distill-ldl", "teach-oof -> distill-a_b", "align -> distill-ldl"):
        assert edge in dot
    assert "> fer align 'photos ${x}' 'my run' --crop 64 --eye-distance 0.42" in dvc("repro", "--dry")
