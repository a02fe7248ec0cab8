"""Dense float64 oracles: plain autograd and torch.func on tiny models; nothing here calls whence.

Parameters are laid out as the library documents them: a matrix [O, I] a layer (bias as last column, kernels
flattened, embeddings transposed, norm layers as one row), layers in the model's order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

LossFunction = Callable[[Tensor, Tensor], Tensor]  # outputs [1, ...], targets [1, ...] -> scalar


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1), reduction="sum")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(-1) - targets.reshape(-1)).square().mean()


def binary(outputs: Tensor, targets: Tensor) -> Tensor:
    f, y = outputs.reshape(-1), targets.reshape(-1).to(outputs)
    return (F.softplus(f) - y * f).sum()


LOSSES: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "mse": squared_error, "binary_cross_entropy": binary}


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules with parameters of their own that no earlier module has, in order."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        if own - seen:
            found[name] = module
        seen |= own
    return found


def _shown_as(model: nn.Module, module: nn.Module) -> nn.Module:
    """Return the module whose layout the weight has: a linear layer's where an embedding shares it."""
    others = (m for m in model.modules() if isinstance(m, nn.Linear) and m.weight is getattr(module, "weight", None))
    return next(others, module)


def matrix_of(module: nn.Module, own: dict[str, Tensor]) -> Tensor:
    """Lay a module's tensors (shaped like its parameters) out as [O, I]."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return own["weight"].T
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)):
        flat = own["weight"].flatten(1)
        return torch.cat([flat, own["bias"][:, None]], 1) if "bias" in own else flat
    if isinstance(module, nn.ConvTranspose2d):
        return torch.cat([own["weight"].transpose(0, 1).flatten(1), own["bias"][:, None]], 1)
    if isinstance(module, nn.MultiheadAttention):
        return torch.cat([own["in_proj_weight"], own["in_proj_bias"][:, None]], 1)
    if isinstance(module, nn.RNNBase):
        sides = [torch.cat([own[f"weight_{side}_l0"], own[f"bias_{side}_l0"][:, None]], 1) for side in ("ih", "hh")]
        return torch.cat([side.reshape(-1) for side in sides])[None]
    return torch.cat([value.reshape(-1) for value in own.values()])[None]


def flatten(model: nn.Module, named: dict[str, Tensor], only: list[str] | None = None) -> Tensor:
    """Return tensors by parameter name as one vector [P]."""
    pieces = []
    for name, module in layers_of(model).items():
        if only is None or name in only:
            own = {key: named[f"{name}.{key}" if name else key] for key, _ in module.named_parameters(recurse=False)}
            pieces.append(matrix_of(_shown_as(model, module), own).reshape(-1))
    return torch.cat(pieces)


def blocks(model: nn.Module) -> dict[str, slice]:
    """Return where every layer's parameters are in the vector."""
    found, start = {}, 0
    for name, module in layers_of(model).items():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        found[name], start = slice(start, start + size), start + size
    return found


def row(tree: Any, position: int) -> Any:
    """Return one example of a tensor, tuple or dict as a batch of one."""
    if isinstance(tree, dict):
        return {key: row(value, position) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(row(value, position) for value in tree)
    return tree[position : position + 1]


def call(model: nn.Module, params: dict[str, Tensor], inputs: Any) -> Tensor:
    """Call a model with other parameters; return its logits."""
    if isinstance(inputs, dict):
        result = functional_call(model, params, (), inputs)
    else:
        result = functional_call(model, params, inputs if isinstance(inputs, tuple) else (inputs,))
    if hasattr(result, "logits"):
        return result.logits
    return result[0] if isinstance(result, tuple) else result


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


def evaluated(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval()


def per_example_gradients(model: nn.Module, loss: LossFunction, inputs: Any, targets: Tensor) -> Tensor:
    """Return the gradients of every example's loss [N, P], one autograd call each."""
    model = evaluated(model)
    collected = []
    for i in range(len(targets)):
        params = parameters(model)
        value = loss(call(model, params, row(inputs, i)), targets[i : i + 1])
        grads = torch.autograd.grad(value, list(params.values()), materialize_grads=True, allow_unused=True)
        collected.append(flatten(model, dict(zip(params, grads, strict=True))))
    return torch.stack(collected)


def jacobians(model: nn.Module, inputs: Any, count: int) -> Tensor:
    """Return the Jacobian of every example's outputs [N, C, P], one autograd call an output."""
    model = evaluated(model)
    collected = []
    for i in range(count):
        params = parameters(model)
        outputs = call(model, params, row(inputs, i)).reshape(-1)
        rows = []
        for output in outputs:
            grads = torch.autograd.grad(
                output, list(params.values()), retain_graph=True, materialize_grads=True, allow_unused=True
            )
            rows.append(flatten(model, dict(zip(params, grads, strict=True))))
        collected.append(torch.stack(rows))
    return torch.stack(collected)


def output_hessians(model: nn.Module, loss: LossFunction, inputs: Any, targets: Tensor) -> Tensor:
    """Return the Hessian of every example's loss in its outputs [N, C, C] by torch.func."""
    model = evaluated(model)
    params = {name: p.detach() for name, p in model.named_parameters()}
    found = []
    for i in range(len(targets)):
        outputs = call(model, params, row(inputs, i)).detach()
        size = outputs.numel()
        hessian = torch.func.jacrev(torch.func.jacrev(lambda f, i=i: loss(f, targets[i : i + 1])))(outputs)
        found.append(hessian.reshape(size, size))
    return torch.stack(found)


def gauss_newton(model: nn.Module, loss: LossFunction, inputs: Any, targets: Tensor) -> Tensor:
    """Return (1/N) Σ Jᵀ W J [P, P]."""
    jacobian = jacobians(model, inputs, len(targets))
    weights = output_hessians(model, loss, inputs, targets)
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, weights, jacobian) / len(targets)


def hessian(model: nn.Module, loss: LossFunction, inputs: Any, targets: Tensor) -> Tensor:
    """Return the Hessian of the mean loss [P, P], one backward pass through the gradient a row.

    Plain autograd: torch.func's double backward of LayerNorm is wrong in torch 2.13 (finite differences agree
    with this one).
    """
    model = evaluated(model)
    params = parameters(model)
    losses = [loss(call(model, params, row(inputs, i)), targets[i : i + 1]) for i in range(len(targets))]
    values = list(params.values())
    first = torch.autograd.grad(torch.stack(losses).mean(), values, create_graph=True)
    rows = []
    for entry in flatten(model, dict(zip(params, first, strict=True))):
        second = torch.autograd.grad(entry, values, retain_graph=True, materialize_grads=True, allow_unused=True)
        rows.append(flatten(model, dict(zip(params, second, strict=True))))
    return torch.stack(rows)


Inputs = dict[str, list[Tensor]]
Deltas = dict[str, list[list[Tensor]]]


def captured(model: nn.Module, inputs: Any, count: int) -> tuple[Inputs, Deltas]:
    """Return every Linear's or Conv2d's inputs a [T, I] an example and output Jacobians [C][T, O] an example."""
    model = evaluated(model)
    found_a: Inputs = {}
    found_d: Deltas = {}
    wanted = {n: m for n, m in layers_of(model).items() if isinstance(m, (nn.Linear, nn.Conv2d))}
    for i in range(count):
        kept: dict[str, tuple[Tensor, Tensor]] = {}

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, kept: dict[str, Any] = kept) -> Tensor:
            kept[next(n for n, m in wanted.items() if m is module)] = (args[0].detach(), output)
            return output.clone()  # changes in place leave the layer's own output alone

        handles = [m.register_forward_hook(hook) for m in wanted.values()]
        params = dict(model.named_parameters())
        outputs = call(model, params, row(inputs, i)).reshape(-1)
        for handle in handles:
            handle.remove()
        for name, (a, output) in kept.items():
            found_a.setdefault(name, []).append(_unfolded(wanted[name], a))
            rows = []
            for one in outputs:
                d = torch.autograd.grad(one, output, retain_graph=True)[0][0]
                flat = d.flatten(1).T if isinstance(wanted[name], nn.Conv2d) else d.reshape(-1, d.shape[-1])
                rows.append(flat)
            found_d.setdefault(name, []).append(rows)
    return found_a, found_d


