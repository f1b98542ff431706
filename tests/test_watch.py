"""`fer predict` on videos and cameras: every frame's faces with its time, tracks, smoothing, and the live window."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES, write_faces
from test_evaluate import write_model
from test_recognise import drawn
from test_teach_distill import fer, refused

from efficientface import FerError, Recognizer
from efficientface.data.video import VideoWriter, open_video
from efficientface.pipeline import watch
from efficientface.pipeline.tracks import LOST, Tracks

RATE = 10
FRAMES = 3000  # of the camera's stand-in: more than a busy machine looks at before the window is closed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    run = tmp_path_factory.mktemp("watch") / "run"
    write_faces(run)
    return write_model(run, run / "students" / "ldl")


def film(path, images, codec="MJPG"):
    """A video of the images (H, W, 3) RGB at RATE frames a second."""
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), RATE, (width, height))
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A face, the same with a second one for three frames, and an empty wall."""
    wall = np.full_like(drawn(1), 90)
    images = [np.hstack([drawn(1), other]) for other in (wall, drawn(2), drawn(2), drawn(2))]
    return film(tmp_path_factory.mktemp("clip") / "clip.avi", [*images, np.hstack([wall, wall])])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_frame_has_rows_with_its_time_and_the_recognizers_answers(clip, model, tmp_path, caplog):
    result = fer("predict", clip, "--model", model, "--out", tmp_path / "a.jsonl", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["frames"], told["faces"]) == (5, 7)
    assert told["statuses"] == {"found": 1, "several faces": 6, "no face": 1}
    assert told["frames_per_second"] > 0
    rows = rows_of(tmp_path / "a.jsonl")
    assert [(row["frame"], row["time"], row["face"]) for row in rows] == [
        (0, 0.0, 0), (1, 0.1, 0), (1, 0.1, 1), (2, 0.2, 0), (2, 0.2, 1), (3, 0.3, 0), (3, 0.3, 1), (4, 0.4, None),
    ]  # fmt: skip
    assert {row["video"] for row in rows} == {str(clip)}
    assert {row["track"] for row in rows} == {None}
    capture = cv2.VideoCapture(str(clip))
    recognizer = Recognizer.load(model)
    for number in range(5):
        faces = recognizer(np.ascontiguousarray(capture.read()[1][..., ::-1]))
        found = [row for row in rows if row["frame"] == number and row["distribution"]]
        for face, row in zip(faces, found, strict=True):
            assert row["distribution"] == pytest.approx(face.distribution, abs=1e-6)
            assert row["box"] == list(face.box)
    assert not caplog.messages


def test_the_three_tables_and_the_printed_one_say_the_same(clip, model, tmp_path):
    words = ("predict", clip, "--model", model, "--track")
    for kind in ("jsonl", "csv", "parquet"):
        assert fer(*words, "--out", tmp_path / f"a.{kind}").exit_code == 0
    rows = rows_of(tmp_path / "a.jsonl")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.names == [*watch.VIDEO_COLUMNS, *CLASSES]
    assert [row["track"] for row in table.to_pylist()] == [row["track"] for row in rows] == [0, 0, 1, 0, 1, 0, 1, None]
    assert fer(*words, "--csv").stdout == (tmp_path / "a.csv").read_text()
    lines = fer(*words).stdout.splitlines()
    assert lines[0].startswith("5 frames, 7 faces (1 found, 6 several faces, 1 no face), ")
    assert any("no face: none in 448 x 224 pixels" in line and "0.40" in line for line in lines)


def test_the_video_is_written_with_boxes_and_bars(clip, model, tmp_path):
    seen = tmp_path / "seen.webm"
    result = fer("predict", clip, "--model", model, "--annotate", seen)
    assert result.exit_code == 0, result.output
    frames = [frame.image for frame in open_video(seen)]
    assert len(frames) == 5
    height, width = frames[0].shape[:2]
    assert width == 800
    assert height > 400  # the bars are below
    blue = [(abs(frame[:400].astype(int) - (0x4C, 0x9B, 0xE8)).sum(2) < 90).sum() for frame in frames]
    assert min(blue[:4]) > 300
    assert blue[4] < 50  # nobody is there
    assert os.listdir(tmp_path) == ["seen.webm"]


