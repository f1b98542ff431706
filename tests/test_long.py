"""benchmarks/long.py sees what grows and what is left behind, and says nothing of a program that is steady."""

import importlib.util
import sys
from pathlib import Path

import pytest

PROGRAM = """
import pathlib, subprocess, sys, tempfile, threading, time
kept, leaks = [], sys.argv[2] == "leaks"
for step in range(6):
    if leaks:
        kept += [bytearray(b"x" * 2_000_000), open(__file__ if "__file__" in dir() else sys.executable)]
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        kept.append(subprocess.Popen(["sleep", "60"]))
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], f"part-{step}.parquet").touch()
    time.sleep(0.1)
if leaks:
    tempfile.mkstemp()
    pathlib.Path(sys.argv[1], ".part-9.parquet.part").touch()
    for process in kept[2::3][1:]:
        process.kill()
        process.wait()
"""


@pytest.fixture(scope="module")
def long():
    spec = importlib.util.spec_from_file_location("long", Path(__file__).parent.parent / "benchmarks" / "long.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.LOOK = 0.02
    return module


@pytest.mark.parametrize("how", ["steady", "leaks"])
def test_what_grows_or_is_left_is_told(long, tmp_path, capsys, how):
    import psutil

    folder = tmp_path / "shards"
    folder.mkdir()
    words = [sys.executable, "-c", PROGRAM, str(folder), how]
    watched = long.watch("program", "shard", words, lambda: long.shards(folder), tmp_path)
    assert len(watched.seen) >= 5  # a busy machine may look too late
    found = watched.faults()
    if how == "steady":
        assert found == []
        assert watched.growth() < long.FLAT
    else:
        assert watched.slope() > 1.5  # it keeps two megabytes a step
        assert [fault.split(" grow")[0] for fault in found[:4]] == ["memory", "files", "threads", "processes"]
        (left,) = [fault for fault in found if fault.startswith("process ")]
        psutil.Process(int(left.split()[1])).kill()
        assert "shards/.part-9.parquet.part is left" in found
        assert any(fault.startswith("temporary/tmp") for fault in found)
        assert len(found) == 7
    long.show([watched])
    assert ("flat, nothing left" in capsys.readouterr().out) == (how == "steady")


def test_a_command_that_fails_ends_the_benchmark(long, tmp_path):
    with pytest.raises(SystemExit, match="ended with status 3"):
        long.watch("program", "shard", [sys.executable, "-c", "exit(3)"], lambda: 0, tmp_path)
