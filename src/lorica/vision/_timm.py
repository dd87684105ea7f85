"""timm, imported only when a classifier is wanted: the privacy side of Lorica installs without it."""

from types import ModuleType

from lorica.errors import LoricaError


def timm() -> ModuleType:
    """The library, with Lorica's own architectures registered in it.

    Raises:
        LoricaError: it is not installed.
    """
    try:
        import timm as library

        import lorica.vision.cifar_resnet  # noqa: F401  registers its architectures
    except ImportError as error:
        raise LoricaError(
            f"classifiers need timm and torchvision, of which {error.name} is missing", "pip install 'lorica[vision]'"
        ) from error
    return library
