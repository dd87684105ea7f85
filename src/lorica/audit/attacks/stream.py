"""What attacks share that look at the first draws of a picture's stream of (t, eps): nothing of it is asked twice."""

from typing import TYPE_CHECKING, Any

from lorica.audit.queries import ask_error_maps, ask_losses

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting


class StreamLosses:
    """Measures {"losses": (N, draws)}; goes before the attack class, whose options have `draws`."""

    options: Any

    @property
    def queries(self) -> int:
        return self.options.draws

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "losses", "draws": self.options.draws}

    def ask(self, sitting: "Sitting") -> "Ask":
        return ask_losses(sitting, self.options.draws)


class StreamMaps:
    """Measures {"maps": (N, draws, C, h, w), "t": (N, draws)} likewise, in the order of t."""

    options: Any

    @property
    def queries(self) -> int:
        return self.options.draws

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "error-maps", "draws": self.options.draws}

    def ask(self, sitting: "Sitting") -> "Ask":
        return ask_error_maps(sitting, self.options.draws)
