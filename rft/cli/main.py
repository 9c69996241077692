"""All commands together, and the one place where a command becomes an exit code."""

import contextlib
import select
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from rft import __version__
from rft.cli import about, export, grade, probe, runs, train
from rft.cli.failure import report_failure, report_interrupt
from rft.cli.output import Reply, close_quietly, write_reply


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rft` with these arguments (by default the process's); the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = wants_json(given)
    try:
        with _stdout_kept_for_the_document(as_json):
            reply = _run(given)
        if isinstance(reply, Reply):
            write_reply(reply, sys.stdout)
            return reply.exit_code
        return reply if isinstance(reply, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return report_interrupt(as_json)
    except BrokenPipeError as error:
        if not _is_stdout_gone():
            return report_failure(error, as_json, "rft")
        close_quietly(sys.stdout)
        return 0
    except Exception as error:
        return report_failure(error, as_json, "rft")


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` stands among the options."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _run(arguments: list[str]) -> object:
    command = typer.main.get_command(application())
    with command.make_context("rft", arguments) as context:
        return command.invoke(context)


@contextlib.contextmanager
def _stdout_kept_for_the_document(as_json: bool) -> Iterator[None]:
    """With `--json`, send whatever libraries print while a command runs to stderr."""
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _is_stdout_gone() -> bool:
    """Whether the reader of stdout has closed its end."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True


def application() -> typer.Typer:
    """The tree of commands."""
    app = typer.Typer(
        name="rft",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(_root)
    app.command("train")(train.train)
    app.command("validate")(probe.validate)
    app.command("grade")(grade.grade)
    app.command("evaluate")(probe.evaluate)
    app.command("generate")(probe.generate)
    app.add_typer(runs.commands(), name="runs")
    app.command("export")(export.export)
    app.command("schema")(about.schema)
    app.command("doctor")(about.doctor)
    return app


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Local reinforcement fine-tuning: sample, grade, update, keep the best.

    \b
    Begin with:
      rft validate job.yaml      is the job sound, and what does the model earn before training?
      rft train job.yaml         train, keep the three best checkpoints, print what to do next
      rft generate RUN "Hello"   talk to the result

    Exit codes: 0 fine, 2 something to mend in what you gave, 3 the machine lacks something,
    4 the job failed, 75 the job paused, 130 interrupted.
    """
    if version:
        typer.echo(f"rft {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
