"""The command line: `deploykit COMMAND`. Importing this imports no heavy library; the commands do that when they run."""

from __future__ import annotations

import inspect as inspect_module
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import typer

from deploykit.cli import bench, build, doctor, export, inspect, models, run, site, streams, verify
from deploykit.errors import DeploykitError, Hint, InternalError, ResourceError, UsageError, of_os_error

INTERRUPTED = 130
COMMANDS = (export, build, verify, bench, inspect, doctor, models, run)
#: Commands that have commands of their own.
GROUPS = (site,)
#: Of all errors of the parser: typer has click's classes, from click itself or from a copy of its own.
PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="deploykit",
    help="Export PyTorch vision models and prove what came out: drift and latency against the original, with a verdict.",
    epilog="Start with:  deploykit export tiny-convnext --ort --openvino",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _help(command: Callable[..., Any], examples: Iterable[str]) -> dict[str, str]:
    """Return a command's help: what it does, examples, the rest; and the first of it for the list of commands."""
    first, _, rest = inspect_module.cleandoc(command.__doc__ or "").partition("\n\n")
    shown = "\n".join(f"  {line}" for line in examples)
    return {"help": f"{first}\n\n\b\nExamples:\n{shown}\n\n{rest}", "short_help": " ".join(first.split())}


for command in COMMANDS:
    app.command(**_help(command.COMMAND, command.EXAMPLES))(command.COMMAND)  # type: ignore[arg-type]
for group in GROUPS:
    inner = typer.Typer(help=group.HELP, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
    for name, function in group.COMMANDS.items():
        inner.command(name, **_help(function, group.EXAMPLES[name]))(function)  # type: ignore[arg-type]
    app.add_typer(inner, name=group.NAME)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from importlib import metadata

        typer.echo(f"deploykit {metadata.version('deploykit')}")
        raise typer.Exit


def main() -> None:
    """Run the command line and end the process with its exit code."""
    streams.prepare()
    try:
        code = _run()
        sys.stdout.flush()
    except DeploykitError as error:
        code = _told(error)
    sys.exit(code)


def _run() -> int:
    """Run the command that was typed; say what goes wrong. Returns the exit code."""
    try:
        returned = app(standalone_mode=False, prog_name="deploykit")
    except SystemExit as ending:
        returned = 0 if ending.code is None else ending.code
    except (KeyboardInterrupt, typer.Abort):
        returned = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        return _misread(error) if isinstance(error, PARSER_ERROR) else _told(_ours(error))
    if returned == INTERRUPTED:  # typer turns interrupts into exits
        return _interrupted()
    return returned if isinstance(returned, int) else 0


def _ours(error: Exception) -> DeploykitError:
    """Return an error as one of ours; what is foreign to us is our bug, told as such."""
    if isinstance(error, DeploykitError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(f"out of memory: {error}".rstrip(": "))
    if isinstance(error, OSError):
        return of_os_error(error)
    traceback.print_exception(error)
    return InternalError(f"this is a bug of deploykit, please report it: {type(error).__name__}: {error}")


def _told(error: DeploykitError) -> int:
    """Say what happened: to people on stderr, and as an object on stdout where JSON was asked for."""
    from deploykit.cli import render

    render.print_error(error)
    if "--json" in sys.argv[1:]:
        render.print_json(render.error_record(error))
    return error.exit_code


def _interrupted() -> int:
    from deploykit.cli import render

    told = "interrupted: finished stages stay in the cache, the bundle is as it was"
    sys.stderr.write(f"{told}\n")
    if "--json" in sys.argv[1:]:
        render.print_json({"error": {"message": told, "hints": [], "exit_code": INTERRUPTED}})
    return INTERRUPTED


def _misread(error: Any) -> int:  # noqa: ANN401 - the parser's own, see `PARSER_ERROR`
    """Say what the parser can't read; of nothing at all, print the help."""
    context = getattr(error, "ctx", None)
    if context is not None and type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    path = context.command_path if context is not None else "deploykit"
    words = error.format_message().strip().rstrip(".")
    hints = [*_meant(words, context), Hint(f"{path} --help", "describes all options")]
    return _told(UsageError(words[:1].lower() + words[1:], *hints))


def _meant(words: str, context: Any) -> list[Hint]:  # noqa: ANN401
    """Return what was probably meant: the command that stands further right, an option without its dashes."""
    typed = sys.argv[1:]
    named = [name for name in typed[1:] if name in {each.COMMAND.__name__ for each in COMMANDS}]
    if words.startswith("No such command") and named:
        return [Hint(f"deploykit {named[0]} {typed[0]}", "the command comes first")]
    if context is None:
        return []
    options = {option for parameter in context.command.params for option in parameter.opts}
    bare = typed if "unexpected extra argument" in words else [word for word in typed if word.startswith("-")]
    meant = [f"--{word.lstrip('-')}" for word in bare if word not in options]
    return [Hint(option, "is an option") for option in meant if option in options]
