"""Our attacks on networks whose clean and PGD-20 accuracies others have measured, and AutoAttack beside them.

    python benchmarks/known_models.py --data ../shared/data --pictures 1000 --attacked 200

The networks are the small adversarially trained ones of alpha-beta-CROWN, for CIFAR-10. PGD-20 runs on the first
`--pictures` of the test set with one random start; AutoAttack on the first `--attacked`. The last line is one JSON
object with all figures.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import shared_sets
from lorica.artefacts import hardware, versions
from lorica.robustness.accuracy import rate
from lorica.robustness.attacked import Counted, predict
from lorica.robustness.autoattack import TIERS, AutoAttackSettings, autoattack
from lorica.robustness.pgd import crafting, worst_of
from lorica.robustness.threat import Threat
from lorica.vision import read_weights

# Clean accuracy on 10,000 pictures, PGD-20 at 2/255 and 8/255 on 1,000, as the weights' README has them.
STATED = {
    "cifar_cnn_a_adv": (0.698, 0.556, 0.138),
    "cifar_cnn_a_adv4": (0.601, 0.516, 0.237),
    "cifar_cnn_a_mix": (0.768, 0.592, 0.077),
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
RADII = (2 / 255, 8 / 255)


class Normalise(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (MEAN, STD))
        return (pixels - mean) / std


def network(file: Path) -> nn.Module:
    """conv4x4(3, 16, s2) relu conv4x4(16, 32, s2) relu linear(2048, 100) relu linear(100, 10)."""
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    layers.load_state_dict(dict(zip(layers.state_dict(), read_weights(file).values(), strict=True)))
    return nn.Sequential(Normalise(), layers).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of public sets and weights")
    parser.add_argument("--models", default=",".join(STATED))
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--attacked", type=int, default=200)
    parser.add_argument("--tier", default="lite", choices=TIERS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pixels, labels = shared_sets.cifar10_pictures(args.data, "test", 10_000)
    print(
        "| network | clean (stated) | eps | PGD-20 (stated) | of the first | PGD-20 | AutoAttack |\n"
        + "|---" * 7
        + "|"
    )
    rows = []
    for name in args.models.split(","):
        model = network(args.data / "weights" / "cifar10_robust_small" / f"{name}.model")
        for row in measured(model, torch.from_numpy(pixels), torch.from_numpy(labels), args):
            row |= {
                "network": name,
                "stated_clean": STATED[name][0],
                "stated_pgd": STATED[name][1 + RADII.index(row["eps"])],
            }
            rows.append(row)
            print(
                f"| {name} | {row['clean']['value']:.3f} ({row['stated_clean']:.3f}) | {255 * row['eps']:.0f}/255 | "
                f"{row['pgd']['value']:.3f} ({row['stated_pgd']:.3f}) | {args.attacked} | "
                f"{row['pgd_of_attacked']['value']:.3f} | {row['autoattack']['value']:.3f} |",
                flush=True,
            )
    print(
        json.dumps(
            {"seed": args.seed, "tier": args.tier, "hardware": hardware(), "versions": versions(), "rows": rows}
        )
    )


def measured(model: nn.Module, pixels: Tensor, labels: Tensor, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per radius."""
    clean = predict(Counted(model), pixels, batch_size=500).argmax(1) == labels
    rows = []
    for eps in RADII:
        threat = Threat(eps)
        some, their = pixels[: args.pictures].float() / 255, labels[: args.pictures]
        generator = torch.Generator().manual_seed(args.seed)
        with crafting(model), torch.no_grad():
            found = worst_of(model, some, their, threat, steps=20, step_size=eps / 4, generator=generator)
            left = model(found).argmax(1) == their
        few = slice(0, args.attacked)
        aa = autoattack(
            model,
            pixels[few],
            labels[few],
            threat,
            settings=AutoAttackSettings(attacks=TIERS[args.tier]),
            seed=args.seed,
        )
        rows.append(
            {
                "eps": eps, "clean": rate(clean, 0.95), "pgd": rate(left, 0.95),
                "pgd_of_attacked": rate(left[few], 0.95), "autoattack": rate(aa.robust, 0.95),
                "left_by_autoattack_only": int((aa.robust & ~left[few]).sum()),
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
