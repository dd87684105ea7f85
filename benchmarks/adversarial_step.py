"""What one step of AutoLoRa costs: a plain transcription of the authors' order of work, and ours, timed in turn.

    python benchmarks/adversarial_step.py                       # on a CPU a quarter of ResNet-18's width
    python benchmarks/adversarial_step.py --device cuda --precision bf16 --compile
    python benchmarks/adversarial_step.py --methods autolora vanilla twins at

ResNet-18 for pictures of 32 pixels, batch 128, PGD-10 at 8/255 from a uniform start, random pictures that lie ready in
memory. Contenders do the same mathematics; batch loading, validation and the schedules are left out.

    authors     transcribed from the method's description: fp32 (TF32 where torch takes it by itself), NCHW, eager.
                `requires_grad` of all parameters is set by a loop over them before each part of a step. The attack
                takes the gradient of the pixels alone (`autograd.grad`), while all parameters require theirs; batch
                norms are in eval mode. For the natural pass each convolution adds its B A / r to its weight when it
                is called. Loss and two accuracies are read back each step (an assumption; free on a CPU).
    ours        `lorica.finetune`'s step, without what the authors do not have: weight averaging and the comparison of
                gradients
    floor       what is left if all but the network is free: 10 (forward + backward to the pixels), 2 forwards and 1
                joint backward, each timed alone, with the network as ours calls it

Prints passes counted on the networks themselves, arithmetic counted by operation, medians, ratios of paired rounds
with their quartiles, and seconds per epoch of 50,000 pictures extrapolated from the step, beside what autolora's
arithmetic would take at the rate that a large matrix product reaches here; the last line is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

import timing
from lorica.artefacts import hardware, versions
from lorica.config import load
from lorica.data.label_split import LabelledSplit
from lorica.data.labelled import LabelledSet
from lorica.finetune.config import FinetuneConfig
from lorica.finetune.methods import METHODS
from lorica.finetune.trainer import Trainer
from lorica.robustness.folding import Folded
from lorica.robustness.pgd import crafting, cross_entropy
from lorica.vision import Classifier, ModelConfig, load_classifier

STEPS, EPS, SIZE, RANK, LAMBDA1, LAMBDA2 = 10, 8 / 255, 2 / 255, 8, 0.5, 3.0
EPOCH = 50_000
PUBLISHED = 69.5  # seconds per epoch, PGD-10, ResNet-18, fp32, eager, GPU not stated (FastAT, arXiv 2604.22853)


def network(width: int) -> Classifier:
    torch.manual_seed(0)
    return load_classifier(ModelConfig(name="cifar_resnet18", pretrained=False, arguments={"width": width}))[0]


# ----- the authors' order of work ----------------------------------------------------------------------------------
class LoraConv(nn.Module):
    """A convolution that adds B A / r to its weight in the natural pass."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        outputs, inputs, k, _ = conv.weight.shape
        self.conv, self.natural = conv, False
        self.A = nn.Parameter(torch.randn(RANK * k, inputs * k))
        self.B = nn.Parameter(torch.zeros(outputs * k, RANK * k))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        if self.natural:
            weight = weight + (self.B @ self.A).view(weight.shape) / RANK
        return F.conv2d(x, weight, None, self.conv.stride, self.conv.padding)