def _unfolded(module: nn.Module, a: Tensor) -> Tensor:
    """Return a layer's input as positions [T, I] with a one for the bias; patches by explicit loops."""
    if isinstance(module, nn.Conv2d):
        assert isinstance(module.padding, tuple)
        padded = F.pad(a[0], (module.padding[1], module.padding[1], module.padding[0], module.padding[0]))
        (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
        rows = []
        for y in range(0, padded.shape[1] - dh * (kh - 1), sh):
            for x in range(0, padded.shape[2] - dw * (kw - 1), sw):
                rows.append(padded[:, y : y + dh * kh : dh, x : x + dw * kw : dw].reshape(-1))
        flat = torch.stack(rows)
    else:
        flat = a.reshape(-1, a.shape[-1])
    return flat if module.bias is None else torch.cat([flat, torch.ones(len(flat), 1, dtype=flat.dtype)], 1)


def kronecker(a: list[Tensor], d: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return A [I, I], averaged over the positions that take part, and G [O, O], summed over positions.

    Of an example with several positions only those count at which some Fisher δ is not zero.
    """
    present = [torch.stack(rows).ne(0).any(2).any(0) if len(a[0]) > 1 else slice(None) for rows in d]
    inputs = torch.cat([one[where] for one, where in zip(a, present, strict=True)])
    outputs = torch.zeros(d[0][0].shape[1], d[0][0].shape[1], dtype=torch.float64)
    for rows in d:
        for one in rows:
            outputs += one.T @ one
    return inputs.T @ inputs / len(inputs), outputs / len(d)


def fisher_deltas(d: list[list[Tensor]], roots: Tensor) -> list[list[Tensor]]:
    """Return Σ_c root_c δ_c for every example and root; ``roots`` [N, R, C]."""
    return [[sum(root[c] * rows[c] for c in range(len(rows))) for root in roots[i]] for i, rows in enumerate(d)]


def fisher_gradients(a: list[Tensor], d: list[list[Tensor]]) -> Tensor:
    """Return the layer's Fisher gradients [N, R, O, I] from its deltas."""
    return torch.stack([torch.stack([one.T @ a[i] for one in rows]) for i, rows in enumerate(d)])


def eigen_kronecker(a: Tensor, g: Tensor) -> Tensor:
    """Return the eigenvectors of G ⊗ A in the layout of flattened [O, I] matrices, as columns."""
    return torch.kron(torch.linalg.eigh(g)[1].contiguous(), torch.linalg.eigh(a)[1].contiguous())


def ekfac(a: list[Tensor], d: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return EK-FAC's eigenvalues [P] and eigenvectors [P, P] (columns) from Fisher deltas."""
    basis = eigen_kronecker(*kronecker(a, d))
    gradients = fisher_gradients(a, d).flatten(2)  # [N, R, P]
    return (gradients @ basis).square().sum((0, 1)) / len(gradients), basis


def symmetric_root(matrix: Tensor) -> Tensor:
    """Return S [C, C] with S Sᵀ the matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()
