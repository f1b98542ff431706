"""`fer inspect --html`: the file by itself, and in a real Chromium, sorted, filtered, clicked and typed at."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
from click.testing import CliRunner
from conftest import CLASSES, write_faces
from test_inspect import finish_cache, write_cache, write_model

from efficientface.cache.distributions import Distributions
from efficientface.cli import cli
from efficientface.models import build
from efficientface.pipeline import issues, page
from efficientface.pipeline.artifact import MANIFEST, write_manifest
from efficientface.pipeline.caches import convert
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.metrics import calibration_error

HOSTILE = [
    "<script>document.title='owned'</script>.png",
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "\"'><img src=x onerror=\"document.title='owned'\">.jpg",
    "line\u2028separator\u2029.png",
    "right\u202eto left\u0007.png",
    "&lt;b&gt;&#x27;${1+1}`${alert(1)}`.png",
    "javascript:alert(1)",
    "__proto__",
]
HOSTILE_CLASSES = ("<b>neutral</b>", "</script><i>happy", 'sad" onmouseover="alert(1)')


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def written(path, html, *words):
    """The page's text, after `fer inspect PATH --html`."""
    done = fer("inspect", path, "--html", html, *words)
    assert done.exit_code == 0, done.output
    return html.read_text()


def data_of(text):
    """What the page holds, read with nothing but json and numpy."""
    raw = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    return {key: unpacked(value) if isinstance(value, dict) else value for key, value in raw.items()}


def unpacked(array):
    flat = np.frombuffer(base64.b64decode(array["data"]), np.dtype(array["type"]).newbyteorder("<"))
    return flat.reshape(array["shape"])


def frame(folder):
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)


def rename(run, names):
    """Give the first faces of a run other ids, and finish faces/ again."""
    folder = run / "faces"
    manifest, names = json.loads((folder / MANIFEST).read_text()), list(names)
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        ids = table["face_id"].to_pylist()
        ids[: len(names)], names = names[: len(ids)], names[len(ids) :]
        place = table.column_names.index("face_id")
        pq.write_table(table.set_column(place, table.schema.field("face_id"), pa.array(ids, pa.string())), path)
    wanted = ("classes", "made_from", "settings", "facts")
    write_manifest(folder, "faces", files=sorted(manifest["files"]), **{key: manifest[key] for key in wanted})


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run of 60 faces with votes, two views each and a student; its page, and its distributions by pandas."""
    run = tmp_path_factory.mktemp("page") / "run"
    write_faces(run)
    write_cache(run / "distributions", run / "faces")
    torch.manual_seed(0)
    faces = {"faces": run / "faces"}
    write_model(run / "students" / "small", "student", faces, {}, build("efficientface", len(CLASSES)).eval())
    html = run.parent / "faces.html"
    return run, html, written(run, html), frame(run / "distributions")


# --- the file


class Outline(HTMLParser):
    """Every start tag with its attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.inside = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem:  # a script or a style, which is open
            name = self.tags[-1][1].get("id", self.cdata_elem)
            self.inside[name] = self.inside.get(name, "") + data


