"""Influence of sentences on word vectors: against dense autograd, where it is exact, and for any measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from word_texts import double, mean_loss, pair_loss, small_corpus

import whence as wh
from whence.data import Batch
from whence.tasks.words import NegativeSampling

WIDTH = 3


@pytest.fixture(scope="module")
def words() -> wh.WordEmbedding:
    return double(wh.train_words(small_corpus(count=25, min_count=3), width=WIDTH, epochs=30))


def pair(words: wh.WordEmbedding) -> wh.WordSimilarity:
    return wh.WordSimilarity(*words.vocabulary.words[2:4])


def dense_gradients(words: wh.WordEmbedding) -> Tensor:
    """Return ∇ℓ_i [N, 2·V·d] by plain autograd, pair by pair."""
    assert words.corpus is not None
    rows = []
    for row in range(len(words.corpus)):
        tables = [t.weight.detach().clone().requires_grad_() for t in (words.model.inputs, words.model.outputs)]
        found = torch.autograd.grad(pair_loss(words.corpus, row, *tables), tables)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in found]))
    return torch.stack(rows)


def measured(words: wh.WordEmbedding, measurement: wh.WordSimilarity) -> Tensor:
    """Return the gradient of a cosine [2·V·d], written out."""
    table = words.model.inputs.weight.detach().clone().requires_grad_()
    a, b = (table[words.vocabulary.words.index(word)] for word in (measurement.word, measurement.other))
    (gradient,) = torch.autograd.grad((a @ b) / (a @ a).sqrt() / (b @ b).sqrt(), table)
    return torch.cat([gradient.reshape(-1), torch.zeros_like(gradient).reshape(-1)])


def fitted(words: wh.WordEmbedding, curvature: object, measurement: object, **settings: object) -> wh.Scores:
    assert words.corpus is not None
    config = wh.Influence(curvature=curvature, **settings)  # type: ignore[arg-type]
    return config.fit(words.task(measurement), words.corpus.examples).scores()


def close(found: Tensor, true: Tensor, tolerance: float = 1e-9) -> None:
    assert float((found - true).norm()) <= tolerance * float(true.norm())


def test_plain_scores_are_dot_products_of_dense_gradients(words: wh.WordEmbedding) -> None:
    true = dense_gradients(words) @ measured(words, pair(words)) / len(words.corpus or ())
    close(fitted(words, wh.Identity(), pair(words)).values[0], true)


def row_block(words: wh.WordEmbedding, row: int, first: bool) -> Tensor:
    """Return the Hessian of the mean loss in one row of one table, by differentiating twice."""
    assert words.corpus is not None
    tables = [words.model.inputs.weight.detach(), words.model.outputs.weight.detach()]
    own = 0 if first else 1

    def value(vector: Tensor) -> Tensor:
        changed = [t.clone() for t in tables]
        changed[own][row] = vector
        return mean_loss(words.corpus, *changed)  # type: ignore[arg-type]

    hessian: Tensor = torch.autograd.functional.hessian(value, tables[own][row].clone())
    return hessian


@pytest.mark.parametrize("first", [True, False])
def test_row_blocks_are_the_hessians_blocks(words: wh.WordEmbedding, first: bool) -> None:
    @dataclass(frozen=True)
    class Entry:
        row: int

        def __call__(self, model: nn.Module) -> Tensor:
            table = model.inputs if first else model.outputs
            weight = table.weight
            assert isinstance(weight, Tensor)
            return (weight[self.row] * torch.arange(1.0, WIDTH + 1, dtype=weight.dtype)).sum()

    assert words.corpus is not None and words.training is not None
    gradients = dense_gradients(words).reshape(len(words.corpus), 2, -1, WIDTH)
    for row in (0, 7):
        damping = 0.01
        shift = damping + words.training.total_decay / len(words.corpus)
        block = row_block(words, row, first) + shift * torch.eye(WIDTH, dtype=torch.float64)
        right = torch.linalg.solve(block, torch.arange(1.0, WIDTH + 1, dtype=torch.float64))
        true = gradients[:, 0 if first else 1, row] @ right / len(words.corpus)
        close(fitted(words, wh.RowBlocks(damping=damping), Entry(row)).values[0], true)


def test_relative_damping_is_to_each_rows_own_mean(words: wh.WordEmbedding) -> None:
    one, two = pair(words).word, pair(words).other
    gradients = dense_gradients(words).reshape(len(words.corpus or ()), 2, -1, WIDTH)
    right = measured(words, pair(words)).reshape(2, -1, WIDTH)
    assert words.corpus is not None and words.training is not None
    true = torch.zeros(len(words.corpus), dtype=torch.float64)
    for word in (one, two):
        row = words.vocabulary.position(word)
        block = row_block(words, row, True)
        shift = 0.3 * block.diagonal().mean() + words.training.total_decay / len(words.corpus)
        block += shift * torch.eye(WIDTH, dtype=torch.float64)
        true += gradients[:, 0, row] @ torch.linalg.solve(block, right[0, row]) / len(words.corpus)
    close(fitted(words, wh.RowBlocks(damping=wh.Relative(0.3)), pair(words)).values[0], true)


@pytest.mark.parametrize("curvature", [wh.RowBlocks(), wh.KFAC(fisher="sampled"), wh.Identity()])
def test_batches_and_order_do_not_change_scores(words: wh.WordEmbedding, curvature: object) -> None:
    assert words.corpus is not None
    examples = words.corpus.examples
    true = fitted(words, curvature, pair(words)).values[0]
    for size in (1, 7, len(examples)):
        close(fitted(words, curvature, pair(words), batch_size=size).values[0], true)
    order = np.random.default_rng(0).permutation(len(examples))
    task = words.task(pair(words))
    config = wh.Influence(curvature=curvature)  # type: ignore[arg-type]
    shuffled = config.fit(task, examples.select(order)).scores()
    assert shuffled.ids.tolist() == examples.ids[order].tolist()
    close(shuffled.values[0], true[order])


def test_row_blocks_are_exact_where_the_other_table_is_held(words: wh.WordEmbedding) -> None:
    """The change of a row's minimum as an example's weight falls, found by minimising again, is the score."""
    assert words.corpus is not None and words.training is not None
    corpus, row = words.corpus, 9
    outputs = words.model.outputs.weight.detach()
    decay = words.training.total_decay / len(corpus)
    holds = [i for i in range(len(corpus)) if row in corpus.words[slice(*corpus.spans[i])]]

    def minimum(weights: Tensor, start: Tensor) -> Tensor:
        vector = start.clone()
        table = words.model.inputs.weight.detach()

        def value(x: Tensor) -> Tensor:
            changed = torch.cat([table[:row], x[None], table[row + 1 :]])
            parts = torch.stack([pair_loss(corpus, i, changed, outputs) for i in holds])
            return (parts * weights[holds]).sum() / len(corpus) + decay / 2 * x @ x

        for _ in range(8):
            x = vector.clone().requires_grad_()
            (slope,) = torch.autograd.grad(value(x), x)
            vector = vector - torch.linalg.solve(torch.autograd.functional.hessian(value, vector), slope)
        return vector

    ones = torch.ones(len(corpus), dtype=torch.float64)
    best = minimum(ones, words.model.inputs.weight.detach()[row])
    with torch.no_grad():
        settled = replace(words, model=double_copy(words.model))
        settled.model.inputs.weight[row] = best
    asked = wh.WordSimilarity(words.vocabulary.words[row], words.vocabulary.words[5])

    @dataclass(frozen=True)
    class Held:
        """The cosine as a function of one row alone."""

        def __call__(self, model: wh.SkipGram) -> Tensor:
            other = settled.model.inputs.weight[5].detach()
            return torch.cosine_similarity(model.inputs.weight[row], other, dim=0)

    scores = fitted(settled, wh.RowBlocks(damping=0.0), Held()).values[0]
    step = 1e-4
    for example in holds[:3]:
        weights = ones.clone()
        weights[example] -= step
        moved = minimum(weights, best)
        other = settled.model.inputs.weight[5].detach()
        change = torch.cosine_similarity(moved, other, dim=0) - torch.cosine_similarity(best, other, dim=0)
        assert float(change) / step == pytest.approx(float(scores[example]), rel=2e-3, abs=1e-6), asked.name


def double_copy(model: wh.SkipGram) -> wh.SkipGram:
    made = wh.SkipGram(model.vocabulary, width=model.width, window=model.window).double()
    made.load_state_dict(model.state_dict())
    return made


def gauss_newton(words: wh.WordEmbedding) -> Tensor:
    """Return the Gauss–Newton matrix [P, P] over both tables, parameter by parameter as they lie, pair by pair."""
    assert words.corpus is not None
    corpus, (inputs, outputs) = words.corpus, (words.model.inputs.weight.detach(), words.model.outputs.weight.detach())
    count = inputs.numel()
    total = torch.zeros(2 * count, 2 * count, dtype=torch.float64)

    def add(a: int, b: int, weight: float) -> None:
        p = torch.sigmoid(inputs[a] @ outputs[b])
        slope = torch.zeros(2 * count, dtype=torch.float64)
        slope[a * WIDTH : (a + 1) * WIDTH] = outputs[b]
        slope[count + b * WIDTH : count + (b + 1) * WIDTH] = inputs[a]
        total.addr_(slope, slope, alpha=float(weight * p * (1 - p)) / len(corpus))

    for i in range(len(corpus)):
        run = corpus.words[slice(*corpus.spans[i].tolist())].tolist()
        noise = corpus.noise(np.array([i]), -(-len(run) // 32))[0]
        for place, word in enumerate(run):
            near = [*run[max(0, place - corpus.window) : place], *run[place + 1 : place + corpus.window + 1]]
            for other in near:
                add(word, other, 1.0)
            for other in noise[place // 32].tolist():
                add(word, other, len(near) * corpus.negatives / corpus.pool)
    return total


def test_cg_solves_with_the_gauss_newton_matrix_whose_input_blocks_row_blocks_are() -> None:
    """KFAC is farther from it: the ordering law."""
    words = double(wh.train_words(small_corpus(count=20), width=WIDTH, epochs=20))
    assert words.corpus is not None and words.training is not None
    matrix = gauss_newton(words)
    matrix += (0.05 + words.training.total_decay / len(words.corpus)) * torch.eye(len(matrix), dtype=torch.float64)
    gradients, right = dense_gradients(words) / len(words.corpus), measured(words, pair(words))
    whole = gradients @ torch.linalg.solve(matrix, right)
    close(fitted(words, wh.CG(damping=0.05, tolerance=1e-10), pair(words)).values[0], whole, 1e-6)
    count = len(matrix) // 2
    true = gradients[:, :count] @ torch.linalg.solve(matrix[:count, :count], right[:count])
    close(fitted(words, wh.RowBlocks(damping=0.05), pair(words)).values[0], true)
    kfac = fitted(words, wh.KFAC(damping=0.05, fisher="sampled", split=False), pair(words)).values[0]
    assert float((kfac - true).norm()) > 0.01 * float(true.norm())


def test_a_measurement_equal_to_the_loss_is_ordinary_influence(words: wh.WordEmbedding) -> None:
    assert words.corpus is not None
    examples, loss = words.corpus.examples, NegativeSampling()

    def own(model: nn.Module, batch: Batch) -> Tensor:
        assert batch.targets is not None
        return loss(model(*batch.inputs), batch.targets)

    def of_the_model(model: nn.Module) -> Tensor:
        batch = asked.batch(np.arange(len(asked))).to(dtype=torch.float64)
        return own(model, batch).mean()

    asked = examples.select(np.array([3, 11, 4]))
    curvature = wh.KFAC(fisher="sampled")
    plain = wh.Influence(curvature=curvature).fit(words.task(), examples).scores(asked)
    crossed = wh.Influence(curvature=curvature).fit(words.task(own), examples).scores(asked)
    close(crossed.values, plain.values)
    alone = wh.Influence(curvature=curvature).fit(words.task(of_the_model), examples).scores()
    close(alone.values[0], plain.values.mean(0))
    assert plain.unit == "nats"


def test_self_scores_and_saving_with_row_blocks(words: wh.WordEmbedding, tmp_path: object) -> None:
    assert words.corpus is not None
    attribution = wh.Influence(curvature=wh.RowBlocks(damping=0.1)).fit(words.task(), words.corpus.examples)
    own = attribution.self_scores().values
    queries = words.corpus.examples.select(np.arange(5))
    assert np.allclose(attribution.scores(queries).values.diagonal().numpy(), own[:5], rtol=1e-9)
    asked = wh.Influence(curvature=wh.RowBlocks()).fit(words.task(pair(words)), words.corpus.examples)
    asked.save(str(tmp_path))
    loaded = wh.load(str(tmp_path), words.task(pair(words)), words.corpus.examples)
    assert loaded.config.curvature == asked.config.curvature
    close(loaded.scores().values, asked.scores().values)


def test_row_blocks_refuse_what_they_cannot_do(words: wh.WordEmbedding) -> None:
    plain = wh.Task(nn.Linear(2, 2))
    with pytest.raises(wh.ConfigError, match="two tables"):
        wh.Influence(curvature=wh.RowBlocks()).fit(plain, (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(wh.ConfigError, match="damping"):
        wh.RowBlocks(damping=-1.0)


def test_retraining_answers_for_the_model_alone(words: wh.WordEmbedding) -> None:
    """Leaving a word's own sentences out through `Retraining` moves it as `train_words` does."""
    assert words.corpus is not None and words.training is not None
    trained = wh.train_words(words.corpus, width=WIDTH, epochs=2)
    asked = pair(words)
    retraining = wh.Retraining(recipe=trained.recipe(), seeds=(0,), measurement=asked)
    ids = words.corpus.ids[[2, 9]]
    found = retraining.measure(words.corpus.examples, None, [[], list(ids)])
    without = wh.train_words(words.corpus, width=WIDTH, epochs=2, exclude=ids)
    true = asked(without.model) - asked(trained.model)
    assert float(found[1].reshape(()) - found[0].reshape(())) == pytest.approx(true.item(), abs=1e-6)


def test_the_model_comes_back_as_it_was(words: wh.WordEmbedding) -> None:
    before = {name: value.clone() for name, value in words.model.state_dict().items()}
    fitted(words, wh.RowBlocks(), pair(words))
    assert all(torch.equal(before[name], value) for name, value in words.model.state_dict().items())
    assert all(p.grad is None for p in words.model.parameters())
