"""Every kind of layer in a small net, in every configuration: a new kind is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Case

Build = Callable[[bool], nn.Module]
Draw = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Row:
    """A module, what it is called with, and which axis of its output is positions."""

    build: Build
    draw: Draw
    axis: int | None = 1
    biased: bool = True  # whether there is a bias to leave out


class Harness(nn.Module):
    """Reads logits off a layer's output; calls it twice ("shared") or looks at some positions only ("padded")."""

    def __init__(self, layer: nn.Module, mode: str, axis: int | None) -> None:
        super().__init__()
        self.layer, self.mode, self.axis = layer, mode, axis
        self.register_buffer("read", torch.empty(0))

    def forward(self, *inputs: Tensor) -> Tensor:
        lengths, inputs = inputs[-1], inputs[:-1]
        if self.mode == "shared":
            half = len(inputs) // 2
            y = torch.tanh(self.layer(*inputs[:half])) + 0.7 * torch.sigmoid(self.layer(*inputs[half:]))
        else:
            y = torch.tanh(self.layer(*inputs))
        if self.mode == "padded":
            assert self.axis is not None
            place = torch.arange(y.shape[self.axis]).reshape([-1 if i == self.axis else 1 for i in range(y.ndim)])
            y = y * (place < lengths.reshape(-1, *[1] * (y.ndim - 1)))
        y = y.flatten(1)
        if self.read.numel() == 0:
            self.read = torch.randn(y.shape[1], 3, dtype=y.dtype) / y.shape[1] ** 0.5
        return y @ self.read


def floats(*shape: int) -> Draw:
    return lambda n: (torch.randn(n, *shape),)


def integers(high: int, *shape: int) -> Draw:
    return lambda n: (torch.randint(0, high, (n, *shape)),)


def together(*draws: Draw) -> Draw:
    return lambda n: tuple(x for draw in draws for x in draw(n))


class LlamaNorm(nn.Module):
    """The form that is common to Llama's and T5's code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-5

    def forward(self, hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))


class GemmaNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class Softened(nn.Module):
    """Looks like a norm, but is not linear in its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(self.weight)


class Conv1D(nn.Module):
    """Hugging Face's linear layer with a transposed weight."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.5)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Attend(nn.Module):
    """Attention with the batch first outside, whatever it is inside."""

    def __init__(self, call: dict[str, Any] | None = None, pad: bool = False, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **settings)
        self.call, self.pad = call or {}, pad

    def forward(self, query: Tensor, *others: Tensor) -> Tensor:
        key, value = (others * 2)[:2] if others else (query, query)
        mask = None
        if self.pad:
            mask = torch.zeros(key.shape[:2], dtype=torch.bool)
            mask[:, -1] = key[:, 0, 0] > 0
        if not self.attention.batch_first:
            same = query is key
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
            key, value = (query, query) if same else (key, value)
        y, weights = self.attention(query, key, value, key_padding_mask=mask, **self.call)
        y = y if self.attention.batch_first else y.transpose(0, 1)
        if weights is None:
            return y
        return y + (weights[:, 0] if weights.ndim == 4 else weights)[..., :1]


class Recur(nn.Module):
    """A recurrent module with the batch first outside; its last state is read too."""

    def __init__(self, kind: type[nn.RNNBase], packed: bool = False, first: bool = False, **settings: Any) -> None:
        super().__init__()
        self.packed, self.first = packed, first
        self.recurrent = kind(3, 2, **settings)

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        batch_first = self.recurrent.batch_first
        states: Any = None
        if self.first:
            count = self.recurrent.num_layers * (2 if self.recurrent.bidirectional else 1)
            start = x[:, 0, :1].expand(count, -1, 2).contiguous()
            states = (start, 0.5 * start) if isinstance(self.recurrent, nn.LSTM) else start
        inputs: Any = x if batch_first else x.transpose(0, 1)
        if self.packed:
            inputs = nn.utils.rnn.pack_padded_sequence(inputs, given[0], batch_first, enforce_sorted=False)
        y, last = self.recurrent(inputs, states)
        if self.packed:
            y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first, total_length=x.shape[1])
        y = y if batch_first else y.transpose(0, 1)
        ends = last if isinstance(last, tuple) else (last,)
        return y + sum(end.sum((0, 2))[:, None, None] for end in ends)


class Cells(nn.Module):
    def __init__(self, kind: type[nn.RNNCellBase], bias: bool) -> None:
        super().__init__()
        self.cell = kind(3, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        outputs = []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


class Bags(nn.Module):
    """Bags given by offsets, made from rows whose zeros are not there."""

    def __init__(self, last: bool, **settings: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 4, include_last_offset=last, **settings)

    def forward(self, index: Tensor) -> Tensor:
        present = index > 1
        lengths = present.sum(1)
        ends = lengths.cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        return self.bag(index[present], offsets if self.bag.include_last_offset else offsets[:-1])


class Plain(nn.Module):
    """Parameters of the module itself, beside a layer."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(6, 4))
        self.last = nn.Linear(4, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(torch.cat([self.token.expand(len(x), 1, 4), x], 1) + self.places))


