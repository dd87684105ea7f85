"""From noise to (epsilon, delta) and back, by the accountants of Opacus, which is an optional dependency."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorica.errors import LoricaError


@dataclass(frozen=True)
class Account:
    """Of Gaussian mechanisms on Poisson samples, composed; neighbours differ in one picture, added or removed.

    Args:
        rate: probability in (0, 1] that a picture is in a batch.
        delta: in (0, 1).
        accountant: "rdp" (Renyi) or "prv".
    """

    rate: float
    delta: float
    accountant: str

    def epsilon(self, sigma: float, steps: int) -> float:
        """Epsilon after so many steps with noise of standard deviation sigma * clipping norm.

        Raises:
            LoricaError: Opacus is not installed, or its accountant gives up.
        """
        ledger = _opacus().create_accountant(mechanism=self.accountant)
        ledger.history = [(sigma, self.rate, steps)]
        return _computed(lambda: ledger.get_epsilon(delta=self.delta))

    def sigma(self, epsilon: float, steps: int) -> float:
        """The smallest sigma that keeps so many steps within epsilon, or spares a hundredth of it at most.

        Raises:
            LoricaError: as `epsilon`.
        """
        _opacus()
        from opacus.accountants.utils import get_noise_multiplier

        given: dict[str, Any] = {"target_epsilon": epsilon, "epsilon_tolerance": epsilon / 100, "steps": steps}
        given |= {"target_delta": self.delta, "sample_rate": self.rate, "accountant": self.accountant}
        return _computed(lambda: get_noise_multiplier(**given))


def _opacus() -> Any:
    try:
        import opacus.accountants
    except ImportError as error:
        raise LoricaError("defence dp-lora needs Opacus for its accounting", "pip install 'lorica[dp]'") from error
    return opacus.accountants


def _computed(compute: Callable[[], Any]) -> float:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the bound could be tighter
            return float(compute())
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise LoricaError(
            f"defence dp-lora: no (epsilon, delta) can be computed ({error})", "Choose less extreme values."
        ) from error
