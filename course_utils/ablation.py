"""What does a part of the model contribute? Replace its output with something else and see what the loss does.

Everything here is a difference of mean cross-entropies in nats, patched minus clean: positive means that the part
helped. The exact sweeps run one patched pass per entry, from the patched layer on (`CleanRun`); attribution patching
estimates the same numbers from one gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.house import bars_are_off
from course_utils.passes import CleanRun, Residual, check_unpadded, hook_z, mlp_out, require
from course_utils.repeated_tokens import check_repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("zero", "mean", "resample")
COLUMNS_AT_A_TIME = 7      # patched positions that share a batch: more mean fewer calls, of more positions each
VECTORS_AT_A_TIME = 512    # residual vectors unembedded at once: with 50,000 tokens, 100 MB of logits


def second_copy_loss(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of the tokens of the second copy, its first token (the boundary) included.

    Targets are tokens[:, seq_len + 1:], and the logits that predict them are one position earlier.
    Raises:
        ValueError: if tokens are not BOS and two equal copies of seq_len tokens.
    """
    check_repeated(tokens, seq_len)
    return F.cross_entropy(logits[:, seq_len:-1].flatten(0, 1), tokens[:, seq_len + 1:].flatten())


@torch.no_grad()
def mlp_patch_sweep(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, *,
    layers: Sequence[int] | None = None, as_published: bool = False,
) -> Float[Tensor, "layer seq_len"]:
    """Change of `second_copy_loss` (nats) when one MLP output comes from the same token's first occurrence.

    Entry [layer, i] patches position seq_len + 1 + i with the output of position 1 + i. This is the experiment of
    Xiang (2024), whose range of positions is shifted by one: `as_published=True` patches position seq_len + i with
    the output of position i, so that column 0 gives the first copy's last token the MLP output of BOS, and the very
    last token is never patched. (Patching the very last token changes nothing: its logits predict no token.)

    Args:
        layers: which layers, in this order; None for all.
    Raises:
        ValueError: if tokens are not two copies, a layer is out of range, or the model has no MLPs.
    """
    check_repeated(tokens, seq_len)
    layers = check_layers(model, layers)
    check_mlps(model)
    clean = CleanRun(model, tokens[:, :-1], [mlp_out(layer) for layer in layers])   # the last token predicts nothing
    clean_final, targets = clean.residuals[-1], tokens[:, 1:]
    clean_losses = _losses(clean, clean_final, targets)                             # [batch, pos]
    sweep = torch.zeros(len(layers), seq_len)
    columns_that_matter = torch.arange(seq_len if as_published else seq_len - 1)
    batches = columns_that_matter.split(COLUMNS_AT_A_TIME)
    for columns in tqdm(batches, desc="positions", delay=1, disable=bars_are_off()):
        positions = columns + (seq_len if as_published else seq_len + 1)
        start = positions[0].item()
        final = _patched(clean, layers, positions, seq_len)                         # […, pos-start, d_model]
        later = torch.arange(start, tokens.shape[1] - 1) >= positions[:, None]      # [column, pos-start]
        changed = (final != clean_final[:, start:]).any(dim=-1) & later[:, None].to(final.device)
        losses = clean_losses[:, start:].expand_as(changed).clone()
        losses[changed] = _losses(clean, final[changed], targets[:, start:].expand_as(changed)[changed])
        sweep[:, columns] = (losses - clean_losses[:, start:]).sum(dim=(2, 3)).cpu()
    return sweep / (len(tokens) * seq_len)


def _patched(
    clean: CleanRun, layers: list[int], positions: Int[Tensor, "column"], seq_len: int
) -> Float[Tensor, "layer column batch pos-start d_model"]:
    """The last residual stream, from the first of some neighbouring positions on, with each patch in turn.

    One batch for all patches: it moves up through the blocks, and at each layer the rows that are patched there join.
    """
    start, columns = positions[0].item(), range(len(positions))
    order = sorted(layers)
    next_layers = [*order[1:], None]                                                # None: to the last block
    rows = clean.residuals[0][:0, start:]                                           # [0, pos-start, d_model]: none yet
    for layer, next_layer in zip(order, next_layers):
        output = clean.activations[mlp_out(layer)]                                  # [batch, pos, d_model]
        changes = output[:, positions - seq_len] - output[:, positions]             # [batch, column, d_model]
        patched = clean.residuals[layer + 1][:, start:].repeat(len(positions), 1, 1, 1)
        patched[columns, :, positions - start] += changes.transpose(0, 1)           # [column, batch, pos-start, …]
        rows = torch.cat([rows, patched.flatten(0, 1)])                             # [rows, pos-start, d_model]
        stop = None if next_layer is None else next_layer + 1
        rows = clean.continue_from(layer + 1, rows, start=start, stop=stop)
    finals = rows.reshape(len(layers), *patched.shape)                              # in the order of `order`
    return finals[[order.index(layer) for layer in layers]]


