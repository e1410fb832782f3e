"""Labels parts on a Ray cluster with Ray Data, which schedules them, starts lost workers anew and repeats their parts.

Ray is imported only here, and only when it is asked for.
"""

import os
import platform
import tempfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from export.worker.keras_process import KerasFailed
from lightning_module.evaluation.labellers import Labeller
from lightning_module.fleet.listing import Listing, part_of
from lightning_module.fleet.parts import Job, LabelledPart, Restarting, content_of, labelled_parts
from models.bad_input import BadInput
from models.cores import use_threads, wait_asleep

MOST_CPUS = 8
"""CPUs of a worker without a GPU, at most: it computes four photos at once, which keeps no more of them busy."""
MOST_TRIES = 5
"""How often a machine begins a part. Ray tries for ever, as it should where machines come and go; but a part that ends
its worker every time, such as by a photo that crashes the decoder, has to come to an end."""
STARTS = 3
"""How often Ray is started if this machine is too busy for it."""
FAILURES: dict[str, type[Exception]] = {each.__name__: each for each in (BadInput, KerasFailed)}
"""What a worker sends back by name, as our own message; any other error comes with Ray's traceback."""


class Node(NamedTuple):
    """What a machine of the cluster has."""

    cpus: float
    gpus: float = 0


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each takes."""

    count: int
    cpus: int
    gpus: float


def workers_for(nodes: Sequence[Node], asked: int | None, on_gpus: bool) -> Workers:
    """Choose the number of workers, and what each takes.

    Args:
        nodes: the machines.
        asked: how many workers; None for one on each GPU, or else on each `MOST_CPUS` of every machine.
        on_gpus: whether to compute on GPUs.

    Returns:
        As many CPUs for each worker as let all of them find a place. If there is none for that many workers, those
        that find none wait for further machines.
    """
    gpus = int(sum(node.gpus for node in nodes)) if on_gpus else 0
    if gpus:
        count = asked or gpus
        share = 1.0 if count <= gpus else gpus / count
        cpus = min((int(node.cpus * share / node.gpus) for node in nodes if node.gpus), default=1)
        return Workers(count, max(1, cpus), share)
    most = max(1, int(min((node.cpus for node in nodes if node.cpus >= 1), default=1)))

    def room(cpus: int) -> int:
        return sum(int(node.cpus // cpus) for node in nodes)

    if asked is None:
        cpus = min(most, MOST_CPUS)
        return Workers(max(1, room(cpus)), cpus, 0)
    return Workers(asked, next((cpus for cpus in range(most, 0, -1) if room(cpus) >= asked), 1), 0)


def import_ray() -> Any:
    """Return Ray, quiet and without sending statistics of its use.

    Raises:
        BadInput: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its warning about a default that will change
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data itself does what it warns of
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # on a busy machine it needs more than 15 s
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BadInput(
            f"--engine: expected Ray Data for the engine ray, received a Python without it ({error}). Install it with "
            "pip install 'shelftwin[ray]', or leave --engine out."
        ) from error
    return ray