def test_a_variable_rate_keeps_its_pace(tmp_path):
    """Pictures of 0, 0.1 and 0.5 seconds at ten a second: the second one stays for four."""
    with VideoWriter(tmp_path / "a.avi", RATE) as writer:
        for value, seconds in ((0, 0.0), (100, 0.1), (200, 0.5)):
            writer.write(np.full((64, 64, 3), value, np.uint8), seconds)
    shades = [round(frame.image.mean() / 100) for frame in open_video(tmp_path / "a.avi")]
    assert shades == [0, 1, 1, 1, 1, 2]


def grown(data, name, content):
    """An mp4's bytes with the content of its one box of that name replaced, and those around it made to fit."""
    start = data.index(name) - 4
    size = int.from_bytes(data[start : start + 4])
    new = len(content) + 8
    data = data[:start] + new.to_bytes(4) + name + content + data[start + size :]
    for around in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = data.index(around) - 4
        held = int.from_bytes(data[place : place + 4])
        data = data[:place] + (held + new - size).to_bytes(4) + data[place + 4 :]
    return data


def test_times_are_those_of_a_variable_rate(tmp_path):
    path = film(tmp_path / "a.mp4", [np.full((64, 64, 3), 40 * k, np.uint8) for k in range(4)], "mp4v")
    data = path.read_bytes()
    place = data.index(b"stts") + 16
    tick = int.from_bytes(data[place : place + 4])
    entries = [(1, tick), (1, 5 * tick), (2, tick)]  # frames and how long each stays
    content = bytes(4) + len(entries).to_bytes(4) + b"".join(n.to_bytes(4) + d.to_bytes(4) for n, d in entries)
    path.write_bytes(grown(data, b"stts", content).replace(b"edts", b"free"))  # the edit list has the old duration
    assert [frame.time for frame in open_video(path)] == pytest.approx([0, 0.1, 0.6, 0.7])


