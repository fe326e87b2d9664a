"""What a model is told besides the sample and the timestep, and guidance by it.

Such inputs are the same in every step of a sample. Guidance without a classifier (Ho and Salimans,
2022) evaluates the model twice in each step, without the condition and with it, and goes on along
the difference of the two predictions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.host.model import Model, ModelError
from ditto.host.samplers import inputs_of

__all__ = ["Conditioning"]

_NULL = "ditto.null_label"


class Conditioning:
    """The inputs of a model that are the same in every step.

    Parameters
    ----------
    model
        The model.
    inputs
        One array for each input of the model besides ``sample``, ``timestep`` and ``label``. With
        guidance, a batch of 2 is without and with the condition.
    guidance
        How far to go from the prediction without the condition along the difference of the two: 1
        is the prediction with it. None evaluates the model with the condition alone.
    null_label
        The label that stands for no condition; by default the model's property
        ``ditto.null_label``.

    Attributes
    ----------
    shape : tuple of int
        Shape of the sample.
    states : int
        Evaluations of the model in each step.

    Raises
    ------
    ModelError
        If the inputs do not fit the model, or there is nothing to guide by.
    """

    def __init__(
        self,
        model: Model,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        *,
        guidance: float | None = None,
        null_label: int | None = None,
    ) -> None:
        self.guidance = guidance
        self.states = 1 if guidance is None else 2
        given = inputs or {}
        pairs = set()
        if guidance is not None:
            pairs = {
                name
                for name, (shape, _) in model.inputs.items()
                if name in given and np.ndim(given[name]) == len(shape) and len(given[name]) == 2
            }
            null_label = _null_label(model) if null_label is None else null_label
            if not pairs and (null_label is None or "label" not in model.inputs):
                raise ModelError(
                    f"guidance needs to know what {model.name} is told without a condition: inputs "
                    "in a batch of two, without and with (--inputs), or the label of none "
                    f"(--null-label, or the model's property {_NULL})"
                )
        self._null_label = null_label
        split = [
            {name: values[state] if name in pairs else values for name, values in given.items()}
            for state in range(self.states)
        ]
        made = [inputs_of(model, own) for own in split]
        self.shape = made[0][0]
        self._make = [make for _, make in made]

    def inputs(
        self, state: int, x: NDArray[np.float32], timestep: int, label: int
    ) -> dict[str, NDArray[Any]]:
        """Return the inputs of an evaluation in a step: with guidance, 0 is without condition."""
        if self.guidance is not None and state == 0 and self._null_label is not None:
            label = self._null_label
        return self._make[state](x, timestep, label)

    def combine(self, predictions: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the prediction to go on with, from those of all states."""
        if self.guidance is None:
            return predictions[0]
        without, condition = predictions
        return (without + np.float32(self.guidance) * (condition - without)).astype(np.float32)


def _null_label(model: Model) -> int | None:
    """Return the label that stands for no condition, if the model says so."""
    text = model.metadata.get(_NULL)
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ModelError(f"the model's property {_NULL} = {text!r} is no number") from None
