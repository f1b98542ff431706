"""`fer report`: the file by itself, what it says against the artifacts, and how it looks in a real Chromium."""

import json
import re
import shlex
import shutil
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import test_page
import torch
from conftest import CLASSES, write_faces
from test_inspect import BEST, finish_cache, write_cache, write_model
from test_page import HOSTILE, HOSTILE_CLASSES, Outline, contrast, fer, luminance, rename

from efficientface.cache.parquet import read_shards
from efficientface.cli import cli
from efficientface.data.drawn import draw_face
from efficientface.models import build
from efficientface.models.counting import count_as_paper
from efficientface.pipeline import evaluate, page, profile, report, report_pictures, teach
from efficientface.pipeline.artifact import MANIFEST, read_sealed, reference_to, write_sealed
from efficientface.pipeline.config import DistillConfig, TeachConfig
from efficientface.pipeline.metrics import reliability
from efficientface.pipeline.status import printable

chromium = test_page.chromium
TEACHER = TeachConfig(teacher_arch="efficientface", size=64, epochs=3, lr=0.05, views=2)
STUDENT = DistillConfig(size=64, epochs=3, schedule="onecycle", name="small")


def write_run(run, classes=CLASSES, names=(), student="small"):
    """Faces, a teacher, its distributions and a student, both judged."""
    write_faces(run, classes=classes)
    if names:
        rename(run, names)
    faces = {"faces": run / "faces"}
    settings = {k: v for k, v in asdict(TEACHER).items() if k not in teach.LABELLING}
    for seed, (folder, kind, told) in enumerate(
        ((run / "teacher", "teacher", settings), (run / "students" / student, "student", asdict(STUDENT)))
    ):
        torch.manual_seed(seed)
        write_model(folder, kind, faces, told, build("efficientface", len(classes)).eval(), classes=classes)
    made = write_cache(run / "distributions", run / "faces", classes)
    references = {name: reference_to(run / name, made) for name in ("faces", "teacher")}
    cached = read_shards(sorted(made.glob("*.parquet")))
    shutil.rmtree(made)
    finish_cache(made, cached, references, settings={"views": 2, "seed": 0, "min_area": 0.08, "source": "ldg"})
    evaluate.run(run, png=False)
    return run


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run and its report."""
    run = write_run(tmp_path_factory.mktemp("report") / "run")
    done = fer("report", run)
    assert done.exit_code == 0, done.output
    return run, (run / "report.html").read_text()


def refused(*words):
    done = fer(*words)
    assert done.exit_code == 1
    return done.stderr.removeprefix("Error: ").removesuffix("\n")


def words_of(text):
    """What a reader reads, tags left out."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text.split("</style>")[1]))


# --- the file


def test_one_file_is_all_there_is(told):
    outline = Outline(told[1])
    for tag, attributes in outline.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "link") or attributes.get("href") == "data:,"
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#")[0] == "#" or attributes["href"] == "data:,"
    assert "://" not in told[1]
    assert "url(" not in outline.inside["style"]
    targets = {attributes["href"][1:] for tag, attributes in outline.tags if tag == "a"}
    assert targets <= {attributes.get("id") for _, attributes in outline.tags}