@contextmanager
def cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, which ends with the context.

    Args:
        ray: the package.
        address: of the cluster; None for that of the environment's RAY_ADDRESS, or else a new one here.

    Raises:
        BadInput: there is no such cluster.
    """
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    settings = {"include_dashboard": False} if where == "local" else {}
    for remaining in reversed(range(STARTS)):
        try:
            ray.init(address=where, log_to_driver=False, logging_level="error", **settings)
            break
        except Exception as error:  # Ray has no class of its own for what keeps it from starting
            ray.shutdown()
            if remaining and "timed out during startup" in str(error):
                continue  # it waits for 30 s, which a machine that is busy with other things may exceed
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadInput(
                f"--ray_address: expected a Ray cluster that can be reached, received {where}: {reason[:300]} Start "
                "one with ray start --head, or leave --ray_address out, which starts one for this command."
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def label_on_ray(
    listing: Listing, numbers: Sequence[int], job: Job, model: Path, asked: int | None, address: str | None
) -> Generator[LabelledPart, None, None]:
    """Label parts, in the order in which they come to an end; their files are those of `label_here`.

    Args:
        listing: the photos, which all machines must see at the same paths.
        numbers: of the parts.
        job: what is asked for.
        model: its file or folder, which need not be on the other machines: its content is sent to them.
        asked: how many workers; None chooses.
        address: as for `cluster`.

    Raises:
        BadInput: no Ray, no such cluster, no GPU where one is asked for; or as for `labelled_parts`.
        KerasFailed: a Keras process crashed or ran out of time, and did so again.
    """
    ray = import_ray()
    import pyarrow

    with cluster(ray, address):
        nodes = [
            Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in ray.nodes()
            if node["Alive"]
        ]
        workers = workers_for(nodes, asked, job.device != "cpu")
        if job.device == "cuda" and not workers.gpus:
            raise BadInput("--device: expected a cluster with GPUs for cuda, received one without. Use --device cpu.")
        print(
            f"on Ray {ray.__version__}: {_amount(len(nodes), 'machine')}, {_amount(workers.count, 'worker')} with "
            f"{_amount(workers.cpus, 'CPU')}{f' and {workers.gpus:g} GPU' if workers.gpus else ''} each"
        )
        _settle(ray.data.DataContext.get_current())
        blocks = [
            pyarrow.table({"number": [number], "lines": [zlib.compress(listing.lines(number))]}) for number in numbers
        ]
        labelled = ray.data.from_blocks(blocks).map_batches(
            PartWorker,
            fn_constructor_args=(
                job,
                ray.put(content_of(model)),
                model.name,
                workers.cpus,
                str(Path.cwd()),
                token_hex(8),
            ),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(workers.count, len(numbers))),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
        )
        del blocks
        by_machine: Counter[str] = Counter()
        for batch in labelled.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            (row,) = batch.to_pylist()
            if row["failure"]:
                raise FAILURES[row["failure"]](row["content"].decode())
            by_machine[row["machine"]] += 1
            yield LabelledPart(row["number"], row["content"])
        shares = ", ".join(f"{machine} {count}" for machine, count in sorted(by_machine.items()))
        print(f"parts by machine: {shares}")


class PartWorker:
    """Labels parts in a process of Ray's; the labeller is made with the first one.

    Args:
        job: what is asked for.
        model: what `content_of` returns, or where Ray keeps it.
        name: of the model.
        cpus: how many threads compute and decode.
        folder: where the command was given, which relative paths begin at.
        run: no other run has the same.
    """

    def __init__(self, job: Job, model: Any, name: str, cpus: int, folder: str, run: str) -> None:
        self.job, self.model, self.name, self.cpus, self.folder, self.run = job, model, name, cpus, folder, run
        self.machine = f"{platform.node()}/{_node_id()[:8]}"
        self._stack = ExitStack()
        self._labeller: Labeller | None = None

    def __call__(self, batch: Any) -> Any:
        """Label the part in a row, pyarrow.Table of `number` and `lines`.

        Returns:
            pyarrow.Table of one row: `number`, `machine`, the file's `content`; or the name of a `failure`, and its
            message as the content.
        """
        import pyarrow

        (row,) = batch.to_pylist()
        failure = ""
        try:
            if self._labeller is None:
                self._labeller = self._started()
            part = part_of(row["number"], zlib.decompress(row["lines"]))
            with self._counted(part.number):
                ((_, content),) = labelled_parts([part], self.job, self._labeller, self.cpus)
        except tuple(FAILURES.values()) as error:
            failure, content = type(error).__name__, str(error).encode()
        return pyarrow.table(
            {"number": [row["number"]], "machine": [self.machine], "content": [content], "failure": [failure]},
            schema=pyarrow.schema(
                [
                    ("number", pyarrow.int64()),
                    ("machine", pyarrow.string()),
                    ("content", pyarrow.large_binary()),
                    ("failure", pyarrow.string()),
                ]
            ),
        )

    @contextmanager
    def _counted(self, number: int) -> Iterator[None]:
        """Count in a file, which outlives this process, how often a part is begun here.

        Raises:
            BadInput: it has been begun too often, and its worker has died each time.
        """
        tries = Path(tempfile.gettempdir()) / f"shelftwin-{self.run}-{number}.tries"
        with tries.open("ab") as file:
            file.write(b".")
        count = tries.stat().st_size
        if count > MOST_TRIES:
            tries.unlink()
            raise BadInput(
                f"expected a worker that labels part {number}, received {MOST_TRIES} on {self.machine} that have died "
                f"of it. Is there memory for them? Or does a photo of it crash the decoder?"
            )
        try:
            yield
        finally:
            tries.unlink(missing_ok=True)

    def _started(self) -> Labeller:
        wait_asleep()
        use_threads(self.cpus)
        self.job.check_machine(self.machine)
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        import ray

        content = ray.get(self.model) if isinstance(self.model, ray.ObjectRef) else self.model
        file = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="shelftwin-")), self.name)
        for inside, data in content.items():
            (file / inside).parent.mkdir(parents=True, exist_ok=True)
            (file / inside).write_bytes(data)
        has_gpu = bool(ray.get_gpu_ids())
        labeller = self.job.make_labeller(file, self.job.device if has_gpu else "cpu")
        return self._stack.enter_context(Restarting(labeller))


def _node_id() -> str:
    import ray

    identity: str = ray.get_runtime_context().get_node_id()
    return identity


def _settle(context: Any) -> None:
    """Keep Ray Data from printing, and let workers be lost while they start."""
    import logging

    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = MOST_TRIES
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ == "PlainRayHandler":  # the console's; its file goes on
            handler.setLevel("CRITICAL")


def _amount(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
