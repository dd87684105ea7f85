"""Every attack on several adapt runs: the attack x method table, with shadow LoRAs where they are asked for.

    python benchmarks/attack_table.py runs/defences/lora runs/defences/smp-lora-paper --shadows 4

Trains the missing shadow LoRAs of each run (`lorica shadows`), audits each LoRA with all attacks into RUN/audit_all
and prints one markdown table: AUC with its 95 % interval on test pictures; attacks as rows, the strongest on the first
run first. A stopped table goes on where it was. The last line printed is JSON.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from lorica import audit, shadows
from lorica.artefacts import RUN_FILE, hardware, read_json, versions
from lorica.audit import ATTACKS, AuditConfig
from lorica.shadows import ShadowsConfig


def audited(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    if args.shadows:
        shadows.run(ShadowsConfig(run=run, count=args.shadows))
    return audit.run(
        AuditConfig(
            output=run / "audit_all",
            lora=run,
            base=read_json(run / RUN_FILE, "run")["config"]["base"],
            attacks=[name for name in args.attacks if args.shadows or not ATTACKS[name].needs_shadows],
            cache=args.cache or run.parent / "cache",
            batch_size=args.batch,
            seed=args.seed,
        )
    )


def strength(result: dict[str, Any], attack: str) -> float:
    found = result["attacks"].get(attack)
    return abs(found["auc"]["value"] - 0.5) if found else -1.0


def cell(result: dict[str, Any], attack: str) -> str:
    if attack not in result["attacks"]:
        return "not run"
    auc = result["attacks"][attack]["auc"]
    return f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of lorica adapt")
    parser.add_argument("--shadows", type=int, default=0, metavar="K", help="shadow LoRAs of each run; 0: none")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--cache", type=Path, help="of encoded pictures and answers; by default beside the run")
    parser.add_argument("--batch", type=int, default=64, help="pictures per UNet call")
    parser.add_argument("--seed", type=int, default=0, help="of the attacks")
    args = parser.parse_args()

    start = time.perf_counter()
    results = {run.name: audited(args, run) for run in args.runs}
    first = next(iter(results.values()))
    print(f"\n| attack | {' | '.join(results)} |\n|{'---|' * (len(results) + 1)}")
    for attack in sorted(args.attacks, key=lambda name: -strength(first, name)):
        if any(attack in result["attacks"] for result in results.values()):
            print(f"| `{attack}` | {' | '.join(cell(result, attack) for result in results.values())} |")
    for name, result in results.items():
        print(f"{name}: {result['verdict']['text']}")
    figures = {
        name: {
            "auc": {attack: found["auc"] for attack, found in result["attacks"].items()},
            "tpr": {attack: found["tpr"] for attack, found in result["attacks"].items()},
            "counts": result["counts"],
            "shadows": result["target"]["shadows"],
            "collection": result["collection"],
        }
        for name, result in results.items()
    }
    seconds = round(time.perf_counter() - start, 1)
    about = {"seed": args.seed, "seconds": seconds, "hardware": hardware(), "versions": versions()}
    print(json.dumps({"runs": figures} | about))


if __name__ == "__main__":
    main()
