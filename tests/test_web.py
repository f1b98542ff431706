"""examples/web: built, served, and asked in a real Chromium about drawn faces, from files and from a fake camera."""

import base64
import importlib.util
import json
import os
import re
import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, sign_again, write_faces
from PIL import Image
from test_page import Outline, Page, browsing, contrast, luminance
from test_teach_distill import fer

from efficientface import FerError, Recognizer
from efficientface.data.batches import normalise, whole
from efficientface.data.drawn import draw_face
from efficientface.data.photos import PhotoFiles, read_photo
from efficientface.models import build
from efficientface.pipeline import explain, pictures
from efficientface.pipeline.align import aligner_as
from efficientface.pipeline.artifact import reference_to
from efficientface.pipeline.checkpoint import METRICS, finish_model

WEB = Path(__file__).parent.parent / "examples" / "web"
CROP, SIZE = 112, 80


def loaded():
    spec = importlib.util.spec_from_file_location("web_build", WEB / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_page = loaded()


# --- the files


def test_the_page_names_no_other_place():
    outline = Outline((WEB / "index.html").read_text())
    (policy,) = [a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules.pop("img-src") == "data:"
    assert rules.pop("script-src") == "'self' 'wasm-unsafe-eval'"
    assert set(rules.values()) == {"'self'"}
    for tag, attributes in outline.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert not outline.inside
    for file in build_page.PAGE:
        assert "//" not in re.sub(r"(?m)(^|\s)//.*", "", (WEB / file).read_text()).replace("<!doctype", "")


def test_the_lock_file_pins_versions_and_digests_without_addresses():
    wanted = json.loads((WEB / "package.json").read_text())["dependencies"]
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert packages.pop("")["dependencies"] == wanted
    assert packages["node_modules/onnxruntime-web"]["version"] == wanted["onnxruntime-web"]
    assert all(re.fullmatch(r"[\d.]+", package["version"]) and package["integrity"] for package in packages.values())
    assert "://" not in (WEB / "package-lock.json").read_text()


def test_text_stands_out_in_light_and_in_dark():
    style = (WEB / "page.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in style.split(":root")[1:3])
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for back in ("paper", "surface"):
            for front in ("ink", "quiet", "warn"):
                assert contrast(luminance(colours[front]), luminance(colours[back])) >= 4.5, (front, back)
            for mark in ("blue", "line"):
                assert contrast(luminance(colours[mark]), luminance(colours[back])) >= 3, (mark, back)


def test_what_cannot_be_built_is_said(tmp_path, monkeypatch):
    def refusal(*words):
        with pytest.raises(FerError) as error:
            build_page.run(*words)
        return str(error.value)

    (tmp_path / "mine").mkdir()
    assert refusal(tmp_path, tmp_path / "mine") == (
        f"{tmp_path}/mine exists and is no such page; remove it, or give another folder"
    )
    assert refusal(tmp_path, tmp_path / "no" / "page") == (
        f"{tmp_path}/no does not exist; make that folder first, or write the page elsewhere"
    )
    monkeypatch.setattr(build_page, "MODULES", tmp_path / "nothing")
    monkeypatch.setenv("PATH", "")
    assert refusal(tmp_path, tmp_path / "page") == (
        "onnxruntime-web is fetched by npm, which is not here; install it (Debian: apt-get install npm)"
    )
    monkeypatch.setattr(build_page, "fetch", lambda: None)
    assert refusal(tmp_path, tmp_path / "page") == (
        f"{tmp_path} holds no finished model; give a folder that fer teach, fer distill or fer import wrote"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# --- in Chromium


def telling(faces):
    """Weights of EfficientFace, random but for its last layer, which makes it answer otherwise about each face."""
    torch.manual_seed(0)
    model = build("efficientface", len(CLASSES)).eval()
    with torch.no_grad():
        images = normalise(whole(faces, SIZE), [0.4] * 3, [0.25] * 3)
        features = explain.observed(model, images)[2][1]
        middle = features.mean(0)
        _, spread, directions = torch.linalg.svd(features - middle, full_matrices=False)
        model.fc.weight[:] = len(faces) ** 0.5 * directions[: len(CLASSES)] / spread[: len(CLASSES), None]
        model.fc.bias[:] = -model.fc.weight @ middle
    return model.state_dict()


def photograph(rng):
    """Two drawn faces in 1000 x 600 pixels, one of them tilted: (600, 1000, 3) uint8 RGB."""
    image = np.full((600, 1000, 3), 190, np.uint8)
    image[100:500, 60:460] = draw_face(np.eye(7)[1], rng, 400)
    turn = cv2.getRotationMatrix2D((150, 150), 25, 1)
    tilted = cv2.warpAffine(draw_face(np.eye(7)[3], rng, 300), turn, (300, 300), borderMode=cv2.BORDER_REPLICATE)
    image[150:450, 600:900] = tilted
    return image


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A student, pictures, and the page that `make web` makes of it."""
    try:
        build_page.fetch()
    except FerError as error:
        pytest.skip(f"the page is not tested: {error}")
    folder = tmp_path_factory.mktemp("web")
    rng = np.random.default_rng(3)
    # as PNG, so that no JPEG is between fer predict and what the page does
    sign_again(write_faces(folder / "run", count=6, crop=CROP), settings={"crop": CROP, "encode": "png"})
    faces = [draw_face(np.eye(7)[k % 7], rng, CROP) for k in range(24)]
    student = folder / "run" / "students" / "ldl"
    student.mkdir(parents=True)
    (student / METRICS).touch()
    config = {
        "arch": "efficientface", "options": {}, "classes": list(CLASSES), "size": SIZE,
        "mean": [0.4] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    finish_model(
        student, "student", telling(faces), config,
        made_from={"faces": reference_to(folder / "run" / "faces", student)}, settings={}, facts={"chosen_on": "val"},
    )  # fmt: skip
    Image.fromarray(photograph(rng)).save(folder / "two.png")
    small = draw_face(np.eye(7)[2], rng, 170)
    Image.fromarray(small).save(folder / "small.png")
    upright = Image.Exif()
    upright[0x0112] = 6  # to be shown a quarter turned to the right
    Image.fromarray(np.rot90(small)).save(folder / "turned.jpg", quality=95, subsampling=0, exif=upright)
    Image.new("RGB", (300, 200), "grey").save(folder / "wall.png")
    (folder / "notes.png").write_text("no picture")
    frame = cv2.imencode(".jpg", cv2.imread(str(folder / "two.png"))[:, 20:820])[1].tobytes()
    (folder / "camera.mjpeg").write_bytes(3 * frame)
    build_page.run(student, folder / "site")
    return folder, student


class Server:
    """A folder on a port of its own, and what was asked of it."""

    def __init__(self, folder):
        asked = self.asked = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://localhost:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def serve():
    servers = []

    def start(folder):
        servers.append(Server(folder))
        return servers[-1].url

    yield start
    for one in servers:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture(scope="module")
def browser(made, tmp_path_factory):
    words = ("use-fake-device-for-media-stream", f"use-file-for-fake-video-capture={made[0]}/camera.mjpeg")
    with browsing(tmp_path_factory.mktemp("chromium"), *(f"--{word}" for word in words)) as opened:
        yield opened


class WebPage(Page):
    def open(self, url, until="Ready."):
        self.browser.get("about:blank")
        self.requests()  # what came before is not this page's
        self.complaints()
        self.browser.get(url)
        self.says(until)
        return self

    def says(self, text):
        try:
            self.wait(f"return document.querySelector('#status').textContent === {json.dumps(text)}")
        except Exception as error:
            raise AssertionError(f"not {text!r} but {self.one('#status').text!r}; {self.complaints()}") from error

    def choose(self, path):
        self.one("#file").send_keys(str(path))

    def faces(self):
        """Box and shares of every face, as they stand there to be read."""
        cells = self.js(
            "const texts = (item, place) => [...item.querySelectorAll(place)].map((cell) => cell.textContent);"
            "return [...document.querySelectorAll('.face')].map("
            "(item) => [texts(item, '.box')[0], texts(item, 'th'), texts(item, '.share')]);"
        )
        for box, names, shares in cells:
            edges = [int(edge) for edge in re.findall(r"-?\d+", box)]
            yield edges, {name: float(share[:-2]) / 100 for name, share in zip(names, shares, strict=True)}

    def canvas(self, selector):
        """(H, W, 3) uint8 pixels."""
        data = self.js(
            "const canvas = document.querySelector(arguments[0]);"
            "const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
            "return [canvas.height, canvas.width, [...data]];",
            selector,
        )
        return np.array(data[2], np.uint8).reshape(data[0], data[1], 4)[..., :3]

    def map(self, text):
        from selenium.webdriver.support.select import Select

        Select(self.one("#map")).select_by_visible_text(text)


@pytest.fixture
def page(made, browser, serve):
    return WebPage(browser, None).open(serve(made[0] / "site"))


def predicted(made, name):
    """What `fer predict` says of a picture."""
    done = fer("predict", made[0] / name, "--model", made[1], "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["rows"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("two.png", 2), ("turned.jpg", 1)])
def test_the_page_answers_as_fer_predict(made, page, name, count):
    page.choose(made[0] / name)
    page.says(f"Found {count} face{'s' if count > 1 else ''}.")
    expected = predicted(made, name)
    assert len(expected) == count
    for (box, shares), row, item in zip(page.faces(), expected, page.all(".face h2"), strict=True):
        np.testing.assert_allclose(box, row["box"], atol=1.5)
        assert list(shares) == list(CLASSES)
        assert shares == pytest.approx(row["distribution"], abs=0.01)
        assert row["expression"] in item.text
    if count > 1:  # the student tells faces apart, else this would show nothing
        one, other = (np.array(list(row["distribution"].values())) for row in expected)
        assert abs(one - other).max() > 0.1
    assert not page.complaints()


@pytest.mark.slow
def test_faces_and_maps_are_those_of_fer_explain(made, page):
    page.choose(made[0] / "two.png")
    page.says("Found 2 faces.")
    (shown,) = explain.found_in(explain.read_inputs(made[0] / "run"), [made[0] / "two.png"])
    page.map("none")
    crop = page.canvas(".crop").astype(int)
    assert crop.shape == shown.picture.shape
    assert abs(crop - shown.picture).max() <= 3
    answer = explain.explained(made[1], [shown], [2], CLASSES, "cpu")
    assert (answer.method, answer.weights.shape) == ("CAM", (1, 3, 3))
    page.map(f"of {CLASSES[2]}")
    expected = pictures.overlaid(shown.picture, answer.weights[0])
    assert abs(page.canvas(".crop") - expected.astype(int)).mean() < 4
    assert CLASSES[2] in page.one(".face:first-child .crop").get_attribute("aria-label")
    page.map(f"of {CLASSES[0]}")
    assert abs(page.canvas(".crop") - expected.astype(int)).mean() > 10


@pytest.mark.slow
def test_the_camera_is_looked_at_until_it_is_stopped(made, page):
    allow(page, "granted")
    page.one("#camera").click()
    page.wait("return document.querySelectorAll('.face .bar').length === 6")
    assert (page.one("#status").text, page.one("#camera").text) == ("The camera is on.", "Stop the camera")
    assert re.match(r"camera: 2 faces in \d+ x \d+ pixels", page.one("#caption").text)
    assert [sum(shares.values()) for _, shares in page.faces()] == pytest.approx([1, 1], abs=0.01)
    page.js("window.track = document.querySelector('video').srcObject.getVideoTracks()[0]")
    page.one("#camera").click()
    assert page.js("return [track.readyState, document.querySelector('video').srcObject]") == ["ended", None]
    assert (page.one("#status").text, page.one("#camera").text) == ("The camera is off.", "Use the camera")
    page.one("#camera").click()  # and again, until a picture is chosen
    page.says("The camera is on.")
    page.js("window.track = document.querySelector('video').srcObject.getVideoTracks()[0]")
    page.choose(made[0] / "small.png")
    page.says("Found 1 face.")
    assert page.js("return track.readyState") == "ended"
    time.sleep(1)
    assert page.one("#caption").text.startswith("small.png: 1 face")
    assert not page.complaints()


def allow(page, setting):
    about = {"permission": {"name": "camera"}, "setting": setting, "origin": page.js("return location.origin")}
    page.browser.execute_cdp_cmd("Browser.setPermission", about)


@pytest.mark.slow
def test_nothing_leaves_the_page(made, page, tmp_path):
    """Not by itself, and not if somebody got a script into it."""
    other = Server(tmp_path)
    page.choose(made[0] / "two.png")
    page.says("Found 2 faces.")
    own = page.js("return location.origin")
    requests = page.requests()
    assert len([url for url in requests if url.startswith(f"{own}/")]) >= 7
    assert all(url.startswith((f"{own}/", "data:", "blob:", "chrome:", "about:")) for url in requests), requests
    refused = page.browser.execute_async_script(
        """
        const [url, done] = arguments;
        const refused = [];
        document.addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective));
        fetch(url).catch(() => null);
        navigator.sendBeacon(url, 'x');
        try { new WebSocket(url.replace('http', 'ws')); } catch {}
        new Image().src = url;
        document.head.append(Object.assign(document.createElement('script'), { src: url }));
        document.body.append(Object.assign(document.createElement('iframe'), { src: url }));
        setTimeout(() => done(refused), 1000);
        """,
        other.url,
    )
    assert sorted(refused) == ["connect-src"] * 3 + ["frame-src", "img-src", "script-src-elem"]
    assert other.asked == []
    other.server.shutdown()
    other.server.server_close()


@pytest.mark.slow
def test_what_goes_wrong_has_a_sentence(made, page):
    for name, sentence in (
        ("notes.png", "notes.png is not a picture that this browser can read."),
        ("wall.png", "No face was found in wall.png."),
    ):
        page.choose(made[0] / name)
        page.says(sentence)
        assert "wrong" in page.one("#status").get_attribute("class")
    assert not page.all(".face")
    allow(page, "denied")
    page.one("#camera").click()
    page.says("The camera was refused; allow it for this page in the browser, then try again.")
    assert page.one("#camera").text == "Use the camera"
    page.choose(made[0] / "small.png")
    page.says("Found 1 face.")
    assert "wrong" not in page.one("#status").get_attribute("class")


def beside(made, folder):
    """A copy of the page to spoil."""
    shutil.copytree(made[0] / "site", folder, copy_function=os.link)
    (folder / "student.onnx").unlink()
    return folder


@pytest.mark.slow
def test_a_student_that_is_missing_or_no_student(made, browser, serve, tmp_path):
    site = beside(made, tmp_path / "site")
    opened = WebPage(browser, None).open(
        serve(site), "student.onnx is missing beside this page; make web puts it there."
    )
    assert not opened.one("#file").is_enabled()
    shutil.copyfile(site / "retinaface.onnx", site / "student.onnx")
    sentence = "student.onnx was not written by this version of fer export; export the student again."
    opened.open(serve(site), sentence)
    (site / "student.onnx").write_bytes(b"\xff" * 100)
    opened.open(serve(site), sentence)


@pytest.mark.slow
def test_a_student_without_maps_has_bars(made, browser, serve, tmp_path):
    model = onnx.load(made[0] / "site" / "student.onnx")
    del model.graph.output[1]
    onnx.save(model, tmp_path / "plain.onnx")
    site = tmp_path / "site"
    build_page.run(tmp_path / "plain.onnx", site)
    build_page.run(tmp_path / "plain.onnx", site)  # a former page is replaced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.onnx", "site"]
    opened = WebPage(browser, None).open(serve(site))
    assert (opened.one("#map").is_enabled(), opened.one("#map").text) == (False, "not in this student")
    opened.choose(made[0] / "small.png")
    opened.says("Found 1 face.")
    assert sum(next(opened.faces())[1].values()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_a_student_of_aligned_images_takes_the_whole_picture(made, browser, serve, tmp_path):
    model = onnx.load(made[0] / "site" / "student.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == "alignment")
    entry.value = json.dumps(json.loads(entry.value) | {"landmarks": None})
    site = beside(made, tmp_path / "site")
    onnx.save(model, site / "student.onnx")
    opened = WebPage(browser, None).open(serve(site))
    opened.choose(made[0] / "two.png")  # not square
    opened.says("Found 1 face.")
    recognizer = Recognizer.load(made[1])
    recognizer.aligner = aligner_as({"crop": CROP, "aligned": True, "encode": "png"}, PhotoFiles(made[0]))
    (expected,) = recognizer(read_photo(made[0] / "two.png"))
    assert opened.one(".box").text == "the whole picture"
    assert next(opened.faces()) == ([], pytest.approx(expected.distribution, abs=0.01))


@pytest.mark.slow
def test_a_picture_may_be_dropped_anywhere(made, page):
    drop = """
        const [name, data] = arguments;
        const given = new DataTransfer();
        if (data) given.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
        const event = new DragEvent('drop', { dataTransfer: given, bubbles: true, cancelable: true });
        document.querySelector('h1').dispatchEvent(event);
        return event.defaultPrevented;
        """
    assert page.js(drop, "small.png", base64.b64encode((made[0] / "small.png").read_bytes()).decode())
    page.says("Found 1 face.")
    assert page.one("#picture").get_attribute("aria-label") == "small.png: 1 face in 170 x 170 pixels"
    assert page.js(drop, "", None)
    page.says("That was no file; drop a picture, or choose one.")


@pytest.mark.slow
def test_everything_is_reached_by_keyboard(page):
    from selenium.webdriver import Keys

    reached = []
    for _ in range(3):
        page.type(Keys.TAB)
        reached.append(page.js("return document.activeElement.id"))
        if reached[-1] == "file":  # the input is not to be seen: its label shows where the focus is
            assert page.js("return getComputedStyle(document.querySelector('#file + label')).outlineStyle") == "solid"
    assert reached == ["file", "camera", "map"]
    names = page.js("return [...document.querySelectorAll('#file, #map')].map((it) => it.labels[0].textContent)")
    assert names == ["Choose a picture", "Class activation map"]
