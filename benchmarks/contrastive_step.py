"""What one step of ACL-AIR pre-training costs: a plain transcription of the authors' order of work, and ours, in turn.

    python benchmarks/contrastive_step.py                       # on a CPU a quarter of ResNet-18's width
    python benchmarks/contrastive_step.py --device cuda --precision bf16 --compile --batch 512

ResNet-18 for pictures of 32 pixels, two views of each picture, PGD-5 at 8/255 on NT-Xent, SIR and AIR in the authors'
form, random pictures that lie ready in memory.

    authors     transcribed from the method's description: fp32 (TF32 where torch takes it by itself), NCHW, eager. The
                attack calls `backward()`, which computes the gradients of all weights and throws them away; three
                forwards (adversarial, natural, original) with batch norms of their own; similarities as N x N
                products, of whose diagonals SIR and AIR take six; four losses are read back each step (free on a CPU).
                It gets its views ready-made.
    ours        `lorica.pretrain`'s step, which also draws and computes the views
    floor       what is left if all but the network is free: 5 (forward + backward to the pixels) of 2N pictures, one
                forward and backward of 5N, each timed alone, with the network as ours calls it

A unit is a forward pass of N pictures; a backward pass to weights and pixels is two. The authors' step is 45 units,
the floor 35. Prints passes counted on the networks themselves, arithmetic counted by operation, medians, ratios of
paired rounds with their quartiles, and the share of our step that goes into the views; the last line is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.optim.lars import Lars
from torch import Tensor

import timing
from lorica.artefacts import hardware, versions
from lorica.data.labelled import LabelledSet
from lorica.pretrain.config import EncoderConfig, PretrainConfig
from lorica.pretrain.network import ADVERSARIAL, NATURAL, ContrastiveNetwork
from lorica.pretrain.trainer import Trainer, method_of
from lorica.robustness.folding import Folded
from lorica.robustness.pgd import crafting
from lorica.vision import load_classifier
from lorica.vision.batch_norm import on_route

STEPS, EPS, SIZE, T, LAMBDA = 5, 8 / 255, 2 / 255, 0.5, 0.5


def encoder(width: int) -> EncoderConfig:
    return EncoderConfig(arguments={"width": width})


# ----- the authors' order of work ----------------------------------------------------------------------------------
def authors_step(width: int, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], object]:
    torch.manual_seed(0)
    model = ContrastiveNetwork(load_classifier(encoder(width))[0]).to(device)
    optimiser = Lars(model.parameters(), lr=5.0, momentum=0.9, weight_decay=1e-6, foreach=False)

    def forward(x: Tensor, route: str) -> Tensor:
        with on_route(model, route):
            return model(x)

    def products(a: Tensor, b: Tensor) -> Tensor:
        return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / T

    def contrast(z_i: Tensor, z_j: Tensor) -> Tensor:
        own = torch.eye(len(z_i), device=device, dtype=torch.bool)
        blocks = [
            (products(z_i, z_j), products(z_i, z_i)),
            (products(z_j, z_i), products(z_j, z_j)),
        ]
        labels = torch.arange(len(z_i), device=device)
        rows = [torch.cat([across, within.masked_fill(own, -torch.inf)], dim=1) for across, within in blocks]
        return F.cross_entropy(torch.cat(rows), labels.repeat(2))

    def matched(a: Tensor, b: Tensor) -> Tensor:
        return products(a, b).diagonal().softmax(0)

    def mistaken(p: Tensor, q: Tensor) -> Tensor:
        return F.kl_div(p, q.log(), log_target=True, reduction="sum")

    def attack(views: Tensor) -> Tensor:
        model.eval()
        delta = torch.empty_like(views).uniform_(-EPS, EPS).requires_grad_(True)
        for _ in range(STEPS):
            loss = contrast(*forward(views + delta, ADVERSARIAL).chunk(2))
            loss.backward()
            delta.data = (delta.data + SIZE * delta.grad.sign()).clamp(-EPS, EPS)
            delta.data = (views + delta.data).clamp(0, 1) - views
            delta.grad.zero_()
            model.zero_grad()
        return (views + delta).detach()

    def step(x_i: Tensor, x_j: Tensor, x: Tensor) -> object:
        views = torch.cat([x_i, x_j])
        adversarial = attack(views)
        model.train()
        i_adv, j_adv = forward(adversarial, ADVERSARIAL).chunk(2)
        z_i, z_j = forward(views, NATURAL).chunk(2)
        o = forward(x, NATURAL)
        natural, attacked = contrast(z_i, z_j), contrast(i_adv, j_adv)
        sir = mistaken(matched(z_i, o), matched(z_j, o))
        air = mistaken(matched(i_adv, o) * matched(i_adv, z_i), matched(j_adv, o) * matched(j_adv, z_j))
        loss = natural + attacked + LAMBDA * sir + LAMBDA * air
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return [term.item() for term in (natural, attacked, sir, air)]

    return step


# ----- ours --------------------------------------------------------------------------------------------------------
def trainer(args: argparse.Namespace, device: torch.device, x: Tensor) -> Trainer:
    config = PretrainConfig(
        data=Path(), output=Path(), model=encoder(args.width), method="acl", invariance="both", form="authors",
        batch_size=len(x), device=device.type, precision=args.precision, compile=args.compile,
        attack={"eps": EPS, "step_size": SIZE, "steps": STEPS}, lambda1=LAMBDA, lambda2=LAMBDA, temperature=T,
    )  # fmt: skip
    torch.manual_seed(0)
    method = method_of(config, load_classifier(config.model)[0], device)
    names = tuple(map(str, range(len(x))))
    pool = LabelledSet((x.cpu() * 255).byte(), torch.zeros(len(x), dtype=torch.long), (), names, names)
    made = Trainer(config, Accelerator(cpu=device.type == "cpu"), method, pool)
    made.begin_epoch()
    return made


def parts_of(ours: Trainer, x: Tensor, clock: timing.Clock) -> Callable[[], dict[str, float]]:
    """Times single passes of the network as ours calls it, adds them up to a step, and times the views."""
    method, views = ours.method, ours._laid_out(torch.cat([x, x]))
    with crafting(method), method.attacked():
        folded = Folded(method.attackable(), views[:2])
    if ours.config.compile:
        folded.compile()

    def parts() -> dict[str, float]:
        with crafting(method), ours._autocast():
            seen = views.detach().requires_grad_(True)
            _, crafted = clock(lambda: torch.autograd.grad(folded(seen).float().square().sum(), seen))
        method.train()

        def update() -> None:
            with ours._autocast():
                found = method(views.chunk(2), views.chunk(2), views.chunk(2)[0])
            torch.cat([*found.natural, *found.adversarial, found.originals]).square().sum().backward()

        _, updated = clock(update)
        ours.optimiser.zero_grad(set_to_none=True)
        _, drawn = clock(lambda: ours.draw(x, 0))
        return {"forward_and_pixel_backward": crafted, "joint_forward_and_backward": updated, "views": drawn,
                "floor": STEPS * crafted + updated}  # fmt: skip

    return parts


def measure(args: argparse.Namespace) -> dict[str, object]:
    device = torch.device(args.device)
    clock = timing.Clock(args.device, processor_time=args.processor_time)
    x = torch.rand((args.batch, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(device)
    few = x[:16]
    eager = argparse.Namespace(**vars(args) | {"compile": False})
    counted = {
        "authors": timing.count(authors_step(args.width, device), few, few, few),
        "ours": timing.count(trainer(eager, device, few).step, few),
    }
    authors, ours = authors_step(args.width, device), trainer(args, device, x)
    parts = parts_of(ours, x, clock)
    seconds: dict[str, list[float]] = {}
    for round_number in range(args.rounds + 1):
        ours.step_in_epoch = 0
        taken = {"authors": clock(lambda: authors(x, x, x))[1], "ours": clock(lambda: ours.step(x))[1]} | parts()
        for name, value in taken.items() if round_number else ():  # the first round warms up
            seconds.setdefault(name, []).append(value)
    return {
        "ratio_to_authors": timing.ratio(seconds["ours"], seconds["authors"]),
        "ratio_to_floor": timing.ratio(seconds["ours"], seconds["floor"]),
        "views_share": timing.ratio(seconds["views"], seconds["ours"]),
        "seconds": {name: round(statistics.median(values), 5) for name, values in seconds.items()},
        "counted": counted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, help="of the first stage; 16 on a CPU, 64 (ResNet-18's own) on a GPU")
    parser.add_argument("--batch", type=int, help="128 on a CPU, 512 (paper) on a GPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of ours")
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument(
        "--processor-time", action="store_true", help="not the clock's: for a CPU that others work on, with one thread"
    )
    parser.add_argument("--smallest", action="store_true", help="one round of a tiny network: whether it runs at all")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    args.width, args.batch = args.width or (64 if cuda else 16), args.batch or (512 if cuda else 128)
    if args.smallest:
        args.width, args.batch, args.rounds = 2, 4, 1
    found = measure(args)
    print(f"ResNet-18 of width {args.width}, batch {args.batch}, {args.device}: medians of {args.rounds} rounds")
    for name, value in found["seconds"].items():
        print(f"  {name:27s} {value:9.4f} s  {found['counted'].get(name, '')}")
    for what, name in (
        ("ours / authors", "ratio_to_authors"),
        ("ours / floor", "ratio_to_floor"),
        ("views / ours", "views_share"),
    ):
        print("  {}: {median} (quartiles {low} to {high})".format(what, **found[name]))
    settings = {name: value for name, value in vars(args).items() if name != "smallest"}
    print(json.dumps(found | {"settings": settings, "seed": 0, "hardware": hardware(), "versions": versions()}))


if __name__ == "__main__":
    main()
