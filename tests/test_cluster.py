"""--cluster: shards made by workers of Dask are those of one process, whoever is killed on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from conftest import write_faces, write_photos
from test_jobs import TEACH, fer, files_of

from efficientface import FerError
from efficientface.cache.parquet import read_shards
from efficientface.pipeline import align, cluster
from efficientface.pipeline.config import AlignConfig

CONFIG = AlignConfig(aligned=True, crop=32, shard_faces=1, workers=2)


def kill_one(client, folder, done=3):
    """Kill a worker's process as soon as `done` shards are in the folder; the thread's list gets how many were."""
    seen = []

    def wait_and_kill():
        victim = next(iter(client.run(os.getpid).values()))
        while len(list(folder.glob("part-*.parquet"))) < done:
            time.sleep(0.002)
        os.kill(victim, signal.SIGKILL)
        seen.append(len(list(folder.glob("part-*.parquet"))))

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread, seen


@pytest.mark.processes
def test_two_workers_one_killed_leave_what_one_process_leaves(tmp_path):
    photos = write_photos(tmp_path / "photos", 40)
    align.run(photos, tmp_path / "one", CONFIG)
    with cluster.connected("local", 2) as client:
        thread, seen = kill_one(client, tmp_path / "two" / "faces")
        told = align.write_faces(photos, tmp_path / "two", CONFIG, False, None, client)
        thread.join(20)
        assert 3 <= seen[0] < 40
        assert told["images"] == 40
        assert align.write_faces(photos, tmp_path / "two", CONFIG, False, None, client)["faces"] == told["faces"]
    assert files_of(tmp_path / "two" / "faces") == files_of(tmp_path / "one" / "faces")


def test_a_worker_that_sees_other_files_makes_nothing(tmp_path):
    photos = write_photos(tmp_path / "photos", 3)
    inputs = align.read_inputs({"": photos}, CONFIG)
    plan = align.plan_of(inputs, CONFIG, tmp_path)
    align.write_json(tmp_path / "plan.json", plan)
    seen = tmp_path / "plan.json", align.digest_file(tmp_path / "plan.json")
    stores = {"": inputs.sources[""].photos}
    about = inputs.classes, plan["digest"], CONFIG
    task = align.portion_task("part-00000.parquet", inputs.photos[:1], stores, *about, seen)
    (photos / inputs.photos[0].file).write_bytes(b"another")
    with pytest.raises(FerError, match=r"does not see happiness/001.png as it is here; give sources that all machines"):
        task.make()
    (tmp_path / "plan.json").write_text("another")
    with pytest.raises(
        FerError, match=r"does not see .*plan\.json as it is here; give folders that all machines share"
    ):
        task.make()
    assert not list(tmp_path.glob("*.parquet"))


def test_where_no_cluster_is_one_sentence_says_so(tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", 3)
    run = tmp_path / "run"
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    told = fer("align", photos, run, "--cluster", "tcp://127.0.0.1:9", status=1)
    assert told.startswith("no Dask scheduler answers at tcp://127.0.0.1:9 (")
    assert told.endswith("start one there with dask scheduler, or give --cluster local")
    told = fer("align", photos, run, "--cluster", "everywhere", status=1)
    assert told == "--cluster everywhere is not understood; give local, or an address such as tcp://10.0.0.1:8786"
    assert "give one" in fer("align", photos, run, "--cluster", "local", "--shard", "1/2", status=1)
    monkeypatch.setitem(sys.modules, "distributed", None)
    told = fer("align", photos, run, "--cluster", "local", status=1)
    assert told == "--cluster needs Dask; pip install 'efficientface[cluster]'"
    assert not run.exists()


def test_workers_of_other_versions_are_named():
    here = dict.fromkeys(cluster.PACKAGES, "2.0")
    workers = {
        "tcp://a:1": {"packages": here},
        "tcp://b:1": {"packages": {**here, "torch": "1.9"}},
        "tcp://c:1": {"packages": {**here, "efficientface": None}},
    }
    found = {"client": {"packages": here}, "workers": workers}
    with pytest.raises(FerError) as refused:
        cluster.check_versions(SimpleNamespace(get_versions=lambda packages: found))
    assert str(refused.value) == (
        "2 of 3 workers have other versions than this machine, first tcp://b:1 with torch 1.9, here 2.0; "
        "install the same everywhere"
    )
    del workers["tcp://b:1"], workers["tcp://c:1"]
    cluster.check_versions(SimpleNamespace(get_versions=lambda packages: found))


@pytest.mark.slow
def test_nothing_of_dask_is_imported_without_a_cluster(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom efficientface.pipeline import align\n"
        "from efficientface.pipeline.config import AlignConfig\n"
        f"align.run(Path({str(write_photos(tmp_path / 'photos', 3))!r}), Path({str(tmp_path / 'run')!r}), "
        "AlignConfig(aligned=True, crop=32))\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def begin(*words):
    code = "from efficientface.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_killed_client_and_a_rerun(tmp_path):
    """With the real detector, and the same command again."""
    from efficientface.pipeline.demo import DemoConfig, draw

    draw(tmp_path / "photos", DemoConfig(count=100))
    words = ["--shard-faces", 4, "--eye-distance", 0.42, "--workers", 2]
    fer("align", tmp_path / "photos", tmp_path / "one", *words)
    first = begin("align", tmp_path / "photos", tmp_path / "two", *words, "--cluster", "local")
    folder, deadline = tmp_path / "two" / "faces", time.monotonic() + 200
    while len(list(folder.glob("part-*.parquet"))) < 5:
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(list(folder.glob("part-*.parquet"))) < 25
    assert not (folder / "manifest.json").exists()
    fer("align", tmp_path / "photos", tmp_path / "two", *words, "--cluster", "local")
    assert files_of(folder) == files_of(tmp_path / "one" / "faces")


@pytest.mark.slow
def test_labelling_on_two_workers_one_killed(tmp_path, monkeypatch):
    """With two threads a torch of its own could answer a little differently: conftest.py gives it one."""
    run = tmp_path / "run"
    write_faces(run, count=90)
    words = [*TEACH, "--shard-faces", 5, "--views", 3]
    fer("teach", run, *words, "--cache", "one")
    real = cluster.carry_out

    def killing(client, tasks, advance):
        thread, seen = kill_one(client, run / "distributions-two", done=2)
        real(client, tasks, advance)
        thread.join(20)
        assert 2 <= seen[0] < 18

    monkeypatch.setattr("efficientface.pipeline.label.carry_out", killing)
    fer("teach", run, *words, "--cache", "two", "--cluster", "local", "--workers", 2)
    one, two = (files_of(run / f"distributions-{name}") for name in ("one", "two"))
    assert two == one
    assert len(read_shards(sorted((run / "distributions-two").glob("*.parquet"))).face_id) == 90
