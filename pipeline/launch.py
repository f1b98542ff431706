"""Which of several processes this one is, and where they meet, as torchrun or SLURM's srun say. No torch in here."""

import os
import re
import socket

from efficientface import FerError

# slurm.h: steps from here on are SLURM's own, such as a batch script or salloc's shell, where nobody else comes
OWN_STEPS = 0xFFFFFFF0
PORTS = 20_000, 10_000  # first and how many: below those that systems hand out by themselves


class SaidByAnother(FerError):
    """What ended all processes; another one tells the user."""


def numbers() -> tuple[int, int, int]:
    """This process's number, how many there are, and its number on its machine: 0, 1 and 0 of one that is alone."""
    given = os.environ
    if "TORCHELASTIC_RUN_ID" in given:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    # SLURM_NTASKS is also there in a batch script and in salloc's shell, which run once
    elif "SLURM_STEP_NUM_TASKS" in given and int(given.get("SLURM_STEP_ID", 0)) < OWN_STEPS:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return 0, 1, 0
    rank, world, local = (int(given[name]) for name in names)
    return rank, world, local


def speaks() -> bool:
    """Whether this process tells the user what happens."""
    return numbers()[0] == 0


def meeting_point() -> str:
    """Where the processes find each other, as torch.distributed takes it; FerError where SLURM's nodes do not tell.

    MASTER_ADDR and MASTER_PORT win over what follows from the node list and the job's number.
    """
    given = os.environ
    if "TORCHELASTIC_RUN_ID" in given:
        return "env://"
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST", "")
    host = given.get("MASTER_ADDR") or first_host(nodes)
    if not host:
        raise FerError(f"SLURM's node list {nodes!r} names no first host; give its name in MASTER_ADDR")
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise FerError(
            f"{host}, where the processes are to meet, cannot be found ({error.strerror}); "
            "give the first node's name or address in MASTER_ADDR"
        ) from error
    first, many = PORTS
    own = first + (int(given.get("SLURM_JOB_ID", 0)) + int(given.get("SLURM_STEP_ID", 0))) % many
    port = given.get("MASTER_PORT") or str(own)
    if not re.fullmatch(r"\d{1,5}", port):
        raise FerError(f"MASTER_PORT {port} is no port; give a number, or leave it out")
    return f"tcp://{host}:{port}"


def first_host(nodes: str) -> str:
    """The first of SLURM's node list such as `gpu[01-04,07],login1`; nothing where there is none."""
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])*", nodes)
    host = re.sub(r"\[(\w*)[^\]]*\]", r"\1", first[0] if first else "")
    return host if re.fullmatch(r"[\w.-]+", host) else ""
