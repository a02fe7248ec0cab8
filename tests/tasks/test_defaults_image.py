"""The embedded default for images: preparation, network, augmentation, training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from whence.data import LabelledData, as_examples, read
from whence.errors import DataError, RunFormatError
from whence.gradients import find_layers
from whence.tasks.defaults.image import ImagePreparation, _pace, image_default
from whence.tasks.defaults.image_network import ShiftAndFlip, image_network, network_config, whitening_filters

DATA = Path(__file__).parents[2] / "examples" / "data"


def images_of(height: int, width: int, channels: int, rows: int = 24, classes: int = 2, seed: int = 0) -> LabelledData:
    """Noise images whose brightness tells the class, for shapes only."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    pixels = (
        generator.integers(0, 120, (rows, height, width, channels)) + (labels * 120 // classes)[:, None, None, None]
    )
    return LabelledData(
        ids=np.arange(rows).astype(str),
        kind="image",
        content=pixels.astype(np.uint8),
        labels=labels,
        classes=tuple(str(c) for c in range(classes)),
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((28, 28, 1), (28, 28)),
        ((8, 8, 1), (8, 8)),
        ((5, 6, 3), (8, 8)),
        ((200, 100, 3), (64, 32)),
        ((300, 20, 1), (64, 8)),
    ],
)
def test_every_size_is_brought_to_one_that_the_network_takes(
    shape: tuple[int, int, int], expected: tuple[int, int]
) -> None:
    data = images_of(*shape)
    default = image_default(data)
    inputs = default.preparation.transform(data)
    assert inputs.shape == (24, shape[2], *expected) and inputs.dtype == torch.float32
    assert torch.allclose(inputs.mean((0, 2, 3)), torch.zeros(shape[2]), atol=1e-3)
    assert torch.allclose(inputs.std((0, 2, 3)), torch.ones(shape[2]), atol=1e-2)
    model = default.recipe.train(as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids))
    assert model(inputs).shape == (24, 2)
    assert find_layers(model).share == 1.0


def test_preparation_and_network_survive_json_and_tensors() -> None:
    data = images_of(20, 12, 3)
    default = image_default(data, seed=3)
    settings, tensors = default.preparation.state()
    restored = ImagePreparation.from_state(json.loads(json.dumps(settings)), {k: v.clone() for k, v in tensors.items()})
    inputs = default.preparation.transform(data)
    assert torch.equal(restored.transform(data), inputs)
    model = default.recipe.train(as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids))
    rebuilt = image_network(json.loads(json.dumps(default.network)))
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt.eval()(inputs), model(inputs))
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_other_sizes_of_image_are_brought_to_the_fitted_size() -> None:
    preparation = ImagePreparation.fit(images_of(32, 32, 3).content)
    assert preparation.transform(images_of(48, 30, 3)).shape == (24, 3, 32, 32)


def test_seeds_repeat_and_leave_the_global_generator_alone() -> None:
    data = images_of(16, 16, 1, rows=40)
    before = torch.get_rng_state()
    states = []
    for seed in (1, 1, 2):
        default = image_default(data, seed=seed)
        examples = as_examples((default.preparation.transform(data), torch.from_numpy(data.labels)), ids=data.ids)
        states.append(default.recipe.train(examples, seed=seed).state_dict())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["linear.weight"], states[2]["linear.weight"])


def test_outputs_of_a_row_do_not_depend_on_its_batch() -> None:
    data = images_of(32, 32, 3)
    default = image_default(data)
    inputs = default.preparation.transform(data)
    model = default.recipe.train(as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids)).double()
    together = model(inputs.double())
    alone = torch.cat([model(row[None]) for row in inputs.double()])
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-9)