def authors_step(width: int, device: torch.device) -> Callable[[Tensor, Tensor], object]:
    model = network(width)
    for name, conv in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "layer" in n]:
        model.set_submodule(name, LoraConv(conv))
    model.to(device)
    convs = [module for module in model.modules() if isinstance(module, LoraConv)]
    optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def flags(*, network: bool, lora: bool) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith((".A", ".B")):
                parameter.requires_grad_(lora)
            elif ".fc." not in name:
                parameter.requires_grad_(network)

    def forward(x: Tensor, *, natural: bool) -> Tensor:
        for conv in convs:
            conv.natural = natural
        return model(x)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        adversarial = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            adversarial.requires_grad_(True)
            loss = F.cross_entropy(forward(adversarial, natural=False), y)
            (gradient,) = torch.autograd.grad(loss, [adversarial])
            adversarial = adversarial.detach() + SIZE * gradient.sign()
            adversarial = torch.min(torch.max(adversarial, x - EPS), x + EPS).clamp(0, 1)
        return adversarial.detach()

    def step(x: Tensor, y: Tensor) -> object:
        flags(network=True, lora=True)
        adversarial = attack(x, y)
        model.train()
        flags(network=False, lora=True)
        natural = forward(x, natural=True)
        flags(network=True, lora=False)
        attacked = forward(adversarial, natural=False)
        divergence = F.kl_div(attacked.log_softmax(1), natural.softmax(1), reduction="batchmean")
        loss = LAMBDA1 * F.cross_entropy(natural, y) + (1 - LAMBDA1) * F.cross_entropy(attacked, y)
        loss = loss + LAMBDA2 * divergence
        flags(network=True, lora=True)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item(), *((logits.argmax(1) == y).float().mean().item() for logits in (natural, attacked))

    return step


# ----- ours --------------------------------------------------------------------------------------------------------
def trainer(name: str, args: argparse.Namespace, device: torch.device, x: Tensor, y: Tensor) -> Trainer:
    config = FinetuneConfig(
        data=Path(),
        output=Path(),
        method=name,
        batch_size=len(x),
        ema=0.0,
        similarity_batches=0,
        device=device.type,
        precision=args.precision,
        compile=args.compile,
        attack={"eps": EPS, "step_size": SIZE, "steps": STEPS},
    )
    classifier = network(args.width)
    torch.manual_seed(0)
    method = METHODS[name](load(METHODS[name].Options), classifier).to(device, memory_format=torch.channels_last)
    if args.compile:
        classifier.backbone.compile()
    pictures = (x.cpu() * 255).to(torch.uint8)
    names = tuple(map(str, range(len(x))))
    pool = LabelledSet(pictures, y.cpu(), classifier.classes, names, names)
    split = LabelledSplit(pool, pool, pool, notes=(), seed=0)
    made = Trainer(config, Accelerator(cpu=device.type == "cpu"), method, split)
    if name == "autolora":
        method.weights = {"natural": LAMBDA1, "adversarial": 1 - LAMBDA1, "kl": LAMBDA2}
    return made


def floor_parts(ours: Trainer, x: Tensor, y: Tensor, clock: timing.Clock) -> Callable[[], dict[str, float]]:
    """Times single passes of the network as ours calls it, and adds them up to a step."""
    method = ours.method
    x = x.contiguous(memory_format=torch.channels_last)
    with crafting(method), method.route():
        folded = Folded(method.classifier, x[:1])
    if ours.config.compile:
        folded.compile()
    raised = cross_entropy(y)

    def parts() -> dict[str, float]:
        with crafting(method), ours._autocast():
            seen = x.detach().requires_grad_(True)
            _, crafted = clock(lambda: torch.autograd.grad(raised(folded(seen).float()), seen))
        method.train()
        with ours._autocast():
            (clean, attacked), forwards = clock(lambda: method(x, x))
        loss = method.loss(method.terms(clean.float(), attacked.float(), y))
        _, joint = clock(loss.backward)
        ours.optimiser.zero_grad(set_to_none=True)
        return {"forward_and_pixel_backward": crafted, "two_forwards": forwards, "joint_backward": joint,
                "floor": STEPS * crafted + forwards + joint}  # fmt: skip

    return parts


