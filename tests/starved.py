"""What commands say and leave where disks are read-only or full, or memory is; run by test_starved.py.

    unshare -rm python tests/starved.py HOME

in a mount namespace of its own, so that nobody else sees what is mounted. HOME/run has faces and a cache,
HOME/photos photographs. Prints one JSON object: of each case the exit status and what was said.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from click.testing import CliRunner

from efficientface.cli import cli

SMOOTHED = ("--source", "smooth:0.1", "--views", 0)
STUDENT = ("--loss", "sll", "--size", 32, "--epochs", 1, "--workers", 1)
ALIGNED = ("--aligned", "--crop", 64, "--workers", 1)
found = {}


def fer(case, *words):
    result = CliRunner().invoke(cli, list(map(str, words)))
    crashed = None if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)
    said = crashed or (result.stderr.splitlines() or [""])[-1]
    found[case] = [result.exit_code, said.replace(str(home), "HOME")]


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


def read_only(folder):
    mount("--bind", folder, folder)
    mount("-o", "remount,ro,bind", folder)


def disks():
    run, aligned, beside = home / "run", home / "aligned", home / "beside"
    fer("align", "align", home / "photos", aligned, *ALIGNED)
    fer("distill", "distill", run, *STUDENT)
    read_only(run)
    read_only(aligned)
    fer("read-only: align, done", "align", home / "photos", aligned, *ALIGNED)
    fer("read-only: teach, done", "teach", run, *SMOOTHED)
    fer("read-only: distill, done", "distill", run, *STUDENT)
    fer("read-only: cache verify", "cache", "verify", run / "distributions")
    fer("read-only: status", "status", run)
    fer("read-only: align --replace", "align", home / "photos", aligned, *ALIGNED, "--replace")
    fer("read-only: teach", "teach", run, *SMOOTHED, "--cache", "new")
    fer("read-only: distill", "distill", run, *STUDENT, "--name", "new")
    fer("read-only: evaluate", "evaluate", run)
    fer("read-only: cache convert", "cache", "convert", run / "distributions", run / "whole.h5")
    fer("read-only: card", "card", run, "--out", run / "card.md")

    beside.mkdir()
    for full, room in (("size=2m", "size=4m"), ("size=4m,nr_inodes=20", "nr_inodes=99")):
        case = full.rpartition(",")[2].partition("=")[0]
        mount("-t", "tmpfs", "-o", full, "none", beside)
        shutil.copytree(run / "faces", beside / "faces")
        with open(beside / "filler", "wb", buffering=0) as filler, suppress(OSError):
            while case == "size":
                filler.write(bytes(4096))
        with suppress(OSError):
            while case == "nr_inodes":
                (beside / "faces" / f".{os.urandom(4).hex()}").touch()
        fer(f"full, {case}", "teach", beside, *SMOOTHED)
        mount("-o", f"remount,{room}", beside)
        fer(f"full, {case}: next", "teach", beside, *SMOOTHED)
        fer(f"full, {case}: verify", "cache", "verify", beside / "distributions")
        subprocess.run(["umount", beside], check=True)

    mount("-t", "tmpfs", "-o", "ro", "none", beside)
    mount("-t", "tmpfs", "-o", "ro", "none", "/dev/shm")
    read_only(home / "photos")
    os.environ.update(TMPDIR=str(beside), HOME=str(beside))
    tempfile.tempdir = None
    os.chdir(beside)
    anew = home / "anew"
    fer("all else read-only: align", "align", home / "photos", anew, *ALIGNED)
    shutil.copytree(run / "faces", anew / "run" / "faces")
    fer("all else read-only: distill", "distill", anew / "run", *STUDENT)
    fer("all else read-only: evaluate", "evaluate", anew / "run")
    fer("all else read-only: report", "report", anew / "run")
    fer("no shared memory: demo", "demo", "--count", 100, "--images", anew / "drawn")


def memory():
    """Little more address space than is taken already."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    anew = home / "anew" / "run"
    resource.setrlimit(resource.RLIMIT_AS, (taken + 32 * 1024**2, limits[1]))
    fer("memory: distill", "distill", anew, *STUDENT, "--size", 512, "--batch-size", 64, "--name", "large")
    resource.setrlimit(resource.RLIMIT_AS, limits)
    fer("memory: next", "distill", anew, *STUDENT, "--name", "large")


if __name__ == "__main__":
    home = Path(sys.argv[1])
    torch.set_num_threads(1)
    disks()
    memory()
    print(json.dumps(found, indent=1))
