r"""Skip-gram with negative sampling: two tables of vectors and the logits of a word being near another.

An example is a run of words [T]. The words within the window of a centre are its contexts; every 32 positions share
one pool of noise words, so that all logits of a run are two thin matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.errors import ConfigError
from whence.tasks.words.vocabulary import Vocabulary

__all__ = ["BLOCK", "NegativeSampling", "SkipGram", "logits_of"]

BLOCK = 32  # positions that share a pool of noise words


class SkipGram(nn.Module):
    r"""Logits v_t · u_s of word t having word s in its window: v from the table of inputs, u from that of outputs.

    Args:
        vocabulary: The words, one row of both tables each.
        width: Numbers a vector d.
        window: Contexts on either side of a centre.

    Reference: Mikolov et al. (2013), eq. 4.

    Example:
        >>> import numpy as np
        >>> model = SkipGram(Vocabulary(["a", "b"], np.ones(2)), width=4, window=1)
        >>> model(torch.tensor([[0, 1, 0]]), torch.tensor([[[1, 1]]])).shape  # 2 contexts and 2 noise words
        torch.Size([1, 3, 4])
    """

    def __init__(self, vocabulary: Vocabulary, *, width: int, window: int) -> None:
        super().__init__()
        self.vocabulary, self.width, self.window = vocabulary, width, window
        self.inputs = nn.Embedding(len(vocabulary), width, _weight=torch.zeros(len(vocabulary), width))
        self.outputs = nn.Embedding(len(vocabulary), width, _weight=torch.zeros(len(vocabulary), width))

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"{len(self.vocabulary):,} words, width={self.width}, window={self.window}"

    def forward(self, words: Tensor, noise: Tensor) -> Tensor:
        """Return logits [B, T, 2·window + M] of words [B, T] with noise words [B, blocks, M]."""
        centres = self.inputs(words)  # [B, T, d]
        others = self.outputs(torch.cat([words, noise.flatten(1)], 1))  # [B, T + blocks·M, d]
        return logits_of(centres, others, self.window, noise.shape[1])

    def pairs(self, words: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows whose product every logit is: of the inputs [B, T], of the outputs [B, T, 2·window + M].

        Where a context would lie outside the run it is any word; such a logit counts nothing.
        """
        length = words.shape[1]
        offsets = [offset for offset in range(-self.window, self.window + 1) if offset != 0]
        places = torch.arange(length, device=words.device)[:, None] + torch.tensor(offsets, device=words.device)
        contexts = words[:, places.clamp(0, length - 1)]  # [B, T, 2·window]
        return words, torch.cat([contexts, noise.repeat_interleave(length // noise.shape[1], 1)], 2)


def logits_of(centres: Tensor, others: Tensor, window: int, blocks: int) -> Tensor:
    """Return logits [B, T, 2·window + M] of centres [B, T, d] with the words [T] and noise words [blocks·M] after them.

    What lies outside the run counts as a zero vector.
    """
    batch, length, width = centres.shape
    size = length // blocks
    v = centres.reshape(batch * blocks, size, width)
    padded = F.pad(others[:, :length], (0, 0, window, window))
    near = padded.unfold(1, size + 2 * window, size)  # [B, blocks, d, size + 2·window]
    near = near.reshape(batch * blocks, width, size + 2 * window)
    offsets = [place for place in range(2 * window + 1) if place != window]
    index = torch.arange(size, device=v.device)[:, None] + torch.tensor(offsets, device=v.device)  # [size, 2·window]
    contexts = torch.bmm(v, near).gather(2, index.expand(batch * blocks, -1, -1))
    noise = others[:, length:].reshape(batch * blocks, -1, width)
    return torch.cat([contexts, torch.bmm(v, noise.transpose(1, 2))], 2).reshape(batch, length, -1)


@dataclass(frozen=True, kw_only=True)
class NegativeSampling:
    r"""ℓ = Σ_{t,k} |y_tk| log(1 + e^{−sign(y_tk) s_tk}), in nats: logits s are of contexts (y > 0) or noise (y < 0).

    |y| is how often a logit counts, 0 where there is no pair. Both kinds are differentiated.

    Reference: Mikolov et al. (2013), eq. 4, with the sign of what is maximised turned.
    """

    @property
    def unit(self) -> str | None:
        """Return "nats"."""
        return "nats"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        return (targets.abs() * F.softplus(-targets.sign() * outputs)).flatten(1).sum(1)

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Refuse: there would be one root for each of the many logits."""
        raise ConfigError(
            'fisher must be "sampled" or "empirical" for skip-gram, or the curvature CG() or RowBlocks(), got "exact". '
            "There are hundreds of logits an example."
        )

    def draws(self, outputs: Tensor) -> int:
        """Return one for every logit."""
        return outputs[0].numel()

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return √|y| (p − b) for answers b drawn from the model's own p."""
        p = outputs.sigmoid()
        return targets.abs().sqrt() * (p - (uniforms.reshape(p.shape) < p).to(p.dtype))

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return diag(|y| p (1 − p)) [B, C, C] over all logits of an example."""
        return torch.diag_embed(self.logit_curvature(outputs, targets).flatten(1))

    def logit_curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return |y| p (1 − p), shaped like the logits."""
        p = outputs.sigmoid()
        return targets.abs() * p * (1 - p)
