"""Devices: a step of training asks for no value of a GPU and mixes no devices. No GPU is needed to see it.

On PyTorch's "meta" device tensors have shapes and no values: whatever asks for a value, as `item` and masks as indices
do, fails there, and so does an operation on tensors of two devices. Copies that are asked to wait are seen as they are
dispatched. What is not seen: whether memory is pinned, and `torch.tensor(..., device=...)`, which copies undispatched.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_runs import configured
from lorica import processes as home
from lorica.config import load
from lorica.data.label_split import LabelledSplit
from lorica.data.labelled import LabelledSet
from lorica.devices import exactly, sent
from lorica.finetune import METHODS as FINETUNING
from lorica.finetune.trainer import Trainer as Finetuning
from lorica.pretrain.methods import METHODS as PRETRAINING
from lorica.pretrain.trainer import Trainer as Pretraining
from lorica.pretrain.trainer import method_of
from lorica.vision import load_classifier
from pretrain_runs import random_pictures, tiny_config

META = torch.device("meta")
ALONE: Any = SimpleNamespace(device=META, process_index=0, num_processes=1)
"""In the place of an Accelerator."""


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


class Copies(TorchDispatchMode):
    """Notes copies between devices: those that wait, and how many do not."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pair, relaxed = (), False
        if func is torch.ops.aten._to_copy.default:
            pair, relaxed = (args[0].device, kwargs.get("device") or args[0].device), kwargs.get("non_blocking", False)
        elif func is torch.ops.aten.copy_.default:
            relaxed = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            pair = (args[1].device, args[0].device)
        if len(set(pair)) == 2:
            self.others += relaxed
            self.waiting += [] if relaxed else [f"{func} {tuple(args[0].shape)} {pair}"]
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "options",
    [
        *({"method": name} for name in FINETUNING),
        {"attack": {"kind": "n-fgsm"}},
        {"attack": {"norm": "l2", "eps": 0.5, "steps": 1}},
        {"attack": {"start": "gaussian", "steps": 1}},
    ],
    ids=str,
)
def test_a_step_of_fine_tuning_waits_for_nothing(options: dict[str, Any]) -> None:
    config = configured(Path("pictures"), Path("run"), **{"method": "autolora"} | options)
    classifier, _ = load_classifier(config.model)
    pool = random_labelled(config.model.size, classifier.classes or ("a", "b", "c"))
    classifier.take_classes(pool.classes)
    cls = FINETUNING[config.method]
    method = cls(load(cls.Options), classifier).to(META)
    trainer = Finetuning(config, ALONE, method, LabelledSplit(pool, pool, pool, notes=(), seed=0))
    with Copies() as copies:
        for batch in trainer.pending():
            trainer.step(*batch)
    assert trainer.step_in_epoch == 2
    assert copies.waiting == [] and copies.others


@pytest.mark.parametrize("form", ["paper", "authors", "anchored"])
@pytest.mark.parametrize("method", PRETRAINING)
def test_a_step_of_pre_training_waits_for_nothing(method: str, form: str) -> None:
    config = tiny_config(method=method, form=form)
    classifier, _ = load_classifier(config.model)
    trainer = Pretraining(config, ALONE, method_of(config, classifier, META), random_pictures())
    trainer.begin_epoch()
    with Copies() as copies:
        for batch in trainer.pending():
            trainer.step(*batch)
    assert trainer.step_in_epoch == 2
    assert copies.waiting == [] and copies.others


def test_what_waits_is_noticed() -> None:
    with Copies() as copies:
        torch.rand(3).to(META)
        torch.empty(3, device=META).copy_(torch.rand(3))
        sent(torch.rand(3), META)
    assert len(copies.waiting) == 2 and copies.others == 1
    with pytest.raises(RuntimeError):
        torch.empty((), device=META).item()
    with pytest.raises(RuntimeError):
        torch.rand(3, device=META)[torch.ones(3, device=META) > 0]


def random_labelled(size: tuple[int, int], classes: tuple[str, ...]) -> LabelledSet:
    """Sixteen pictures of noise: two batches."""
    labels = torch.arange(16) % len(classes)
    pixels = torch.randint(0, 256, (16, 3, *size)).byte()
    names = tuple(map(str, range(16)))
    return LabelledSet(pixels, labels, classes, names, names)


def test_the_gpu_that_is_named_is_the_one_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to, made = [], []
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    monkeypatch.setattr(home, "Accelerator", lambda **options: made.append(options) or ALONE)
    home.processes(torch.device("cuda:1"))
    home.processes(torch.device("cuda"))
    assert set_to == [torch.device("cuda:1")] and [options["cpu"] for options in made] == [False, False]


def test_float32_is_not_rounded_to_tf32_inside_and_afterwards_is_what_it_was() -> None:
    backends: Any = torch.backends
    before = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
    with exactly():
        assert (backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision) == ("ieee", "ieee")
    assert (backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision) == before