def test_learns_fashion_from_a_thousand_rows_and_the_refit_starts_from_it() -> None:
    data = read(DATA / "fashion_mnist_1000.npz")
    rows = np.random.default_rng(0).permutation(len(data))
    train, test = data.rows(rows[:800]), data.rows(rows[800:])
    default = image_default(train)
    examples = as_examples((default.preparation.transform(train), torch.from_numpy(train.labels)), ids=train.ids)
    model = default.recipe.train(examples)
    inputs = default.preparation.transform(test)
    accuracy = (model(inputs).argmax(1).numpy() == test.labels).mean()
    assert accuracy > 0.72
    assert default.refit is not None and default.refit.epochs < default.recipe.epochs
    again = default.refit.train(examples, start=model, seed=1)
    assert (again(inputs).argmax(1).numpy() == test.labels).mean() > 0.72


def test_a_shift_moves_and_a_flip_mirrors() -> None:
    images = torch.arange(2 * 3 * 5 * 6, dtype=torch.float32).reshape(2, 3, 5, 6)
    still = ShiftAndFlip(shift=0, flip=False)(images, torch.Generator().manual_seed(0))
    assert torch.equal(still, images)
    many = images[:1].expand(64, -1, -1, -1)
    mirrored = ShiftAndFlip(shift=0, flip=True)(many, torch.Generator().manual_seed(0))
    kinds = [torch.equal(row, images[0]) or 2 * torch.equal(row, images[0].flip(2)) for row in mirrored]
    assert set(kinds) == {1, 2}
    moved = ShiftAndFlip(shift=1, flip=False)(many, torch.Generator().manual_seed(0))
    corners = {row[0, 2, 2].item() for row in moved}
    assert corners == {images[0, 0, 2 + dy, 2 + dx].item() for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


def test_whitening_filters_whiten() -> None:
    images = torch.randn(500, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(3)
    images = (images - images.mean()) / images.std()
    filters = whitening_filters(images, 4, torch.Generator().manual_seed(1))
    assert filters.shape == (48, 3, 4, 4)
    answers = torch.nn.functional.conv2d(images, filters[:5], stride=3).permute(1, 0, 2, 3).flatten(1)  # [5, patches]
    second = answers @ answers.T / answers.shape[1]
    assert torch.allclose(second, torch.eye(5), atol=0.12)


def test_pace_shrinks_epochs_with_rows() -> None:
    epochs = [_pace(rows)[0] for rows in (2, 200, 1_000, 10_000, 60_000, 10_000_000)]
    assert epochs == [20, 15, 8, 8, 4, 2]
    for rows in (2, 17, 129, 1_000, 10_001):
        size = _pace(rows)[1]
        assert size <= 128 and (rows % size == 0 or rows % size >= size // 4)


def test_two_rows_and_many_classes_train() -> None:
    for data in (images_of(9, 9, 1, rows=2), images_of(8, 8, 3, rows=400, classes=200)):
        default = image_default(data)
        inputs = default.preparation.transform(data)
        model = default.recipe.train(as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids))
        assert torch.isfinite(model(inputs)).all()


def test_constant_images_do_not_divide_by_zero() -> None:
    data = images_of(10, 10, 1)
    content = np.full_like(data.content, 7)
    preparation = ImagePreparation.fit(content)
    assert preparation.scale.tolist() == [1.0]


def test_wrong_data_is_refused_with_a_remedy() -> None:
    preparation = ImagePreparation.fit(images_of(16, 16, 3).content)
    with pytest.raises(DataError, match="3 channels, got 1 channels"):
        preparation.transform(images_of(16, 16, 1))
    texts = LabelledData(
        ids=np.array(["a", "b"]), kind="text", content=["x", "y"], labels=np.array([0, 1]), classes=("n", "y")
    )
    with pytest.raises(DataError, match="got text data"):
        image_default(texts)
    with pytest.raises(RunFormatError, match="damaged"):
        ImagePreparation.from_state({"height": 8}, {})
    for broken in ({}, {**network_config(channels=1, classes=2, side=28), "kernel": "4"}):
        with pytest.raises(RunFormatError, match="audit again"):
            image_network(broken)
