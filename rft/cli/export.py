"""`rft export`: a trained model for use elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rft.cli.output import Json, Reply
from rft.runs.layout import RUNS_FOLDER


def export(
    reference: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]", help="A run (its best checkpoint) or RUN@STEP.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")],
    format: Annotated[
        Literal["peft", "merged"],
        typer.Option(help="peft: the adapter alone; merged: a whole model, adapter folded in."),
    ] = "peft",
    as_json: Json = False,
) -> Reply:
    """Write a checkpoint as a PEFT adapter or as a whole model.

    \b
    Example:
      rft export capitals-1 ./capitals-adapter --format peft
      rft export capitals-1@30 ./capitals-model --format merged
    """
    from rft.training.export import export as write_export

    written = write_export(reference, folder, format, RUNS_FOLDER)
    document = {"reference": reference, "format": format, "folder": str(written)}
    return Reply(document, [f"wrote {written}"], as_json)
