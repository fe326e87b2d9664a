"""What a model is told besides the sample and the timestep: a text, a class, or nothing.

Such inputs are the same in every step of a sample. Guidance without a classifier (Ho and Salimans,
2022) evaluates the model twice in each step, without the condition and with it, and goes on along
the difference of the two predictions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.host.model import Model, ModelError

__all__ = ["Conditioning", "ConditioningError", "load_inputs"]

_MADE = ("sample", "timestep")
_NULL = "ditto.null_label"


class ConditioningError(Exception):
    """Inputs or a guidance that a model cannot be given."""


def load_inputs(path: Path | str) -> dict[str, NDArray[Any]]:
    """Read inputs: an ``.npz`` file with an array for each of them.

    Raises
    ------
    ConditioningError
        If it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ConditioningError(f"cannot read inputs {path}: no such file") from None
    except Exception as error:  # a damaged archive can be wrong in any way
        raise ConditioningError(f"{path} is not a usable .npz file: {error}") from error


class Conditioning:
    """The inputs of a model that are the same in every step.

    Parameters
    ----------
    model
        The model.
    inputs
        One array for each input of the model besides ``sample``, ``timestep`` and ``label``, with a
        batch of 1; perhaps also one for ``label``. With guidance, a batch of 2 is without and with
        the condition.
    guidance
        How far to go from the prediction without the condition along the difference of the two: 1
        is the prediction with it. None evaluates the model with the condition alone.

    Attributes
    ----------
    states : int
        Evaluations of the model in each step.

    Raises
    ------
    ConditioningError
        If the inputs do not fit the model, or there is nothing to guide by.
    """

    def __init__(
        self,
        model: Model,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        *,
        guidance: float | None = None,
    ) -> None:
        inputs = inputs or {}
        self.guidance = guidance
        self.states = 1 if guidance is None else 2
        wanted = [name for name in model.inputs if name not in _MADE]
        missing = [name for name in wanted if name not in inputs and name != "label"]
        extra = [name for name in inputs if name not in wanted]
        if missing or extra:
            raise ConditioningError(
                f"the inputs must hold one array for each of {', '.join(wanted) or 'no input'} of "
                f"{model.name}, but "
                + "; ".join(
                    [f"{', '.join(missing)} is missing"] * bool(missing)
                    + [f"{', '.join(extra)} is none of them"] * bool(extra)
                )
            )
        self._inputs: list[dict[str, NDArray[Any]]] = [{} for _ in range(self.states)]
        for name, values in inputs.items():
            batch = self._fitting(model, name, np.asarray(values))
            for state, own in enumerate(self._inputs):
                own[name] = batch[state : state + 1] if batch.ndim and len(batch) > 1 else batch
        if guidance is not None:
            self._add_null_label(model)
            without, condition = self._inputs
            if without.keys() == condition.keys() and all(
                np.array_equal(without[name], condition[name]) for name in without
            ):
                raise ConditioningError(
                    f"guidance needs inputs without a condition: give arrays of a batch of 2, the "
                    f"first without, or a model with the property {_NULL}"
                )

    @property
    def names(self) -> set[str]:
        """Inputs that are given here for every state."""
        return set.intersection(*(set(own) for own in self._inputs))

    def inputs(self, state: int) -> dict[str, NDArray[Any]]:
        """Return the inputs of an evaluation in a step: with guidance, 0 is without condition."""
        return self._inputs[state]

    def combine(self, predictions: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the prediction to go on with, from those of all states."""
        if self.guidance is None:
            return predictions[0]
        without, condition = predictions
        return without + np.float32(self.guidance) * (condition - without)

    def _add_null_label(self, model: Model) -> None:
        """Take the label that stands for none, if the model says so."""
        text = model.metadata.get(_NULL)
        if "label" not in model.inputs or "label" in self._inputs[0] or text is None:
            return
        shape, dtype = model.inputs["label"]
        try:
            self._inputs[0]["label"] = np.full(shape, int(text), dtype)
        except ValueError:
            raise ModelError(f"the model's property {_NULL} = {text!r} is no number") from None

    def _fitting(self, model: Model, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Return an array in the input's type, after a check of its shape and values."""
        shape, dtype = model.inputs[name]
        batches = (1,) if self.guidance is None else (1, 2)
        wanted = [(batch, *shape[1:]) for batch in batches] if shape else [()]
        if not any(_fits(values.shape, sizes) for sizes in wanted):
            texts = (", ".join(str(size or "?") for size in sizes) for sizes in wanted)
            raise ConditioningError(
                f"input {name} must have the shape {' or '.join(f'({text})' for text in texts)}, "
                f"not {values.shape}"
            )
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise ConditioningError(f"input {name} must be of type {dtype}, not {values.dtype}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ConditioningError(f"input {name} contains values that are no numbers")
        return values.astype(dtype)


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a shape is the wanted one; 0 stands for any size."""
    return len(shape) == len(wanted) and all(
        want in (0, got) for got, want in zip(shape, wanted, strict=True)
    )
