"""The least time that a task could take here: its multiply-adds, at the rate this machine reaches on such products."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from course_utils.models import best_device

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BLOCKS = (256, 512, 1024, 2048, 4096)   # a product is tried in blocks with at most so many rows and columns
AT_LEAST = 0.01                         # seconds for which a product is repeated, to be timed
COPIED = 2**27                          # bytes of the copy that shows the rate of memory: more than any cache holds


@dataclass(frozen=True)
class Product:
    """[rows, inner] @ [inner, columns], `batch` of them in one call, and `times` such calls."""

    rows: int
    inner: int
    columns: int
    times: float = 1
    batch: int = 1

    def in_blocks(self, size: int) -> Product:
        """The same multiply-adds, as products whose results have at most so many rows and columns."""
        rows, columns = min(self.rows, size), min(self.columns, size)
        return replace(self, rows=rows, columns=columns,
                       times=self.times * self.rows * self.columns / (rows * columns))

    def at_its_best(self) -> Product:
        """In blocks of the size that is fastest now."""
        return min(set(map(self.in_blocks, BLOCKS)), key=Product.seconds)

    @torch.no_grad()
    def seconds(self) -> float:
        """Of all the calls, measured now on some of them; every call has the same numbers, in the same memory."""
        left, right, out = (torch.ones(self.batch, *shape, device=best_device()) for shape in (
            (self.rows, self.inner), (self.inner, self.columns), (self.rows, self.columns)))
        return self.times * _seconds_each(lambda: torch.bmm(left, right, out=out))


class Limit:
    """Multiply-adds over the rate of their products, or bytes over the rate of memory if that takes longer.

    Nothing else that a task does is counted: no norm, no softmax, no copy. So it cannot be reached, but come near to.

    Args:
        products: what the task must multiply at least; their best block sizes are looked for here, once.
        moved: bytes that it must read or write at least.
    """

    def __init__(self, products: Sequence[Product], moved: float = 0) -> None:
        self.products, self.moved = [product.at_its_best() for product in products], moved

    def __call__(self) -> float:
        """Seconds, measured now: other load on the machine lengthens it as it lengthens what it is compared with."""
        return max(sum(product.seconds() for product in self.products), self.moved and self.moved / memory_rate())


def memory_rate() -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source, copy = torch.ones(2, COPIED // 4, device=best_device())
    return 2 * COPIED / _seconds_each(lambda: copy.copy_(source))


def _seconds_each(call: Callable[[], object]) -> float:
    """Seconds of one call of several, until a GPU has finished."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    call()
    wait()
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < AT_LEAST:
        call()
        wait()
        calls += 1
    return (time.perf_counter() - start) / calls


# --- what a model multiplies ---------------------------------------------------------------------------------------


def block_products(
    model: TransformerBridge, vectors: float, sequences: float, queries: int, keys: int
) -> list[Product]:
    """Of one block: its maps for `vectors` vectors, and attention of `queries` to `keys` positions in `sequences`.

    Half of the attention of a whole sequence is to later positions, which need not be multiplied.
    """
    mlp = model.blocks[0].mlp
    maps = [mlp.W_in, *([mlp.W_gate] if getattr(mlp, "W_gate", None) is not None else []), mlp.W_out]
    times = sequences * (0.5 if queries == keys else 1)
    heads, d_head = model.cfg.n_heads, model.cfg.d_head
    return [*reading_products(model, vectors), Product(queries, d_head, keys, times, heads),
            Product(queries, keys, d_head, times, heads), _of(vectors, heads * d_head, model.cfg.d_model),
            *(_of(vectors, *W.shape) for W in maps)]


def reading_products(model: TransformerBridge, vectors: float, parts: str = "QKV") -> list[Product]:
    """Of one block: what gives its heads their queries, keys and values."""
    widths = {part: len(W) * W.shape[-1] for part in parts for W in [getattr(model.blocks[0].attn, f"W_{part}")]}
    return [_of(vectors, model.cfg.d_model, sum(widths.values()))]


def unembedding_products(model: TransformerBridge, vectors: float) -> list[Product]:
    """Of the last map, from vectors to logits."""
    return [_of(vectors, *model.W_U.shape)]


def _of(vectors: float, d_in: int, d_out: int) -> Product:
    return Product(max(1, round(vectors)), d_in, d_out)


def times(n: float, products: Sequence[Product]) -> list[Product]:
    """The same products so many times."""
    return [replace(product, times=n * product.times) for product in products]
