"""Files made to do harm: refused in a sentence, or shown as text."""

import csv
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from conftest import picture, sign_again, write_faces
from onnx import TensorProto, helper
from PIL import Image
from rich.text import Text
from rubbish import photo_bytes, seal, sign, small_model
from small_caches import make, write_cache

from efficientface import FerError
from efficientface.cli import cli
from efficientface.pipeline.artifact import MANIFEST, read_manifest
from efficientface.pipeline.caches import open_cache
from efficientface.pipeline.checkpoint import WEIGHTS, Checkpoint, load_model
from efficientface.pipeline.import_weights import read_tensors
from efficientface.pipeline.inputs import inputs_in
from efficientface.pipeline.show import PlainConsole

ROOT = Path(__file__).parent.parent
FORMULA = "=cmd|' C calc'!A0"
ESCAPE = "\x1b]0;owned\x07"


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def refused(*words) -> str:
    """The one printable line that a command refuses with."""
    result = fer(*words)
    assert result.exit_code == 1, result.output
    line = result.stderr.removesuffix("\n")
    assert line.isprintable(), line
    return line


@pytest.fixture
def model(tmp_path):
    small_model(tmp_path / "run/students/sll", "student")
    return tmp_path / "run/students/sll"


# --- pickles and weights -----------------------------------------------------------------------------------------