class Overridden(nn.Linear):
    """A linear layer that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.square(), self.bias)


class Tied(nn.Module):
    """An output layer that shares the embedding's table; gradients of both uses add up."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(5, 4, padding_idx=1), nn.Linear(4, 5, bias=bias)
        self.last.weight = self.table.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(index)))


class Siblings(nn.Module):
    """Two linear layers of one weight and two biases, and a third that shares a bias."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4, bias=bias), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.third.bias = self.second.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Embedding(5, 4), nn.Embedding(5, 4)
        self.other.weight = self.one.weight

    def forward(self, index: Tensor) -> Tensor:
        return torch.tanh(self.one(index)) * self.other(index.flip(1))


class Registered(nn.Module):
    """A layer's weight is registered once more and used as a plain parameter."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=bias)
        self.again = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) @ self.again


class Folded(nn.Module):
    """Folds positions into the batch before its layers."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.table, self.norm, self.last = nn.Embedding(6, 4), nn.LayerNorm(4, bias=bias), nn.Linear(4, 3, bias=bias)

    def forward(self, index: Tensor) -> Tensor:
        return self.last(self.norm(self.table(index.flatten()[:, None]))).reshape(*index.shape, 3)


class TimeFirst(nn.Module):
    """torch's transformer layers as they are by default."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, bias=bias)
        self.encoder = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(4, bias=bias), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.transpose(0, 1)).transpose(0, 1)


def _weight_norm(bias: bool) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=bias))


def _warmed(norm: nn.Module, *shape: int) -> nn.Module:
    """Return a norm after it has seen batches."""
    for _ in range(5):
        norm(torch.randn(8, *shape) * 2 + 1)
    return norm.eval()


SIZES = {1: (7,), 2: (5, 4), 3: (3, 4, 3)}


def _convolutions() -> dict[str, Row]:
    found: dict[str, Row] = {}
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    for count, sizes in SIZES.items():
        variants: dict[str, dict[str, Any]] = {
            "stride": {"stride": 2, "padding": 1},
            "dilation": {"dilation": 2, "padding": (2, 1, 2)[:count]},
            "groups": {"groups": 2},
            "depthwise": {"groups": 4, "padding": 1},
        }
        for mode in ("zeros", "reflect", "replicate", "circular"):
            variants[f"same-{mode}"] = {"padding": "same", "padding_mode": mode, "kernel_size": 3}
        for name, settings in variants.items():
            def build(bias: bool, kind: Any = kinds[count], settings: Any = settings) -> nn.Module:
                return kind(4, 4, bias=bias, **{"kernel_size": 2, **settings})
            found[f"conv{count}d-{name}"] = Row(build, floats(4, *sizes), axis=1 + count)
        for name, settings in {
            "stride": {"stride": 2, "padding": 1, "output_padding": 1},
            "dilation": {"dilation": 2},
            "groups": {"groups": 2, "stride": 2},
            "cropped": {"padding": 2},
        }.items():
            def build(bias: bool, kind: Any = transposed[count], settings: Any = settings) -> nn.Module:
                return kind(4, 2, 3, bias=bias, **settings)
            small = tuple(min(size, 3) for size in sizes)
            found[f"transposed{count}d-{name}"] = Row(build, floats(4, *small), axis=1 + count)
    return found


