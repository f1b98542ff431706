"""`fer card`: the front matter as Hugging Face reads it, figures against the artifacts, names that are only text."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import CLASSES
from markdown_it import MarkdownIt
from test_inspect import write_model
from test_page import HOSTILE, Outline, fer
from test_report import refused, write_run

from efficientface.models import build
from efficientface.pipeline.artifact import read_sealed

hub = pytest.importorskip("huggingface_hub")


def card(*words):
    done = fer("card", *words)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("card") / "run")


def front(text):
    """The YAML between the first two lines of ---, and the Markdown after it as HTML."""
    _, head, body = re.split(r"^---\n", text, maxsplit=2, flags=re.M)
    return yaml.safe_load(head), MarkdownIt("commonmark").enable("table").render(body)


def test_hugging_face_reads_the_scores_of_the_evaluation(run):
    text = card(run / "students" / "small", "--license", "cc-by-nc-4.0")
    data = hub.ModelCard(text).data
    assert (data.pipeline_tag, data.license, data.model_name) == ("image-classification", "cc-by-nc-4.0", "small")
    model = read_sealed(run / "evaluation" / "test.json")["models"]["small"]
    found = {entry.metric_type: entry.metric_value for entry in data.eval_results}
    assert found == {
        "accuracy": pytest.approx(model["accuracy"], abs=1e-6),
        "f1": pytest.approx(model["macro_f1"], abs=1e-6),
        "expected_calibration_error": pytest.approx(model["calibration_error"], abs=1e-6),
    }
    assert {entry.dataset_split for entry in data.eval_results} == {"test"}
    _, html = front(text)
    low, high = model["accuracy_interval"]
    assert f"<td>{100 * model['accuracy']:.2f} % [{100 * low:.1f}, {100 * high:.1f}]</td>" in html
    assert f"{model['parameters']:,} parameters" in html
    for name, row in model["classes"].items():
        assert re.search(rf"<td>{name}</td>.*?<td[^>]*>{row['support']}</td>", html, re.S)


def test_a_card_of_a_teacher(run):
    data, html = front(card(run / "teacher"))
    assert data["model-index"][0]["name"] == "teacher"
    assert "from single labels" in html


@pytest.mark.parametrize("path", ["students/small", "."])
def test_limits_misuse_and_law_are_named(run, path):
    text = card(run / path)
    for words in ("contested", "Barrett et al., 2019", "Article 5(1)(f)", "bias of its data", "Not for decisions"):
        assert words in text
    assert "license" not in front(text)[0]
    assert "Missing: none has been chosen yet" in text


def test_a_model_that_was_not_judged_has_no_figures(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    student = tmp_path / "run" / "students" / "small"
    shutil.rmtree(student)
    torch.manual_seed(5)
    write_model(student, "student", {"faces": tmp_path / "run" / "faces"}, {}, build("efficientface", 3).eval())
    data, html = front(card(student))
    assert "Missing: only other models, or this one as it was before, were judged" in html
    assert "model-index" not in data
    assert "metrics" not in data
    shutil.rmtree(tmp_path / "run" / "evaluation")
    assert "Missing: this model was not judged" in card(student)
    shutil.rmtree(tmp_path / "run" / "faces")
    assert "Data: missing" in card(student)


def test_the_card_of_the_faces(run):
    data, html = front(card(run))
    read = hub.DatasetCard(card(run)).data
    assert (read.task_categories, read.size_categories) == (["image-classification"], ["n<1K"])
    assert [config["config_name"] for config in data["configs"]] == ["faces", "distributions"]
    assert "61 rows, 60 of them with a face of 64 x 64 pixels" in html
    assert re.search(
        r"<td>sadness</td>\s*<td[^>]*>12</td>\s*<td[^>]*>4</td>\s*<td[^>]*>4</td>\s*<td[^>]*>20</td>", html
    )
    assert "distributions: 60 distributions over 3 classes, 2 stored views a face" in html


@pytest.mark.slow
def test_hugging_face_datasets_opens_a_run_by_its_card(run, tmp_path):
    pytest.importorskip("datasets")
    shutil.copytree(run, tmp_path / "run")
    card(tmp_path / "run", "--out", tmp_path / "run" / "README.md")
    code = (
        "import sys, datasets\n"
        "faces = datasets.load_dataset(sys.argv[1], split='train')\n"
        "cached = datasets.load_dataset(sys.argv[1], 'distributions', split='train')\n"
        "print(len(faces), faces.features['label'].names, len(cached), cached[0]['happiness'] <= 1)\n"
    )
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, env=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"61 {list(CLASSES)} 60 True\n"


def test_hostile_names_are_text(tmp_path):
    classes = ("a|b `c` <img src=x>", "[x](http://evil) **loud**", "---\nlicense: mit\n---\n# owned")
    run = write_run(tmp_path / "run", classes=classes, names=HOSTILE)
    (run / "students" / "small").rename(run / "students" / "# x\n---\nlicense: mit")
    for path in (run, next((run / "students").iterdir())):
        text = card(path)
        data, html = front(text)
        assert "license" not in data
        assert hub.RepoCard(text).data.tags == ["facial-expression-recognition", "efficientface"]
        outline = Outline(html)
        assert not [tag for tag, _ in outline.tags if tag in ("img", "script", "b", "i")]
        links = {attributes["href"] for tag, attributes in outline.tags if tag == "a"}
        assert links == {"https://doi.org/10.1177/1529100619832930", "https://eur-lex.europa.eu/eli/reg/2024/1689/oj"}
        assert html.count("<h1>") == 1
        assert "<td>a|b `c` &lt;img src=x&gt;</td>" in html
        assert "<td>[x](http://evil) **loud**</td>" in html
        assert "<strong>loud" not in html


def test_a_card_is_written_whole_and_replaces_the_former(run, tmp_path):
    done = fer("card", run, "--out", tmp_path / "README.md")
    assert done.stdout == f"dataset card written to {tmp_path}/README.md\n"
    assert (tmp_path / "README.md").read_text() == card(run)
    assert card(run) == card(run)
    fer("card", run / "teacher", "--out", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == card(run / "teacher")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_wrong_requests_have_a_sentence(run, tmp_path):
    assert refused("card", run / "faces") == (
        f"{run}/faces holds faces; give a teacher's or student's folder for a model card, "
        "or the run for the card of its faces"
    )
    assert refused("card", run, "--license", "My Own!") == (
        "--license My Own! is no name of Hugging Face's; give one such as apache-2.0 or other"
    )
    assert refused("card", run, "--out", tmp_path) == (
        f"{tmp_path} is a folder; give a file's name, such as {tmp_path}/README.md"
    )
    assert refused("card", run, "--out", tmp_path / "no" / "a.md") == (
        f"{tmp_path}/no does not exist; make that folder first, or write the card elsewhere"
    )
    (tmp_path / "run" / "students" / "a").mkdir(parents=True)
    assert "unfinished" in refused("card", tmp_path / "run" / "students" / "a")
    assert refused("card", tmp_path / "run") == f"{tmp_path}/run/faces does not exist; run fer align first"


def test_a_card_does_not_import_torch(run):
    code = (
        "import sys; from efficientface.cli import cli\n"
        f"cli(['card', {str(run / 'students' / 'small')!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