def test_a_phones_rotated_video_is_upright(tmp_path):
    """The matrix that phones write: turn a quarter clockwise to show."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48, 0] = 255  # the left half is red, and becomes the upper one
    path = film(tmp_path / "a.mp4", [image] * 3, "mp4v")
    data = path.read_bytes()
    place = data.index(b"tkhd") + 44
    matrix = (0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    turned = b"".join(value.to_bytes(4, signed=True) for value in matrix)
    path.write_bytes(data[:place] + turned + data[place + 36 :])
    frames = [frame.image for frame in open_video(path)]
    assert frames[0].shape == (96, 64, 3)
    assert frames[0][:40, :, 0].min() > 200
    assert frames[0][56:, :, 0].max() < 60


def test_a_broken_tail_is_said_and_the_rest_is_read(model, tmp_path, caplog):
    path = film(tmp_path / "a.avi", [drawn(1)] * 10)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    result = fer("predict", path, "--model", model, "--json")
    assert result.exit_code == 0, result.output
    read = json.loads(result.stdout)["frames"]
    assert 4 <= read <= 6
    assert caplog.messages == [f"{path} ends early: {read} of 10 frames could be read"]


def test_a_video_without_faces_is_said(model, tmp_path, caplog):
    path = film(tmp_path / "a.avi", [np.full((64, 64, 3), 90, np.uint8)] * 2)
    result = fer("predict", path, "--model", model, "--csv")
    assert result.exit_code == 0, result.output
    assert [line.split(",")[1:6] for line in result.stdout.splitlines()[1:]] == [
        ["0", "0.0", "", "", "no face"],
        ["1", "0.1", "", "", "no face"],
    ]
    assert caplog.messages == [f"{path}: no face was found in any of its 2 frames"]


def boxed(*lefts):
    """Rows of faces of 10 x 10 pixels."""
    return [{"box": [left, 0, left + 10, 10], "distribution": {"a": 1.0, "b": 0.0}} for left in lefts]


def test_tracks_follow_boxes_whatever_their_order():
    tracks = Tracks()

    def numbers(seconds, *lefts):
        rows = boxed(*lefts)
        tracks.follow(rows, seconds)
        return [row["track"] for row in rows]

    assert numbers(0.0, 0, 50) == [0, 1]
    assert numbers(0.1, 52, 3) == [1, 0]
    assert numbers(0.2, 54) == [1]
    assert numbers(0.3, 100, 4) == [2, 0]  # 0 was not seen for a moment
    assert numbers(0.3 + LOST + 0.1, 4) == [3]  # for longer
    assert numbers(1.0) == []


def test_two_near_faces_are_shared_out_by_the_best_of_both():
    tracks = Tracks()
    tracks.follow(boxed(0, 4), 0.0)
    rows = boxed(2, 6)  # 2 is as near to both, 6 only to the second
    tracks.follow(rows, 0.1)
    assert [row["track"] for row in rows] == [0, 1]


def test_smoothing_is_an_exponential_average_in_time():
    tracks = Tracks(smooth=0.5)
    first, second = boxed(0), boxed(1)
    second[0]["distribution"] = {"a": 0.0, "b": 1.0}
    tracks.follow(first, 1.0)
    tracks.follow(second, 1.2)
    kept = math.exp(-0.2 / 0.5)
    assert first[0]["distribution"] == {"a": 1.0, "b": 0.0}
    assert second[0]["distribution"] == pytest.approx({"a": kept, "b": 1 - kept})
    assert second[0]["expression"] == "a"
    assert second[0]["entropy"] == pytest.approx(-kept * math.log(kept) - (1 - kept) * math.log(1 - kept))
    other = boxed(100)
    tracks.follow(other, 1.3)
    assert other[0]["distribution"] == {"a": 1.0, "b": 0.0}  # somebody else


def test_what_cannot_be_done_is_said(clip, model, tmp_path, monkeypatch):
    words = ("--model", model)
    (tmp_path / "no.mp4").write_bytes(b"no video" * 100)
    unread = (
        "cannot be read as a video: it is damaged, or of a codec that OpenCV does not know; convert it, such as with"
    )
    assert refused(fer("predict", tmp_path / "no.mp4", *words)) == (
        f"{tmp_path}/no.mp4 {unread} ffmpeg -i no.mp4 -c:v libx264 new.mp4"
    )
    (tmp_path / "odd.avi").write_bytes(clip.read_bytes().replace(b"MJPG", b"ZZZZ"))
    assert refused(fer("predict", tmp_path / "odd.avi", *words)) == (
        f"{tmp_path}/odd.avi {unread} ffmpeg -i odd.avi -c:v libx264 new.mp4"
    )
    data = clip.read_bytes()
    (tmp_path / "head.avi").write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(
        FerError, match=r"head.avi is damaged: not one frame could be decoded; convert it anew, or give"
    ):
        list(open_video(tmp_path / "head.avi"))
    assert refused(fer("predict", tmp_path / "a.mp4", *words)) == (
        f"{tmp_path}/a.mp4 does not exist; give a video, or camera:0"
    )
    assert refused(fer("predict", "camera:77", *words)) == (
        "camera:77 gives no pictures: there is no such camera, another program has it, or it is not allowed; "
        "give another, such as camera:0"
    )
    assert refused(fer("predict", clip, *words, "--annotate", tmp_path / "seen")) == (
        f"--annotate {tmp_path}/seen does not end in .mp4, .webm, .avi; give a video's name for {clip}"
    )
    assert refused(fer("predict", clip, *words, "--smooth", "nan")) == (
        "--smooth nan is out of range; give seconds from 0 to 3600"
    )
    assert refused(fer("predict", clip, *words, "--annotate", clip)) == (
        f"--annotate {clip} is the video that is read; give another name"
    )
    monkeypatch.setenv("DISPLAY", "")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert refused(fer("predict", f"camera:{clip}", *words)) == (
        "no window can be opened here: there is no screen (DISPLAY is not set, or leads nowhere), or OpenCV is "
        "the one without windows (opencv-python-headless); run this on a desktop, or give a video"
    )


@pytest.fixture
def screen(monkeypatch):
    """A screen that nobody sees, and a connection to it."""
    if not shutil.which("Xvfb"):
        pytest.skip("Xvfb is not here, so the camera's window is not tested")
    from Xlib import display

    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x1024x24", "-noreset"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as told:
        name = f":{told.readline().strip()}"
    monkeypatch.setenv("DISPLAY", name)
    connection = display.Display(name)
    yield connection
    connection.close()
    server.terminate()
    server.wait()


def until(found, seconds=120):
    """What `found` returns as soon as that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(
    "ways", [("q", "close"), pytest.param(("escape", "interrupt"), marks=pytest.mark.slow)], ids=" ".join
)
def test_the_cameras_window_shows_bars_and_closes(screen, model, tmp_path, ways):
    """With a video file as the device; closed by a key, its button or Ctrl-C, one after the other in one process."""
    from Xlib import XK, X, protocol
    from Xlib.error import BadDrawable, BadMatch, BadWindow
    from Xlib.ext import xtest

    device = film(tmp_path / "long.mp4", [drawn(1)] * FRAMES, "mp4v")
    code = (
        "import sys\nfrom efficientface.cli import cli\n"
        "for out in sys.argv[2:]:\n"
        "    cli([*sys.argv[1].split('|'), '--out', out, '--json'], standalone_mode=False)\n"
    )
    words = "|".join(("predict", f"camera:{device}", "--model", str(model)))
    outs = [tmp_path / f"{way}.jsonl" for way in ways]
    process = subprocess.Popen(
        [sys.executable, "-c", code, words, *outs], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    root = screen.screen().root

    def shown():
        """The window once it has the bars in it: they are in the first face's blue."""
        try:
            return with_bars()
        except (BadWindow, BadDrawable, BadMatch):  # it went, or went out of sight, while it was looked at
            return None

    def with_bars():
        for window in root.query_tree().children:
            if window.get_wm_name() == f"fer predict camera:{device}" and window.get_attributes().map_state:
                size = window.get_geometry()
                if size.height <= 800:
                    continue  # not yet of the picture's size
                raw = window.get_image(0, 800, size.width, size.height - 800, X.ZPixmap, 0xFFFFFFFF).data
                pixels = np.frombuffer(raw, np.uint8).reshape(-1, 4).astype(int)
                if (abs(pixels[:, 2::-1] - (0x4C, 0x9B, 0xE8)).sum(1) < 30).sum() > 300:
                    return window
                # Where no window manager runs, Qt may take the window for out of sight, and paint nothing, until it
                # comes into sight once more: a third of them stayed black here, and none of 24 beside openbox.
                window.unmap()
                window.map()
                screen.sync()
        return None

    try:
        for out in outs:
            window = until(lambda: shown() or process.poll() is not None)
            assert window is not True, process.communicate()
            assert not out.exists()
            if out.stem == "close":
                delete = [screen.intern_atom("WM_DELETE_WINDOW"), X.CurrentTime, 0, 0, 0]
                protocols = screen.intern_atom("WM_PROTOCOLS")
                window.send_event(protocol.event.ClientMessage(window=window, client_type=protocols, data=(32, delete)))
            elif out.stem == "interrupt":
                process.send_signal(signal.SIGINT)
            else:
                key = screen.keysym_to_keycode(XK.string_to_keysym(out.stem.capitalize() if len(out.stem) > 1 else "q"))
                xtest.fake_input(screen, X.MotionNotify, x=100, y=100)
                xtest.fake_input(screen, X.KeyPress, key)
                xtest.fake_input(screen, X.KeyRelease, key)
            screen.sync()
            until(out.exists)
        told, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert said == ("stopped\n" if "interrupt" in ways else "")
    for out, result in zip(outs, json.loads("[" + told.replace("}\n{", "},{") + "]"), strict=True):
        rows = rows_of(out)
        assert result["frames"] == result["faces"] == len(rows) < FRAMES
        assert [row["frame"] for row in rows] == list(range(len(rows)))
        assert all(a["time"] < b["time"] for a, b in zip(rows, rows[1:], strict=False))
