"""The verbs of the command line: what each does with its configuration, and what it says in the end."""

import shlex
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lorica.artefacts import EVALUATION, RUN_FILE, read_json
from lorica.cli import GATE_FAILED, Handler, add_verb, app
from lorica.errors import LoricaError
from lorica.progress import console

MEMBERSHIP, ROBUSTNESS, PRETRAINING = "a membership audit", "a robustness evaluation", "a pre-training run"
"""Kinds of results that `lorica report` shows."""


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
        command=command(),
        output=config.output / "report.html",
    )
    console.print(f"Report: {escape(str(page))}")
    gate = audit["gate"]
    if gate is not None:
        console.print(
            f"[{'red' if gate['failed'] else 'green'}]release gate {escape(gate['rule'])}: {escape(gate['reason'])}[/]"
        )
    return GATE_FAILED if gate is not None and gate["failed"] else 0


def _pretrain(config: Any) -> None:
    from lorica.pretrain import run

    result = run(config)
    if result:
        output = escape(str(config.output))
        console.print(
            f"Done: {output}/encoder holds the encoder, learned from {result['pictures']} pictures.\n"
            f"Next: lorica evaluate {output} --data LABELLED --protocol slf,alf,aff"
        )
        _pretraining_page([config.output], config.output / "report.html")


def _finetune(config: Any) -> None:
    from lorica.evaluate.console import print_flags
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
            print_flags(result.get("flags", []))
            _robustness_page([config.output / EVALUATION], config.output / "report.html")


def _evaluate(config: Any) -> None:
    if config.protocol.names:
        _protocols(config)
        return
    from lorica.evaluate import print_evaluation, run

    found = run(config)
    print_evaluation(found)
    _robustness_page([config.folder], config.folder / "report.html")
    record_file = config.folder.parent / RUN_FILE
    if config.folder.name == EVALUATION and record_file.is_file():
        record = read_json(record_file, "record of the run")
        if isinstance(record, dict) and record.get("verdict") == found["verdict"]["text"]:  # so the run's page is, too
            _robustness_page([config.folder], config.folder.parent / "report.html")


def _protocols(config: Any) -> None:
    from lorica.evaluate.protocols import print_protocols, run
    from lorica.report.robustness import build_robustness, load_robustness

    result = run(config)
    print_protocols(result)
    folders = {name: config.folder / name for name in result["protocols"]}
    runs = [
        replace(load_robustness(folder / EVALUATION, folder), label=name.upper()) for name, folder in folders.items()
    ]
    title, output = "Encoder under fine-tuning protocols", config.folder / "report.html"
    page = build_robustness(runs, title=title, command=command(), output=output)
    console.print(f"Report: {escape(str(page))}")


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
    """One page about results of one kind, which the first decides."""
    results = [folder for given in config.results for folder in _protocol_runs(given) or [given]]
    kinds = [_kind(folder) for folder in results]
    if len(set(kinds)) > 1:
        other = results[next(i for i, kind in enumerate(kinds) if kind != kinds[0])]
        raise LoricaError(
            f"{other} holds {_kind(other)}, and {results[0]} holds {kinds[0]}",
            "One page is about one kind of result: report them apart.",
        )
    if kinds[0] == ROBUSTNESS:
        folders = [_evaluation(folder) or folder for folder in results]
        _robustness_page(folders, config.output, config.title)
    elif kinds[0] == PRETRAINING:
        _pretraining_page(results, config.output, config.title)
    else:
        _membership_page(results, config.output, config.title)


def _protocol_runs(folder: Path) -> list[Path]:
    """The runs of an encoder's protocols, if the folder is theirs."""
    if not (folder / "protocols.json").is_file():
        return []
    from lorica.finetune.recipes import TITLES

    return [folder / name for name in TITLES if _evaluation(folder / name) is not None]


def _kind(folder: Path) -> str:
    """What a folder holds the result of."""
    if _evaluation(folder) is not None:
        return ROBUSTNESS
    record = read_json(folder / RUN_FILE, "record of the run") if (folder / RUN_FILE).is_file() else None
    if record is None:
        from lorica.report.pretraining.run import is_begun

        return PRETRAINING if is_begun(folder) else MEMBERSHIP
    return PRETRAINING if isinstance(record, dict) and record.get("kind") == "pretraining" else MEMBERSHIP


def _membership_page(folders: list[Path], output: Path, title: str | None) -> None:
    from lorica.report import build, load_run

    runs = [load_run(folder, _training(folder)) for folder in folders]
    page = build(runs, title=title or "Membership audit", command=command(), output=output)
    console.print(f"Report: {escape(str(page))}")


def _training(folder: Path) -> Path | None:
    """The run that a result lies in, if it lies in one."""
    run = folder.resolve().parent
    return run if any((run / name).is_file() for name in ("metrics.jsonl", "run.json")) else None


def _evaluation(folder: Path) -> Path | None:
    """Where in a folder, of an evaluation or of a run, an evaluation lies."""
    places = (folder, folder / EVALUATION)
    return next((place for place in places if (place / "robustness.json").is_file()), None)


