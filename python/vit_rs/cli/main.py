"""The command `vit-rs`: its parser, and its errors.

Errors that a user can mend are one line on standard error and exit status 2; a signal ends with 128 + its number.
Of several processes the one that failed says why, and the first one; a signal is the first one's to tell. Anything else
is a bug, and keeps its traceback. torch is imported only by what computes.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from vit_rs.cli import analyze, checkpoint_files, doctor, evaluate, plot, predict, probes, train
from vit_rs.exceptions import OtherProcessError, VitRsError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# In the order of --help. Each has `add_parser(commands)`, which sets what runs the command as `run`.
_COMMANDS = (train, evaluate, probes, predict, analyze, plot, checkpoint_files, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: what follows `vit-rs`; None takes the process's own.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")  # with the command's own usage
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except MemoryError as error:
        return _fail(f"not enough memory: {error}" if str(error) else "not enough memory")
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # torch's own MemoryError
            raise
        return _fail("not enough memory: " + str(error).splitlines()[0])
    except BrokenPipeError:  # the reader, for example `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer has to go somewhere
        return 128 + 13
    except OtherProcessError as error:
        return _fail(str(error)) if _is_first() else 2
    except VitRsError as error:
        return _fail(str(error))
    except OSError as error:
        if error.strerror is None or error.filename is None:
            return _fail(str(error))
        return _fail(f"{error.strerror}: {error.filename}")
    except KeyboardInterrupt as stop:
        if _is_first():
            print(f"vit-rs: {str(stop) or 'stopped'}", file=sys.stderr)  # Ctrl-C itself has no text
        return 128 + getattr(stop, "signum", 2)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vit-rs",
        description="Vision Transformers: train, test, predict, analyse, compare runs, carry checkpoints, see data.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    for command_parser in commands.choices.values():
        command_parser.set_defaults(parser=command_parser)
    return parser


def _is_first() -> bool:
    """Return whether no other process of a run that torchrun started speaks for all, without importing torch."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _fail(message: str) -> int:
    line = " ".join(message.split())  # one line, whatever a library put into its message
    print(f"vit-rs: error: {line}", file=sys.stderr)
    return 2


class _Version(argparse.Action):
    """Print the version; the compiled core, which knows it, is imported only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, _values: object, _option: str | None = None
    ) -> None:
        from vit_rs import __version__  # noqa: PLC0415

        print(f"vit-rs {__version__}")
        parser.exit()
