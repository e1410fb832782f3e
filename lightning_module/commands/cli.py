"""The `lightning` command: finds the subcommand and reports its errors. Imports nothing heavy by itself."""

import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from export.worker.keras_process import KerasFailed
from lightning_module.commands.allocator import keep_freed_memory
from lightning_module.commands.endings import (
    ended_by_sigterm,
    keep_log_in,
    keep_traceback,
    outlive_readers,
    reason_in_settings,
)
from models.bad_input import BadInput
from models.cores import use_threads, wait_asleep

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXIT_MISMATCH = 1
"""The twins do not agree."""
EXIT_BAD_INPUT = 2
"""Some input cannot be used; also argparse's code for a wrong command line."""

EXIT_KERAS_FAILED = 3
"""The Keras process crashed or ran out of time, so nothing is known about the twins."""

EXIT_UNEXPECTED = 70
"""An error that nothing here expects, most likely a fault in this program; sysexits.h calls it EX_SOFTWARE."""

EXIT_INTERRUPTED = 130
"""Ctrl-C, the same code as in shells."""

EXIT_CODES = (
    f"Exit codes: 0 done, and the twins are the same network; {EXIT_MISMATCH} they differ; {EXIT_BAD_INPUT} bad input; "
    f"{EXIT_KERAS_FAILED} Keras itself crashed;\n{EXIT_UNEXPECTED} an error in the program; "
    f"{EXIT_INTERRUPTED} interrupted by Ctrl-C; 143 told to stop by SIGTERM."
)
"""For the help texts."""


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        summary: one line for the help.
        place: "module:function", below this folder; the function takes the arguments, the subcommand's name first.
    """

    summary: str
    place: str


COMMANDS = {
    "fit": Command("Train on a folder of photos, hand over the Keras twin and prove it.", "lightning_cli.training:run"),
    "validate": Command("Measure a checkpoint on the validation photos.", "lightning_cli.training:run"),
    "test": Command("Measure a checkpoint on the test photos.", "lightning_cli.training:run"),
    "predict": Command("Label photos with a checkpoint or its exported file; writes predictions.csv.", "predict:run"),
    "export": Command(
        "Write a checkpoint, or anybody's weights, as a Keras .h5 or in other formats.", "export:run_export"
    ),
    "parity": Command(
        "Prove that a .h5 computes what its checkpoint, or anybody's weights, compute.", "parity:run_parity"
    ),
    "import": Command(
        "Read a Keras .h5 into a checkpoint that fit goes on from, and prove it.", "import_keras:run_import"
    ),
    "upgrade": Command(
        "Write an old Keras file as a .h5 that every Keras loads, and prove it.", "import_keras:run_upgrade"
    ),
    "audit": Command("Find the photos that should not be trained on; set aside those you choose.", "audit:run"),
    "serve": Command("Answer photos by HTTP with both twins, and show a page.", "serve:run"),
    "publish": Command("Put a run's network and its model card into a repository of a model hub.", "publish:run"),
}

SYNONYMS = {
    "train": "fit",
    "val": "validate",
    "eval": "test",
    "evaluate": "test",
    "infer": "predict",
    "label": "predict",
    "push": "publish",
    "upload": "publish",
    "convert": "export",
    "compare": "parity",
    "verify": "parity",
}
"""Names that other tools use -> our command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `lightning` command.

    Args:
        argv: the arguments after the command's name; None for the process's own.

    Raises:
        SystemExit: 1 if the twins differ, 2 for input that cannot be used, 3 if the Keras process failed, 130 at
            Ctrl-C, 70 for any other error, whose traceback is kept in a file.
    """
    if argv is None:  # otherwise the streams are somebody else's
        outlive_readers()
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else "--help"
    try:
        if first in ("-h", "--help", "help", "--version"):
            print(f"shelftwin {version('shelftwin')}" if first == "--version" else help_text(), flush=True)
            return
        if first not in COMMANDS:
            near = [SYNONYMS[first]] if first in SYNONYMS else get_close_matches(first, COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            refuse(f"expected one of {', '.join(COMMANDS)}, received {first!r}.{hint} See `lightning --help`.")
        if COMMANDS[first].place == "lightning_cli.training:run":
            from lightning_module.commands.lightning_cli.short_help import short_help

            if {"-h", "--help"} & set(arguments):
                print(short_help(first), flush=True)
                return
            arguments = ["--help" if underscored(each) == "--help_all" else each for each in arguments]
        warnings.filterwarnings("ignore", module="PIL")  # about odd photos, which are either read or named
        keep_freed_memory()
        wait_asleep()
        keep_log_in(None)
        with ended_by_sigterm():
            _function(COMMANDS[first].place)(arguments)
    except (BadInput, ArgumentError) as error:  # ArgumentError: for example, a checkpoint has an unknown setting
        refuse(str(error))
    except KeyboardInterrupt:
        _interrupted(first)
    except SystemExit as leaving:
        # Lightning answers Ctrl-C with exit code 1, which here says that the twins differ
        if leaving.code == 1 and isinstance(leaving.__context__, KeyboardInterrupt):
            _interrupted(first)
        raise
    except KerasFailed as error:
        print(f"lightning: {error}", file=sys.stderr)
        raise SystemExit(EXIT_KERAS_FAILED) from error
    except Exception as error:
        if reason := reason_in_settings(error):
            refuse(reason)
        print(f"lightning: {keep_traceback(error, arguments)}", file=sys.stderr)
        raise SystemExit(EXIT_UNEXPECTED) from error


def help_text() -> str:
    """Return what `lightning --help` prints."""
    rows = "\n".join(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: lightning <command> [arguments]\n\n"
        "Train a product-photo classifier; hand over a Keras .h5 that is proved to compute the same function.\n\n"
        f"commands:\n{rows}\n\n{EXIT_CODES}\n\n"
        "Each has its own help: lightning fit --help. Settings can come from YAML: lightning fit --config FILE."
    )


def refuse(message: str) -> NoReturn:
    """Print what is wrong with the input, without a traceback, and exit with the code for bad input."""
    print(f"lightning: {message}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT)


def _interrupted(command: str) -> NoReturn:
    """Print that Ctrl-C ended the command, and exit with its code."""
    hint = ". The same command with --resume continues." if command == "fit" else ""
    print(f"lightning: interrupted{hint}", file=sys.stderr)
    raise SystemExit(EXIT_INTERRUPTED) from None


def underscored(argument: str) -> str:
    """Spell an option's name, but not its value, with underscores, because both spellings are common."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


