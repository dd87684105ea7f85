"""Robust pre-training compared: methods x seeds on CIFAR-10, each under the protocols SLF, ALF and AFF, on CIFAR-10
and on another set.

    python benchmarks/robust_pretraining.py --data ../shared/data                        # the whole table
    python benchmarks/robust_pretraining.py --data ../shared/data --rows acl --seeds 0   # a part of it

Every row has the same budget of pictures, epochs and network, and every encoder the same protocols. Runs resume: a
second call goes on where the first was stopped, and parts of the table may be made by several calls at a time. The
last line is one JSON object with all figures of the rows that were asked for, and the differences of each from `acl`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import paired
import shared_sets
from lorica import evaluate, pretrain
from lorica.artefacts import hardware, versions

ROWS: dict[str, dict[str, Any]] = {
    "scl": {"method": "scl", "invariance": "none"},
    "acl": {"method": "acl", "invariance": "none"},
    "acl-air-paper": {"method": "acl", "invariance": "both", "form": "paper"},
    "acl-air-authors": {"method": "acl", "invariance": "both", "form": "authors"},
    "acl-air-anchored": {"method": "acl", "invariance": "both", "form": "anchored"},
    "dynacl-air-paper": {"method": "dynacl", "invariance": "both", "form": "paper"},
}
BASE = "acl"
"""The row that the others are compared with."""
PROTOCOLS = "slf:25,alf:4,aff:6"
PRESET = "dynacl++-stl10-96"  # rate 0.1 for both linear heads: in so few steps they learn next to nothing at 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of public sets")
    parser.add_argument("--output", type=Path, default=Path("runs/robust_pretraining"))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument(
        "--seeds", default="0", help="of pre-training and of the protocols; several for acl and acl-air"
    )
    parser.add_argument("--sets", default="cifar10,clothing", help="that the encoders are fine-tuned on")
    parser.add_argument(
        "--pictures", type=int, default=4000, help="training pictures of CIFAR-10, without and with labels"
    )
    parser.add_argument("--test", type=int, default=1000, help="test pictures of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=25, help="of pre-training (paper: 1000)")
    parser.add_argument("--batch-size", type=int, default=128, help="of pre-training (paper: 512)")
    parser.add_argument("--protocols", default=PROTOCOLS, help="with epochs (authors: 25 for all; ACL 100 for aff)")
    parser.add_argument("--preset", default=PRESET, help="of the protocols, for all rows")
    parser.add_argument("--width", type=int, default=16, help="of the network's first stage (ResNet-18: 64)")
    parser.add_argument("--blocks", type=int, default=1, help="per stage (ResNet-18: 2)")
    parser.add_argument("--tier", default="lite", choices=("quick", "lite", "standard"))
    parser.add_argument("--device")
    args = parser.parse_args()
    rows = []
    for seed in map(int, args.seeds.split(",")):
        for name in args.rows.split(","):
            folder, record = _encoder(args, name, seed)
            for downstream in args.sets.split(","):
                found = _protocols(args, folder, downstream, seed)
                rows.append({"row": name, "seed": seed, "set": downstream, "protocols": found, "pre-training": record})
                _print(rows)
    runs = [row | {"protocol": name} | found for row in rows for name, found in row["protocols"].items()]
    differences = paired.differences(runs, BASE, ("set", "protocol"))
    paired.print_differences(differences, BASE, ("set", "protocol"))
    settings = {key: value for key, value in vars(args).items() if key not in ("data", "output", "rows", "seeds")}
    print(
        json.dumps(
            {
                "settings": settings,
                "rows": rows,
                "differences": differences,
                "hardware": hardware(),
                "versions": versions(),
            }
        )
    )


def _written(args: argparse.Namespace, name: str) -> Path:
    return shared_sets.written(args.data, args.output / "sets", name, train=args.pictures, test=args.test)


def _encoder(args: argparse.Namespace, name: str, seed: int) -> tuple[Path, dict[str, Any]]:
    """The folder of the pre-training, and what is worth knowing of it."""
    pictures = _written(args, "cifar10")
    output = args.output / f"{name}_{seed}"
    config = pretrain.PretrainConfig(
        data=pictures,
        output=output,
        model={"name": "cifar_resnet18", "arguments": {"width": args.width, "depths": [args.blocks] * 4}},
        epochs=args.epochs,
        batch_size=args.batch_size,
        probe=pictures,
        probe_every=args.epochs,  # at the end only
        seed=seed,
        device=args.device,
        cache=args.output / "cache",
        resume=True,
        **ROWS[name],
    )
    record = pretrain.run(config)
    probe = {key: value for key, value in record["probe"].items() if isinstance(value, dict)}
    return output, {"seconds": record["seconds"], "steps": record["steps"], "probe": probe}


def _protocols(args: argparse.Namespace, folder: Path, downstream: str, seed: int) -> dict[str, Any]:
    """Accuracies under each protocol."""
    output, entries = folder / downstream, {}
    for name, _, epochs in (part.partition(":") for part in args.protocols.split(",")):
        config = evaluate.EvaluateConfig(
            model={"name": str(folder / "encoder")},
            data=_written(args, downstream),
            output=output,
            protocol={"names": [name], "epochs": int(epochs), "preset": args.preset},
            tier=args.tier,
            examples=0,
            seed=seed,
            device=args.device,
            cache=args.output / "cache",
            resume=True,
        )
        found = evaluate.run(config)["protocols"][name]
        entries[name] = {key: _rate(found[key]) for key in paired.METRICS}
        entries[name]["seconds"] = found["seconds"]
    return entries


def _rate(found: dict[str, Any]) -> dict[str, float]:
    return {key: found[key] for key in ("value", "low", "high", "n")}


def _print(rows: list[dict[str, Any]]) -> None:
    """The table so far, in Markdown: natural / PGD-20 / AutoAttack."""
    columns = ["row", "seed", "set", *(name.upper() for name in rows[0]["protocols"]), "minutes"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        cells = [row["row"], str(row["seed"]), row["set"]]
        for found in row["protocols"].values():
            values = " / ".join(f"{100 * found[key]['value']:.1f}" for key in paired.METRICS)
            low, high = (100 * found["robust"][end] for end in ("low", "high"))
            cells.append(f"{values} [{low:.1f}, {high:.1f}]")
        print(f"| {' | '.join(cells)} | {row['pre-training']['seconds'] / 60:.0f} |", flush=True)


if __name__ == "__main__":
    main()
