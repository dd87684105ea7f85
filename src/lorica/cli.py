"""`lorica <verb>`: options, help and checks all come from the verb's configuration class."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.markup import escape

import lorica
from lorica.config import Config, load, section_type, walk
from lorica.errors import LoricaError
from lorica.progress import console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adapt pre-trained image models without leaking the training images, and prove it with measurements.",
)

Handler = Callable[[Any], int | None]


def add_verb(name: str, config_class: Callable[[], type[Config]], handler: Handler, *, positional: tuple[str, ...] = (), examples: str = "") -> None:
    """Register a verb whose options are the leaves of a configuration class.

    Args:
        name: the verb.
        config_class: returns the class (a function, so that the class can be imported late).
        handler: takes the resolved configuration; returns an exit code or None for 0.
        positional: leaves that are also taken as arguments, in this order.
        examples: shown at the end of `--help`.
    """
    cls = config_class()
    leaves = dict(walk(cls))
    parameters = {_identifier(key): key for key in leaves}

    def command(config: Path | None, assignments: list[str] | None, print_config: bool, **given: Any) -> None:
        options = {parameters[name]: value for name, value in given.items() if value not in (None, [], ())}
        resolved = load(cls, file=config, assignments=assignments, options=options)
        if print_config:
            print(resolved.to_yaml(), end="")
            return
        raise typer.Exit(handler(resolved) or 0)

    signature = [
        _parameter("config", Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML file with any of the keys below")], None),
        _parameter("assignments", Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="set one key, e.g. lora.rank=16; may be repeated")], None),
        _parameter("print_config", Annotated[bool, typer.Option("--print-config", help="print the resolved configuration as YAML and stop")], False),
    ]  # fmt: skip
    for key in [*positional, *(key for key in leaves if key not in positional)]:
        signature.append(_leaf_parameter(key, leaves[key], argument=key in positional))
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__doc__ = inspect.cleandoc(cls.__doc__ or "") + (f"\n\n[bold]Examples[/]\n\n{examples}" if examples else "")
    app.command(name)(command)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _identifier(key: str) -> str:
    return key.replace(".", "__")


def _leaf_parameter(key: str, field: FieldInfo, *, argument: bool) -> inspect.Parameter:
    """A typer parameter. Values stay strings: the configuration class checks them, for all sources alike."""
    help_text = escape(field.description or "")
    default = field.get_default(call_default_factory=True)
    if default is not PydanticUndefined and default not in (None, [], ""):
        help_text += escape(f" [default: {default}]")
    panel = f"Options: {key.split('.')[0]}" if "." in key else None
    flag = "--" + key.replace(".", "-").replace("_", "-")
    kinds = set(_plain_types(field.annotation))
    if argument:
        return _parameter(_identifier(key), Annotated[str | None, typer.Argument(help=help_text, metavar=key.upper(), show_default=False)], None)
    if kinds == {bool}:
        declaration = f"{flag}/--no-{flag[2:]}"
        return _parameter(_identifier(key), Annotated[bool | None, typer.Option(declaration, help=help_text, rich_help_panel=panel, show_default=False)], None)
    annotation: Any = list[str] | None if list in kinds else str | None
    return _parameter(_identifier(key), Annotated[annotation, typer.Option(flag, metavar=_metavar(field, kinds), help=help_text, rich_help_panel=panel, show_default=False)], None)  # fmt: skip


def _plain_types(annotation: Any) -> list[Any]:
    """The types of an annotation, unions opened, None left out, generics reduced to their origin."""
    if get_origin(annotation) in (Union, UnionType):
        return [t for part in get_args(annotation) for t in _plain_types(part)]
    return [] if annotation is type(None) else [get_origin(annotation) or annotation]


def _metavar(field: FieldInfo, kinds: set[Any]) -> str:
    if Literal in kinds:
        return "|".join(str(value) for value in get_args(field.annotation))
    names = {int: "N", float: "X", Path: "PATH", str: "TEXT", list: "TEXT", tuple: "A,B,..."}
    return next((names[kind] for kind in kinds if kind in names), "VALUE")


# ----- verbs --------------------------------------------------------------------------------------------------------
def _adapt(config: Any) -> None:
    from lorica.adapt import run

    result = run(config)
    if result:
        console.print(
            f"Done: {escape(str(config.output))} holds pytorch_lora_weights.safetensors and lora_kohya.safetensors. "
            f"Validation loss {result['val_member']:.4f} on test members, {result['val_nonmember']:.4f} on non-members.\n"
            f"Next: lorica audit --base {escape(config.base)} --lora {escape(str(config.output))} "
            f"--split {escape(str(config.output / 'split.json'))} --output {escape(str(config.output / 'audit'))}"
        )


def _audit(config: Any) -> int:
    from lorica.audit import run

    return run(config).get("exit_code", 0)


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 bad input, 3 a release gate failed, 130 interrupted."""
    _register()
    try:
        app(standalone_mode=False)
    except LoricaError as error:
        console.print(f"[bold red]error:[/] {escape(error.problem)}")
        if error.remedy:
            console.print(escape(error.remedy))
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        console.print(f"Interrupted: {interrupt}" if str(interrupt) else "Interrupted.")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
