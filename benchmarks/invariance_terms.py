"""How large SIR and AIR and their gradients are in each form, on an encoder that pre-training has made.

    python benchmarks/invariance_terms.py --run runs/pretrain --batch 512 --batches 4

The run's last checkpoint, with its projector, embeds batches of its own pictures: two views, their adversarial
versions, the pictures themselves. Each term, times its weight (1 for NT-Xent, 0.5 for the others), is given with the
norm of its gradient with respect to the embeddings z and to all weights, relative to that of NT-Xent (natural +
adversarial), means over batches; and with the cosine of its gradient on the weights to NT-Xent's and to the paper
form's. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from lorica.artefacts import CONFIG_FILE, hardware, versions
from lorica.checkpoint import load_state
from lorica.config import load
from lorica.data.batches import Batches
from lorica.data.unlabelled import read_unlabelled
from lorica.epochs import CHECKPOINTS, RESUME
from lorica.pretrain import PretrainConfig, adversarial_invariance, nt_xent, standard_invariance
from lorica.pretrain.trainer import Trainer, method_of
from lorica.vision import load_classifier

FORMS = ("paper", "authors", "anchored")


def loaded(folder: Path, batch: int) -> Trainer:
    """The trainer of a finished run, as it was after its last step."""
    config = load(PretrainConfig, file=folder / CONFIG_FILE)
    config = config.model_copy(update={"batch_size": batch, "device": "cpu"})
    if not config.adversarial:
        raise SystemExit(f"{folder}: a run without adversarial views has no AIR")
    classifier, _ = load_classifier(config.model)
    pictures = read_unlabelled(config.data, size=classifier.architecture.size, cache=folder / "cache")
    trainer = Trainer(config, Accelerator(cpu=True), method_of(config, classifier, torch.device("cpu")), pictures)
    groups, header = load_state(folder / CHECKPOINTS / RESUME)
    trainer.load(groups, header)
    trainer.epoch = config.epochs - 1  # the emphasis of the last epoch
    trainer.begin_epoch()
    return trainer


def terms(z: list[Tensor], t: float) -> dict[str, Callable[[], Tensor]]:
    """Every term of a batch, by name."""
    i, j, i_adv, j_adv, o = z
    found: dict[str, Callable[[], Tensor]] = {"nt-xent": lambda: nt_xent(i, j, t) + nt_xent(i_adv, j_adv, t)}
    for form in FORMS:
        found[f"sir {form}"] = lambda form=form: 0.5 * standard_invariance(i, j, o, t, form)
        found[f"air {form}"] = lambda form=form: 0.5 * adversarial_invariance(i, j, i_adv, j_adv, o, t, form)
    return found


def flat(gradients: tuple[Tensor | None, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def measure(trainer: Trainer, pixels: Tensor, seed: int) -> dict[str, dict[str, float]]:
    method = trainer.method
    natural = trainer.draw(pixels, seed)
    attacked = trainer.attack(natural, seed)
    method.train()
    weights = [parameter for parameter in method.parameters() if parameter.requires_grad]
    embedded = method(natural, attacked, pixels)
    assert embedded.adversarial is not None and embedded.originals is not None
    z = [*embedded.natural, *embedded.adversarial, embedded.originals]
    rows, by_weights = {}, {}
    for name, term in terms(z, trainer.config.temperature).items():
        value = term()
        of_z = torch.autograd.grad(
            value, [each for each in z if each.requires_grad], retain_graph=True, allow_unused=True
        )
        of_weights = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        by_weights[name] = torch.cat(
            [
                torch.zeros_like(w).flatten() if g is None else g.flatten()
                for w, g in zip(weights, of_weights, strict=True)
            ]
        )
        rows[name] = {"value": value.item(), "z": flat(of_z).norm().item(), "weights": by_weights[name].norm().item()}
    cosine = torch.nn.functional.cosine_similarity
    base = rows["nt-xent"]
    return {
        name: {
            "value": row["value"],
            "relative_z": row["z"] / base["z"],
            "relative_weights": row["weights"] / base["weights"],
            "cosine_to_nt_xent": cosine(by_weights[name], by_weights["nt-xent"], dim=0).item(),
            "cosine_to_paper": cosine(by_weights[name], by_weights[f"{name.split()[0]} paper"], dim=0).item()
            if " " in name
            else 1.0,
        }
        for name, row in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a pre-training run, its pictures in place")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--batches", type=int, default=4)
    args = parser.parse_args()
    trainer = loaded(args.run, args.batch)
    data = Batches(trainer.pictures, args.batch, seed=1, device="cpu", drop_last=True)
    state = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    found = []
    for number, (pixels, _) in zip(range(args.batches), data.epoch(0), strict=False):
        found.append(measure(trainer, pixels, number))
        trainer.method.load_state_dict(state)  # running statistics moved
    rows = {
        name: {key: sum(each[name][key] for each in found) / len(found) for key in found[0][name]} for name in found[0]
    }
    print("| term | weighted value | gradient on z | gradient on weights | cosine to NT-Xent | cosine to paper form |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        print("| {} | {:.3g} | {:.2%} | {:.2%} | {:.2f} | {:.2f} |".format(name, *row.values()))
    settings = {"run": args.run.name, "batch": args.batch, "batches": len(found)}
    print(json.dumps({"settings": settings, "rows": rows, "seed": 1, "hardware": hardware(), "versions": versions()}))


if __name__ == "__main__":
    main()
