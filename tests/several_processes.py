"""`fer` in several real processes, with a network small enough to be quick.

`together` forks them from a server that has imported torch once, with the variables that torchrun or srun would set;
the real torchrun starts this file itself.
"""

import contextlib
import copy
import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["efficientface.pipeline.distill", "efficientface.pipeline.teach"])


class Ended(NamedTuple):
    status: int  # negative: the signal that ended it
    stdout: str
    stderr: str


def torchrun_variables(rank: int, world: int, port: int) -> dict:
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in numbers.items()}


def srun_variables(rank: int, world: int, port: int) -> dict:
    numbers = {"PROCID": rank, "LOCALID": rank, "NTASKS": world, "STEP_NUM_TASKS": world, "STEP_ID": 0}
    numbers |= {"JOB_ID": port}  # 20000 + job + step is the port where they meet
    return {"SLURM_JOB_NODELIST": "localhost"} | {f"SLURM_{k}": str(v) for k, v in numbers.items()}


def free_port() -> int:
    for port in range(20_000 + os.getpid() % 9_000, 30_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def together(log: Path, *ranks: list, variables=torchrun_variables, spoiled: dict | None = None) -> list[Ended]:
    """One process for each of `ranks`, a list of stages: what stands behind `fer`. `log` is a folder for their output.

    spoiled: by rank, what happens to one, a function below.
    """
    log.mkdir()
    port, started = free_port(), []
    for rank, stages in enumerate(ranks):
        given = variables(rank, len(ranks), port) if len(ranks) > 1 else {}
        words = [[str(word) for word in stage] for stage in stages]
        args = (words, given, log / str(rank), (spoiled or {}).get(rank))
        started.append(SERVER.Process(target=process, args=args, daemon=True))
        started[-1].start()
    for one in started:
        one.join(200)
        assert one.exitcode is not None, "it hangs"
    return [
        Ended(one.exitcode, *(log.joinpath(f"{rank}.{end}").read_text() for end in ("out", "err")))
        for rank, one in enumerate(started)
    ]


def exact(log: Path, world: int) -> list[tuple[list[float], list[float]]]:
    """Of batches of six and three faces, how far gradients and buffers of `world` ranks are from one process's."""
    log.mkdir()
    port = free_port()
    started = [SERVER.Process(target=_exact, args=(rank, world, port, log), daemon=True) for rank in range(world)]
    for one in started:
        one.start()
    for one in started:
        one.join(200)
        assert one.exitcode == 0
    return json.loads((log / "differences.json").read_text())


def _exact(rank: int, world: int, port: int, log: Path) -> None:
    import torch
    import torch.distributed as dist
    from torch import nn

    from efficientface.models.batch_norm import BatchNormOfAllRanks

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)]
    alone = nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, 2)).double()
    joint = nn.parallel.DistributedDataParallel(copy.deepcopy(alone), forward_sync_buffers=False)
    found = []
    for count in (6, 3):
        images, target = torch.randn(count, 3, 4, 4).double(), torch.randn(count, 2).double()
        alone.zero_grad()
        joint.zero_grad()
        (alone(images) - target).square().mean().backward()
        counts = rank < count
        mine = torch.arange(count)[rank::world] if counts else torch.arange(1)
        with BatchNormOfAllRanks(counts):
            answer = joint(images[mine])
        weight = counts * len(mine) * world / count
        ((answer - target[mine]).square().mean() * weight).backward()
        both = list(zip(alone.parameters(), joint.parameters(), strict=True))
        found.append(
            (
                [float((a.grad - b.grad).abs().max()) for a, b in both],
                [float((a - b).abs().max()) for a, b in zip(alone.buffers(), joint.buffers(), strict=True)],
            )
        )
    if rank == 0:
        (log / "differences.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def process(stages: list, given: dict, told: Path, spoil=None) -> None:
    os.environ.update(given)
    with (
        open(f"{told}.out", "w") as out,
        open(f"{told}.err", "w") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = run(stages, spoil)
    os._exit(status)


def run(stages: list, spoil=None) -> int:
    import torch

    from efficientface.cli import cli
    from efficientface.models import ABLATIONS, efficientface
    from efficientface.pipeline import ranks, teach

    torch.set_num_threads(1)
    ranks.LAST_WORDS = 5
    # The published network's fifty batch norms on five faces make of a rounding error one a million times larger within
    # twenty steps, in one process as in several.
    efficientface.REPEATS = (1, 1, 1)
    ABLATIONS["efficientface"] = {"widths": (8, 32, 64, 128, 64)}
    real = teach.run
    teach.run = lambda run, config, *more: real(run, replace(config, shard_faces=40), *more)
    if spoil:
        spoil()
    for words in stages:
        try:
            cli(words)
        except SystemExit as end:
            if end.code:
                return end.code
        except BaseException:
            traceback.print_exc()
            return 70
    return 0


def killed_in_second_epoch() -> None:
    from efficientface.pipeline import train

    _at_second_call(train, "train_epoch")


def killed_at_second_shard() -> None:
    from efficientface.pipeline import label

    _at_second_call(label, "write_shard")


def older() -> None:
    from efficientface.pipeline import ranks

    ranks.__version__ = "0.0.9"


def _at_second_call(module, name: str) -> None:
    real, calls = getattr(module, name), []

    def once(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(module, name, once)


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