def _robustness_page(folders: list[Path], output: Path, title: str | None = None) -> None:
    from lorica.report.robustness import build_robustness, load_robustness

    runs = [load_robustness(folder, _training(folder)) for folder in folders]
    page = build_robustness(runs, title=title or "Robustness evaluation", command=command(), output=output)
    console.print(f"Report: {escape(str(page))}")


def _pretraining_page(folders: list[Path], output: Path, title: str | None = None) -> None:
    from lorica.report.pretraining import build_pretraining, load_pretraining

    runs = [load_pretraining(folder) for folder in folders]
    page = build_pretraining(runs, title=title or "Robust pre-training", command=command(), output=output)
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


def command() -> str:
    """What was typed, with the program's bare name."""
    return shlex.join(["lorica", *sys.argv[1:]])


class Verb(NamedTuple):
    """What `add_verb` takes, with the configuration class by its name: it is imported when the verb is registered."""

    summary: str
    """The class's docstring, for `lorica --help`, which is not to wait for an import."""
    config: str
    """MODULE:CLASS."""
    handler: Handler
    examples: tuple[str, ...]
    positional: tuple[str, ...] = ()


VERBS = {
    "demo": Verb(
        "Adapt, audit and report on the built-in private set of imaginary people: see a LoRA betray its members.",
        "lorica.demo:DemoConfig",
        _demo,
        ("lorica demo --output runs/demo",),
    ),
    "adapt": Verb(
        "Adapt a latent diffusion model to a folder of private pictures with LoRA.",
        "lorica.adapt:AdaptConfig",
        _adapt,
        (
            "lorica adapt pictures/ --objective smp-lora --steps 2000 --seed 0 --output runs/mine",
            "lorica adapt pictures/ --output runs/mine --resume",
        ),
        positional=("data",),
    ),
    "shadows": Verb(
        "Train shadow LoRAs for the attacks that need them: a run's own recipe on random halves of its pictures.",
        "lorica.shadows:ShadowsConfig",
        _shadows,
        ("lorica shadows runs/mine --count 16",),
        positional=("run",),
    ),
    "audit": Verb(
        "Measure how well membership attacks tell the pictures a LoRA was trained on from others of the same kind.",
        "lorica.audit:AuditConfig",
        _audit,
        (
            "lorica audit --lora runs/mine --output runs/mine/audit",
            "lorica audit --base MODEL --lora lora.safetensors --members in/ --nonmembers out/ --output audit "
            '--fail-if "auc>0.6"',
        ),
    ),
    "generate": Verb(
        "Draw pictures for captions, and measure FID and KID against reference pictures.",
        "lorica.generate:GenerateConfig",
        _generate,
        ('lorica generate --lora runs/mine --captions "a cat" --output pictures',),
    ),
    "report": Verb(
        "Put audits, robustness evaluations or pre-training runs on one self-contained HTML page.",
        "lorica.report.config:ReportConfig",
        _report,
        ("lorica report runs/a/audit runs/b/audit --output compare.html",),
        positional=("results",),
    ),
    "pretrain": Verb(
        "Learn a robust image encoder from pictures without labels.",
        "lorica.pretrain:PretrainConfig",
        _pretrain,
        (
            "lorica pretrain --data pictures/ --output runs/pretrain",
            "lorica pretrain --data pictures/ --method acl --invariance air --probe labelled/ --epochs 100",
        ),
    ),
    "finetune": Verb(
        "Make a pre-trained image classifier or encoder adversarially robust on labelled pictures.",
        "lorica.finetune:FinetuneConfig",
        _finetune,
        (
            "lorica finetune --data pictures/ --model resnet18",
            "lorica finetune --data pictures/ --model resnet18 --output runs/finetune --resume",
        ),
    ),
    "evaluate": Verb(
        "Measure how often a classifier is right about natural, attacked and corrupted pictures.",
        "lorica.evaluate:EvaluateConfig",
        _evaluate,
        (
            "lorica evaluate runs/finetune --data pictures/ --eps 4/255,8/255",
            "lorica evaluate runs/pretrain --data pictures/ --protocol slf,alf,aff",
            "lorica evaluate runs/pretrain --data pictures/ --protocol slf --protocol-labels 0.01 --output runs/few",
        ),
        positional=("model.name",),
    ),
}
"""All verbs, in the order of `lorica --help`."""


def register(asked: str | None = None) -> None:
    """Give the command line its verbs.

    Args:
        asked: the one that is going to be used, which then imports its own libraries and no others; by default all.
    """
    app.registered_commands.clear()  # of an earlier call in this process
    for name in VERBS if asked is None else [asked]:
        verb = VERBS[name]
        module, _, cls = verb.config.partition(":")
        config = getattr(import_module(module), cls)
        add_verb(name, config, verb.handler, positional=verb.positional, examples="\n\n".join(verb.examples))


def list_verbs() -> None:
    """Give the command line the names of its verbs alone: all that `--help` and a misspelled verb need."""
    app.registered_commands.clear()
    for name, verb in VERBS.items():
        app.command(name, help=verb.summary)(lambda: None)
