"""The `edgec` command. Each subcommand is one file, imported when it is asked for."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import signal
import sys
from typing import Any

import click

from compiler.errors import EdgecError, UnusableInput

COMMANDS: tuple[tuple[str, str], ...] = (
    ("inspect", "What a model is, its bytes at each scheme, and which targets take it."),
    ("build", "Make packages of a model, one a recipe; --verify checks them too."),
    ("verify", "Whether packages were lowered right, and their quality beside the fp32 model."),
    ("run", "Generate, chat, embed or classify with a package."),
    ("plan", "What to ship to a device: bytes, memory, speed and quality of every recipe, before anything is built."),
    ("tune", "Build and measure recipes on a device until the fastest that holds every wish is found."),
    ("devices", "The devices that are known, and their figures with sources."),
    ("bench", "Measure latency, throughput and memory of packages."),
    ("compare", "Show or compare result files; fail on a regression; write the HTML report."),
    ("matrix", "Models x recipes x devices, built and measured: on this machine, or on a cluster of Dask's."),
    ("worker", "Work for a matrix on a cluster, and offer the devices that this machine reaches."),
    ("targets", "The targets and the schemes they take."),
    ("doctor", "What is installed, what is missing and how to get it."),
    ("cache", "Where the cache is, what it holds of which model; make it smaller."),
    ("placement", "Which operators of a package leave an engine of the device, and why."),
    (
        "kit",
        "What an app, a board or AWS takes: a Swift package, an Android library, a script, a container, an endpoint.",
    ),
    ("demo", "The whole way on two real small models."),
)


class Commands(click.Group):
    """Subcommands by name; their help lines stand in `COMMANDS` so that `--help` imports none of them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for name, _ in COMMANDS]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in dict(COMMANDS):
            return None
        command: click.Command = importlib.import_module(f"compiler.cli.{name}_command").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgec")
@click.option("--debug", is_flag=True, help="Show tracebacks and everything that child processes print.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Package a Hugging Face model for edge devices, prove each package, measure it.

    Recipes are written target:scheme, as in gguf:Q4_K_M or onnx:int4-rtn-g32.
    """
    context.obj = debug


# Exit codes as shells have them: 128 and the number of the signal.
_SIGNALLED, _BROKEN_PIPE = 128, 141
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received: list[int] = []


def main() -> None:
    """Run the command line and end with the exit code that design.md names: 0 done, 1 a check failed, 2 wrong use."""
    _open_streams()
    for number in _ENDING:
        signal.signal(number, _end)
    debug = "--debug" in sys.argv
    # It is an option of edgec, and taken after a subcommand as well, where people who read a message put it.
    arguments = ["--debug"] * debug + [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        _require_utf8(arguments)
        cli(arguments, standalone_mode=False)
        sys.stdout.flush()
    except SystemExit:
        # click ends with 1, which is a check's code, where nobody reads any more.
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):
            sys.exit(_BROKEN_PIPE)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(_BROKEN_PIPE)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("Interrupted.")
        sys.exit(_SIGNALLED + (_received[-1] if _received else signal.SIGINT))
    except EdgecError as error:
        if debug:
            raise
        _say(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        _say(_system_error(error))
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())[:400]
        _say(f"This is an error in edgec, not in your input: {type(error).__name__}: {text}. --debug shows where.")
        sys.exit(2)


def _open_streams() -> None:
    """Give the process streams where it was started without, and let them print what their encoding lacks."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _require_utf8(arguments: list[str]) -> None:
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise UnusableInput(f"The argument {argument!r} is not UTF-8, and runtimes open no such paths. Rename it.")


def _end(number: int, frame: Any) -> None:
    from compiler.stages.worker import end_all_children

    _received.append(number)
    end_all_children()
    raise KeyboardInterrupt


def _system_error(error: OSError) -> str:
    from compiler.stages.worker import disk_full_message

    if error.errno == 28:
        return disk_full_message(str(error.filename) if error.filename else None)
    where = f" ({error.filename})" if error.filename else ""
    return f"The system refused: {error.strerror}{where}."


def _say(text: str) -> None:
    if sys.stderr.isatty():
        from compiler.cli.display import fill

        text = fill(text, shutil.get_terminal_size().columns - len("edgec: "))
    click.echo(f"edgec: {text}", err=True)