def _norms() -> dict[str, Row]:
    found = {
        "layer-norm": Row(lambda bias: nn.LayerNorm(4, bias=bias), floats(3, 4)),
        "layer-norm-2d": Row(lambda bias: nn.LayerNorm((3, 4), bias=bias), floats(2, 3, 4)),
        "rms-norm": Row(lambda bias: nn.RMSNorm(4, eps=1e-3), floats(3, 4), biased=False),
        "llama-norm": Row(lambda bias: LlamaNorm(4), floats(3, 4), biased=False),
        "gemma-norm": Row(lambda bias: GemmaNorm(4), floats(3, 4), biased=False),
        "not-a-norm": Row(lambda bias: Softened(4), floats(3, 4), biased=False),
        "group-norm": Row(lambda bias: nn.GroupNorm(2, 4), floats(4, 5), 2, biased=False),
        "batch-norm-flat": Row(lambda bias: _warmed(nn.BatchNorm1d(4), 4), floats(4), None, biased=False),
    }
    batch = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    instance = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    for count, sizes in SIZES.items():
        def frozen(bias: bool, kind: Any = batch[count], sizes: Any = sizes) -> nn.Module:
            return _warmed(kind(3), 3, *sizes)
        def single(bias: bool, kind: Any = instance[count]) -> nn.Module:
            return kind(3, affine=True)
        def tracked(bias: bool, kind: Any = instance[count], sizes: Any = sizes) -> nn.Module:
            return _warmed(kind(3, affine=True, track_running_stats=True), 3, *sizes)
        found[f"batch-norm-{count}d"] = Row(frozen, floats(3, *sizes), 1 + count, biased=False)
        found[f"instance-norm-{count}d"] = Row(single, floats(3, *sizes), 1 + count, biased=False)
        found[f"instance-norm-{count}d-tracked"] = Row(tracked, floats(3, *sizes), 1 + count, biased=False)
    return found


def _attention() -> dict[str, Row]:
    causal = torch.ones(3, 3).triu(1).bool()
    settings: dict[str, tuple[dict[str, Any], Draw]] = {
        "self": ({"batch_first": True}, floats(3, 4)),
        "time-first": ({}, floats(3, 4)),
        "unweighted": ({"batch_first": True, "call": {"need_weights": False}}, floats(3, 4)),
        "heads": ({"call": {"average_attn_weights": False}}, floats(3, 4)),
        "causal": ({"batch_first": True, "call": {"attn_mask": causal}}, floats(3, 4)),
        "float-mask": ({"batch_first": True, "call": {"attn_mask": 0.5 * causal.double()}}, floats(3, 4)),
        "padding": ({"batch_first": True, "pad": True, "call": {"need_weights": False}}, floats(3, 4)),
        "memory": ({"batch_first": True}, together(floats(3, 4), floats(5, 4))),
        "three": ({}, together(floats(3, 4), floats(5, 4), floats(5, 4))),
        "separate": (
            {"batch_first": True, "kdim": 3, "vdim": 2}, together(floats(3, 4), floats(5, 3), floats(5, 2))
        ),
        "appended": ({"add_bias_kv": True, "add_zero_attn": True, "pad": True}, floats(3, 4)),
    }  # fmt: skip
    found = {}
    for name, (given, draw) in settings.items():
        def build(bias: bool, given: Any = given) -> nn.Module:
            return Attend(bias=bias, **given)
        found[f"attention-{name}"] = Row(build, draw)
    return found


