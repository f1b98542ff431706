"""The processes of one training or labelling, started by torchrun or srun: they meet, agree, wait and end together.

One process alone is rank 0 of 1; nothing here then does anything.
"""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from efficientface import FerError, __version__
from efficientface.pipeline.artifact import MANIFEST, alone, digest_of, is_finished
from efficientface.pipeline.config import MACHINE
from efficientface.pipeline.launch import SaidByAnother, meeting_point, numbers

GATHER = timedelta(minutes=5)  # until all processes have started
STEP = timedelta(minutes=10)  # between two steps of the same training; a process that has ended is noticed at once
SHARD = timedelta(days=1)  # until the others have labelled their last shard
LAST_WORDS = 10  # seconds until all have told why they end

_stages = count()  # a script may run several: what one left in torchrun's store is not the next one's
_patient: Any = None  # all ranks, for what takes some of them longer than others


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Be one of the processes that torchrun or srun started, if one did; gives the device for this one.

    `cuda` becomes this process's own GPU. Where one process ends with a FerError, or is gone, all end, and rank 0
    tells why.
    """
    global _patient
    rank, world, local = numbers()
    if world > 1 and device == "cuda" and torch.cuda.device_count():
        device = f"cuda:{local % torch.cuda.device_count()}"
    if world == 1 or dist.is_initialized():
        yield device
        return
    store = meet_others(rank, world, device)
    _patient = dist.new_group(backend="gloo", timeout=SHARD)
    try:
        yield device
        meet()
    except (FerError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_about_ranks(error):
            raise
        raise last_words(store, rank, world, error) from error
    dist.destroy_process_group()
    _patient = None


def meet_others(rank: int, world: int, device: str) -> dist.Store:
    """Wait for all processes and make them one group."""
    where = meeting_point()
    try:
        store, *_ = next(dist.rendezvous(where, rank, world, timeout=GATHER))
        store = dist.PrefixStore(f"stage-{next(_stages)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=STEP)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FerError(
            f"rank {rank} of {world} did not meet the other processes at {where} ({reason}); start all at once, "
            "or give another MASTER_ADDR or MASTER_PORT"
        ) from error
    return store


def is_about_ranks(error: RuntimeError) -> bool:
    """Whether torch says that other processes do not answer; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def last_words(store: dist.Store, rank: int, world: int, error: Exception) -> FerError:
    """The sentence to end with, after all ranks have told in the store why they end; the lowest that can speaks."""
    global _patient
    words: dict[int, str] = {}
    keys = [f"ends/{other}" for other in range(world)]
    with suppress(dist.DistError):  # rank 0, which keeps the store of srun's processes, may be gone
        store.set(keys[rank], str(error) if isinstance(error, FerError) else "")
        if dist.get_backend() == "gloo":  # end what the others wait for: it will not come
            dist.destroy_process_group()
            _patient = None
        until = time.monotonic() + LAST_WORDS
        while not store.check(keys) and time.monotonic() < until:
            time.sleep(0.1)
        words = {other: store.get(key).decode() for other, key in enumerate(keys) if store.check([key])}
    speaker = min(words, default=rank)
    # torchrun ends all as soon as one has gone, and rank 0's store goes with it
    with suppress(KeyboardInterrupt):  # which is how it ends them
        time.sleep(1 if rank == speaker else 3)
    if rank != speaker:
        return SaidByAnother(f"rank {speaker} tells why")
    if isinstance(error, FerError):
        return error
    for other, told in words.items():
        if told:
            return FerError(f"rank {other} of {world}: {told}")
    gone = [str(other) for other in range(world) if other not in words and other != rank]
    reason = str(error).strip().partition("\n")[0]
    return FerError(
        f"rank {', '.join(gone) or 'unknown'} of {world} has ended or does not answer ({reason}); what was finished "
        "is kept, the same command goes on from there"
    )


def agree(run: Path, settings: dict[str, Any], models: Sequence[Path] = ()) -> None:
    """FerError unless all ranks have the same program, faces, models and settings, and RUN is one folder for all.

    models: finished ones that are asked, wherever they lie; that of the setting `init` is one more.
    """
    rank, world = rank_and_world()
    if world == 1:
        return
    token = secrets.token_hex(8)
    mark = run / f".shared-{token}"
    if rank == 0:
        mark.touch()
    try:
        mark = run / f".shared-{all_texts(token)[0]}"
        facts = {"efficientface": __version__, "torch": torch.__version__}
        named = {"faces": run / "faces", **{str(folder): folder for folder in models}}
        if settings["init"]:
            named[settings["init"]] = Path(settings["init"])
        for name, folder in named.items():
            facts[f"{name}/{MANIFEST}"] = digest_of(folder)[:16] if is_finished(folder) else "none"
        facts |= {name: value for name, value in settings.items() if name not in MACHINE}
        told = [json.loads(text) for text in all_texts(json.dumps([facts, mark.exists()]))]
    finally:
        if rank == 0:
            mark.unlink(missing_ok=True)
    ours = told[0][0]
    for other, (theirs, shared) in enumerate(told):
        for name in theirs | ours:
            if theirs.get(name) != ours.get(name):
                raise FerError(
                    f"rank {other} of {world} differs from rank 0 in {name} ({theirs.get(name)}, not "
                    f"{ours.get(name)}); give all the same data, settings and version"
                )
        if not shared:
            raise FerError(
                f"{run} is another folder for rank {other} of {world} than for rank 0; give one that they share"
            )


def all_texts(text: str) -> list[str]:
    """The text that each rank gives, in their order."""
    own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    length = torch.tensor(len(own))
    dist.all_reduce(length, dist.ReduceOp.MAX, group=_patient)
    padded = torch.zeros(int(length), dtype=torch.uint8)
    padded[: len(own)] = own
    gathered = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, padded, group=_patient)
    return [bytes(one.tolist()).rstrip(b"\0").decode() for one in gathered]


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are: 0 of 1 unless torchrun or srun started it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def leads() -> bool:
    """Whether this process writes what all ranks have made; alone, it does."""
    return rank_and_world()[0] == 0


def meet() -> None:
    """Wait until every rank has come here."""
    if dist.is_initialized():
        dist.barrier(group=_patient)


def writing(folder: Path, run: Path, stage: str, otherwise: str) -> AbstractContextManager[None]:
    """`alone` while an artifact of `run` is made; of several processes the first one speaks for all."""
    return alone(folder, lock_of(folder, run), stage, otherwise) if leads() else nullcontext()


def lock_of(folder: Path, run: Path) -> Path:
    """The lock file of an artifact of `run`."""
    return run / f".{'-'.join(folder.relative_to(run).parts)}.lock"