class Made:
    """What an unpickler would call."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("made", "named"),
    [
        (Made(os.system, "touch it-ran"), "posix.system"),
        (Made(bytearray, 10**13), "__builtin__.bytearray"),  # torch's weights_only would make it
        (Made(torch.Tensor, 10**12), "torch.Tensor"),
    ],
)
def test_a_checkpoint_neither_runs_nor_makes_anything(made, named, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": made}}, tmp_path / "x.tar", _use_new_zipfile_serialization=zipped)
    sentence = refused("import", tmp_path / "x.tar", tmp_path / "out")
    assert f"holds Python objects besides tensors, first {named}," in sentence
    assert sorted(os.listdir(tmp_path)) == ["x.tar"]


def test_a_pickle_is_not_read_under_the_name_of_safetensors(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "x.safetensors", model / WEIGHTS):
        path.write_bytes(pickle.dumps(Made(os.system, "touch it-ran")))
    assert "neither a checkpoint of torch nor of safetensors" in refused("import", tmp_path / "x.safetensors", "out")
    sign_again(model)
    with pytest.raises(FerError, match="does not hold the weights"):
        load_model(model)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("size", [2**63 - 1, 2**64 - 1, 10**8, 17 * 2**20])
def test_a_header_of_absurd_size_is_not_made_room_for(size, model, tmp_path):
    forged = struct.pack("<Q", size) + b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for path in (tmp_path / "x.safetensors", tmp_path / "checkpoint.safetensors", model / WEIGHTS):
        path.write_bytes(forged)
        os.truncate(path, 40 * 2**20)  # there is room for the smallest of them
    sign_again(model)
    with pytest.raises(FerError, match=rf"\(it claims a header of {size:,} bytes\)"):
        load_model(model)
    with pytest.raises(FerError, match="it claims a header"):
        Checkpoint(tmp_path / "checkpoint.safetensors").progress()
    with pytest.raises(FerError, match="damaged"):
        read_tensors(tmp_path / "x.safetensors")


# --- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/../../b", "", "x\0y", "sub/part.parquet"])
def test_a_manifest_names_no_file_outside_of_its_folder(name, run):
    (run / "secret").write_text("secret")
    manifest = json.loads((run / "faces" / MANIFEST).read_bytes())
    manifest["files"][name] = {"bytes": 6, "blake2b": "0" * 64}
    seal(run / "faces", json.dumps(manifest).encode())
    with pytest.raises(FerError, match="does not say what docs/files.md asks of it"):
        read_manifest(run / "faces", "faces")
    assert fer("verify", run).exit_code == 1


@pytest.mark.parametrize("reference", [{"path": "/etc"}, {"path": "a\0b"}, {"path": 3}, {}, ["/etc"], None])
def test_what_it_was_made_from_is_a_relative_path(reference, run):
    manifest = json.loads((run / "faces" / MANIFEST).read_bytes())
    manifest["made_from"]["source"] = reference
    seal(run / "faces", json.dumps(manifest).encode())
    with pytest.raises(FerError, match="does not say what docs/files.md asks of it"):
        inputs_in(run / "faces")


def test_links_that_lead_out_of_an_artifact_are_not_followed(run, tmp_path):
    shard = run / "faces" / "part-00000.parquet"
    shard.rename(tmp_path / "elsewhere.parquet")
    shard.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(FerError, match="is a link that leads out of"):
        inputs_in(run / "faces")
    shard.unlink()
    (run / "faces" / "real.parquet").symlink_to("part-00001.parquet")  # one inside is as good as the file
    (tmp_path / "elsewhere.parquet").rename(shard)
    assert len(inputs_in(run / "faces").faces) == 60


def test_nothing_is_written_through_links_in_a_run_folder(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for label in ("happy", "sad"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "0.png").write_bytes(photo_bytes("RGB", "PNG", 48))
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("duplicates.csv", ".align.lock"):
        (folder / name).symlink_to(victim)
    fer("align", "--aligned", tmp_path / "photos", folder, "--crop", 32)
    assert victim.read_text() == "precious"


def test_a_list_of_photographs_shows_nothing_of_other_files(model, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the password is swordfish")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.txt").write_text(f"{secret}\n../secret\n/dev/zero\n")
    result = fer("predict", tmp_path / "in" / "list.txt", "--model", model, "--json")
    rows = json.loads(result.stdout)["rows"]
    assert [row["reason"] for row in rows] == ["not an image", "not an image", "cannot be read (no ordinary file)"]
    assert "swordfish" not in result.output


def test_a_parquet_file_whose_data_lie_in_another_is_refused(tmp_path):
    folder = write_cache(tmp_path / "run/distributions", make(["a", "b"]), parts=1)
    shard = folder / "part-00000.parquet"
    footer = pq.read_metadata(shard)
    shard.rename(tmp_path / "other.parquet")
    footer.set_file_path("../../other.parquet")
    footer.write_metadata_file(shard)
    sign(folder, json.loads((folder / MANIFEST).read_bytes()))
    with pytest.raises(FerError, match="cannot be read as Parquet"):
        open_cache(folder).read()


def onnx_with_data_at(path: Path, location: str) -> Path:
    """A model whose only weights lie in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["probabilities"])], "g", [], [output], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_an_onnx_file_with_data_elsewhere_is_refused(location, tmp_path):
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    (tmp_path / "in").mkdir()
    file = onnx_with_data_at(tmp_path / "in" / "x.onnx", location)
    Image.fromarray(picture(0, np.random.default_rng(0))).save(tmp_path / "face.png")
    assert str(file) in refused("predict", tmp_path / "face.png", "--model", file)
    assert "neither a checkpoint" in refused("import", file, tmp_path / "out")
    # nor does the runtime that the example uses open it
    example = [sys.executable, ROOT / "examples" / "onnx_only.py", file, tmp_path / "face.png"]
    done = subprocess.run(example, capture_output=True, text=True)
    assert done.returncode != 0
    assert "onnxruntime" in done.stderr
    assert not done.stdout


def test_an_onnx_file_of_ours_has_its_weights_inside(tmp_path):
    made = onnx.load(onnx_with_data_at(tmp_path / "x.onnx", "w.bin"), load_external_data=False)
    assert made.graph.initializer[0].external_data  # the forgery is one
    text = (ROOT / "pipeline" / "export.py").read_text()
    assert "external_data=False" in text


# --- text ------------------------------------------------------------------------------------------------------------


def test_no_cell_of_a_csv_is_a_formula(tmp_path):
    ids = [FORMULA, "+1", "-1", "@SUM(A1)", "plain.png"]
    classes = ("=1+1", "@b", "c")
    folder = write_cache(tmp_path / "distributions", make(ids, classes=classes), 1)
    result = fer("inspect", folder, "--top", "ambiguous", "--csv")
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert sorted(row[0] for row in rows[1:]) == sorted([*("'" + name for name in ids[:4]), "plain.png"])
    starts = {cell[0] for row in rows for cell in row if cell and not cell.replace(".", "").replace("e-", "").isdigit()}
    assert not starts & set("=+-@")


