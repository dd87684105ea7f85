"""What attacks spend their time on, logits and pixel gradients: through the model, and through its quicker copy.

    python benchmarks/evaluation_pass.py                                    # ResNet-18 of width 16, and ResNet-20
    python benchmarks/evaluation_pass.py --models resnet50 --batch 16 --side 224

Both in one run, round by round. The last line is one JSON object with all figures.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from torch import nn

import timing
from lorica.artefacts import hardware, versions
from lorica.robustness.folding import Quick, quick
from lorica.robustness.pgd import crafting, cross_entropy
from lorica.vision import ModelConfig, load_classifier

MODELS = {"cifar_resnet18": {"width": 16}, "cifar_resnet20": {}}


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    config = ModelConfig(name=name, pretrained=False, size=(args.side, args.side), arguments=MODELS.get(name, {}))
    model = load_classifier(config)[0].to(args.device).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((args.batch, 3, args.side, args.side), generator=generator).to(args.device)
    raised = cross_entropy(torch.zeros(args.batch, dtype=torch.long, device=args.device))
    clock = timing.Clock(args.device, processor_time=args.processor_time)
    seconds: dict[str, list[float]] = {"model": [], "copy": []}

    def through(network: nn.Module) -> object:
        seen = x.detach().requires_grad_(True)
        return torch.autograd.grad(raised(network(seen)), seen)

    with crafting(model):
        copied = quick(model, x[:8])
        for _ in range(args.rounds + 1):
            for key, network in (("model", model), ("copy", copied)):
                seconds[key].append(clock(lambda network=network: through(network))[1])
    medians = {key: round(statistics.median(values[1:]), 5) for key, values in seconds.items()}  # the first warms up
    return {
        "model": name, "copied": isinstance(copied, Quick), "seconds": medians,
        "ratio": timing.ratio(seconds["copy"][1:], seconds["model"][1:]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--processor-time", action="store_true", help="not the clock's: for a CPU that others work on, with one thread"
    )
    args = parser.parse_args()
    rows = [measure(name, args) for name in args.models.split(",")]
    for row in rows:
        print("{model}: copy / model {ratio[median]} (quartiles {ratio[low]} to {ratio[high]})".format(**row))
    print(json.dumps({"rows": rows, "settings": vars(args), "hardware": hardware(), "versions": versions()}))


if __name__ == "__main__":
    main()
