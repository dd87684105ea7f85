"""A classifier in the forms that others load: a folder for timm, ONNX, a torch.export program.

Each is loaded again and compared with the network before anything is written. All take the classifier as it is: on any
device and in any mode, both of which it keeps, with the one batch norm that it has.
"""

import copy
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.export import Dim, ExportedProgram

from lorica.artefacts import write_bytes, write_json, write_text, write_with
from lorica.errors import LoricaError
from lorica.vision._timm import timm
from lorica.vision.classifier import Classifier
from lorica.vision.loading import DESCRIPTION_FILE, NATURAL_NORMS_FILE, WEIGHTS_FILE, ModelConfig, load_classifier

CARD_FILE = "README.md"
SAME, CLOSE = 1e-5, 1e-3
"""By how much a logit may differ: where the same arithmetic runs again, and where another library does it."""

_LARGEST = 2**31 - 2**20  # bytes of weights in one ONNX file, of which protobuf allows 2 GiB


def export_folder(classifier: Classifier, folder: Path, *, card: str) -> None:
    """Write model.safetensors, config.json and README.md as timm's `save_for_hf` lays them out.

    `load_classifier(ModelConfig(name=folder))` loads it for pixels in [0, 1], and
    `timm.create_model("local-dir:" + folder, pretrained=True)` for pixels normalised with the mean and std in
    config.json, in a process that has imported `lorica.vision.cifar_resnet` if it is one of that family.
    `Classifier.natural_norms`, if there are any, go to natural_norms.safetensors.

    Args:
        classifier: what to write; an encoder without a head is as good.
        folder: where; an earlier model in it is replaced.
        card: of the model, Markdown (`model_card`).

    Raises:
        LoricaError: the folder cannot be written; or timm does not build the same network from it, and then nothing
            was written.
    """
    network = _portable(classifier)
    description = describe(network)
    # A copy of each: safetensors refuses tensors that share memory, as tied weights do.
    weights = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent)
    except OSError as error:
        raise LoricaError(
            f"cannot write {folder}: {error.strerror}", "Check the permissions and the space."
        ) from error
    with beside as name:
        scratch = Path(name)
        write_with(scratch / WEIGHTS_FILE, lambda part: save_file(weights, part, metadata={"format": "pt"}))
        write_json(scratch / DESCRIPTION_FILE, description)
        write_text(scratch / CARD_FILE, card)
        files = [WEIGHTS_FILE, CARD_FILE, DESCRIPTION_FILE]
        if (norms := network.natural_norms) is not None:
            tensors = {key: value.detach().cpu().clone() for key, value in norms.items()}
            write_with(scratch / NATURAL_NORMS_FILE, lambda part: save_file(tensors, part, metadata={"format": "pt"}))
            files.insert(0, NATURAL_NORMS_FILE)
        again, _ = load_classifier(ModelConfig(name=name))
        _require(_largest_difference(network, again), SAME, "the exported folder")
        plain = timm().create_model(f"local-dir:{name}", pretrained=True).eval()
        alone = _largest_difference(network, lambda pixels: plain((pixels - again.mean) / again.std))
        _require(alone, SAME, "the exported folder, loaded by timm alone,")
        # Without a description half of each of two models is none. What cannot be removed cannot be written either.
        for stale in (DESCRIPTION_FILE, NATURAL_NORMS_FILE):
            with suppress(OSError):
                (folder / stale).unlink()
        for file in files:
            write_with(folder / file, (scratch / file).replace)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters warn and log about their own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def require_onnx() -> None:
    """Refuse an export to ONNX before any work is done for it.

    Raises:
        LoricaError: onnx, onnxscript or onnxruntime is missing.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise LoricaError(
                f"export to ONNX needs onnx, onnxscript and onnxruntime, of which {name} is missing",
                "pip install 'lorica[onnx]'",
            )


@_quietly()
def export_onnx(classifier: Classifier, file: Path) -> float:
    """Write one ONNX file: `pixels` (batch, 3, H, W) in [0, 1] to `logits` (batch, classes), for batches of any size.

    Returns:
        The largest difference of a logit between onnxruntime and torch, over random pictures.

    Raises:
        LoricaError: onnx, onnxscript or onnxruntime is missing; the network cannot be traced, is too large for one
            file, or differs by more than 1e-3; or the file cannot be written. An earlier file is then as it was.
    """
    require_onnx()
    import onnxruntime

    network = _portable(classifier)
    if sum(value.nbytes for value in network.state_dict().values()) > _LARGEST:
        raise LoricaError(
            "the weights exceed the 2 GiB that one ONNX file holds", "Export a torch program or a folder."
        )
    program, batch = _traced(network)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        made = torch.onnx.export(
            program, input_names=["pixels"], output_names=["logits"], dynamic_shapes=({0: batch},), verbose=False
        )
        assert made is not None
        content = made.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        difference = _largest_difference(
            network, lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
        )
    except Exception as error:  # of two libraries that share no errors
        raise _unfit(network, "be written as ONNX", error) from error
    _require(difference, CLOSE, "the ONNX file")
    write_bytes(file, content)
    return difference


@_quietly()
def export_program(classifier: Classifier, file: Path) -> float:
    """Write a `torch.export` program (.pt2): pixels (batch, 3, H, W) in [0, 1] to logits, for batches of any size.

    `torch.export.load(file).module()(pixels)` runs it without Lorica and timm.

    Returns:
        The largest difference of a logit from the network's own, over random pictures: 0 or a rounding error.

    Raises:
        LoricaError: the network cannot be traced, the program computes something else, or the file cannot be written.
            An earlier file is then as it was.
    """
    network = _portable(classifier)
    content = io.BytesIO()
    torch.export.save(_traced(network)[0], content)
    content.seek(0)
    difference = _largest_difference(network, torch.export.load(content).module())
    _require(difference, SAME, "the exported program")
    write_bytes(file, content.getvalue())
    return difference


def describe(classifier: Classifier) -> dict[str, Any]:
    """The description of a model as timm's config.json has it.

    Raises:
        LoricaError: an argument of the architecture that JSON cannot hold.
    """
    backbone, models = classifier.backbone, timm().models
    known = getattr(backbone, "pretrained_cfg", None) or {}
    kept = {key: known[key] for key in ("crop_pct", "crop_mode", "interpolation", "classifier") if key in known}
    arguments = classifier.architecture.arguments | models.get_model_args(backbone)
    arguments.pop("num_classes", None)  # transformers passes it itself, and twice is an error
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise LoricaError(
            f"the arguments of {classifier.architecture.name} cannot be written down: {error}",
            "Give them as YAML has them: numbers, text, lists.",
        ) from error
    now = models.get_model_input_config(backbone)
    return {
        "architecture": classifier.architecture.name,
        "num_classes": len(classifier.classes),
        "num_features": int(backbone.num_features),  # type: ignore[arg-type]
        "label_names": list(classifier.classes),
        "model_args": arguments,
        "pretrained_cfg": kept
        | {
            "input_size": [3, *classifier.architecture.size],
            "fixed_input_size": now["fixed_input_size"],
            "first_conv": now["first_conv"],
            "mean": _shortest(classifier.mean),
            "std": _shortest(classifier.std),
            "num_classes": len(classifier.classes),
        },
    }


def _shortest(values: Tensor) -> list[float]:
    """Decimals that give the same float32 again: 0.4914 instead of 0.4914000034332275."""
    return [float(str(np.float32(value))) for value in values.flatten().tolist()]


def _portable(classifier: Classifier) -> Classifier:
    """A copy on the CPU, in eval mode and frozen."""
    still = copy.deepcopy(classifier).cpu().eval().requires_grad_(False)
    return still.to(memory_format=torch.contiguous_format)


def _traced(network: Classifier) -> tuple[ExportedProgram, Dim]:
    batch = Dim("batch")
    try:
        program = torch.export.export(network, (_pixels(network, 2),), dynamic_shapes=({0: batch},))
    except Exception as error:  # a tracer fails in as many ways as networks are written
        raise _unfit(network, "be traced for batches of any size", error) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program, batch


def _unfit(network: Classifier, what: str, error: Exception) -> LoricaError:
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
    return LoricaError(
        f"{network.architecture.name} cannot {what}: {said}", "Deliver the folder, which holds the same weights."
    )


def _pixels(network: Classifier, count: int) -> Tensor:
    return torch.rand((count, 3, *network.architecture.size), generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def _largest_difference(network: Classifier, other: Callable[[Tensor], Tensor]) -> float:
    """Of any logit, over a single picture and a batch of another size than the traced one."""
    batches = [_pixels(network, count) for count in (1, 3)]
    return float(torch.stack([(network(pixels) - other(pixels)).abs().max() for pixels in batches]).max())


def _require(difference: float, allowed: float, what: str) -> None:
    if not difference <= allowed:  # NaN too
        raise LoricaError(
            f"{what} does not compute what the network does: a logit differs by {difference:.2g}",
            "Nothing was written. Please report the architecture and the versions of torch and timm.",
        )
