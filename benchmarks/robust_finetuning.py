"""Robust fine-tuning compared: methods x downstream sets x seeds, with equal epochs, and AutoLoRa's ablations.

    python benchmarks/robust_finetuning.py --data ../shared/data --sets clothing,faces --epochs 20
    python benchmarks/robust_finetuning.py --data ../shared/data --sets clothing --ablations
    python benchmarks/robust_finetuning.py --data ../shared/data --sets faces --ablations "no KL,fixed weights"

Runs resume: a second call goes on where the first was stopped, and prints the table of what is complete. The last line
is one JSON object with all figures, and the differences of each method from the first, paired by seed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import paired
import shared_sets
from lorica import finetune
from lorica.artefacts import hardware, read_json, versions
from lorica.finetune import FinetuneConfig

METHODS = ("vanilla", "twins", "autolora", "at")
ABLATIONS: dict[str, dict[str, Any]] = {
    "autolora": {},
    "judged by accuracy": {"judged_by": "accuracy"},
    "judged by loss": {"judged_by": "loss"},
    "fixed weights": {"options": {"lambda1": 0.5, "lambda2": 3.0}},
    "no LR schedule": {"schedule": "constant"},
    "no KL": {"options": {"lambda2": 0.0}},
    "last-block branch": {"options": {"branch_coverage": "last-block"}},
}
# ResNet-20 of github.com/akamaster/pytorch_resnet_cifar10: trained on CIFAR-10 without an attack.
NORMALISATION = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of public sets and weights")
    parser.add_argument("--output", type=Path, default=Path("runs/robust_finetuning"))
    parser.add_argument("--sets", default="clothing,faces,cifar10", help=f"of {', '.join(shared_sets.SETS)}")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--epoch-steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train", type=int, default=25_000, help="training pictures of CIFAR-10")
    parser.add_argument("--test", type=int, default=10_000, help="test pictures of CIFAR-10")
    parser.add_argument("--val-share", type=float, default=0.05, help="of the training pictures, for validation")
    parser.add_argument("--tier", default="lite", choices=("quick", "lite", "standard"))
    parser.add_argument("--backbone", help="folder of an exported encoder, in place of the ResNet-20")
    parser.add_argument(
        "--ablations", nargs="?", const=",".join(ABLATIONS), help="AutoLoRa without its parts: all, or those named"
    )
    parser.add_argument("--device")
    args = parser.parse_args()
    rows = []
    for name in args.sets.split(","):
        pictures = shared_sets.written(args.data, args.output / "sets", name, train=args.train, test=args.test)
        for seed in map(int, args.seeds.split(",")):
            for label, changes in _variants(args).items():
                rows.append(
                    {"set": name, "seed": seed, "method": label} | _row(args, name, pictures, seed, label, changes)
                )
                _print(rows)
    first = rows[0]["method"]
    differences = paired.differences([row | {"row": row["method"]} for row in rows], first, ("set",))
    paired.print_differences(differences, first, ("set",))
    print(
        json.dumps(
            {
                "epochs": args.epochs,
                "tier": args.tier,
                "rows": rows,
                "differences": differences,
                "hardware": hardware(),
                "versions": versions(),
            }
        )
    )


def _variants(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    if args.ablations:
        return {label: ABLATIONS[label] for label in args.ablations.split(",")}
    return {method: {"method": method} for method in args.methods.split(",")}


def _row(
    args: argparse.Namespace, name: str, pictures: Path, seed: int, label: str, changes: dict[str, Any]
) -> dict[str, Any]:
    backbone = "-".join(Path(args.backbone).resolve().parts[-2:]) if args.backbone else "resnet20"
    output = args.output / f"{backbone}_{pictures.name}_{args.epochs}" / f"{label.replace(' ', '_')}_{seed}"
    model: dict[str, Any] = {
        "name": "cifar_resnet20",
        "checkpoint": args.data / "weights/cifar10_resnet/resnet20-12fca82f.th",
        **NORMALISATION,
    }
    config = FinetuneConfig(
        **{
            "data": pictures,
            "output": output,
            "model": {"name": args.backbone} if args.backbone else model,
            "epochs": args.epochs,
            "epoch_steps": args.epoch_steps,
            "batch_size": args.batch_size,
            "val_share": args.val_share,
            "evaluate": args.tier,
            "seed": seed,
            "device": args.device,
            "cache": args.output / "cache",
            "resume": True,
        }
        | changes
    )
    record = finetune.run(config)
    found = read_json(output / "evaluation" / "robustness.json", "evaluation")
    threat = found["threats"][-1]
    figures = {"natural": found["natural"], "pgd20": threat["pgd"]["accuracy"], "robust": threat["robust"]}
    return {key: {k: value[k] for k in ("value", "low", "high", "n")} for key, value in figures.items()} | {
        "seconds": record["seconds"],
        "epochs": record["epochs"],
        "best_epoch": record["best_epoch"],
        "weights": record["weights"],
        "val_robust": record["val_robust"],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    """The table so far, in Markdown."""
    columns = ("set", "seed", "method", "natural", "PGD-20", "robust", "minutes", "weights of epoch")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        cells = [f"{100 * row[k]['value']:.1f} [{100 * row[k]['low']:.1f}, {100 * row[k]['high']:.1f}]"
                 for k in ("natural", "pgd20", "robust")]  # fmt: skip
        print(
            f"| {row['set']} | {row['seed']} | {row['method']} | {' | '.join(cells)} | {row['seconds'] / 60:.1f} | "
            f"{row['best_epoch']} ({row['weights']}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
