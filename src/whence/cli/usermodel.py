"""Loading a user's own model: ``--model FILE.py:FUNC`` and ``--weights FILE``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import torch
from torch import Tensor, nn

from whence.audit import UserModel, train_rows_of
from whence.data import LabelledData, as_examples
from whence.data.misses import check_the_path, did_you_mean
from whence.errors import ConfigError, DataError
from whence.features import read_tensors
from whence.tasks import Recipe
from whence.tasks.recipe import own_random_state

__all__ = ["UserFunction", "bringing", "check_processes", "import_function", "load_user_model"]


@dataclass(frozen=True, kw_only=True)
class UserFunction:
    """A function of a user's file.

    Args:
        path: The file.
        name: The function's name.
        function: The function.
    """

    path: Path
    name: str
    function: Callable[[LabelledData], Any]

    def call(self, data: LabelledData) -> Any:
        """Call it.

        Raises:
            ConfigError: It raises anything.
        """
        try:
            return self.function(data)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise _failed(self.path, self.name, error) from error


def import_function(spec: str) -> UserFunction:
    """Import the user's file, before anything slow is begun.

    Its folder comes first on Python's path from then on, as when Python runs the file: what lies beside it can be
    imported at once, when the function is called, and while its model trains.

    Args:
        spec: FILE.py:FUNC.

    Raises:
        ConfigError: There is no such file or function, or the file cannot be imported.
    """
    file, _, name = spec.rpartition(":")
    if not file or not name:
        raise ConfigError(f"--model must be FILE.py:FUNC, got {spec!r}.")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"--model must name an existing Python file, got {file!r}. {check_the_path(path)}")
    found = importlib.util.spec_from_file_location(f"whence_user_{path.stem}", path)
    if found is None or found.loader is None:
        raise ConfigError(f"--model must name a Python file that ends in .py, got {file!r}.")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    folder = str(path.resolve().parent)
    sys.path[:] = [folder, *(other for other in sys.path if other != folder)]
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _failed(path, name, error) from error
    function = getattr(module, name, None)
    if not callable(function):
        told = did_you_mean(name, vars(module)) or "It is called with the data."
        raise ConfigError(f"{path} must define a function, got no {name!r}. {told}")
    return UserFunction(path=path, name=name, function=function)


def _failed(path: Path, name: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{path}:{name} must run without an error, got {type(error).__name__}: {error}.")


def check_processes(spec: str | None, processes: int) -> None:
    """Raise where functions of a user's file would have to be imported by other processes, which cannot find it.

    Raises:
        ConfigError: There is a file and more than one process.
    """
    if spec is not None and processes > 1:
        raise ConfigError(
            f"processes must be 1 with --model, got {processes}: other processes cannot import functions of {spec!r}. "
            "Models that can be stacked are trained several at once all the same."
        )


def bringing(
    spec: str | None, weights: Path | None, *, otherwise: str | None = None
) -> Callable[[LabelledData], UserModel] | None:
    """Return what makes the user's model for the rows that take part, untrained; None without one.

    Args:
        spec: FILE.py:FUNC, or None.
        weights: Weights to load.
        otherwise: Where the model must come with a recipe, what to do without one; else None.
    """
    return None if spec is None else partial(_brought, import_function(spec), weights, otherwise)


def _brought(spec: UserFunction, weights: Path | None, otherwise: str | None, data: LabelledData) -> UserModel:
    """Return the user's model, with a recipe where it must have one."""
    found = load_user_model(spec, weights, data, train=False)
    if otherwise is not None and found.recipe is None:
        raise ConfigError(
            "a model of your own must come with its recipe to be trained again, got a model alone. Let FUNC return "
            f"(Recipe, inputs), or {otherwise}."
        )
    return found


def load_user_model(
    spec: str | UserFunction, weights: Path | None, data: LabelledData, *, train: bool = True, seed: int = 0
) -> UserModel:  # fmt: skip
    """Call ``FUNC(data)`` of the user's file and load weights into the model that it returns.

    FUNC returns a trained ``nn.Module``, or a pair (module, inputs) with inputs [N, ...] in the order of
    ``data.ids``. Without inputs, images come as floats in [0, 1] [N, C, H, W] and tables as a float matrix with
    categories as codes. In place of the module it may return a `Recipe`: the model is then trained by it, on the
    train split where there is one, and can be trained again without some rows. FUNC is called under the seed (PyTorch's
    random numbers; NumPy's are its own), so that what it builds or trains is the same when it is called again.

    Args:
        spec: FILE.py:FUNC, or what `import_function` made of it.
        weights: Weights to load, which take the place of training by a recipe.
        data: What FUNC is called with.
        train: Whether to train a model by a recipe; False leaves it untrained where only the recipe is used.
        seed: Of FUNC and of training by a recipe.

    Raises:
        ConfigError: The file, the function, its result or the weights do not fit.
    """
    function = spec if isinstance(spec, UserFunction) else import_function(spec)
    path, name = function.path, function.name
    with own_random_state(seed):
        result = function.call(data)
    model, inputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    inputs = _inputs(data) if inputs is None else inputs
    recipe = model if isinstance(model, Recipe) else None
    if recipe is not None:
        model = _made(recipe, inputs, data, train=train and weights is None, seed=seed)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{name} in {path} must return a torch.nn.Module or a whence.Recipe, got {type(model).__name__}."
        )
    if weights is not None:
        _load_weights(model, weights)
    return UserModel(model=model.eval(), inputs=inputs, name=name, recipe=recipe)


def _made(recipe: Recipe, inputs: Any, data: LabelledData, *, train: bool, seed: int) -> nn.Module:
    """Return a model of a recipe, trained on the training rows or as it is built."""
    if recipe.build is not None and not train:
        with own_random_state(seed):
            return recipe.build()
    examples = as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids)
    rows = train_rows_of(data)
    return recipe.train(examples if rows is None else examples.select(rows), seed=seed)


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load safetensors, or a checkpoint with ``weights_only``."""
    if not path.is_file():
        raise ConfigError(f"--weights must name an existing file, got {str(path)!r}. {check_the_path(path)}")
    try:
        state: Any = read_tensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    except (RuntimeError, OSError, safetensors.SafetensorError, TypeError, AttributeError) as error:
        cause = " ".join(str(error).split())[:300]
        raise ConfigError(f"weights {str(path)!r} must fit the model, got: {cause}.") from error
    except Exception as error:
        raise ConfigError(
            f"weights {str(path)!r} must be safetensors or load with weights_only=True (nothing is unpickled), "
            f"got {type(error).__name__}."
        ) from error


def _inputs(data: LabelledData) -> Tensor:
    """Return plain inputs for a model that came without any."""
    if isinstance(data.content, np.ndarray):
        return torch.from_numpy(data.content).permute(0, 3, 1, 2).float() / 255
    if isinstance(data.content, pd.DataFrame):
        columns = [
            column.to_numpy(np.float32) if pd.api.types.is_numeric_dtype(column) else pd.factorize(column, sort=True)[0]
            for _, column in data.content.items()
        ]
        values = torch.from_numpy(np.stack(columns, 1).astype(np.float32))
        if not torch.isfinite(values).all():
            raise DataError("table must have no missing numbers for your own model. Return (model, inputs) instead.")
        return values
    raise ConfigError("a model of text needs its inputs: let FUNC(data) return (model, inputs [N, ...]).")
