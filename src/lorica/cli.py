"""`lorica <verb>`: options, help and checks all come from the verb's configuration class."""

import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

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


# ----- verbs --------------------------------------------------------------------------------------------------------
def _adapt(config: Any) -> None:
    from lorica.adapt import run

    result = run(config)
    if result:
        output = escape(str(config.output))
        console.print(
            f"Done: {output} holds pytorch_lora_weights.safetensors and lora_kohya.safetensors.\n"
            f"Validation loss {result['val_member']:.4f} on test members, {result['val_nonmember']:.4f} on test "
            f"non-members.\nNext: lorica audit --base {escape(config.base)} --lora {output} --output {output}/audit"
        )


def _shadows(config: Any) -> None:
    from lorica.shadows import run

    result = run(config)
    folder = escape(str(config.run))
    console.print(
        f"Done: {len(result['shadows'])} shadow LoRAs in {folder}/shadows, {result['trained']} of them trained now.\n"
        f"Next: lorica audit --base {escape(result['base'])} --lora {folder} --output {folder}/audit"
    )


def _audit(config: Any) -> int:
    from lorica.audit import run
    from lorica.report import build, load_run

    audit = run(config)
    print_audit(audit)
    run_folder = config.lora if config.lora is not None and config.lora.is_dir() else None
    page = build(
        [load_run(config.output, run_folder)],
        title="Membership audit",
        command=_command(),
        output=config.output / "report.html",
    )
    console.print(f"Report: {escape(str(page))}")
    gate = audit["gate"]
    if gate is not None:
        console.print(
            f"[{'red' if gate['failed'] else 'green'}]release gate {escape(gate['rule'])}: {escape(gate['reason'])}[/]"
        )
    return GATE_FAILED if gate is not None and gate["failed"] else 0


def _finetune(config: Any) -> None:
    from lorica.finetune import run

    result = run(config)
    if result:
        output = escape(str(config.output))
        console.print(
            f"Done: {output}/model holds the model ({'averaged' if result['weights'] == 'ema' else 'raw'} weights of "
            f"epoch {result['best_epoch']}). Validation accuracy {result['val_natural']:.3f}, under PGD "
            f"{result['val_robust']:.3f} ({result['threat']})."
        )
        if "verdict" in result:
            console.print(f"[bold]{escape(result['verdict'])}[/]")
            _robustness_page([config.output / "evaluation"], config.output / "report.html")


def _evaluate(config: Any) -> None:
    from lorica.evaluate import print_evaluation, run

    print_evaluation(run(config))
    _robustness_page([config.folder], config.folder / "report.html")


def _generate(config: Any) -> None:
    from lorica.generate import run

    result = run(config)
    console.print(
        f"Done: {result['counts']['pictures']} pictures in {escape(str(config.output / 'pictures'))}, "
        "overview in grid.png."
    )
    quality = result["quality"]
    if quality is not None:
        note = "" if quality["comparable"] else " (not comparable with published numbers)"
        console.print(
            f"FID {quality['fid']:.4g}, KID {quality['kid']['value']:.4g} over {escape(quality['extractor'])}{note}"
        )
        for warning in quality["warnings"]:
            console.print(f"[yellow]warning:[/] {escape(warning)}")


def _report(config: Any) -> None:
    from lorica.report import build, load_run

    folders = [_evaluation(folder) or folder for folder in config.results]
    evaluations = [_evaluation(folder) is not None for folder in folders]
    if any(evaluations):
        if not all(evaluations):
            other = config.results[evaluations.index(False)]
            raise LoricaError(
                f"{other} holds no robustness evaluation, as the others do",
                "One page is about robustness or about membership: report them apart.",
            )
        _robustness_page(folders, config.output, config.title)
        return
    runs = [load_run(folder, _training(folder)) for folder in folders]
    page = build(runs, title=config.title or "Membership audit", command=_command(), output=config.output)
    console.print(f"Report: {escape(str(page))}")


def _training(folder: Path) -> Path | None:
    """The run that a result lies in, if it lies in one."""
    run = folder.resolve().parent
    return run if any((run / name).is_file() for name in ("metrics.jsonl", "run.json")) else None


def _evaluation(folder: Path) -> Path | None:
    """Where in a folder, of an evaluation or of a run, an evaluation lies."""
    places = (folder, folder / "evaluation")
    return next((place for place in places if (place / "robustness.json").is_file()), None)