def _recurrent() -> dict[str, Row]:
    found = {}
    kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
    for name, kind in kinds.items():
        variants: dict[str, dict[str, Any]] = {
            "plain": {"batch_first": True},
            "deep": {"num_layers": 2, "bidirectional": True, "first": True},
            "packed": {"bidirectional": True, "packed": True, "first": True},
        }
        if name == "lstm":
            variants["projected"] = {"proj_size": 1, "num_layers": 2, "batch_first": True}
        if name == "rnn":
            variants["relu"] = {"nonlinearity": "relu", "batch_first": True}
        for variant, given in variants.items():
            def build(bias: bool, kind: Any = kind, given: Any = given) -> nn.Module:
                return Recur(kind, bias=bias, **given)
            lengths: Draw = lambda n: (torch.arange(n) % 4 + 1,)  # noqa: E731
            draw = together(floats(4, 3), lengths) if variant == "packed" else floats(4, 3)
            found[f"{name}-{variant}"] = Row(build, draw)
    for name, cell in {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}.items():
        def make(bias: bool, cell: Any = cell) -> nn.Module:
            return Cells(cell, bias)
        found[f"{name}-cell"] = Row(make, floats(3, 3))
    return found


def _bags() -> dict[str, Row]:
    weighted = together(integers(6, 5), lambda n: (torch.rand(n, 5) + 0.5,))
    rows = {mode: Row(lambda bias, mode=mode: nn.EmbeddingBag(6, 4, mode=mode, padding_idx=2), integers(6, 5), None)
            for mode in ("sum", "mean", "max")}  # fmt: skip
    for mode in ("sum", "mean", "max"):
        rows[f"{mode}-offsets"] = Row(lambda bias, mode=mode: Bags(False, mode=mode), integers(6, 5), None)
    rows["last-offset"] = Row(lambda bias: Bags(True, mode="mean", padding_idx=3), integers(6, 5), None)
    rows["weights"] = Row(lambda bias: Weighted(), weighted, None)
    return {f"bag-{name}": Row(row.build, row.draw, row.axis, biased=False) for name, row in rows.items()}


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 4, mode="sum", padding_idx=2)

    def forward(self, index: Tensor, weights: Tensor) -> Tensor:
        return self.bag(index, per_sample_weights=weights)


ROWS: dict[str, Row] = {
    "linear": Row(lambda bias: nn.Linear(4, 3, bias=bias), floats(3, 4)),
    "linear-flat": Row(lambda bias: nn.Linear(4, 3, bias=bias), floats(4), None),
    "linear-grid": Row(lambda bias: nn.Linear(4, 3, bias=bias), floats(2, 3, 4)),
    **_convolutions(),
    "embedding": Row(lambda bias: nn.Embedding(6, 4, padding_idx=2), integers(6, 5), biased=False),
    "embedding-sparse": Row(lambda bias: nn.Embedding(6, 4, sparse=True), integers(6, 5), biased=False),
    **_bags(),
    "bilinear": Row(lambda bias: nn.Bilinear(3, 4, 2, bias=bias), together(floats(3, 3), floats(3, 4))),
    **_norms(),
    **_attention(),
    **_recurrent(),
    "hugging-face": Row(lambda bias: Conv1D(3, 4), floats(3, 4), biased=False),
    "plain-parameters": Row(Plain, floats(5, 4)),
    "prelu": Row(lambda bias: nn.PReLU(4), floats(4, 3), 2, biased=False),
    "weight-norm": Row(_weight_norm, floats(3, 4)),
    "overridden": Row(lambda bias: Overridden(4, 3, bias=bias), floats(3, 4)),
    "tied": Row(Tied, integers(5, 4)),
    "siblings": Row(Siblings, floats(3, 4)),
    "tables": Row(lambda bias: Tables(), integers(5, 4), biased=False),
    "registered": Row(Registered, floats(3, 4)),
    "folded": Row(Folded, integers(6, 5)),
    "transformer-time-first": Row(TimeFirst, floats(3, 4)),
}


def make(name: str, mode: str, bias: bool, *, count: int = 9, dtype: torch.dtype = torch.float64) -> Case:
    """Return a case in one mode: "plain", "shared" (called twice) or "padded" (tail positions do not count)."""
    row = ROWS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = row.build(bias)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        draws = [row.draw(count) for _ in range(2 if mode == "shared" else 1)]
        model = Harness(layer, mode, row.axis).eval()
        inputs = tuple(x for draw in draws for x in draw)
        lengths = torch.randint(1, 4, (count,))
        inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in (*inputs, lengths))
        model.to(dtype)
        with torch.no_grad():
            model(*inputs)
        targets = torch.randint(0, 3, (count,))
    return Case(model, inputs, targets)
