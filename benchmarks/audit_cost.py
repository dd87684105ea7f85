"""What one audit with every attack costs, against as many audits with one attack each.

    python benchmarks/audit_cost.py               # built-in model, 24 members and 24 non-members
    python benchmarks/audit_cost.py --people 100

Attacks of one audit ask each question once (`lorica.audit.queries`). Attacks that need shadow LoRAs are left out:
`lira` and `rmia` ask what `mc-loss` asks, of every shadow too. Every audit here has the negative control on, and so
asks LoRA and base model alike; each starts from nothing: model loaded, pictures encoded, no answer stored. Attacks
that draw pictures have no question in common with others, so that ratios are given with and without them.

Counts every picture that passes through the UNet with a hook on the UNet itself (a picture drawn with guidance passes
twice a step); prints counts and seconds per 1,000 pictures, and the ratios; the last line is JSON.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lorica.artefacts import hardware, versions
from lorica.audit import ATTACKS, AuditConfig, run
from lorica.data import write_cohort
from lorica.diffusion import LatentDiffusion, LoraConfig, add_lora, save_lora

APART = 1_000_000  # index of the first non-member: other people of the same population


def write_lora(folder: Path, seed: int) -> Path:
    """A LoRA with random weights: what an audit costs does not depend on what the LoRA learned."""
    model = LatentDiffusion.load("builtin", device="cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in add_lora(model.pipeline, LoraConfig(rank=4)):
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_lora(model.pipeline, folder, base_fingerprint=model.fingerprint)
    return folder


@contextmanager
def counted() -> Iterator[list[int]]:
    """Pictures in each UNet call of every model that is loaded inside the block."""
    calls: list[int] = []
    load = LatentDiffusion.load

    def watched(*args: Any, **options: Any) -> LatentDiffusion:
        model = load(*args, **options)
        model.unet.register_forward_hook(lambda module, inputs, output: calls.append(len(output[0])))
        return model

    LatentDiffusion.load = watched  # type: ignore[method-assign, assignment]
    try:
        yield calls
    finally:
        LatentDiffusion.load = load  # type: ignore[method-assign]


def measure(attacks: Sequence[str], output: Path, folders: tuple[Path, Path, Path], args: argparse.Namespace) -> dict:
    """UNet calls and seconds of one audit, per 1,000 pictures."""
    lora, members, nonmembers = folders
    config = AuditConfig(
        output=output,
        lora=lora,
        members=members,
        nonmembers=nonmembers,
        attacks=list(attacks),
        batch_size=args.batch,
        seed=args.seed,
        device=args.device,
    )
    with counted() as calls:
        start = time.perf_counter()
        audit = run(config)
        seconds = time.perf_counter() - start
    missing = set(attacks) - set(audit["attacks"])
    if missing:
        raise SystemExit(f"not run: {', '.join(missing)}")
    scale = 1000 / (2 * args.people)
    return {"unet_calls": round(sum(calls) * scale), "seconds": round(seconds * scale, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=24, help="members, and as many non-members")
    possible = [name for name in ATTACKS if not ATTACKS[name].needs_shadows]
    parser.add_argument("--attacks", nargs="+", default=possible, choices=possible)
    parser.add_argument("--batch", type=int, default=16, help="pictures per UNet call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    asking = [name for name in args.attacks if ATTACKS[name].threat_model != "black"]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = (
            write_lora(root / "lora", args.seed),
            write_cohort(root / "members", args.people, args.seed),
            write_cohort(root / "nonmembers", args.people, args.seed, start=APART),
        )
        measure(args.attacks[:1], root / "warm", folders, args)  # libraries load and allocate on first use
        alone = {name: measure([name], root / name, folders, args) for name in args.attacks}
        together = {"all": measure(args.attacks, root / "all", folders, args)}
        if 0 < len(asking) < len(args.attacks):
            together["all but drawing"] = measure(asking, root / "asking", folders, args)

    names = {"all": args.attacks, "all but drawing": asking}
    print(f"\nper 1,000 pictures, from {2 * args.people}, batch {args.batch}\n{'':24s}UNet calls    seconds")
    for name, found in (alone | together).items():
        print(f"  {name:20s}{found['unet_calls']:12,d} {found['seconds']:10,.1f}")
    ratios = {}
    for name, found in together.items():
        single = {key: sum(alone[attack][key] for attack in names[name]) for key in found}
        ratios[name] = {key: round(found[key] / single[key], 3) for key in found}
        shown = ", ".join(f"{key} {value:.3f}" for key, value in ratios[name].items())
        print(f"  {name}, in one audit against one audit each: {shown}")
    print(
        json.dumps(
            {
                "ratios": ratios,
                "together": together,
                "alone": alone,
                "people": args.people,
                "batch": args.batch,
                "seed": args.seed,
                "hardware": hardware(),
                "versions": versions(),
            }
        )
    )


if __name__ == "__main__":
    main()
