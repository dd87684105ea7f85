"""`lorica <verb>`: options, help and checks come from the verb's configuration class; `verbs.py` has the verbs."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.markup import escape

import lorica
from lorica.config import Config, load, plain_types, walk
from lorica.errors import LoricaError
from lorica.progress import console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adapt pre-trained image models without leaking the training images and without breaking under attack, and "
    "prove both with measurements.",
)

BAD_INPUT, GATE_FAILED, INTERRUPTED = 2, 3, 130

CONFIG = typer.Option("--config", metavar="FILE", help="YAML file with any of the keys below")
SET = typer.Option("--set", metavar="KEY=VALUE", help="set one key, e.g. lora.rank=16; may be repeated")
PRINT_CONFIG = typer.Option("--print-config", help="print the resolved configuration as YAML and stop")

Handler = Callable[[Any], int | None]


def add_verb(
    name: str, cls: type[Config], handler: Handler, *, positional: tuple[str, ...] = (), examples: str = ""
) -> None:
    """Register a verb whose options are the leaves of a configuration class.

    Args:
        name: the verb.
        cls: the configuration class; its docstring is the verb's help.
        handler: takes the resolved configuration; returns an exit code or None for 0.
        positional: leaves that are also taken as arguments, in this order.
        examples: shown at the end of `--help`.
    """
    leaves = dict(walk(cls))
    parameters = {_identifier(key): key for key in leaves}

    def command(config: Path | None, assignments: list[str] | None, print_config: bool, **given: Any) -> None:
        options = {parameters[name]: value for name, value in given.items() if value not in (None, [], ())}
        with _exit_codes():
            resolved = load(cls, file=config, assignments=assignments, options=options)
            if print_config:
                print(resolved.to_yaml(), end="")
            else:
                raise typer.Exit(handler(resolved) or 0)

    signature = [
        _parameter("config", Annotated[Path | None, CONFIG], None),
        _parameter("assignments", Annotated[list[str] | None, SET], None),
        _parameter("print_config", Annotated[bool, PRINT_CONFIG], False),
    ]
    for key in [*positional, *(key for key in leaves if key not in positional)]:
        signature.append(_leaf_parameter(key, leaves[key], argument=key in positional))
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__doc__ = inspect.cleandoc(cls.__doc__ or "") + (
        f"\n\n[bold]Examples[/]\n\n{examples}" if examples else ""
    )
    app.command(name)(command)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Say what a user can mend without a traceback."""
    try:
        yield
    except LoricaError as error:
        console.print(f"[bold red]error:[/] {escape(error.problem)}")
        if error.remedy:
            console.print(escape(error.remedy))
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt as interrupt:
        console.print(escape(f"Interrupted: {interrupt}" if str(interrupt) else "Interrupted."))
        raise typer.Exit(INTERRUPTED) from interrupt


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _identifier(key: str) -> str:
    return key.replace(".", "__")


def _leaf_parameter(key: str, field: FieldInfo, *, argument: bool) -> inspect.Parameter:
    """A typer parameter. Values stay strings: the configuration class checks them, for all sources alike."""
    shown = escape(field.description or "")
    default = field.get_default(call_default_factory=True)
    if default is not PydanticUndefined and default not in (None, [], "", {}):
        shown += escape(f" [default: {default}]")
    name = _identifier(key)
    kinds = set(plain_types(field.annotation))
    values: Any = list[str] | None if list in kinds else str | None
    if argument:
        return _parameter(
            name, Annotated[values, typer.Argument(help=shown, metavar=key.upper(), show_default=False)], None
        )
    flag = "--" + key.replace(".", "-").replace("_", "-")
    flags = [flag, *(str(extra["flag"]) for extra in [field.json_schema_extra] if isinstance(extra, dict))]
    about: dict[str, Any] = {"help": shown, "show_default": False}
    if "." in key:
        about["rich_help_panel"] = f"Options: {key.split('.')[0]}"
    if kinds == {bool}:
        return _parameter(name, Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", **about)], None)
    return _parameter(name, Annotated[values, typer.Option(*flags, metavar=_metavar(field, kinds), **about)], None)


def _metavar(field: FieldInfo, kinds: set[Any]) -> str:
    if Literal in kinds:
        choices = (field.annotation, *get_args(field.annotation))  # the literal itself, or a part of a union
        return next("|".join(map(str, get_args(kind))) for kind in choices if get_origin(kind) is Literal)
    names = {int: "N", float: "X", Path: "PATH", str: "TEXT", list: "TEXT", tuple: "A,B,..."}
    return next((names[kind] for kind in kinds if kind in names), "VALUE")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        print(f"lorica {lorica.__version__}")
        raise typer.Exit()


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 bad input, 3 a release gate failed, 130 interrupted."""
    from lorica.verbs import VERBS, list_verbs, register  # late, as they import this module

    asked = sys.argv[1] if len(sys.argv) > 1 else None
    if asked in VERBS:
        register(asked)
    else:
        list_verbs()
    app()