def test_duplicates_csv_has_no_formula_and_is_verified(tmp_path):
    for split in ("train", "test"):
        for label in ("happy", "sad"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            (tmp_path / "photos" / split / label / "x.png").write_bytes(photo_bytes("RGB", "PNG", 48))
    (tmp_path / "list").mkdir()
    (tmp_path / "photos").rename(tmp_path / "list" / "=photos")
    lines = [f"=photos/{s}/{label}/x.png,{label},{s}\n" for s in ("train", "test") for label in ("happy", "sad")]
    (tmp_path / "list" / "list.csv").write_text("path,label,split\n" + "".join(lines))
    done = fer("align", "--aligned", tmp_path / "list" / "list.csv", tmp_path / "run", "--crop", 32)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(open(tmp_path / "run" / "duplicates.csv")))  # noqa: SIM115
    assert rows
    assert all(row[name].startswith("'=photos/") for row in rows for name in ("face_id", "twin"))
    assert fer("verify", tmp_path / "run").exit_code == 0


def test_names_do_not_steer_a_terminal(tmp_path):
    assert "\\x1b]0;owned\\x07" in refused("inspect", tmp_path / ESCAPE)
    run = tmp_path / "run"
    write_faces(run, 12, classes=("neutral", f"happy{ESCAPE}"))
    folder = write_cache(
        run / "distributions", make([f"a{ESCAPE}.png", "b\x9b31m.png"], classes=("x", f"y{ESCAPE}")), 1
    )
    (run / "students" / f"sll{ESCAPE}").mkdir(parents=True)
    for words in (
        ["status", run],
        ["inspect", run / "faces"],
        ["inspect", folder, "--top", "ambiguous"],
        ["verify", run],
    ):
        for options in ([], ["--json"]):
            output = fer(*words, *options).output
            assert not set(output) & {"\x1b", "\x07", "\x9b"}, words


def test_colours_stay_and_text_is_escaped():
    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print(Text(f"a{ESCAPE}b\nc", style="red"))
    assert console.file.getvalue() == "\x1b[31ma\\x1b]0;ownedb\x1b[0m\n\x1b[31mc\x1b[0m\n"


# --- the network -----------------------------------------------------------------------------------------------------


def test_no_command_connects_to_anything(tmp_path, monkeypatch):
    def connect(*args, **options):
        raise AssertionError(f"a connection to {args[1:]}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    with pytest.raises(AssertionError):
        socket.create_connection(("localhost", 80))
    rng = np.random.default_rng(0)
    for k in range(30):
        folder = tmp_path / "photos" / ("train", "train", "test")[k // 2 % 3] / ("happy", "sad")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(k % 2, rng)).save(folder / f"{k}.png")
    run, short = tmp_path / "run", ["--size", 32, "--epochs", 1]
    student = run / "students" / "sll"
    torch.save({"state_dict": {"x": torch.zeros(3)}}, tmp_path / "x.tar")
    for words in (
        ["align", "--aligned", tmp_path / "photos", run, "--crop", 32],
        ["teach", run, "--source", "smooth:0.1"],
        ["distill", run, "--loss", "sll", "--arch", "shufflenet_v2_x0_5", *short],
        ["evaluate", run],
        ["inspect", run / "distributions"],
        ["inspect", run, "--html", tmp_path / "page.html"],
        ["status", run],
        ["verify", run],
        ["cache", "convert", run / "distributions", tmp_path / "x.h5"],
        ["predict", tmp_path / "photos", "--model", student],
        ["explain", run, "--out", tmp_path / "maps.png"],
    ):
        result = fer(*words)
        assert result.exit_code == 0, (words, result.output)
    assert "x.tar" in refused("import", tmp_path / "x.tar", tmp_path / "out")


def test_onnxruntime_tells_its_maker_nothing(tmp_path):
    """Python's sockets do not see its own, but what it would send it first keeps in these folders."""
    session = "from retinaface.weights import WEIGHTS; onnxruntime.InferenceSession(WEIGHTS)"
    code = f"import efficientface, onnxruntime; {session}"
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), str(tmp_path))
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    subprocess.run([sys.executable, "-c", code], env=env | places, check=True)
    assert not list(tmp_path.iterdir())


def test_mlflow_tells_its_maker_nothing():
    telemetry = pytest.importorskip("mlflow.telemetry.utils")
    assert telemetry.is_telemetry_disabled()
