"""What a training step needs of a device."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Measurement:
    """HBM that a step needs on one device, in bytes.

    Attributes:
        parameters: Of the whole model.
        weights: Trainable variables. As are `optimizer_state` and `others`,
            padded to tiles if the step was compiled, else by their shapes.
        optimizer_state: Variables of the optimizer.
        others: Batch, metrics, seeds.
        program: The code; 0 if it does not fit, for the compiler did not say.
        required: All of it.
        available: What a program may use.
        fits: Whether the compiler took it.
    """

    parameters: int
    weights: int
    optimizer_state: int
    others: int
    program: int
    required: int
    available: int
    fits: bool

    @property
    def temporaries(self):
        """Activations, gradients and all else that lives during a step."""
        kept = self.weights + self.optimizer_state + self.others + self.program
        return self.required - kept

    def as_dict(self):
        """The measurement as JSON data."""
        return {
            **dataclasses.asdict(self),
            "temporaries": self.temporaries,
        }
