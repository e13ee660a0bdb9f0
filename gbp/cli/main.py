"""The command line: parses arguments, calls the library and prints."""

from __future__ import annotations

import argparse
import difflib
import gc
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import GbpError, __version__
from ..errors import shown
from . import batch, explain, features, help, init, inspect, report, sanity, serve, verify, warmup
from .actions import Once
from .options import IN_ASCII, in_options, refusal_of_choice


def run() -> int:
    """Run `main` as a whole process.

    Streams that the caller has closed, as `>&-` in a shell does, are the empty device.  The garbage collector
    is off: it would take a tenth of a second after the imports, and again at exit.
    """
    gc.disable()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    code = main()
    gc.freeze()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        The arguments without the program's name; by default those of this process.

    Returns
    -------
    The exit code: 0; 1 if images could not be explained and are left out, or `verify` finds a mismatch; 2 if
    gbp refuses the input; 130 if interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=IN_ASCII)  # a label must not break an ASCII terminal
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged images, which are refused or not
    try:
        parser = _parser()
        if not (sys.argv[1:] if argv is None else argv):
            parser.exit(2, parser.format_help())
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            arguments.parser.refuse(unknown)
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # so that a closed pipe shows here and not at exit
        return code
    except GbpError as error:
        print("gbp: error:", " ".join(in_options(str(error)).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno is None or error.filename is not None:  # it is no error of the standard output
            raise
        if isinstance(error, FileNotFoundError):  # of os.getcwd
            print("gbp: error: the current folder is gone. Give absolute paths.", file=sys.stderr)
            return 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if isinstance(error, BrokenPipeError):  # the reader, `head` say, is gone
            return 141
        print(f"gbp: error: cannot write the output: {error.strerror}.", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """A parser whose messages are on one line.  For an unknown option it names the nearest one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": help.Formatter} | options)
        self.register("action", None, Once)

    def error(self, message: str) -> NoReturn:
        """Exit with the message, which may repeat names of files, below the arguments that must be given."""
        for kind, noun in (("int", "whole number"), ("float", "number")):
            message = re.sub(
                rf"invalid {kind} value: (.*)", rf"\1 is not a {noun}.", message, flags=re.DOTALL
            )
        usage = self.formatter_class(prog=f"{self.prog} [options]")
        usage.add_usage(None, [action for action in self._actions if action.required], [])
        self.exit(2, f"{usage.format_help()}{self.prog}: error: {shown(message)}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError:
            message = refusal_of_choice(str(value), tuple(action.choices or ()))
            if action.metavar == "COMMAND" and str(value).lower().endswith(".onnx"):
                message = f"{value!r} is a model. Name a command before it, such as gbp explain."
            raise argparse.ArgumentError(action, message) from None

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Exit with the first argument that this command does not have, and the option nearest to it."""
        options = [name for action in self._actions for name in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], options, 1, 0.75)
        hint = f" Did you mean {near[0]}?" if near else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}.{hint}")


def _parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="gbp",
        description="Explain a trained CNN from its ONNX file. A map shows where a small change of the "
        "picture would move a score. The maps of deconvnet and guided, the default, hardly depend on the "
        "class.",
        epilog="Begin with gbp init MODEL.onnx PHOTO, then gbp explain. Each command has its own --help, "
        "with examples.",
    )
    parser.add_argument("--version", action="version", version=f"gbp {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        metavar="SHELL",
        help="print a completion script for bash, fish, zsh or another shell, and exit",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (init, explain, report, batch, warmup, inspect, verify, sanity, features, serve):
        command.add_command(commands)
    for name, parser_of in commands.choices.items():
        parser_of.epilog = help.epilog(name)
        parser_of.set_defaults(parser=parser_of)
    return parser


#: Arguments whose values are files.
_FILES = ("model", "models", "image", "images", "labels", "out", "baseline")


class _Completion(argparse.Action):
    """Prints a script that lets a shell complete commands, options and names of files."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: object, values: object, option: object = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.exit(2, "gbp: error: --print-completion needs gbp-explain[completion].\n")
        if values not in shtab.SUPPORTED_SHELLS:
            parser.error(
                f"there is no completion for {values} (choose of {', '.join(shtab.SUPPORTED_SHELLS)})"
            )
        (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        for command in commands.choices.values():
            for argument in command._actions:
                if argument.dest in _FILES:
                    argument.complete = shtab.DIRECTORY if argument.metavar == "DIR" else shtab.FILE
        print(shtab.complete(parser, values))
        parser.exit()
