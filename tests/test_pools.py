"""`fer align` by processes: the files that threads make, and no process that outlives the command."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import loky
import numpy as np
import pytest
from loky.backend.process import LokyProcess
from PIL import Image

from efficientface import FerError
from efficientface.cli import starved
from efficientface.data.drawn import draw_face, mixture
from efficientface.pipeline import align, pools
from efficientface.pipeline.config import AlignConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 photographs, so that there are several tasks: three people, a wall, and one that is cut off."""
    root = tmp_path_factory.mktemp("photos")
    (root / "sad").mkdir()
    folder = root / "happy"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(draw_face(mixture(3, k), np.random.default_rng(k), 200)).save(folder / f"{k}.jpg")
    Image.new("RGB", (150, 150)).save(folder / "wall.png")
    (folder / "cut.jpg").write_bytes((folder / "0.jpg").read_bytes()[:3000])
    for k in range(5, 40):
        shutil.copyfile(folder / f"{k % 3}.jpg", folder / f"{k}.jpg")
    (folder / "1.jpg").rename(root / "sad/1.jpg")
    return root


def gone(pid):
    """Within 15 seconds, whether or not its parent has taken note."""
    for _ in range(150):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_processes_make_the_files_that_threads_make(photos, tmp_path, monkeypatch):
    told = [align.run(photos, tmp_path / "threads", AlignConfig(workers=2, shard_faces=23))]
    monkeypatch.setattr(align, "MANY", 1)
    monkeypatch.setattr(align, "threads", None)
    told.append(align.run(photos, tmp_path / "processes", AlignConfig(workers=2, shard_faces=23)))
    monkeypatch.undo()
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "faces").iterdir()}
        for name in ("threads", "processes")
    )
    shards = [name for name in one if name.endswith(".parquet")]
    assert len(shards) == 2
    assert [one[name] for name in shards] == [other[name] for name in shards]
    assert one.keys() == other.keys()
    first, second = ({**summary, "folder": "", "seconds": 0} for summary in told)
    assert first == second
    assert first["statuses"] == {"found": 38, "no face": 1, "unreadable": 1}


def test_an_error_of_a_worker_is_the_command_s():
    def refuse(word):
        raise FerError(word)

    with pytest.raises(FerError, match="^out of memory$"), pools.processes(2) as pool:
        list(pools.in_order(pool, refuse, ["out of memory"], window=2))


def test_a_worker_that_was_killed_is_told_in_a_sentence():
    with pytest.raises(BrokenProcessPool) as raised, pools.processes(2) as pool:
        list(pools.in_order(pool, os._exit, [1, 1], window=2))
    assert starved(raised.value, None).startswith("a process of this command was killed, most likely because memory")


def test_where_processes_cannot_be_had_threads_do_it(monkeypatch, caplog):
    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(loky, "ProcessPoolExecutor", refuse)
    with pools.processes(2) as pool:
        assert list(pools.in_order(pool, abs, [-1, -2], window=2)) == [(-1, 1), (-2, 2)]
    assert caplog.messages == ["working by threads, as processes cannot be had (Read-only file system)"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_end_with_a_command_that_was_killed(tmp_path):
    code = (
        "import os, time\nfrom efficientface.pipeline.pools import processes\n"
        "with processes(2) as pool:\n"
        "    print(*{pool.submit(os.getpid).result() for _ in range(9)}, flush=True)\n"
        "    pool.submit(time.sleep, 60).result()\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = command.stdout.readline().split()
    assert workers
    command.kill()
    command.wait()
    assert all(gone(worker) for worker in workers)


def test_where_a_process_cannot_be_started_the_others_end_and_threads_do_it(monkeypatch, caplog):
    started = []

    def start(self):
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        plain(self)
        started.append(self)

    plain, before = LokyProcess.start, dict(os.environ)
    monkeypatch.setattr(LokyProcess, "start", start)
    with pools.processes(2) as pool:
        assert list(pools.in_order(pool, abs, [-1, -2], window=2)) == [(-1, 1), (-2, 2)]
    assert caplog.messages == ["working by threads, as processes cannot be had (Resource temporarily unavailable)"]
    started[0].join(5)
    assert started[0].exitcode == -signal.SIGTERM
    assert dict(os.environ) == before


def test_a_daemonic_process_works_by_threads(monkeypatch, caplog):
    """As those of multiprocessing.Pool are, which may have no children."""
    monkeypatch.setattr(pools.current_process(), "_config", {"daemon": True})
    with pools.processes(2) as pool:
        assert list(pools.in_order(pool, abs, [-1], window=2)) == [(-1, 1)]
    assert caplog.messages == ["working by threads, as processes cannot be had (a daemonic process may have none)"]


def test_no_module_of_the_current_folder_is_imported(tmp_path):
    for name in ("pickle", "random", "queue", "loky", "cv2", "numpy", "argparse", "selectors"):
        (tmp_path / f"{name}.py").write_text("print(__file__)\nraise SystemExit(1)\n")
    code = "from efficientface.pipeline.pools import processes as p\nwith p(2) as x: print(x.submit(abs, -3).result())"
    # -P is for this process alone: what it starts must be told by the pool
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("seconds", [0, 0.1, 2])
def test_ctrl_c_ends_all_processes_with_one_sentence(seconds, photos, tmp_path):
    for label in ("happy", "sad"):
        (tmp_path / "many" / label).mkdir(parents=True)
        for k in range(2 * align.MANY):
            os.link(photos / "happy/0.jpg", tmp_path / "many" / label / f"{k}.jpg")
    words = ["align", tmp_path / "many", tmp_path / "run", "--workers", "2"]
    command = subprocess.Popen(
        [Path(sys.executable).with_name("fer"), *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = []
    while len(workers) < 3:  # two trackers of resources, then workers
        assert command.poll() is None, command.stderr.read()
        time.sleep(0.05)
        with suppress(OSError), open(f"/proc/{command.pid}/task/{command.pid}/children") as file:
            workers = file.read().split()
    time.sleep(seconds)
    os.killpg(command.pid, signal.SIGINT)
    _, told = command.communicate(timeout=30)
    assert command.returncode == 130
    assert told.splitlines()[-1].startswith("Error: interrupted (SIGINT); what was finished is kept")
    assert "Traceback" not in told
    assert all(gone(worker) for worker in workers)
    assert not list((tmp_path / "run").rglob("*.part"))