def test_nothing_but_its_style_and_pictures_may_load(told):
    outline = Outline(told[1])
    policy = next(a["content"] for _, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    style = page.source(outline.inside["style"])
    assert policy == f"default-src 'none'; style-src {style}; img-src data:; base-uri 'none'; form-action 'none'"


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(told, tmp_path):
    shutil.copytree(told[0], tmp_path / "else" / "run", ignore=shutil.ignore_patterns("*.html"))
    fer("report", tmp_path / "else" / "run", "--out", tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == told[1]
    assert str(told[0].parent) not in told[1]


def test_pictures_are_few_and_small():
    """Of any run: so many at most, of at most so many bytes each, though every pixel is noise."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    cards, maps = 3 * report_pictures.GALLERY, 3 * report_pictures.LOOKS * (1 + report.MODELS)
    large = 2 * report_pictures.PHOTOGRAPHS + report_pictures.REJECTED
    labels = report_pictures.LABELS * report_pictures.LABELLED
    size = len(report_pictures.Pictures().uri(noise)) * (cards + maps)
    size += len(report_pictures.Pictures().uri(noise, report_pictures.PHOTOGRAPH)) * large
    assert size + len(report_pictures.Pictures().uri(noise, 96)) * labels < 4_500_000


# --- what it says


def test_figures_are_those_of_the_evaluation(told):
    run, text = told
    shown = words_of(text)
    judged = read_sealed(run / "evaluation" / "test.json")["models"]
    for name, model in judged.items():
        low, high = model["accuracy_interval"]
        assert f"{name} {100 * model['accuracy']:.2f} [{100 * low:.1f}, {100 * high:.1f}]" in shown
        for label, row in model["classes"].items():
            assert f"{label} {'-' if row['precision'] is None else format(100 * row['precision'], '.1f')} " in shown
    matrices = text.split('aria-label="confusion matrix"')[1:]
    for model, matrix in zip(judged.values(), matrices, strict=True):
        cells = re.findall(r'<td class="s\d+[a-z ]*">([\d,]+)', matrix.split("</table>")[0])
        assert np.reshape([int(cell) for cell in cells], (3, 3)).tolist() == model["confusion"]


def test_counts_are_those_of_the_network_and_the_metrics(told):
    model = build("efficientface", 3)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    multiply_adds = count_as_paper(model, 64)[0] / 1e6
    assert f"small efficientface 64 {parameters:,} {multiply_adds:,.2f}" in words_of(told[1])
    assert " 3 6 s " in words_of(told[1])  # three epochs of two seconds


def test_curves_end_where_the_metrics_do(told):
    chart = told[1].split("Validation accuracy</figcaption>")[1].split("</svg>")[0]
    ticks = {float(t): float(y) for y, t in re.findall(r'class="tick y" x="\d+" y="([\d.]+)">([\d.]+)<', chart)}
    (y1, a1), (y2, a2) = ((ticks[t], t) for t in (min(ticks), max(ticks)))
    points = re.findall(r'points="([^"]*)"', chart)
    assert len(points) == 2
    heights = [float(point.split(",")[1]) for point in points[0].split()]
    np.testing.assert_allclose([a1 + (y - y1) * (a2 - a1) / (y2 - y1) for y in heights], [50, 75, 62.5], atol=0.1)
    best = re.search(r'<circle class="dot line-0" cx="[\d.]+" cy="([\d.]+)"', chart)[1]
    assert float(best) == heights[BEST["epoch"] - 1]


def test_reliability_against_a_plain_loop():
    rng = np.random.default_rng(1)
    p, correct = rng.dirichlet([0.5] * 4, 300), rng.random(300) < 0.5
    counts, right, confidence = reliability(p, correct, 5)
    for k in range(5):
        inside = [j for j in range(300) if k / 5 < p[j].max() <= (k + 1) / 5]
        assert counts[k] == len(inside)
        assert right[k] == correct[inside].sum()
        assert confidence[k] == pytest.approx(p[inside].max(1).sum() if inside else 0)


def test_right_and_wrong_faces_are_that(told):
    run, text = told
    faces = report.read_inputs(run).labelled("test")
    answers, _ = evaluate.ask(run / "students" / "small", "student", faces, 64, "cpu", 256)
    right = answers.argmax(1) == faces.label
    groups = text.split('<ul class="shots cards">')[1:]
    names = [re.findall(r'<span class="id">([^<]*)</span>', group.split("</ul>")[0]) for group in groups]
    assert set(names[0]) == set(faces.face_id[right])
    assert set(names[1]) <= set(faces.face_id[~right])
    assert len(names[1]) == min(8, int((~right).sum()))
    p = answers[~right]
    assert names[1][0] == faces.face_id[~right][p.max(1).argmax()]
    nats = -(answers * np.log(answers.astype(float))).sum(1)
    shown = [nats[faces.face_id.tolist().index(name)] for name in names[2]]
    np.testing.assert_allclose(shown, np.sort(nats)[::-1][:8], rtol=1e-6)


def test_its_commands_have_the_settings_of_the_run(told):
    lines = re.search(r"<pre>(.*?)</pre>", told[1], re.S)[1].strip().splitlines()
    given = {}
    for line in lines:
        _, name, *words = shlex.split(line)
        given[name] = cli.commands[name].make_context(name, words).params
    assert list(given) == ["align", "teach", "distill", "evaluate"]
    assert all(str(params.get("run", "run")) == "run" for params in given.values())
    assert given["align"]["crop"] == 64
    for name, config in (("teach", TEACHER), ("distill", STUDENT)):
        wanted = {key: value for key, value in asdict(config).items() if key in given[name]}
        assert {key: given[name][key] for key in wanted} == wanted


def test_a_cache_of_several_teachers_names_them_all(told, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(told[0], run)
    cached = read_shards(sorted((run / "distributions").glob("*.parquet")))
    folder = run / "distributions-two"
    references = {"faces": reference_to(run / "faces", folder)}
    references |= {
        f"teacher-{k}": reference_to(run / name, folder) for k, name in enumerate(("teacher", "students/small"))
    }
    finish_cache(folder, cached, references, settings={"views": 2, "seed": 0, "source": "ldg"})
    lines = report.commands(run, report.look(run), {})
    assert (
        f"fer teach {run} --checkpoint {run}/teacher --checkpoint {run}/students/small --views 2 --cache two" in lines
    )


# --- what is not there


@pytest.fixture(scope="module")
def photographed(tmp_path_factory):
    """A run of real alignment alone: eight drawn photographs, a wall and a text that is called a picture."""
    root = tmp_path_factory.mktemp("photographed")
    rng = np.random.default_rng(0)
    for k in range(8):
        folder = root / "source" / ("neutral", "happiness")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{k}.png"), draw_face(np.eye(7)[k % 2], rng)[..., ::-1])
    cv2.imwrite(str(root / "source" / "neutral" / "wall.png"), np.full((200, 300, 3), 90, np.uint8))
    (root / "source" / "neutral" / "text.png").write_text("no picture")
    done = fer("align", root / "source", root / "run", "--workers", 1)
    assert done.exit_code == 0, done.output
    return root


def test_a_run_of_faces_alone_shows_them_and_names_what_is_missing(photographed):
    run = photographed / "run"
    done = fer("report", run)
    assert done.exit_code == 0, done.output
    assert "not in it, as the run does not have it: teacher, distributions, students, evaluation" in done.stdout
    text = (run / "report.html").read_text()
    assert text.count('alt="photograph with box and landmarks"') == 6
    assert text.count('alt="photograph without a face"') == 1
    shown = words_of(text)
    assert "unreadable: not an image neutral/text.png" in shown
    for command in ("teach", "teach, fer distill", "evaluate"):
        assert f"(fer {command})" in shown
    assert "fer align source run" in shown


def test_photographs_that_changed_or_are_gone_are_not_shown(photographed, tmp_path):
    shutil.copytree(photographed, tmp_path / "copy")
    for path in (tmp_path / "copy" / "source").rglob("*.png"):
        shutil.copy(photographed / "source" / "neutral" / "0.png", path)
    assert fer("report", tmp_path / "copy" / "run", "--out", tmp_path / "a.html").exit_code == 0
    text = (tmp_path / "a.html").read_text()
    assert text.count('alt="photograph with box and landmarks"') <= 1
    assert 'alt="photograph without a face"' not in text
    shutil.rmtree(tmp_path / "copy" / "source")
    assert fer("report", tmp_path / "copy" / "run", "--out", tmp_path / "a.html").exit_code == 0
    assert "The photographs are not shown" in (tmp_path / "a.html").read_text()


def test_a_model_that_was_trained_anew_is_not_shown_by_its_old_figures(told, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(told[0], run)
    shutil.rmtree(run / "students" / "small")
    torch.manual_seed(5)
    faces = {"faces": run / "faces"}
    write_model(run / "students" / "small", "student", faces, asdict(STUDENT), build("efficientface", 3).eval())
    done = json.loads(fer("report", run, "--json").stdout)
    assert done["models"] == ["teacher"]
    text = (run / "report.html").read_text()
    assert "as they are now, are shown; not small" in words_of(text)
    assert "small" not in text.split('<dl class="figures">')[1].split("</dl>")[0]
    assert "small" in told[1].split('<dl class="figures">')[1].split("</dl>")[0]


def test_damage_has_a_sentence_and_leaves_the_former_report(told, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(told[0], run)
    path = run / "evaluation" / "test.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"accuracy"', b'"Accuracy"', 1))
    assert refused("report", run) == (
        f"{run}/evaluation: test.json is not as the digest at its end says, or has none; make it again"
    )
    result = read_sealed(told[0] / "evaluation" / "test.json")
    del result["models"]["small"]["confusion"]
    write_sealed(path, result)
    sentence = f"{path} does not hold what fer evaluate writes; run fer evaluate again"
    assert refused("report", run) == refused("card", run / "students" / "small") == sentence
    path.write_bytes(whole)
    faces = run / "faces" / "part-00000.parquet"
    stored = faces.read_bytes()
    faces.write_bytes(stored[:5000] + bytes(9) + stored[5009:])
    assert refused("report", run).startswith(f"{faces} is damaged, or was changed after it was written")
    faces.write_bytes(stored)
    weights = run / "students" / "small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert f"{weights} has " in refused("report", run)
    (run / "students" / "small" / MANIFEST).write_text("{}")
    assert "is not a manifest of efficientface" in refused("report", run)
    assert (run / "report.html").read_text() == told[1]
    assert not list(run.glob(".*.part"))


def test_wrong_requests_have_a_sentence(told, tmp_path):
    run = told[0]
    (tmp_path / "empty").mkdir()
    assert refused("report", tmp_path / "empty") == (
        f"{tmp_path}/empty holds nothing that fer align, fer teach or fer distill wrote; give a run folder"
    )
    assert refused("report", run / "faces") == (
        f"{run}/faces is an artifact (faces); give the run that it lies in, {run}"
    )
    assert refused("report", run, "--out", tmp_path / "a.pdf") == (
        f"--out {tmp_path}/a.pdf does not end in .html; give the page's name, such as report.html"
    )
    assert refused("report", run, "--device", "cuda:99").startswith("--device cuda:99")
    assert not list(tmp_path.glob("*.*"))


def test_without_faces_and_with_the_time_that_one_takes(told, tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "seconds_a_batch", lambda *given: np.array([0.001, 0.002, 0.004]))
    assert fer("report", told[0], "--no-faces", "--latency", "--out", tmp_path / "a.html").exit_code == 0
    text = (tmp_path / "a.html").read_text()
    assert "data:image" not in text
    assert "Made without pictures of faces" in text
    assert not re.findall(r"face-\d+\.png", text)
    assert told[1].count("<img") == len(re.findall("data:image/jpeg", told[1])) > 30
    shown = words_of(text)
    assert " 2.00 [1.20, 3.60] " in shown
    assert "one face alone on cpu" in shown
    assert "not measured (fer report --latency)" in words_of(told[1])


# --- in Chromium


def opened(browser, html, width=1200, scheme="light"):
    seen = test_page.Page(browser, html)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(html.as_uri())
    seen.wait(f"return innerWidth === {width} && document.readyState === 'complete'")
    return seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_drawn_can_be_seen_in_light_and_in_dark(chromium, told, scheme):
    seen = opened(chromium, told[0] / "report.html", scheme=scheme)
    look = "const s = getComputedStyle(document.querySelector(arguments[0])); return s[arguments[1]]"
    paper = luminance(seen.js(look, ".part", "backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    for element in ("polyline.line-0", "polyline.line-1", ".legend .line-1"):
        assert contrast(luminance(seen.js(look, element, "stroke")), paper) >= 3, element
    assert contrast(luminance(seen.js(look, ".tick", "fill")), paper) >= 4.5
    cells = seen.js(
        "return [...document.querySelectorAll('.heat td')].map((cell) => {"
        " const style = getComputedStyle(cell); return [style.color, style.backgroundColor]; })"
    )
    assert len(cells) > 20
    assert min(contrast(luminance(front), luminance(back)) for front, back in cells) >= 4.5
    broken = seen.js("return [...document.images].filter((image) => !image.naturalWidth).length")
    assert broken == 0
    assert seen.complaints() == []


def test_every_line_and_every_shade_has_its_colour():
    style = page.read("report.css")
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    base = page.read("page.css").split(":root")
    for lines, colours in ((light, base[1]), (dark, base[2])):
        surface = luminance(re.search(r"--surface: (#\w{6})", colours)[1])
        tones = re.findall(r"--tone: (#\w{6})", lines)
        assert len(set(tones)) == 6
        assert min(contrast(luminance(tone), surface) for tone in tones) >= 3
    assert [int(k) for k in re.findall(r"\.heat \.s(\d+)", style)] == list(range(report.SHADES + 1))


def test_a_phone_needs_no_sideways_scrolling(chromium, told):
    seen = opened(chromium, told[0] / "report.html", width=360)
    assert seen.js("return document.documentElement.scrollWidth") <= 360


def test_hostile_names_are_text(chromium, tmp_path):
    ids = [f"face-{k:03d}.png" for k in range(60)]
    tested = [k for k in range(60) if k // 3 % 5 == 4]
    for k, name in zip(tested, HOSTILE, strict=False):
        ids[k] = name
    run = write_run(tmp_path / "<b>run", HOSTILE_CLASSES, ids, "<img src=x onerror=alert(1)>")
    assert fer("report", run, "--out", tmp_path / "a.html").exit_code == 0
    seen = opened(chromium, tmp_path / "a.html")
    assert seen.js("return document.querySelectorAll('script, main b, main i, img:not([src^=data])').length") == 0
    heads = seen.js("return [...document.querySelectorAll('#classes .heat thead th')].map((th) => th.textContent)")
    assert heads[1:4] == list(HOSTILE_CLASSES)
    assert seen.one("h1").text == "<b>run"
    names = seen.js("return [...document.querySelectorAll('#gallery-of-faces .id')].map((id) => id.textContent)")
    assert {*names} & {*map(printable, HOSTILE)}
    assert {*names} <= {*map(printable, ids)}
    assert "<img src=x onerror=alert(1)> on test" in seen.one("#classes").text
    assert "owned" not in seen.browser.title
    assert seen.complaints() == []
