"""Wide products and the largest of wide rows, taken so that the cache is enough. Each has a plain twin in its tests."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 4096    # columns: some processors keep such a block in their cache, and others lose little by it (measured)

GROUP = 8       # numbers, of which only the largest is looked at first (a sixteenth to a half of all: slower; measured)


def largest(
    x: Float[Tensor, "*rows wide"], k: int
) -> tuple[Float[Tensor, "*rows k"], Int[Tensor, "*rows k"]]:
    """The k largest of each row and their places, as `x.topk(k)` in no order, on a CPU in half the time.

    A row is cut into groups of GROUP. None but the k groups with the largest maxima can hold one of the k largest.
    """
    groups = x.shape[-1] // GROUP
    if x.device.type != "cpu" or x.shape[-1] % GROUP or groups < 2 * k:
        return x.topk(k, dim=-1, sorted=False)
    some = x.detach().unflatten(-1, (GROUP, groups)).amax(-2).topk(k, dim=-1, sorted=False).indices     # [*rows, k]
    places = torch.cat([some + groups * i for i in range(GROUP)], dim=-1)                               # [*rows, k * 8]
    places = places.gather(-1, x.detach().gather(-1, places).topk(k, dim=-1, sorted=False).indices)
    return x.gather(-1, places), places


def wide_product(
    x: Float[Tensor, "*rows d"], W: Float[Tensor, "d wide"], bias: Float[Tensor, "wide"] | None = None
) -> Float[Tensor, "*rows wide"]:
    """x @ W + bias; on a CPU, and where no gradient is wanted, in blocks of BLOCK columns."""
    wants_gradient = torch.is_grad_enabled() and any(each.requires_grad for each in (x, W, bias) if each is not None)
    if wants_gradient or x.device.type != "cpu" or W.shape[1] < 2 * BLOCK:
        return x @ W if bias is None else x @ W + bias
    rows = x.reshape(-1, x.shape[-1])
    out = rows.new_empty(len(rows), W.shape[1])
    for start in range(0, W.shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        if bias is None:
            torch.mm(rows, W[:, columns], out=out[:, columns])
        else:
            torch.addmm(bias[columns], rows, W[:, columns], out=out[:, columns])
    return out.reshape(*x.shape[:-1], W.shape[1])