def _robustness_page(folders: list[Path], output: Path, title: str | None = None) -> None:
    from lorica.report.robustness import build_robustness, load_robustness

    runs = [load_robustness(folder, _training(folder)) for folder in folders]
    page = build_robustness(runs, title=title or "Robustness evaluation", command=_command(), output=output)
    console.print(f"Report: {escape(str(page))}")


def _demo(config: Any) -> None:
    from lorica.demo import run

    run(config)


def print_audit(audit: dict[str, Any]) -> None:
    """The verdict, on single pictures and on all together, and one line per attack."""
    console.print(f"[bold]{escape(audit['verdict']['text'])}[/]")
    if audit.get("collection"):
        console.print(escape(audit["collection"]["text"]))
    if audit.get("canaries"):
        console.print(escape(audit["canaries"]["text"]))
    first = next(iter(audit["attacks"].values()))
    table = Table("attack", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # which fits 80 columns
    rates = [f"TPR@{100 * float(fpr):g}%" for fpr in first["tpr"]]
    for column in (f"AUC \\[{100 * first['auc']['level']:g} %]", "ASR", "oracle", *rates):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in sorted(audit["attacks"].items(), key=lambda item: -abs(item[1]["auc"]["value"] - 0.5)):
        auc = found["auc"]
        rates = [f"{t['value']:.3f}{'' if t['reliable'] else '*'}" for t in found["tpr"].values()]
        table.add_row(
            name,
            f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]".replace("[", "\\["),
            f"{found['asr']['value']:.3f}",
            f"{found['oracle_asr']['value']:.3f}",
            *rates,
        )
    console.print(table)
    if any(not t["reliable"] for found in audit["attacks"].values() for t in found["tpr"].values()):
        console.print("* rests on too few non-members. ASR: threshold from auxiliary pictures, oracle: from these.")
    for warning in audit["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def _command() -> str:
    """What was typed, with the program's bare name."""
    return shlex.join(["lorica", *sys.argv[1:]])


def _register() -> None:
    """Each verb's class is imported only when the command line runs, not when `lorica` is imported."""
    from lorica.adapt import AdaptConfig
    from lorica.audit import AuditConfig
    from lorica.demo import DemoConfig
    from lorica.evaluate import EvaluateConfig
    from lorica.finetune import FinetuneConfig
    from lorica.generate import GenerateConfig
    from lorica.report.config import ReportConfig
    from lorica.shadows import ShadowsConfig

    add_verb("demo", DemoConfig, _demo, examples="lorica demo --output runs/demo")
    add_verb(
        "adapt",
        AdaptConfig,
        _adapt,
        positional=("data",),
        examples="lorica adapt pictures/ --objective smp-lora --steps 2000 --seed 0 --output runs/mine\n\n"
        "lorica adapt pictures/ --output runs/mine --resume",
    )
    add_verb("shadows", ShadowsConfig, _shadows, positional=("run",), examples="lorica shadows runs/mine --count 16")
    add_verb(
        "audit",
        AuditConfig,
        _audit,
        examples="lorica audit --lora runs/mine --output runs/mine/audit\n\n"
        "lorica audit --base MODEL --lora lora.safetensors --members in/ --nonmembers out/ --output audit "
        '--fail-if "auc>0.6"',
    )
    add_verb(
        "generate",
        GenerateConfig,
        _generate,
        examples='lorica generate --lora runs/mine --captions "a cat" --output pictures',
    )
    add_verb(
        "report",
        ReportConfig,
        _report,
        positional=("results",),
        examples="lorica report runs/a/audit runs/b/audit --output compare.html",
    )

    add_verb(
        "finetune",
        FinetuneConfig,
        _finetune,
        examples="lorica finetune --data pictures/ --model resnet18\n\n"
        "lorica finetune --data pictures/ --model resnet18 --output runs/finetune --resume",
    )
    add_verb(
        "evaluate",
        EvaluateConfig,
        _evaluate,
        positional=("model.name",),
        examples="lorica evaluate runs/finetune --data pictures/ --eps 4/255,8/255",
    )


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        print(f"lorica {lorica.__version__}")
        raise typer.Exit()


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 bad input, 3 a release gate failed, 130 interrupted."""
    _register()
    app()