def _losses(
    clean: CleanRun, final: Float[Tensor, "... d_model"], targets: Int[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Cross-entropy (nats) of each target, given the residual stream that leaves the last block."""
    vectors = final.flatten(0, -2).split(VECTORS_AT_A_TIME)                       # each [some, d_model]
    wanted = targets.flatten().split(VECTORS_AT_A_TIME)                           # each [some]
    losses = [F.cross_entropy(clean.logits(x), tokens, reduction="none") for x, tokens in zip(vectors, wanted)]
    return torch.cat(losses).reshape(targets.shape)


# --- ablation: a whole head or MLP, at every position but the first ------------------------------------------------


def ablate(activation: Float[Tensor, "batch pos ..."], kind: str) -> Float[Tensor, "batch pos ..."]:
    """What takes an activation's place; position 0 (BOS) keeps its own, as everywhere in this course.

    zero: zeros. (A head's value bias, which it adds whatever it sees, is not in its z: it was moved to b_O.)
    mean: the mean over batch and positions 1 … last, the same everywhere.
    resample: the activation of the next sequence of the batch (the last gets the first's) at the same position.

    Raises:
        ValueError: if kind is not one of these, or there is only one sequence to resample from.
    """
    check_kind(kind, len(activation))
    rest = activation[:, 1:]
    if kind == "zero":
        other = torch.zeros_like(rest)
    elif kind == "mean":
        other = rest.mean(dim=(0, 1)).expand_as(rest)
    else:
        other = rest.roll(-1, dims=0)
    return torch.cat([activation[:, :1], other], dim=1)


@torch.no_grad()
def head_ablation_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], kind: str = "mean", *,
    seq_len: int | None = None, layers: Sequence[int] | None = None,
) -> Float[Tensor, "layer head"]:
    """Change of the loss (nats) when one head's output z is ablated at every position but the first.

    Args:
        kind: zero, mean or resample; see `ablate`.
        seq_len: if given, tokens are two copies and the loss is that of the second; else of all next tokens.
        layers: which layers, in this order; None for all.
    Raises:
        ValueError: for another kind, a layer out of range, tokens that are not two copies of seq_len tokens, or a text
            that looks padded.
    """
    clean, first, layers = _prepare(model, tokens, kind, seq_len, layers, hook_z)
    scores = torch.zeros(len(layers), model.cfg.n_heads)
    for row, layer in enumerate(tqdm(layers, desc="layers", delay=1, disable=bars_are_off())):
        new = ablate(clean.activations[hook_z(layer)], kind)                        # [batch, pos, head, d_head]
        for head in range(model.cfg.n_heads):
            with model.hooks(fwd_hooks=[(hook_z(layer), replace_head(head, new[:, :, head]))]):
                final = clean.continue_from(layer, clean.residuals[layer])
            scores[row, head] = mean_loss(clean, final, first)
    return scores - mean_loss(clean, clean.residuals[-1], first).cpu()


@torch.no_grad()
def mlp_ablation_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], kind: str = "mean", *,
    seq_len: int | None = None, layers: Sequence[int] | None = None,
) -> Float[Tensor, "layer"]:
    """Change of the loss (nats) when one layer's MLP output is ablated at every position but the first.

    Arguments are those of `head_ablation_scores`.
    Raises:
        ValueError: as `head_ablation_scores` does, or if the model has no MLPs.
    """
    check_mlps(model)
    clean, first, layers = _prepare(model, tokens, kind, seq_len, layers, mlp_out)
    losses = []
    for layer in tqdm(layers, desc="layers", delay=1, disable=bars_are_off()):
        output = clean.activations[mlp_out(layer)]
        residual = clean.residuals[layer + 1] + ablate(output, kind) - output
        losses.append(mean_loss(clean, clean.continue_from(layer + 1, residual), first))
    return torch.stack(losses).cpu() - mean_loss(clean, clean.residuals[-1], first).cpu()


def _prepare(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], kind: str, seq_len: int | None,
    layers: Sequence[int] | None, hook_name: Callable[[int], str],
) -> tuple[CleanRun, int, list[int]]:
    """A clean pass with the activations to ablate, the first position whose next token counts, and the layers."""
    layers = check_layers(model, layers)
    check_kind(kind, len(tokens))
    check_zero(model, kind)
    if seq_len is None:
        check_unpadded(model, tokens)
    else:
        check_repeated(tokens, seq_len)
    return CleanRun(model, tokens, [hook_name(layer) for layer in layers]), seq_len or 0, layers


def replace_head(head: int, value: Float[Tensor, "batch pos d_head"]) -> Callable[[Tensor, object], Tensor]:
    """A hook that puts `value` in place of one head's part of an activation [batch, pos, head, d_head]."""

    def put(activation: Float[Tensor, "batch pos head d_head"], hook) -> Float[Tensor, "batch pos head d_head"]:
        activation = activation.clone()
        activation[:, :, head] = value
        return activation

    return put


def mean_loss(clean: CleanRun, final: Residual, first: int = 0) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of the tokens at positions first + 1 … last, given the last residual stream."""
    return _losses(clean, final[:, first:-1], clean.tokens[:, first + 1:]).mean()


# --- attribution patching: all entries of a sweep from one gradient ------------------------------------------------


@torch.enable_grad()
def gradients(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], names: list[str],
    loss: Callable[[Float[Tensor, "batch pos vocab"]], Float[Tensor, ""]],
) -> dict[str, tuple[Tensor, Tensor]]:
    """{hook name: (activation, gradient of loss(logits) at it)}, from one forward and one backward pass."""
    kept = {}

    def keep(activation: Tensor, hook) -> Tensor:
        kept[hook.name] = activation if activation.requires_grad else activation.requires_grad_()
        return activation

    value = model.run_with_hooks(tokens, fwd_hooks=[(name, keep) for name in names])
    slopes = torch.autograd.grad(loss(value), list(kept.values()))
    return {name: (activation.detach(), slope) for (name, activation), slope in zip(kept.items(), slopes)}


def mlp_attribution_sweep(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int
) -> Float[Tensor, "layer seq_len"]:
    """First-order estimate (nats) of `mlp_patch_sweep`: (new − old) · gradient of the loss, at each patched position.

    One forward and one backward pass instead of n_layers * seq_len passes. Exact only where the loss is linear in
    the MLP output. Source: Nanda, "Attribution patching" (2023).
    Raises:
        ValueError: as `mlp_patch_sweep` does.
    """
    check_repeated(tokens, seq_len)
    check_mlps(model)
    names = [mlp_out(layer) for layer in range(model.cfg.n_layers)]
    found = gradients(model, tokens, names, lambda logits: second_copy_loss(logits, tokens, seq_len))
    rows = []
    for old, slope in (found[name] for name in names):                             # both [batch, pos, d_model]
        change = old[:, 1:seq_len + 1] - old[:, seq_len + 1:]
        rows.append((change * slope[:, seq_len + 1:]).sum(dim=(0, 2)))
    return torch.stack(rows).cpu()


def head_attribution_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], kind: str = "mean", *, seq_len: int
) -> Float[Tensor, "layer head"]:
    """First-order estimate (nats) of `head_ablation_scores` on repeated tokens, from one gradient.

    Raises:
        ValueError: as `head_ablation_scores` does.
    """
    check_repeated(tokens, seq_len)
    check_kind(kind, len(tokens))
    check_zero(model, kind)
    names = [hook_z(layer) for layer in range(model.cfg.n_layers)]
    found = gradients(model, tokens, names, lambda logits: second_copy_loss(logits, tokens, seq_len))
    rows = []
    for z, slope in (found[name] for name in names):                                # both [batch, pos, head, d_head]
        change = ablate(z, kind) - z
        rows.append((change * slope).sum(dim=(0, 1, 3)))
    return torch.stack(rows).cpu()


# --- names and checks ----------------------------------------------------------------------------------------------


def check_kind(kind: str, batch: int) -> None:
    """Raise ValueError unless this kind of ablation exists and the batch is large enough for it."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if kind == "resample" and batch < 2:
        raise ValueError("resample ablation takes the activation of another sequence: the batch needs at least 2")


def check_zero(model: TransformerBridge, kind: str) -> None:
    """Raise NotForThisModel if a head is to be ablated by zeros, but a head of zeros still adds something here."""
    if kind == "zero":
        require(model, "zero ablation of a head", "zero")


def check_layers(model: TransformerBridge, layers: Sequence[int] | None) -> list[int]:
    """The layers as a list (None: all of them). Raise ValueError if there is none or one is out of range."""
    n_layers = model.cfg.n_layers
    layers = list(range(n_layers)) if layers is None else list(layers)
    if not layers or not all(0 <= layer < n_layers for layer in layers):
        raise ValueError(f"layers are {layers}; name some of this model's layers, 0 to {n_layers - 1}")
    return layers


def some_layers(model: TransformerBridge) -> list[int]:
    """All layers of a model that has at most six; else four, spread over its depth, first and last among them."""
    n_layers = model.cfg.n_layers
    return list(range(n_layers)) if n_layers <= 6 else [round(i * (n_layers - 1) / 3) for i in range(4)]


def check_mlps(model: TransformerBridge) -> None:
    """Raise ValueError if the model's blocks have no MLP, or do more with its output than add it to the stream."""
    if not all(hasattr(block, "mlp") for block in model.blocks):
        raise ValueError("this model has no MLPs (attention only): there is nothing to patch")
    require(model, "a patched MLP output", "parts")
