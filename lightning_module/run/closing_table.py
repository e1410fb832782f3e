"""What a fit prints at its end: where each file is, the figures, and the verdict."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_module.run.run_folder import RunFolder

if TYPE_CHECKING:
    from export.proof.report import Report


def print_closing_table(run: RunFolder, evaluations: dict[str, dict[str, Any]], report: "Report | None") -> None:
    """Print a row per file, the figures of the best checkpoint, and the verdict as the last line.

    Args:
        run: the folder.
        evaluations: `final` and `test`, as in metrics.json.
        report: the proof; None if no twin was wanted.
    """
    console = Console()
    table = Table(title="This run's files", title_justify="left")
    table.add_column("what")
    table.add_column("where", overflow="fold")
    for what, path in (
        ("best checkpoint (PyTorch)", run.best_checkpoint),
        ("the same, calibrated", run.calibrated_checkpoint),
        ("how good it is", run.report),
        ("Keras twin", run.model_h5),
        ("proof that both agree", run.parity_page),
        ("classes, size, range", run.labels),
        ("model card, for strangers", run.model_card),
        ("figures per epoch and class", run.metrics),
        ("settings, to run it again", run.config),
        ("logs (CSV, TensorBoard)", run.logs),
    ):
        if path.exists():
            table.add_row(what, Text(str(path)))  # plain text, because a folder named [old] is not markup
    console.print(table)
    for name, figures in evaluations.items():
        photos = {"test": "test photos"}.get(name, "validation photos")
        interval = figures.get("accuracy_interval")
        sure = f" (95%: {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        console.print(
            f"best checkpoint on {figures['photos']} {photos}: accuracy {figures['accuracy']:.4f}{sure}, "
            f"macro F1 {figures['f1_macro']:.4f}, loss {figures['loss']:.4f}",
            highlight=False,
            soft_wrap=True,
        )
    if report is not None:
        console.print(report.last_line(), markup=False, highlight=False, soft_wrap=True)
