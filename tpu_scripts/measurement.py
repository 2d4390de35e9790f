"""What a training step needs of a device."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Measurement:
    """HBM that a step needs on one device, in bytes, and its cycles.

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
        cycles: The compiler's estimate, of the operations that have one;
            `None` where it does not fit or cannot be read. Of two steps of one
            model the ratio says more than the sum.
    """

    parameters: int
    weights: int
    optimizer_state: int
    others: int
    program: int
    required: int
    available: int
    fits: bool
    cycles: int | None = None

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
