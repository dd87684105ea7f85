"""The Inception network of FID as published: TensorFlow's weights of 2015, as ported by torch-fidelity."""

import hashlib
import http.client
import importlib.util
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image.fid import NoTrainInceptionV3

from lorica.artefacts import atomic_path
from lorica.errors import LoricaError
from lorica.progress import track
from lorica.quality.extractors import EXTRACTORS, Extractor

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TIMEOUT = 20  # seconds without an answer
_MEGABYTES = 92  # of the file
_OFFLINE = "use --extractor builtin, which needs no download (its numbers are not comparable with published ones)"


class _Inception(Extractor):
    """Average-pooled activations of one layer. Pictures are resized to 299 x 299 as the original FID code does.

    Raises:
        LoricaError: torch-fidelity is not installed, or the weights are neither at hand nor to be fetched.
    """

    def __init__(self) -> None:
        super().__init__()
        if importlib.util.find_spec("torch_fidelity") is None:
            raise LoricaError(
                f"extractor {self.name} needs torch-fidelity, which is not installed",
                f"pip install 'lorica[inception]', or {_OFFLINE}.",
            )
        # torch-fidelity unpickles the file without restrictions: it must be the one we know, to the last bit.
        file = weights()
        self.network = NoTrainInceptionV3(
            name="inception-v3-compat",
            features_list=[str(self.num_features)],
            feature_extractor_weights_path=str(file),
            # torchmetrics' default is a newer, antialiased resize, which shifts FID away from the published scale.
            antialias=False,
        )

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures)


@EXTRACTORS.register("inception-2048")
class Inception2048(_Inception):
    """The final pooling layer: the usual FID and KID."""

    name = "inception-2048"
    num_features = 2048
    comparable = True
    note = (
        "The usual Inception features: comparable with published FID and KID of the same reference pictures, "
        "resolution and counts."
    )


@EXTRACTORS.register("inception-768")
class Inception768(_Inception):
    """The layer before the auxiliary classifier, used by the SMP-LoRA paper (arXiv 2402.11989, appendix E)."""

    name = "inception-768"
    num_features = 768
    comparable = False
    note = (
        "The 768-dimensional Inception layer has another scale than the usual FID: set these numbers only beside "
        "others over the same layer (pytorch-fid --dims 768)."
    )


def weights() -> Path:
    """The file with the network, fetched once into torch.hub's cache and checked on every use.

    Raises:
        LoricaError: it cannot be fetched or written, or is not the right file.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[-1]
    if not file.is_file():
        with atomic_path(file) as temporary:
            _download(temporary, file)
            _check(temporary, f"what was fetched from {URL}", "A proxy or firewall may have answered instead")
    _check(file, str(file), "Delete the file, so that it is fetched again")
    return file


def _download(temporary: Path, file: Path) -> None:
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT) as answer, temporary.open("wb") as target:
            chunks = iter(lambda: answer.read(2**20), b"")
            for chunk in track(chunks, "fetching the Inception network (MB)", _MEGABYTES):
                target.write(chunk)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise LoricaError(
            f"the Inception network cannot be fetched from {URL}: {reason}",
            f"Without network, put that file at {file}, or {_OFFLINE}.",
        ) from error


def _check(file: Path, what: str, remedy: str) -> None:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != SHA256:
        raise LoricaError(f"{what} is not the Inception network (SHA-256 {digest[:16]}…)", f"{remedy}, or {_OFFLINE}.")