PARSING: Mapping[str, Any] = MappingProxyType({"allow_abbrev": False, "exit_on_error": False})
"""Arguments for every command's parser. Abbreviations are off, because a misspelt option could be read as one."""


def parse(command: str, parser: "ArgumentParser", arguments: list[str], options: "ArgumentParser | None" = None) -> Any:
    """Parse a command line.

    Args:
        command: the command's name.
        parser: made with `PARSING`.
        arguments: the arguments to parse.
        options: the parser that has the command's options, if it is another one.

    Raises:
        BadInput: it cannot be parsed. The message does not list all options, which would hide what is wrong.
    """
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        message = str(error)
        for jargon, plain in _PLAIN.items():
            message = re.sub(jargon, plain, message)
        hint = ""
        if unknown := re.search(r"unrecognized arguments: --([^\s=]+)|does not accept option '([^']+)'", message):
            known = [option for action in (options or parser)._actions for option in action.option_strings]
            near = get_close_matches(f"--{unknown[1] or unknown[2]}", known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            if unknown[2]:  # in a configuration, where names have no dashes
                from lightning_module.commands.lightning_cli.configurations import that_set

                where = ", ".join(that_set(unknown[2], arguments)) or "the configuration"
                message = f"{where}: there is no setting {unknown[2]}"
                hint = hint.replace("--", "")
        elif inner := re.search(r"^(--\S+): .*Option '([^']+)' is not accepted", message, re.DOTALL):
            message = f"{inner[1]}: it has no setting {inner[2]}"
        elif inner := re.search(r"^--data\.class_names: .*Expected a str. Got value: ([^\n]*)", message, re.DOTALL):
            message = f"--data.class_names: expected names; received one that is read as something else, {inner[1]}"
            hint = ' Put each into quotation marks of its own: --data.class_names \'["1","true"]\'.'
        raise BadInput(f"{message.rstrip('.')}.{hint} See `lightning {command} --help`.") from error


def parse_for(
    function: Callable,
    command: str,
    arguments: list[str],
    exit_codes: str = EXIT_CODES,
    group: type | None = None,
    several: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Parse the command line of a command that is a single function, whose arguments are the options.

    Every such command has `--num_threads` besides, which is done here.

    Args:
        function: the function, with docstring and type annotations.
        command: the command's name.
        arguments: the arguments to parse.
        exit_codes: text for the end of the help.
        group: a dataclass whose fields are further options; the function takes one of it as `foreign`.
        several: name and help of the last positional argument, a list of texts, at least one.

    Raises:
        BadInput: the arguments cannot be parsed.
    """
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import PositiveInt

    summary = COMMANDS[command].summary
    parser = ArgumentParser(prog=f"lightning {command}", description=summary, epilog=exit_codes, **PARSING)
    skipped: set[str | int] = {*(["foreign"] if group else []), *(several[:1] if several else [])}
    parser.add_function_arguments(function, as_positional=True, skip=skipped)
    if several:
        parser.add_argument(several[0], nargs="+", type=str, help=several[1])
    if group:
        parser.add_class_arguments(group, nested_key=None)
    parser.add_argument("--num_threads", type=PositiveInt | None, default=None, help=f"CPU threads; {BY_DEFAULT}.")
    settings: dict[str, Any] = parse(command, parser, arguments).as_dict()
    use_threads(settings.pop("num_threads"))
    if group:
        settings["foreign"] = group(**{each.name: settings.pop(each.name) for each in fields(group)})
    return settings


BY_DEFAULT = "by default as many as there are cores with nothing else to do"
"""For the help texts: the number of threads."""

_PLAIN = {
    r'^Parser key "([^"]+)":\s*': r"--\1: ",
    r"typing\.Literal\[([^]]*)\]": r"one of \1",
    r"<class '([^']*)'>": r"\1",
    r"\bExpected an? one of": "Expected one of",
}
"""jsonargparse's wording -> wording for people who do not write Python."""


def _function(place: str) -> Callable[[list[str]], None]:
    module, _, name = place.partition(":")
    function: Callable[[list[str]], None] = getattr(import_module(f"lightning_module.commands.{module}"), name)
    return function
