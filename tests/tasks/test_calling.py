"""What a user's model, outputs and loss are called with, torch's own losses, and what is said where they fail."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import whence as wh
from whence.data import as_examples
from whence.errors import ConfigError, DataError
from whence.tasks import CrossEntropy, MeanSquaredError, Task

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 1, 0])
BATCH = as_examples(({"x": X}, Y)).batch(np.arange(4))
PLAIN = as_examples((X, Y)).batch(np.arange(4))


class Named(nn.Module):
    """Takes its input by name and gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return OrderedDict(loss=None, logits=self.inner(x))


def test_a_dict_with_logits_is_as_good_as_an_object() -> None:
    model = Named()
    torch.testing.assert_close(Task(model).forward(BATCH), model.inner(X))
    assert wh.Influence().fit(Task(model), {"x": X, "labels": Y}).scores({"x": X, "labels": Y}).values.shape == (4, 4)


def test_outputs_of_dict_inputs() -> None:
    model = Named()
    task = Task(model, outputs=lambda model, batch: model(batch.inputs["x"])["logits"])
    torch.testing.assert_close(task.forward(BATCH), model.inner(X))


HELD = r"The batch has batch.inputs \{'x': \[4, 3\] float32\}, batch.targets \[4\] int64 and batch.ids"
OUTPUTS: dict[str, tuple[Any, str]] = {
    "unpacked": (lambda model, batch: model(**batch), rf"Task\(outputs=...\) must run.*TypeError.*{HELD}.*\*\*batch"),
    "a key": (lambda model, batch: model(batch["x"]), f"TypeError.*{HELD}"),
    "another key": (lambda model, batch: model(batch.inputs["input_ids"]), f"KeyError: 'input_ids'.*{HELD}"),
    "no such field": (lambda model, batch: model(batch.x), f"AttributeError.*{HELD}"),
    "no tensor": (lambda model, batch: model(**batch.inputs), r"must return a tensor of logits.*got OrderedDict"),
}


@pytest.mark.parametrize("outputs, match", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_fail_are_told_what_a_batch_is(outputs: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Task(Named(), outputs=outputs).forward(BATCH)


def test_inputs_that_do_not_fit_the_model() -> None:
    with pytest.raises(ConfigError, match=r"the model must run.*shapes cannot be multiplied.*batch.inputs \[\d, 3\]"):
        wh.Influence().fit(Task(nn.Linear(5, 2)), (X, Y))
    attribution = wh.Influence().fit(Task(nn.Linear(3, 2)), (X, Y))
    with pytest.raises(ConfigError, match=r"shapes cannot be multiplied.*batch.inputs \[\d, 2\]"):
        attribution.scores((X[:, :2], Y))
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'z'.*Rename or drop inputs"):
        wh.Influence().fit(Task(Named()), {"x": X, "z": X, "y": Y})
    with pytest.raises(ConfigError, match="IndexError"):
        wh.Influence().fit(Task(nn.Sequential(nn.Embedding(2, 3), nn.Flatten(), nn.Linear(9, 2))), (X.long(), Y))


def test_errors_of_memory_and_of_whence_stay_what_they_are() -> None:
    def failing(error: BaseException) -> Callable[..., Tensor]:
        def outputs(model: nn.Module, batch: Any) -> Tensor:
            raise error

        return outputs

    for error in (torch.OutOfMemoryError("CUDA out of memory"), DataError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            Task(Named(), outputs=failing(error)).forward(BATCH)


TAKEN: dict[str, tuple[Any, Any]] = {
    "F.cross_entropy": (F.cross_entropy, CrossEntropy()),
    "F.mse_loss": (F.mse_loss, MeanSquaredError()),
    "nn.CrossEntropyLoss": (nn.CrossEntropyLoss(ignore_index=0), CrossEntropy(ignore_index=0)),
    "nn.MSELoss": (nn.MSELoss(), MeanSquaredError()),
}


@pytest.mark.parametrize("given, named", TAKEN.values(), ids=TAKEN)
def test_losses_of_torch_that_have_a_name(given: Any, named: Any) -> None:
    task = Task(nn.Linear(3, 2), given, measurement=given)
    assert task.loss == named and task.measurement == named
    outputs = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 1, 1, 1, 1, 1]) if isinstance(named, CrossEntropy) else outputs.flip(0)
    torch.testing.assert_close(named(outputs, targets).mean(), given(outputs, targets))  # J is the mean loss


OTHER: dict[str, tuple[Any, str]] = {
    "binary": (F.binary_cross_entropy_with_logits, 'Say "binary_cross_entropy", the sum over the outputs'),
    "binary module": (nn.BCEWithLogitsLoss(), 'Say "binary_cross_entropy"'),
    "absolute": (F.l1_loss, r"got torch.nn.functional.l1_loss, which takes \(outputs, targets\). Pass lambda model, b"),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), "got CrossEntropyLoss.*no such settings"),
    "weights": (nn.CrossEntropyLoss(weight=torch.ones(2)), "no such settings"),
    "sum": (nn.MSELoss(reduction="sum"), "no such settings"),
}


@pytest.mark.parametrize("given, match", OTHER.values(), ids=OTHER)
def test_losses_of_torch_that_have_none(given: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Task(nn.Linear(3, 2), given)


def test_a_loss_of_outputs_and_targets_is_told_what_it_is_given() -> None:
    def mine(outputs: Any, targets: Any) -> Tensor:
        return F.nll_loss(outputs.log_softmax(1), targets, reduction="none")

    with pytest.raises(ConfigError, match=r"the loss must run on the batch it is given, got AttributeError.*inputs"):
        Task(nn.Linear(3, 2), mine).losses(PLAIN)


@pytest.mark.parametrize(
    "model, targets, match",
    [
        (nn.Linear(3, 1), Y, r'0\.\.0 .*For one logit use loss="binary_cross_entropy"'),
        (nn.Linear(3, 2), Y + 1, "got 2. Labels start at 0: subtract 1"),
        (nn.Linear(3, 2), Y - 1, r"got -1\.$"),
    ],
)
def test_labels_that_do_not_fit(model: nn.Module, targets: Tensor, match: str) -> None:
    with pytest.raises(DataError, match=match):
        wh.Influence().fit(Task(model), (X, targets))


def test_a_regression_has_no_label_errors() -> None:
    attribution = wh.Influence(curvature=wh.Exact()).fit(Task(nn.Linear(3, 1), "mse", weight_decay=0.1), (X, Y / 2))
    with pytest.raises(DataError, match=r"regression has no label errors in this sense: look at.*self_scores\(\)"):
        wh.find_label_errors(attribution)


def test_padding_changes_no_sampled_label() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, draws = torch.randn(5, 4, 3, generator=generator), torch.rand(5, 4, generator=generator)
    targets = torch.zeros(5, 4, dtype=torch.int64)
    wanted = CrossEntropy().sample(outputs, targets, draws)
    rest, ignored = torch.randn(5, 2, 3, generator=generator), torch.full((5, 2), -100)
    more = torch.cat([draws, torch.rand(5, 2, generator=generator)], 1)
    right = CrossEntropy().sample(torch.cat([outputs, rest], 1), torch.cat([targets, ignored], 1), more)
    left = CrossEntropy().sample(torch.cat([rest, outputs], 1), torch.cat([ignored, targets], 1), more)
    for found, kept in ((right, slice(0, 4)), (left, slice(2, 6))):
        torch.testing.assert_close(found[:, kept], wanted)
        assert float(found.abs().sum()) == pytest.approx(float(wanted.abs().sum()))