def test_one_file_is_all_there_is(told):
    text = told[2]
    outline = Outline(text)
    assert set(re.findall(r"\w+://[^\s'\"]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    for tag, attributes in outline.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        assert attributes.get("src") is None
        assert attributes.get("href", "data:,") == "data:,"
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert "@import" not in text
    assert "url(" not in outline.inside["style"]
    assert outline.inside["data"].isascii()


def test_no_script_but_its_own_may_run(told):
    outline = Outline(told[2])
    policy = next(a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = {
        name: base64.b64encode(hashlib.sha256(outline.inside[name].encode()).digest()).decode()
        for name in ("script", "style")
    }
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest['script']}'; style-src 'sha256-{digest['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttp"):
        assert word not in outline.inside["script"]


def test_the_same_cache_gives_the_same_page(told, tmp_path):
    run, _, text, _ = told
    assert written(run, tmp_path / "again.html") == text


def test_all_numbers_are_in_it(told):
    run, _, text, table = told
    data = data_of(text)
    assert data["ids"] == table.face_id.tolist()
    assert data["classes"] == list(CLASSES)
    assert [data["splits"][k] for k in data["split"]] == table.split.tolist()
    np.testing.assert_array_equal(data["label"], table.label.fillna(-1))
    np.testing.assert_array_equal(data["fold"], table.fold)
    np.testing.assert_array_equal(data["canonical"], table[list(CLASSES)])
    np.testing.assert_array_equal(data["view_box"], np.stack([np.stack(boxes) for boxes in table.view_box]))
    np.testing.assert_array_equal(data["view_flip"], np.stack(table.view_flip))
    views = np.stack([np.stack(rows) for rows in table.view_distribution])
    np.testing.assert_allclose(data["view_distribution"] / 65535, views, atol=0.5 / 65535)
    faces = frame(run / "faces").set_index("face_id")
    np.testing.assert_array_equal(data["votes"], np.stack(faces.loc[data["ids"]].votes))


def test_pictures_are_those_of_their_faces(told):
    run, _, text, _ = told
    data, faces = data_of(text), frame(told[0] / "faces").set_index("face_id")
    assert data["rows"].tolist() == list(range(60))
    for row, picture in zip(data["rows"], data["pictures"], strict=True):
        mine = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
        stored = faces.loc[data["ids"][row]].image["bytes"]
        theirs = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(mine.astype(int) - theirs).mean() < 30  # noise as JPEG; another face's noise is 45 away


def test_students_are_asked_about_whole_faces(told):
    run, _, text, _ = told
    data = data_of(text)
    (student,) = data["students"]
    assert student["name"] == "small"
    model, config = load_model(run / "students" / "small", "student")
    faces = frame(run / "faces").set_index("face_id")
    encoded = [np.frombuffer(faces.loc[name].image["bytes"], np.uint8) for name in data["ids"]]
    pixels = np.stack([cv2.imdecode(each, cv2.IMREAD_COLOR)[:, :, ::-1] for each in encoded]) / 255
    scaled = (pixels - config["mean"]) / config["std"]
    with torch.inference_mode():
        expected = model(torch.tensor(scaled, dtype=torch.float32).permute(0, 3, 1, 2)).softmax(1)
    np.testing.assert_allclose(unpacked(student["distribution"]) / 65535, expected, atol=2e-5)


def test_asking_no_student_does_not_import_torch(told, tmp_path):
    code = (
        "import sys; from efficientface.cli import cli\n"
        f"cli(['inspect', {str(told[0])!r}, '--html', {str(tmp_path / 'a.html')!r}, '--no-students'],"
        " standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert data_of((tmp_path / "a.html").read_text())["students"] == []


def test_a_sample_of_none_leaves_the_photographs_out(told, tmp_path):
    data = data_of(written(told[0], tmp_path / "a.html", "--sample", 0))
    assert (data["pictures"], len(data["rows"]), len(data["ids"])) == ([], 0, 60)


def big_cache(folder, count, classes=("a", "b", "c", "d"), seed=0):
    """A cache of many faces that no faces/ lie beside."""
    rng = np.random.default_rng(seed)
    c = len(classes)
    cached = Distributions(
        classes=classes,
        face_id=np.array([f"photo-{k:05d}.jpg" for k in range(count)], object),
        image_hash=np.array([hashlib.md5(str(k).encode()).hexdigest() for k in range(count)], object),
        split=rng.choice(np.array(["train", "val", "test"], object), count, p=[0.8, 0.1, 0.1]),
        label=rng.integers(-1, c, count),
        fold=rng.choice(np.array([-2, -1, 0, 1], np.int8), count),
        canonical=rng.dirichlet(np.full(c, 0.4), count).astype(np.float32),
        view_box=np.tile(np.array([3, 5, 40, 50], np.uint16), (count, 1, 1)),
        view_flip=np.zeros((count, 1), bool),
        view_distribution=rng.dirichlet(np.full(c, 0.4), (count, 1)).astype(np.float32),
    )
    finish_cache(folder, cached, {})
    return cached


def test_the_sample_holds_both_ends_of_every_order_and_some_of_every_kind(tmp_path):
    cached = big_cache(tmp_path / "distributions", 3000)
    rows = page.sample_rows(cached, 300)
    assert len(set(rows.tolist())) == len(rows) == 300
    chosen, p = set(rows.tolist()), cached.canonical.astype(float)
    known = np.flatnonzero(cached.label >= 0)
    own = p[known, cached.label[known]]
    nats = scipy.stats.entropy(p, axis=1)
    ends = [nats.argmax(), nats.argmin(), known[own.argmin()], known[own.argmax()]]
    ends += [*p.argmax(0), *p.argmin(0)]
    pairs = [np.minimum(p[:, a], p[:, b]) for a in range(4) for b in range(a)]
    ends += [end for pair in pairs for end in (pair.argmax(), pair.argmin())]
    assert {int(end) for end in ends} <= chosen
    assert set(np.argsort(-nats)[:10]) <= chosen  # what is looked at first is there in some depth
    for split in ("train", "val", "test"):
        for label in range(-1, 4):
            for top in range(4):
                kind = (cached.split == split) & (cached.label == label) & (p.argmax(1) == top)
                assert not kind.any() or kind[rows].any(), (split, label, top)


def test_faces_that_are_not_there_leave_a_page_without_pictures(tmp_path, caplog):
    big_cache(tmp_path / "distributions", 50)
    data = data_of(written(tmp_path / "distributions", tmp_path / "a.html"))
    assert (data["pictures"], data["votes"], len(data["rows"])) == ([], None, 50)
    assert "no pictures and no votes: the faces that" in caplog.text


def test_a_picture_that_is_another_now_is_not_shown(told, tmp_path, caplog):
    run = tmp_path / "run"
    write_faces(run)
    write_cache(run / "distributions", run / "faces")
    shutil.rmtree(run / "faces")
    write_faces(run, count=30, seed=1)
    data = data_of(written(run, tmp_path / "a.html"))
    assert data["pictures"] == []
    assert f"60 of 60 faces have another picture in {run}/faces now, or none; they are shown without" in caplog.text


def test_a_student_of_other_faces_is_not_asked(told, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(told[0], run)
    shutil.rmtree(run / "faces")
    write_faces(run, count=45, seed=1)
    write_cache(run / "distributions-new", run / "faces")
    data = data_of(written(run / "distributions-new", tmp_path / "a.html"))
    assert (data["students"], len(data["pictures"])) == ([], 45)
    sentence = f"{run}/students/small was made from other faces than {run}/faces holds now"
    assert f"student small is left out: {sentence}" in caplog.text
    done = fer("inspect", run / "distributions-new", "--html", tmp_path / "b.html", "--student", "small")
    assert (done.exit_code, done.stderr) == (1, f"Error: {sentence}\n")


def test_only_the_end_of_the_path_is_passed_on(told):
    assert data_of(told[2])["folder"] == "run/distributions"
    assert str(told[0]) not in told[2]


def test_wrong_requests_have_a_sentence(told, tmp_path):
    run, cache, html = told[0], told[0] / "distributions", tmp_path / "a.html"
    sentences = {
        (cache, "--html", tmp_path / "page.parquet"): (
            f"--html {tmp_path}/page.parquet does not end in .html; give the page's name, such as faces.html"
        ),
        (cache, "--html", tmp_path / "no" / "a.html"): (
            f"{tmp_path}/no does not exist; make that folder first, or write the page elsewhere"
        ),
        (cache, "--html", html, "--sample", -1): "--sample -1 is out of range; give a number from 0",
        (run / "faces", "--html", html): (
            f"{run}/faces holds faces, the page shows distributions; give the folder of fer teach"
        ),
        (run, "--html", html, "--student", "tall"): f"{run} has no finished student tall; it has small",
        (run, "--html", html, "--student", "small", "--no-students"): (
            "--student and --no-students contradict each other; give one of them"
        ),
        (run, "--html", html, "--face", "face-001.png"): "--html shows all faces; leave --face and --top out",
        (run, "--sample", 3): "--sample, --student and --no-students are about the page; give --html FILE as well",
    }
    for words, sentence in sentences.items():
        done = fer("inspect", *words)
        assert (done.exit_code, done.stderr) == (1, f"Error: {sentence}\n")
    assert not list(tmp_path.iterdir())


def test_the_help_says_how_many_pictures():
    assert f"Faces with a picture in the page ({page.SAMPLE})" in fer("inspect", "--help").stdout


def test_what_was_written_is_said(told, tmp_path):
    done = fer("inspect", told[0], "--html", tmp_path / "a.html", "--json")
    size = (tmp_path / "a.html").stat().st_size
    assert json.loads(done.stdout) == {
        "kind": "page", "path": f"{told[0]}/distributions", "html": f"{tmp_path}/a.html", "faces": 60, "pictures": 60,
        "side": 224, "students": ["small"], "bytes": size,
    }  # fmt: skip


def luminance(colour):
    """By WCAG 2, of #rrggbb, rgb(r, g, b) or color(srgb r g b)."""
    if colour.startswith("#"):
        channels = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    else:
        channels = np.array([float(n) for n in re.findall(r"[\d.]+", colour)]) / (255 if "rgb(" in colour else 1)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_text_stands_out_in_light_and_in_dark():
    style = page.read("page.css")
    light, dark = (dict(re.findall(r"--(\w[\w-]*): (#\w{6});", block)) for block in style.split(":root")[1:3])
    for colours in (light, dark):
        for front, back in [(f, b) for f in ("ink", "quiet", "warn") for b in ("paper", "surface")]:
            assert contrast(luminance(colours[front]), luminance(colours[back])) >= 4.5, (front, back)


def contrast(one, other):
    """Of two luminances, by WCAG 2: 1 to 21."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


# --- in Chromium


@contextmanager
def browsing(folder, *words):
    """A real browser, offline, that keeps its things in `folder`; its log and its requests are kept."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(
            "the page is not tested in a browser: no chromium or chromedriver here (apt-get install chromium-driver)"
        )
    selenium = pytest.importorskip("selenium.webdriver", reason="the page is not tested in a browser: no selenium here")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for word in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={folder}", *words,
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = selenium.Chrome(options, selenium.ChromeService(driver))
    browser.get("about:blank")  # away from the browser's own first page
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


class Page:
    """A page in the browser, and what a person can see and do."""

    def __init__(self, browser, html):
        self.browser, self.html = browser, html

    def open(self, fragment="", width=1300, height=900, scheme="light"):
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.browser.get("about:blank")  # another fragment alone would not load the page anew
        self.browser.get(f"{self.html.as_uri()}{fragment}")
        self.wait(f"return document.documentElement.dataset.ready === 'yes' && innerWidth === {width}")
        return self

    def wait(self, condition):
        """Until a script says yes: resizing, going back and closing a dialog take effect some time later."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda _: self.js(condition))

    def js(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def choose(self, control, value):
        """As a person does who picks an entry by its text."""
        from selenium.webdriver.support.select import Select

        Select(self.one(f"#{control}")).select_by_visible_text(value)

    def type(self, *keys):
        """On the keyboard, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def ids(self):
        """Of the cards in the document, in their order."""
        return self.js("return [...document.querySelectorAll('#gallery .id')].map((id) => id.textContent)")

    def count(self):
        return int(re.match(r"([\d,]+) of", self.one("#count").text)[1].replace(",", ""))

    def focused(self):
        return self.js("return document.activeElement.querySelector('.id')?.textContent ?? document.activeElement.id")

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self):
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def seen(chromium, told):
    opened = Page(chromium, told[1])
    opened.complaints(), opened.requests()  # of earlier tests
    yield opened
    assert opened.complaints() == []
    assert {url.split(":")[0] for url in opened.requests()} <= {"file", "data", "about"}


TALL = 20_000  # pixels: a window in which all 60 faces are to be seen


def keys_of(table):
    """Sort keys by the page's names for them, by pandas and scipy."""
    p = table[list(CLASSES)].astype(float)
    own = pd.Series([row[CLASSES[int(row.label)]] if row.label >= 0 else np.nan for _, row in table.iterrows()])
    ranked = np.sort(p.to_numpy(), axis=1)
    return {
        "entropy": pd.Series(scipy.stats.entropy(p, axis=1)),
        "disagreement": 1 - own.astype(float),
        "lead of the most probable": pd.Series(ranked[:, -1] - ranked[:, -2]),
        "order in the cache": pd.Series(-np.arange(len(table))),
        **{name: p[name] for name in CLASSES},
    }


def test_sorting_by_anything_both_ways(seen, told):
    table = told[3]
    seen.open(height=TALL)
    for name, key in keys_of(table).items():
        seen.choose("sort", name)
        for direction, up in (("↓ highest first", False), ("↑ lowest first", True)):
            seen.choose("direction", direction)
            expected = key.sort_values(ascending=up, kind="stable", na_position="last").index
            assert seen.ids() == table.face_id[expected].tolist(), (name, direction)
    assert seen.count() == 60


def test_sorting_by_two_classes(seen, told):
    table = told[3]
    seen.open(height=TALL)
    seen.choose("sort", "two classes …")
    for a, b in (("happiness", "sadness"), ("neutral", "sadness"), ("neutral", "happiness")):
        seen.choose("pair-a", a)
        seen.choose("pair-b", b)
        for direction, up in (("↓ highest first", False), ("↑ lowest first", True)):
            seen.choose("direction", direction)
            expected = table[[a, b]].min(axis=1).sort_values(ascending=up, kind="stable").index
            assert seen.ids() == table.face_id[expected].tolist(), (a, b, direction)


def test_filters_leave_what_pandas_leaves(seen, told):
    table = told[3]
    p = table[list(CLASSES)].to_numpy()
    ranked = np.sort(p, axis=1).astype(float)
    top, close = p.argmax(1), ranked[:, -1] - ranked[:, -2] < 0.2
    other = table.label.notna() & (top != table.label)
    expected = {
        **{("split", name): table.split == name for name in ("train", "val", "test")},
        **{("label", name): table.label == k for k, name in enumerate(CLASSES)},
        ("label", "no label"): table.label.isna(),
        **{("top", name): pd.Series(top == k) for k, name in enumerate(CLASSES)},
        ("fold", "-1: trained on by the teacher that answered"): table.fold == -1,
        ("fold", "-2: trained on by no teacher"): table.fold == -2,
        ("doubtful", "doubtful"): other | close,
        ("doubtful", "not the label"): other,
        ("doubtful", "narrow lead"): pd.Series(close),
    }
    seen.open(height=TALL)
    for (control, choice), rows in expected.items():
        seen.choose(control, choice)
        assert set(seen.ids()) == set(table.face_id[rows]), (control, choice)
        assert seen.count() == rows.sum() > 0
        seen.one("#reset").click()
        assert seen.count() == 60
    seen.choose("split", "test")
    seen.choose("label", "sadness")
    both = (table.split == "test") & (table.label == 2)
    assert seen.count() == both.sum() > 0


def test_search_by_id(seen):
    from selenium.webdriver import Keys

    seen.open()
    seen.type("/")
    assert seen.focused() == "search"
    seen.type("FACE-01")
    assert sorted(seen.ids()) == [f"face-{k:03d}.png" for k in range(10, 20)]
    seen.type(Keys.ENTER)
    assert seen.focused() == seen.ids()[0]
    seen.type("/", "nothing like it")
    assert seen.count() == 0
    assert seen.one("#nothing").is_displayed()


def test_a_face_has_its_boxes_votes_teacher_and_student(seen, told):
    run, _, text, table = told
    data = data_of(text)
    seen.open("#sort=stored")
    row = 7
    seen.js("document.querySelectorAll('.card')[arguments[0]].scrollIntoView()", row)
    seen.all(".card")[row].click()
    name = table.face_id[row]
    assert seen.one("#face-id").text == name
    boxes = seen.js(
        "return [...document.querySelectorAll('#face svg.large rect.box')].map((box) =>"
        " ['y', 'x', 'height', 'width'].map((key) => Number(box.getAttribute(key))))"
    )
    assert boxes == [box.tolist() for box in table.view_box[row]]
    assert seen.js("return document.querySelector('#face svg.large').getAttribute('viewBox')") == "0 0 64 64"
    flips = seen.js("return [...document.querySelectorAll('#face .cut')].map((cut) => cut.matches('.mirrored'))")
    assert flips == table.view_flip[row].tolist()
    for tile, p in zip(seen.all("#face .tile"), table.view_distribution[row], strict=True):
        shown = [value.text for value in tile.find_elements("css selector", ".value")]
        assert shown == [f"{100 * value:.0f}" for value in p]
    votes = frame(run / "faces").set_index("face_id").loc[name].votes
    columns = [votes / votes.sum(), table.loc[row, list(CLASSES)].astype(float).to_numpy()]
    columns.append(unpacked(data["students"][0]["distribution"])[row] / 65535)
    assert [head.text.split("\n") for head in seen.all("#face thead th")] == [
        ["class"], ["people", "10 votes"], ["teacher", "whole face"], ["small", "student"],
    ]  # fmt: skip
    shown = [
        [float(value.text) for value in line.find_elements("css selector", ".value")]
        for line in seen.all("#face tbody tr")
    ]
    np.testing.assert_allclose(shown, 100 * np.stack(columns, 1), atol=0.051)
    assert seen.one("#face tr.own th").text == f"{CLASSES[int(table.label[row])]} label"
    assert f"face={name}" in seen.browser.current_url


def test_a_view_is_picked_out_of_the_boxes(seen):
    seen.open("#sort=stored&face=face-003.png")
    seen.all("#face .tile")[1].click()
    assert [tile.get_attribute("aria-pressed") for tile in seen.all("#face .tile")] == ["false", "true"]
    assert [box.get_attribute("data-view") for box in seen.all("#face .view-box.chosen")] == ["1"]
    seen.one("#boxes").click()
    assert not any(box.is_displayed() for box in seen.all("#face rect.box"))


def test_the_keyboard_is_enough(seen):
    from selenium.webdriver import Keys

    seen.open("#sort=stored")
    columns = seen.js(
        "const tops = [...document.querySelectorAll('.card')].map((card) => card.getBoundingClientRect().top);"
        "return tops.filter((top) => top === tops[0]).length"
    )
    assert columns > 1
    name = "face-{:03d}.png".format
    seen.type("/", Keys.ENTER)
    assert seen.focused() == name(0)
    at = 0
    for key, step in (
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_DOWN, columns),
        (Keys.ARROW_LEFT, -1),
        (Keys.ARROW_UP, -columns),
    ):
        seen.type(key)
        at += step
        assert seen.focused() == name(at)
    seen.type(Keys.END)
    assert seen.focused() == name(59)
    outline = seen.js(
        "const style = getComputedStyle(document.activeElement);"
        "return [style.outlineStyle, parseFloat(style.outlineWidth)]"
    )
    assert outline == ["solid", 3]
    seen.type(Keys.HOME, Keys.ARROW_RIGHT, Keys.ENTER)
    assert seen.one("#face-id").text == name(1)
    seen.type(Keys.ARROW_RIGHT)
    assert seen.one("#face-id").text == name(2)
    seen.type(Keys.ESCAPE)
    seen.wait(f"return document.activeElement.textContent.includes({name(2)!r})")
    assert not seen.one("#face").is_displayed()
    assert seen.focused() == name(2)


def test_the_address_holds_the_view(seen, told):
    table = told[3]
    seen.open("#sort=pair&a=happiness&b=sadness&split=train&face=face-001.png", height=TALL)
    assert seen.one("#face-id").text == "face-001.png"
    train = table[table.split == "train"]
    expected = train[["happiness", "sadness"]].min(axis=1).sort_values(ascending=False, kind="stable").index
    assert seen.ids() == table.face_id[expected].tolist()
    seen.one("#close").click()
    seen.wait("return !location.hash.includes('face=')")
    seen.choose("doubtful", "doubtful")
    first = seen.ids()
    address = seen.browser.current_url
    seen.all(".card")[0].click()
    assert seen.one("#face").is_displayed()
    seen.browser.back()
    seen.wait("return !document.getElementById('face').open")
    assert seen.browser.current_url == address
    seen.open(address[address.index("#") :], height=TALL)
    assert seen.ids() == first
    seen.open("#sort=nonsense&label=<b>&face=nobody&fold=9&view=%00")  # is as at the start
    assert seen.count() == 60


def test_the_overview_has_the_figures_of_pandas(seen, told):
    table = told[3]
    seen.open("#view=overview")
    for split in ("all", "train", "test"):
        seen.choose("overview-split", split)
        mine = table if split == "all" else table[table.split == split]
        p = mine[list(CLASSES)].astype(float)
        figures = dict(zip(*([e.text for e in seen.all(f".figures {tag}")] for tag in ("dt", "dd")), strict=True))
        nats = scipy.stats.entropy(p, axis=1)
        assert figures["faces"] == str(len(mine))
        assert figures["mean entropy"] == f"{nats.mean():.3f} nats"

        lines = [[cell.text for cell in line.find_elements("css selector", "td")] for line in seen.all(".heat tr")]
        means = [p[mine.label == k].mean() for k in range(3)]
        means += [p[mine.label.isna()].mean()] if mine.label.isna().any() else []
        np.testing.assert_allclose(
            [[float(cell) for cell in line] for line in lines[1:]], 100 * np.array([*means, p.mean()]), atol=0.051
        )

        counts = [int(bar.get_attribute("data-count")) for bar in seen.all(".chart .column")]
        assert counts == np.histogram(nats, bins=32, range=(0, np.log(3)))[0].tolist()

        known = mine.label.notna()
        judged = p[known].to_numpy()
        right = judged.argmax(1) == mine.label[known]
        error = calibration_error(judged, right.to_numpy())
        assert seen.one("#ece").text == f"Expected calibration error (ECE, 15 bins): {100 * error:.2f} %"
        assert figures["agree with the label"] == f"{100 * right.mean():.1f} %"

        balance = [line.find_elements("css selector", ".value") for line in seen.all(".balance tbody tr")]
        labels = [int(line[0].text) for line in balance]
        assert labels[:3] == [int((mine.label == k).sum()) for k in range(3)]
    assert "split=test" in seen.browser.current_url


@pytest.mark.parametrize("fragment", ["", "#view=overview", "#face=face-003.png"])
def test_a_phone_needs_no_sideways_scrolling(seen, fragment):
    seen.open(fragment, width=360, height=740)
    wide = seen.js("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == 360
    beyond = seen.js(
        "return [...document.querySelectorAll('body *')].filter((e) => !e.closest('.scrolling, svg, [hidden]')"
        " && e.getClientRects().length && e.getBoundingClientRect().right > 360.5).map((e) => e.outerHTML.slice(0, 90))"
    )
    assert beyond == []


def test_filters_open_on_a_phone(seen):
    seen.open(width=360, height=740)
    assert not seen.one("#split").is_displayed()
    seen.one("#more").click()
    seen.choose("split", "test")
    assert seen.one("#more").text == "Filters (1)"


def test_dark_where_people_want_dark(seen):
    look = "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    assert seen.open(scheme="light").js(look) == ["rgb(246, 246, 243)", "rgb(26, 30, 35)"]
    assert seen.open(scheme="dark").js(look) == ["rgb(18, 21, 25)", "rgb(232, 234, 236)"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_heat_map_can_be_read_at_every_shade(chromium, tmp_path, scheme):
    cached = big_cache(tmp_path / "distributions", 101, classes=("a", "b"))
    shares = np.linspace(0, 1, 26)
    classes = tuple(f"class {k}" for k in range(26))
    p = np.stack([np.r_[share, np.full(25, (1 - share) / 25)] for share in shares]).astype(np.float32)
    many = cached.select(np.arange(26))
    shaded = replace(many, classes=classes, canonical=p, label=np.arange(26), view_distribution=p[:, None])
    finish_cache(tmp_path / "shades", shaded, {})
    written(tmp_path / "shades", tmp_path / "a.html")
    opened = Page(chromium, tmp_path / "a.html").open("#view=overview", scheme=scheme)
    colours = opened.js(
        "return [...document.querySelectorAll('.heat tbody td:nth-of-type(1)')].map((cell) =>"
        " [getComputedStyle(cell).color, getComputedStyle(cell).backgroundColor])"
    )
    assert len({back for _, back in colours}) == 26
    for front, back in colours:
        assert contrast(luminance(front), luminance(back)) >= 4.5, (front, back)


def test_only_the_cards_near_the_window_are_in_the_document(chromium, tmp_path):
    big_cache(tmp_path / "distributions", 5000)
    written(tmp_path / "distributions", tmp_path / "a.html")
    many = Page(chromium, tmp_path / "a.html").open("#sort=stored")
    assert many.count() == 5000
    assert len(many.ids()) < 60
    for share in (0.5, 1.0, 0.25):
        many.js("window.scrollTo(0, arguments[0] * document.documentElement.scrollHeight)", share)
        many.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        ids = many.ids()
        assert len(ids) < 80
        assert ids == sorted(ids)  # read aloud in the order that is seen
        seen = many.js(
            "return [...document.querySelectorAll('.card')].filter((card) => {"
            " const {top, bottom} = card.getBoundingClientRect(); return bottom > 0 && top < innerHeight;"
            "}).map((card) => Number(card.dataset.row))"
        )
        assert len(seen) >= 6
        assert abs(seen[0] / 5000 - share) < 0.02
        assert share != 1.0 or seen[-1] == 4999
    assert many.complaints() == []


def test_a_face_without_a_picture_keeps_its_bars_and_votes(chromium, told, tmp_path):
    written(told[0], tmp_path / "a.html", "--sample", 5, "--no-students")
    few = Page(chromium, tmp_path / "a.html").open("#sort=stored", height=TALL)
    assert len(few.all("#gallery li")) == 60
    assert sum(picture.is_displayed() for picture in few.all("#gallery img")) == 5
    without = [card for card in few.all(".card") if card.find_element("css selector", ".missing").is_displayed()]
    assert len(without) == 55
    table = told[3].set_index("face_id")
    for card in without[:3]:
        p = table.loc[card.find_element("css selector", ".id").text, list(CLASSES)]
        shown = [value.text for value in card.find_elements("css selector", ".value")]
        assert shown == [f"{100 * value:.0f}" for value in p]
    without[0].click()
    assert few.all("#face rect.box") == []
    assert [head.text.split("\n")[0] for head in few.all("#face thead th")] == ["class", "people", "teacher"]
    assert "--sample N puts more faces in" in few.one("#face").text
    few.one("#close").click()
    few.wait("return !location.hash.includes('face=')")
    few.one("#pictured").click()
    assert few.count() == 5
    assert few.complaints() == []


def test_a_cache_without_views_and_faces_has_a_page(chromium, tmp_path):
    cached = big_cache(tmp_path / "with", 40)
    none = {"view_box": np.empty((40, 0, 4), np.uint16), "view_flip": np.empty((40, 0), bool)}
    bare = replace(cached, **none, view_distribution=np.empty((40, 0, 4), np.float32), label=np.full(40, -1))
    finish_cache(tmp_path / "distributions", bare, {})
    written(tmp_path / "distributions", tmp_path / "a.html")
    opened = Page(chromium, tmp_path / "a.html").open("#face=photo-00003.jpg")
    assert "This cache has no stored views" in opened.one("#face").text
    opened.open("#view=overview")
    assert "No labelled faces here." in opened.one("#overview").text
    assert opened.complaints() == []


def test_hostile_names_are_text(chromium, tmp_path):
    run = tmp_path / "run"
    write_faces(run, classes=HOSTILE_CLASSES)
    rename(run, HOSTILE)
    write_cache(run / "distributions", run / "faces", classes=HOSTILE_CLASSES)
    text = written(run, tmp_path / "a.html")
    assert data_of(text)["ids"][: len(HOSTILE)] == HOSTILE
    assert len(Outline(text).tags) == len(Outline(page.page({})).tags)  # no element from any name
    hostile = Page(chromium, tmp_path / "a.html").open("#sort=stored", height=TALL)
    elements = "return document.querySelectorAll('#gallery :is(script, b, i), #face :is(script, b, i)').length"
    assert hostile.ids()[: len(HOSTILE)] == HOSTILE
    assert [line.text for line in hostile.all("#label option")][1:4] == list(HOSTILE_CLASSES)
    for name in HOSTILE:
        hostile.js("const s = document.getElementById('search'); s.value = arguments[0];"
                   "s.dispatchEvent(new Event('input'))", name)  # fmt: skip
        assert hostile.ids() == [name]
        hostile.one(".card").click()
        assert hostile.js("return document.getElementById('face-id').textContent") == name
        assert len(hostile.all("#face rect.box")) == 2
        assert hostile.js(elements) == 0
        hostile.one("#close").click()
        hostile.wait("return !location.hash.includes('face=')")
    hostile.open("#view=overview")
    assert hostile.all(".heat th")[1].text == HOSTILE_CLASSES[0]
    assert hostile.js("return document.querySelectorAll('#overview :is(b, i)').length") == 0
    assert "owned" not in hostile.browser.title
    assert hostile.complaints() == []


def test_a_script_that_is_not_its_own_is_refused(chromium, told):
    guarded = Page(chromium, told[1]).open()
    guarded.js(
        "const script = document.createElement('script'); script.textContent = 'window.owned = true';"
        "document.body.append(script)"
    )
    assert guarded.js("return window.owned") is None
    assert any("Content Security Policy" in line for line in guarded.complaints())


def test_likely_label_errors_are_marked_as_fer_cache_issues_names_them(chromium, tmp_path):
    made = big_cache(tmp_path / "all", 400)
    labelled = np.flatnonzero((made.label >= 0) & (made.fold != -1))
    meant = made.canonical.argmax(1)
    label = meant.copy()
    label[labelled[:8]] = (label[labelled[:8]] + 1) % 4
    finish_cache(tmp_path / "distributions", replace(made, label=label), {})
    named = issues.issues(tmp_path / "distributions", top=400)["label_errors"]
    written(tmp_path / "distributions", tmp_path / "a.html")
    opened = Page(chromium, tmp_path / "a.html").open(height=TALL)
    opened.choose("doubtful", "likely label error")
    assert opened.count() == len(named) > 0
    opened.choose("sort", "likely label error")
    assert opened.ids() == [face["face_id"] for face in named]
    opened.all(".card")[1].click()
    assert f"likely label error, number 2 of {len(named)}" in opened.one("#face").text
    assert opened.complaints() == []


def test_a_cache_in_one_hdf5_file_has_the_same_page(told, tmp_path):
    convert(told[0] / "distributions", told[0] / "one.h5")
    pages = (
        written(path, tmp_path / "a.html", "--no-students") for path in (told[0] / "one.h5", told[0] / "distributions")
    )
    one, many = (re.sub(r'"(folder|digest)": ?"[^"]*"', "", page) for page in pages)
    assert one == many