# ----- timing ------------------------------------------------------------------------------------------------------
def measure(args: argparse.Namespace) -> dict[str, object]:
    device = torch.device(args.device)
    clock = timing.Clock(args.device, processor_time=args.processor_time)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((args.batch, 3, 32, 32), generator=generator).to(device)
    y = torch.randint(10, (args.batch,), generator=generator).to(device)
    eager = argparse.Namespace(**vars(args) | {"compile": False})
    counted = {"authors": timing.count(authors_step(args.width, device), x[:16], y[:16])}
    contenders = {"authors": authors_step(args.width, device)}
    for name in dict.fromkeys(["autolora", *args.methods]):
        counted[name] = timing.count(trainer(name, eager, device, x[:16], y[:16]).step, x[:16], y[:16])
        made = trainer(name, args, device, x, y)
        contenders[name] = made.step
        if name == "autolora":
            parts = floor_parts(made, x, y, clock)
    seconds: dict[str, list[float]] = {}
    for round_number in range(args.rounds + 1):
        taken = {name: clock(lambda step=step: step(x, y))[1] for name, step in contenders.items()} | parts()
        for name, value in taken.items() if round_number else ():  # the first round warms up
            seconds.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rates = {
        name: args.batch * (counted[name]["gflop_forward"] + counted[name]["gflop_backward"]) / medians[name]
        for name in contenders
    }
    dtype = torch.bfloat16 if made.precision == "bf16" else torch.float32
    rate = timing.matmul_rate(args.device, dtype, clock)
    operations = sum(counted["autolora"][name] for name in ("gflop_forward", "gflop_backward"))
    return {
        "ratio_to_authors": timing.ratio(seconds["autolora"], seconds["authors"]),
        "ratio_to_floor": timing.ratio(seconds["autolora"], seconds["floor"]),
        "ratios_to_autolora": {
            name: timing.ratio(seconds[name], seconds["autolora"]) for name in args.methods if name != "autolora"
        },
        "seconds": {name: round(value, 5) for name, value in medians.items()},
        "counted": counted,
        "gflop_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "matmul_gflop_per_second": round(rate, 1),
        "epoch_seconds_extrapolated": {
            name: round(EPOCH / args.batch * medians[name], 1) for name in contenders
        } | {"floor at the rate of matrix products": round(EPOCH * operations / rate, 1), "published": PUBLISHED},
    }  # fmt: skip


def show(found: dict, args: argparse.Namespace) -> None:
    print(f"ResNet-18 of width {args.width}, batch {args.batch}, {args.device}: medians of {args.rounds} rounds")
    for name, value in found["seconds"].items():
        print(f"  {name:27s} {value:9.4f} s  {found['counted'].get(name, '')}")
    for what, name in (("the authors' order", "ratio_to_authors"), ("the floor", "ratio_to_floor")):
        print("  autolora / {}: {median} (quartiles {low} to {high})".format(what, **found[name]))
    for name, other in found["ratios_to_autolora"].items():
        print("  {} / autolora: {median} (quartiles {low} to {high})".format(name, **other))
    for name, value in found["epoch_seconds_extrapolated"].items():
        note = " (width 64, PGD adversarial training on an unnamed GPU)" if name == "published" else ""
        print(f"  {value:9.1f} s per epoch of {EPOCH:,} pictures: {name}{note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, help="of the first stage; 16 on a CPU, 64 (ResNet-18's own) on a GPU")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of ours")
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument(
        "--processor-time", action="store_true", help="not the clock's: for a CPU that others work on, with one thread"
    )
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=[], help="to time beside autolora")
    parser.add_argument("--smallest", action="store_true", help="one round of a tiny network: whether it runs at all")
    args = parser.parse_args()
    args.width = args.width or (64 if args.device == "cuda" else 16)
    if args.smallest:
        args.width, args.batch, args.rounds = 2, 4, 1
    found = measure(args)
    show(found, args)
    settings = {name: value for name, value in vars(args).items() if name not in ("methods", "smallest")}
    print(json.dumps(found | {"settings": settings, "seed": 0, "hardware": hardware(), "versions": versions()}))


if __name__ == "__main__":
    main()
