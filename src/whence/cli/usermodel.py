"""Loading a user's own model: ``--model FILE.py:FUNC`` and ``--weights FILE``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import torch
from torch import Tensor, nn

from whence.audit import UserModel
from whence.data import LabelledData
from whence.errors import ConfigError, DataError
from whence.features import read_tensors

__all__ = ["load_user_model"]


def load_user_model(spec: str, weights: Path | None, data: LabelledData) -> UserModel:
    """Call ``FUNC(data)`` of the user's file and load weights into the model that it returns.

    FUNC returns a trained ``nn.Module``, or a pair (module, inputs) with inputs [N, ...] in the order of
    ``data.ids``. Without inputs, images come as floats in [0, 1] [N, C, H, W] and tables as a float matrix with
    categories as codes.

    Raises:
        ConfigError: The file, the function, its result or the weights do not fit.
    """
    path, _, name = spec.rpartition(":")
    if not path or not name:
        raise ConfigError(f"--model must be FILE.py:FUNC, got {spec!r}.")
    result = _call(Path(path), name, data)
    model, inputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} in {path} must return a torch.nn.Module, got {type(model).__name__}.")
    if weights is not None:
        _load_weights(model, weights)
    return UserModel(model=model.eval(), inputs=_inputs(data) if inputs is None else inputs, name=name)


def _call(path: Path, name: str, data: LabelledData) -> Any:
    """Import the user's file and call the function."""
    if not path.is_file():
        raise ConfigError(f"--model must name an existing Python file, got {str(path)!r}.")
    found = importlib.util.spec_from_file_location(f"whence_user_{path.stem}", path)
    if found is None or found.loader is None:
        raise ConfigError(f"--model must name a Python file that ends in .py, got {str(path)!r}.")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        found.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            raise ConfigError(f"{path} must define a function {name!r}. It is called with the data.")
        return function(data)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}:{name} must run without an error, got {type(error).__name__}: {error}.") from error


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load safetensors, or a checkpoint with ``weights_only``."""
    if not path.is_file():
        raise ConfigError(f"--weights must name an existing file, got {str(path)!r}.")
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
