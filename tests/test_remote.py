"""Sources and runs at addresses: the local file system, and an S3-compatible server on loopback."""

import json
import shutil
from contextlib import nullcontext

import fsspec
import pytest
from conftest import write_photos
from test_jobs import ALIGN, fer, files_of

from efficientface.data import remote
from efficientface.pipeline import align, cluster, label, mirror, teach

DISTILL = ["--size", 32, "--epochs", 1, "--batch-size", 8, "--workers", 1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The copies of runs are not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def server():
    """Moto's server, with a bucket; its address and keys stand in the environment, as with any S3."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("faces")
        yield
    running.stop()


SLOW = pytest.mark.slow  # the other kind of storage is in the default suite


@pytest.fixture
def place(request, tmp_path):
    """An address of the kind `request.param` below which nothing is yet."""
    if request.param == "s3":
        request.getfixturevalue("server")
        return f"s3://faces/{tmp_path.name}"
    return f"file://{tmp_path}/there"


def listed(address):
    return set(remote.listing(address))


def content(address, name):
    system, root = remote.storage(address)
    return system.cat_file(f"{root}/{name}")


def upload(folder, address):
    system, root = remote.storage(address)
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"{root}/{path.relative_to(folder).as_posix()}"
            system.makedirs(name.rpartition("/")[0], exist_ok=True)
            system.pipe_file(name, path.read_bytes())


@pytest.mark.parametrize("place", [pytest.param("file", marks=SLOW), "s3"], indirect=True)
def test_a_run_elsewhere_is_what_it_is_here(place, tmp_path, cache):
    photos = write_photos(tmp_path / "photos", 18)
    upload(photos, f"{place}/photos")
    fer("align", photos, tmp_path / "run", *ALIGN)
    told = fer("align", f"{place}/photos", f"{place}/run", *ALIGN)
    assert told.endswith(f"written to {place}/run/faces\n")
    here = files_of(tmp_path / "run" / "faces")
    assert listed(f"{place}/run") == {f"faces/{name}" for name in here}
    for name in here:
        if name.startswith("part"):
            assert content(f"{place}/run", f"faces/{name}") == here[name]
    source = json.loads(content(f"{place}/run", "faces/manifest.json"))["made_from"]["source"]
    assert source["path"] == f"{place}/photos"

    shutil.rmtree(cache)  # as on another machine, which has no copy
    fer("teach", f"{place}/run", "--source", "smooth:0.1")
    fer("distill", f"{place}/run", *DISTILL, "--unlabelled")
    assert {"distributions/manifest.json", "students/ldl/model.safetensors"} <= listed(f"{place}/run")
    assert not any("checkpoint" in name or "/." in name for name in listed(f"{place}/run"))
    told = json.loads(fer("verify", f"{place}/run", "--json"))
    assert told["ok"]
    assert any(f"{place}/photos is not on this machine" in check["detail"] for check in told["checks"])
    assert str(cache) not in json.dumps(told)


@pytest.mark.parametrize("place", ["file", pytest.param("s3", marks=SLOW)], indirect=True)
def test_jobs_and_interruptions_leave_shards_there(place, tmp_path):
    photos = write_photos(tmp_path / "photos", 18)
    run = f"{place}/run"
    fer("align", photos, run, *ALIGN, "--shard", "2/2")
    assert listed(run) == {"faces/plan.json", "faces/part-00001.parquet", "faces/part-00003.parquet"}
    assert "lacks 3 of 5 shards" in fer("merge", run, status=1)
    assert run in fer("align", photos, run, *ALIGN, "--crop", 64, "--shard", "1/2", status=1)
    fer("align", photos, run, *ALIGN, "--shard", "1/2")
    assert f"written to {run}/faces" in fer("merge", run)
    fer("align", photos, tmp_path / "one", *ALIGN)
    assert listed(run) == {f"faces/{name}" for name in files_of(tmp_path / "one" / "faces")}
    fer("align", photos, run, *ALIGN, "--shard-faces", 18, "--replace")
    assert listed(run) == {f"faces/{name}" for name in ("part-00000.parquet", "manifest.json", "manifest.blake2b")}


def test_a_damaged_file_there_is_found(tmp_path):
    photos, run = write_photos(tmp_path / "photos", 18), f"file://{tmp_path}/there"
    fer("align", photos, run, *ALIGN)
    (tmp_path / "there" / "faces" / "part-00001.parquet").write_bytes(b"cut off")
    assert fer("status", run, status=1) == (
        f"{run}/faces/part-00001.parquet is not as its manifest says; restore it there"
    )


def test_a_copy_serves_one_command_at_a_time(tmp_path):
    run = f"file://{tmp_path}/there"
    first = mirror.Mirror(run)
    assert fer("status", run, status=1).startswith(f"another fer works on {run} in {first.folder}; wait for it, or set")
    first.lock.release()


@pytest.mark.slow
def test_what_cannot_be_reached_is_one_sentence(server, tmp_path, monkeypatch):
    told = fer("align", "s3://nowhere/photos", tmp_path / "run", status=1)
    assert told.startswith("s3://nowhere/photos ")
    told = fer("status", "nothing://x/y", status=1)
    assert told.startswith("nothing://x/y cannot be used (Protocol not known: nothing")
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    told = fer("align", "s3://faces/photos", tmp_path / "run", status=1)
    assert told.startswith("s3://faces/photos cannot be used (")
    assert told.endswith("check the address, and the credentials in the environment")
    fsspec.filesystem("s3").clear_instance_cache()
    assert not (tmp_path / "run").exists()


def test_a_name_that_leaves_the_folder_is_refused(server, tmp_path):
    fsspec.filesystem("s3").pipe_file("faces/hostile/happy/../../../x.jpg", b"x")
    told = fer("align", "s3://faces/hostile", tmp_path / "run", status=1)
    assert "which is no path below it; rename it or give another folder" in told


def test_a_worker_on_another_machine_has_a_copy_of_its_own(tmp_path, monkeypatch):
    """Played in one process: the client's copy is out of sight while a task is carried out."""
    photos, run = write_photos(tmp_path / "photos", 18), f"file://{tmp_path}/there"
    seen = []

    def carry_out(client, tasks, advance):
        for task in tasks:
            copy = mirror.of(task.path)
            aside = shutil.move(copy.folder, tmp_path / "aside")
            cluster.Elsewhere(task, copy.address, copy.folder).make()
            seen.append({path.name for path in copy.folder.rglob("*") if path.is_file()})
            shutil.rmtree(copy.folder)
            shutil.move(aside, copy.folder)
            copy.take(task.path)

    for stage in (align, label):
        monkeypatch.setattr(stage, "carry_out", carry_out)
    for stage in (align, teach):
        monkeypatch.setattr(stage, "connected", lambda *_: nullcontext("a client"))
    smooth = ["--source", "smooth:0.1", "--shard-faces", 6]
    fer("align", photos, run, *ALIGN, "--cluster", "tcp://elsewhere:8786")
    assert seen == [{"plan.json", f"part-{k:05d}.parquet"} for k in range(5)]
    fer("teach", run, *smooth, "--cluster", "tcp://elsewhere:8786")
    # faces 6 to 11 stand in the second and third file of faces/; the shard made is a second part-00001
    assert seen[6] == {"plan.json", "manifest.json", "part-00001.parquet", "part-00002.parquet"}
    fer("align", photos, tmp_path / "one", *ALIGN)
    fer("teach", tmp_path / "one", *smooth)
    for name in ("faces", "distributions"):
        for file, data in files_of(tmp_path / "one" / name).items():
            assert not file.startswith("part") or content(run, f"{name}/{file}") == data
        assert listed(f"{run}/{name}") == set(files_of(tmp_path / "one" / name))
