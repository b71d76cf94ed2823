"""The command line: `deploykit COMMAND`. Importing this imports no heavy library; the commands do that when they run."""

from __future__ import annotations

import inspect as inspect_module
import sys
import traceback
from types import ModuleType

import typer

from deploykit.cli import bench, build, doctor, export, inspect, models, run, verify
from deploykit.errors import DeploykitError

INTERRUPTED = 130

app = typer.Typer(
    name="deploykit",
    help="Export PyTorch vision models and prove what came out: drift and latency against the original, with a verdict.",
    epilog="Start with:  deploykit export tiny-convnext --ort --openvino",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _help(module: ModuleType) -> str:
    """Return a command's help: what it does, examples, the rest."""
    first, _, rest = inspect_module.cleandoc(module.COMMAND.__doc__).partition("\n\n")
    examples = "\n".join(f"  {line}" for line in module.EXAMPLES)
    return f"{first}\n\n\b\nExamples:\n{examples}\n\n{rest}"


for command in (export, build, verify, bench, inspect, doctor, models, run):
    app.command(help=_help(command))(command.COMMAND)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from importlib import metadata

        typer.echo(f"deploykit {metadata.version('deploykit')}")
        raise typer.Exit


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        app(standalone_mode=True)
    except DeploykitError as error:
        from deploykit.cli.render import print_error

        print_error(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as ending:
        code = ending.code if isinstance(ending, SystemExit) else INTERRUPTED  # typer turns interrupts into exits
        if code == INTERRUPTED:
            sys.stderr.write("interrupted: finished stages stay in the cache, the bundle is as it was\n")
        sys.exit(code)
    except BrokenPipeError:
        sys.exit(0)
    except Exception:  # noqa: BLE001 - the last resort: our bug, told as such
        traceback.print_exc()
        sys.stderr.write("error: this is a bug of deploykit: please report the lines above\n")
        sys.exit(1)
