"""The lines of a metrics.jsonl for TensorBoard and MLflow: a rendering of it, no part of any artifact.

Both have every epoch once, however often a training was interrupted: TensorBoard's files are written anew from all
lines when it goes on, MLflow's run gets the epochs that it lacks.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from efficientface import FerError
from efficientface.pipeline.config import TrainConfig
from efficientface.pipeline.launch import speaks

Lines = list[dict[str, Any]]
MEASURES = ("loss", "val_accuracy", "val_cross_entropy", "lr", "seconds", "faces_per_second")
NO_PARAMETER = ("tensorboard", "mlflow", "given")  # of the settings, those that MLflow is not told


class Curves:
    """What --tensorboard and --mlflow ask for, about the training in `folder`; of several processes the first's."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.told: list[TensorBoard | MLflow] = []
        if not speaks():
            return
        run = folder.parent if folder.name == "teacher" else folder.parent.parent  # all others lie a folder deeper
        if config.tensorboard:
            self.told.append(TensorBoard(run, folder))
        if config.mlflow:
            self.told.append(MLflow(run, folder, config))

    def tell(self, lines: Lines, finished: bool = False) -> None:
        """Add what is new in all lines so far, the metrics of an epoch each."""
        for told in self.told:
            told.tell(lines, finished)


class TensorBoard:
    """Event files in RUN/tensorboard/, under the name of the model's folder; those of an earlier call are removed."""

    def __init__(self, run: Path, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        where = run / "tensorboard" / folder.relative_to(run)
        for before in where.glob("events.out.tfevents.*"):
            before.unlink()
        self.writer = SummaryWriter(str(where))
        self.done = 0

    def tell(self, lines: Lines, finished: bool) -> None:
        for line in lines[self.done :]:
            for name in MEASURES:
                if name in line:
                    self.writer.add_scalar(name, line[name], line["epoch"])
        self.done = len(lines)
        self.writer.flush()
        if finished:
            self.writer.close()


class MLflow:
    """A run of MLflow's, in the store of MLFLOW_TRACKING_URI, or in RUN/mlflow.db where that is not set.

    It goes on with the run that has the same folder's first lines; a training from the start is another run.
    """

    def __init__(self, run: Path, folder: Path, config: TrainConfig) -> None:
        if find_spec("mlflow") is None:
            raise FerError("--mlflow needs MLflow; install it with pip install 'efficientface[mlflow]'")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it tells its makers over the network
        from mlflow.tracking import MlflowClient

        self.name, self.config = str(folder.relative_to(run)), config
        self.tags = {"run": str(run.resolve()), "model": self.name}
        self.store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run / 'mlflow.db').resolve()}"
        self.running, self.done = "", 0
        with self.answering():
            self.client = MlflowClient(tracking_uri=self.store)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "efficientface"
            experiment = self.client.get_experiment_by_name(name)
            self.experiment = experiment.experiment_id if experiment else self.client.create_experiment(name)

    def tell(self, lines: Lines, finished: bool) -> None:
        with self.answering():
            if lines and not self.running:
                self.begin(lines)
            for line in lines[self.done :]:
                for name in MEASURES:
                    if name in line:
                        self.client.log_metric(self.running, name, line[name], step=line["epoch"])
            self.done = len(lines)
            if finished and self.running:
                self.client.set_terminated(self.running)

    def begin(self, lines: Lines) -> None:
        """Find the run whose losses are those of the first lines, or make one."""
        for found in self.client.search_runs([self.experiment]):
            if {name: found.data.tags.get(name) for name in self.tags} != self.tags:
                continue
            losses = {m.step: m.value for m in self.client.get_metric_history(found.info.run_id, "loss")}
            if losses and losses == {line["epoch"]: line["loss"] for line in lines[: len(losses)]}:
                self.running, self.done = found.info.run_id, len(losses)
                return
        self.running = self.client.create_run(self.experiment, run_name=self.name, tags=self.tags).info.run_id
        for option, value in vars(self.config).items():
            if option not in NO_PARAMETER and value not in (None, ""):
                self.client.log_param(self.running, option, value)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """FerError where the store refuses or does not answer."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise FerError(
                f"MLflow's store {self.store} refuses ({reason}); set MLFLOW_TRACKING_URI to another, or leave out "
                "--mlflow: finished epochs are kept, the same command goes on"
            ) from error
