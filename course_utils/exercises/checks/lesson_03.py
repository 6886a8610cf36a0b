"""Exercises of lesson 03: ablations and attributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.ablation import ablate, gradients, mlp_attribution_sweep, mlp_patch_sweep, second_copy_loss
from course_utils.exercises.checking import Case, Exercise, Mistake, compare_cases
from course_utils.exercises.checks.shared import grouped_query_model, random_logits, random_model, repeated_distinct
from course_utils.logit_attribution import logit_contributions
from course_utils.passes import hook_z, mlp_out

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answers that no later lesson needs --------------------------------------------------------------


def mlp_patch_loop(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layers: list[int]
) -> Float[Tensor, "layer seq_len"]:
    """Change of `second_copy_loss` when a layer's MLP output at position seq_len + 1 + i is that of position 1 + i."""
    names = [mlp_out(layer) for layer in layers]
    clean_logits, cache = model.run_with_cache(tokens, names_filter=names)
    clean_loss = second_copy_loss(clean_logits, tokens, seq_len)
    changes = torch.zeros(len(layers), seq_len)
    for row, name in enumerate(names):
        for i in range(seq_len):
            def patch(activation, hook):
                activation[:, seq_len + 1 + i] = cache[hook.name][:, 1 + i]
                return activation
            logits = model.run_with_hooks(tokens, fwd_hooks=[(name, patch)])
            changes[row, i] = second_copy_loss(logits, tokens, seq_len) - clean_loss
    return changes


def loss_without_head(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layer: int, head: int,
    kind: str = "mean",
) -> Float[Tensor, ""]:
    """`second_copy_loss` (nats) when the z of one head is replaced by `ablate(z, kind)`."""

    def remove(z, hook):                                                # [batch, pos, head, d_head]
        z = z.clone()
        z[:, :, head] = ablate(z[:, :, head], kind)
        return z

    logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), remove)])
    return second_copy_loss(logits, tokens, seq_len)


# --- inputs --------------------------------------------------------------------------------------------------------


def loss_cases() -> list[Case]:
    with_gradient = random_logits(2, 11, 20).requires_grad_()           # section 5 of the lesson takes its gradient
    return [
        Case(with_gradient, repeated_distinct(2, 5), 5, label="2 rows, seq_len 5, with a gradient"),
        Case(random_logits(3, 7, 20, seed=1), repeated_distinct(3, 3, seed=1), 3, label="3 rows, seq_len 3"),
    ]


def sweep_cases() -> list[Case]:
    return [
        Case(random_model(), repeated_distinct(1, 4, vocab=40), 4, [0, 1, 2], label="a random model, 1 row"),
        Case(random_model(), repeated_distinct(3, 5, vocab=40, seed=1), 5, [2, 0], label="3 rows, layers 2 and 0"),
    ]


def attribution_cases() -> list[Case]:
    return [
        Case(random_model(), repeated_distinct(1, 4, vocab=40), 4, label="a random model, 1 row"),
        Case(random_model(), repeated_distinct(3, 5, vocab=40, seed=1), 5, label="3 rows"),
    ]


def ablate_cases() -> list[Case]:
    rng = torch.Generator().manual_seed(0)
    small, heads = torch.randn(3, 4, 2, generator=rng), torch.randn(2, 5, 3, 2, generator=rng)
    return [Case(value, kind, label=f"{kind}, {list(value.shape)}")
            for kind in ("zero", "mean", "resample") for value in (small, heads)]


def head_cases() -> list[Case]:
    tokens, grouped = repeated_distinct(3, 5, vocab=40), repeated_distinct(2, 4, vocab=40, seed=1)
    return [
        Case(random_model(), tokens, 5, 1, 0, "zero", label="head 1.0 of a random model, zero"),
        Case(random_model(), tokens, 5, 0, 1, "mean", label="head 0.1, mean"),
        Case(random_model(), tokens, 5, 2, 1, "resample", label="head 2.1, resample"),
        Case(grouped_query_model(), grouped, 4, 1, 2, label="head 1.2 of a grouped-query model, kind not given"),
    ]


def contribution_cases() -> list[Case]:
    rng = torch.Generator().manual_seed(0)
    def draw(*shape):
        return torch.randn(*shape, generator=rng)
    tokens = torch.randint(0, 9, (2, 6), generator=rng)
    return [
        Case(draw(2, 6, 5), draw(2, 6, 1).exp(), draw(5, 9), tokens, label="2 rows of 6 positions"),
        Case(draw(1, 3, 4), draw(1, 3, 1).exp(), draw(4, 9), tokens[:1, :3], label="1 row of 3 positions"),
    ]


# --- known mistakes ------------------------------------------------------------------------------------------------


def _cross_entropy(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


LOSS_MISTAKES = [
    Mistake(
        "logits and tokens are cut at the same places: the logits at position j are about token j + 1",
        lambda logits, tokens, n: _cross_entropy(logits[:, n:], tokens[:, n:]),
        lambda logits, tokens, n: _cross_entropy(logits[:, n + 1 :], tokens[:, n + 1 :]),
        lambda logits, tokens, n: _cross_entropy(logits[:, n:-1], tokens[:, n:-1]),
    ),
    Mistake(
        "this is the loss of all tokens: the second copy's begin at position seq_len + 1",
        lambda logits, tokens, n: _cross_entropy(logits[:, :-1], tokens[:, 1:]),
    ),
    Mistake(
        "this is the first copy's loss",
        lambda logits, tokens, n: _cross_entropy(logits[:, :n], tokens[:, 1 : n + 1]),
    ),
    Mistake(
        "the boundary token is left out: the second copy has seq_len tokens, the first of them at seq_len + 1",
        lambda logits, tokens, n: _cross_entropy(logits[:, n + 1 : -1], tokens[:, n + 2 :]),
    ),
    Mistake(
        "softmax is applied twice: cross_entropy takes logits and does it itself "
        "(log_softmax twice would have been harmless: doing it again changes nothing)",
        lambda logits, tokens, n: second_copy_loss(logits.softmax(-1), tokens, n),
    ),
    Mistake(
        "this is the mean log-probability: the loss is minus that",
        lambda logits, tokens, n: -second_copy_loss(logits, tokens, n),
    ),
    Mistake(
        "summed over tokens: take the mean",
        lambda logits, tokens, n: second_copy_loss(logits, tokens, n) * n * len(tokens),
        lambda logits, tokens, n: second_copy_loss(logits, tokens, n) * n,
    ),
]


def _sweep_by_patching(patch, name=mlp_out):
    """A wrong sweep: patch(activation, cached, i, seq_len) changes the activation in place."""

    def sweep(model, tokens, seq_len, layers):
        names = [name(layer) for layer in layers]
        logits, cache = model.run_with_cache(tokens, names_filter=names)
        changes = torch.zeros(len(layers), seq_len)
        for row, layer_name in enumerate(names):
            for i in range(seq_len):
                def hook_function(activation, hook):
                    activation = activation.clone()
                    patch(activation, cache[hook.name], i, seq_len)
                    return activation
                patched = model.run_with_hooks(tokens, fwd_hooks=[(layer_name, hook_function)])
                changes[row, i] = second_copy_loss(patched, tokens, seq_len)
        return changes - second_copy_loss(logits, tokens, seq_len)

    return sweep


def _first_row(activation, cached, i, n):
    activation[0, n + 1 + i] = cached[0, 1 + i]


def _patch_first_copy(activation, cached, i, n):
    activation[:, 1 + i] = cached[:, n + 1 + i]


def _one_late(activation, cached, i, n):
    activation[:, n + 1 + i] = cached[:, i]


def _all_positions(activation, cached, i, n):
    activation[:, n + 1 :] = cached[:, 1 : n + 1]


def _up_to(activation, cached, i, n):
    activation[:, n + 1 : n + 2 + i] = cached[:, 1 : i + 2]


def _patch(activation, cached, i, n):
    activation[:, n + 1 + i] = cached[:, 1 + i]


SWEEP_MISTAKES = [
    Mistake(
        "this is the article's range, one position early: column 0 patches the first copy's last token with the "
        "output of BOS. The second copy begins at seq_len + 1",
        lambda model, tokens, n, layers: mlp_patch_sweep(model, tokens, n, layers=layers, as_published=True),
    ),
    Mistake(
        "the source is one position early: the same token stood seq_len positions before",
        _sweep_by_patching(_one_late),
    ),
    Mistake("only the first row of the batch is patched: `[:, position]`, not `[0, position]`",
            _sweep_by_patching(_first_row)),
    Mistake("the first copy is patched from the second: it is the other way round",
            _sweep_by_patching(_patch_first_copy)),
    Mistake("every position is patched at once: one at a time", _sweep_by_patching(_all_positions)),
    Mistake("this patches what attention adds (hook_attn_out): the MLP's output is hook_mlp_out",
            _sweep_by_patching(_patch, lambda layer: f"blocks.{layer}.hook_attn_out")),
    Mistake("this patches the whole residual stream: the MLP's output is hook_mlp_out",
            _sweep_by_patching(_patch, lambda layer: f"blocks.{layer}.hook_resid_post")),
    Mistake("the sign is turned: patched minus clean, so that damage is positive",
            lambda model, tokens, n, layers: -mlp_patch_sweep(model, tokens, n, layers=layers)),
    Mistake(
        "this is the patched loss: subtract the clean loss",
        lambda model, tokens, n, layers: mlp_patch_sweep(model, tokens, n, layers=layers)
        + second_copy_loss(model(tokens), tokens, n),
    ),
    Mistake("rows are positions here: the answer is [layer, seq_len]",
            lambda model, tokens, n, layers: mlp_patch_sweep(model, tokens, n, layers=layers).T),
    Mistake("these are layers 0, 1, 2 …: rows are the layers asked for, in their order",
            lambda model, tokens, n, layers: mlp_patch_sweep(model, tokens, n, layers=range(len(layers))),
            lambda model, tokens, n, layers: mlp_patch_sweep(model, tokens, n),
            lambda model, tokens, n, layers: mlp_patch_sweep(model, tokens, n, layers=sorted(layers))),
    Mistake("this is the change of the loss of all tokens: only those of the second copy count (`second_copy_loss`)",
            lambda model, tokens, n, layers: mlp_patch_sweep(model, tokens, n, layers=layers) / 2),
    Mistake("patches pile up: when position i is patched, those before it must be clean again",
            _sweep_by_patching(_up_to)),
    Mistake("nothing changes: does the hook return the patched activation, and does the run use it? Is i the one that "
            "it should be, and is the source another position than the target?",
            predicate=lambda got, expected: bool((got == 0).all())),
]


def _other(values):
    """An ablation from a function of (positions 1 … last, kind)."""
    return lambda activation, kind: torch.cat([activation[:, :1], values(activation[:, 1:], kind)], dim=1)


def _bos_replaced(got, expected):
    return got.shape == expected.shape and not torch.allclose(got[:, :1].float(), expected[:, :1], atol=1e-5)


def _with_bos(activation, kind):
    if kind == "zero":
        return torch.zeros_like(activation)
    if kind == "mean":
        return activation.mean(dim=(0, 1)).expand_as(activation)
    return activation.roll(-1, dims=0)


def _mean_over(*dims):
    def values(rest, kind):
        if kind != "mean":
            return _right(rest, kind)
        return rest.mean(dim=dims or tuple(range(rest.ndim - 1)), keepdim=True).expand_as(rest)
    return _other(values)


def _right(rest, kind):
    return ablate(torch.cat([rest[:, :1], rest], dim=1), kind)[:, 1:]


def _mean_with_bos(activation, kind):
    new = ablate(activation, kind)
    if kind == "mean":
        new[:, 1:] = activation.mean(dim=(0, 1))
    return new


def _resampled(shift, dim):
    return _other(lambda rest, kind: rest.roll(shift, dims=dim) if kind == "resample" else _right(rest, kind))


ABLATE_MISTAKES = [
    Mistake("position 0 is replaced too: BOS keeps its own activation", predicate=_bos_replaced),
    Mistake("the mean counts BOS, whose activation is unlike any other: take positions 1 and later", _mean_with_bos),
    Mistake("this is a mean for each position: one mean over batch and positions", _mean_over(0)),
    Mistake("this is a mean for each sequence: one mean over batch and positions", _mean_over(1)),
    Mistake("the mean is taken over heads too: keep the last axes, take the mean over batch and positions only",
            _mean_over()),
    Mistake("the mean is one number: keep the last axes, take the mean over batch and positions only",
            _other(lambda rest, kind: rest.mean().expand_as(rest) if kind == "mean" else _right(rest, kind))),
    Mistake("this takes another position of the same sequence: resample from another sequence, same position",
            _resampled(-1, 1), _resampled(1, 1),
            lambda activation, kind: torch.cat([activation[:, :1], activation.roll(1, dims=1)[:, 1:]], dim=1)
            if kind == "resample" else ablate(activation, kind)),
    Mistake("this is the sequence before: take the next one, and for the last the first", _resampled(1, 0)),
]


def _heads_removed(which, value=None, name=hook_z):
    """A wrong loss: which(head, n_heads) is an index of what is replaced in z, at the hooks called name(layer)."""

    def loss(model, tokens, n, layer, head, kind="mean"):
        def remove(z, hook):
            z = z.clone()
            index = which(head, model.cfg.n_heads)
            z[index] = ablate(z[index], kind) if value is None else value(z[index], kind)
            return z
        return second_copy_loss(model.run_with_hooks(tokens, fwd_hooks=[(name(layer), remove)]), tokens, n)

    return loss


def _always(kind):
    return lambda model, tokens, n, layer, head, kind_=None: loss_without_head(model, tokens, n, layer, head, kind)


HEAD_MISTAKES = [
    Mistake("all heads of the layer are ablated: only one of them should be",
            _heads_removed(lambda head, n_heads: ...)),
    Mistake("all the other heads are ablated, and the one in question is kept",
            _heads_removed(lambda head, n_heads: np.s_[:, :, [other for other in range(n_heads) if other != head]])),
    Mistake("`kind` is ignored: it is an argument", _always("mean"), _always("zero")),
    Mistake("`kind` is ignored and position 0 is replaced too: `ablate` with `kind` sees to both",
            _heads_removed(lambda head, n_heads: np.s_[:, :, head], lambda z, _: _with_bos(z, "zero")),
            _heads_removed(lambda head, n_heads: np.s_[:, :, head], lambda z, _: _with_bos(z, "mean"))),
    Mistake("position 0 is replaced too: BOS keeps its own activation (`ablate` sees to that)",
            _heads_removed(lambda head, n_heads: np.s_[:, :, head], _with_bos)),
    Mistake("the head is the third axis: z is [batch, pos, head, d_head]",
            _heads_removed(lambda head, n_heads: np.s_[:, head]),
            _heads_removed(lambda head, n_heads: np.s_[..., head])),
    Mistake("heads of other layers are ablated too: hook one layer only",
            _heads_removed(lambda head, n_heads: np.s_[:, :, head], name=lambda layer: lambda name: "hook_z" in name)),
    Mistake("this is the loss without ablation: does the hook return the changed z?",
            lambda model, tokens, n, layer, head, kind="mean": second_copy_loss(model(tokens), tokens, n)),
    Mistake("this is the change of the loss: return the loss itself",
            lambda model, tokens, n, layer, head, kind="mean": loss_without_head(
                model, tokens, n, layer, head, kind) - second_copy_loss(model(tokens), tokens, n)),
    Mistake("this is the loss of all tokens: only those of the second copy count (`second_copy_loss`)",
            lambda model, tokens, n, layer, head, kind="mean": _whole_loss(model, tokens, layer, head, kind)),
]


def _whole_loss(model, tokens, layer, head, kind):
    def remove(z, hook):
        z = z.clone()
        z[:, :, head] = ablate(z[:, :, head], kind)
        return z
    logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), remove)])
    return _cross_entropy(logits[:, :-1], tokens[:, 1:])


def _attributed(rule):
    """A wrong sweep from one gradient: rule(activation, slope, seq_len) -> [seq_len]."""

    def sweep(model, tokens, n):
        names = [mlp_out(layer) for layer in range(model.cfg.n_layers)]
        found = gradients(model, tokens, names, lambda logits: second_copy_loss(logits, tokens, n))
        return torch.stack([rule(*found[name], n) for name in names])

    return sweep


ATTRIBUTION_MISTAKES = [
    Mistake("the sign is turned: (new − old) · gradient",
            lambda model, tokens, n: -mlp_attribution_sweep(model, tokens, n)),
    Mistake("the old activation is not subtracted: the loss changes with the *change* of the activation",
            _attributed(lambda old, slope, n: (old[:, 1:n + 1] * slope[:, n + 1:]).sum((0, 2)))),
    Mistake("this is old · gradient, the change to zero: the new activation is that of the first copy",
            _attributed(lambda old, slope, n: -(old[:, n + 1:] * slope[:, n + 1:]).sum((0, 2)))),
    Mistake("the gradient is taken in the first copy: it must be at the patched position",
            _attributed(lambda old, slope, n: ((old[:, 1:n + 1] - old[:, n + 1:]) * slope[:, 1:n + 1]).sum((0, 2)))),
    Mistake("averaged over rows or components: the loss is a mean already; sum over both",
            _attributed(lambda old, slope, n: ((old[:, 1:n + 1] - old[:, n + 1:]) * slope[:, n + 1:]).mean((0, 2))),
            _attributed(lambda old, slope, n: ((old[:, 1:n + 1] - old[:, n + 1:]) * slope[:, n + 1:]).sum(2).mean(0)),
            _attributed(lambda old, slope, n: ((old[:, 1:n + 1] - old[:, n + 1:]) * slope[:, n + 1:]).mean(2).sum(0))),
    Mistake("positions are one too early: the second copy begins at seq_len + 1",
            _attributed(lambda old, slope, n: ((old[:, :n] - old[:, n:-1]) * slope[:, n:-1]).sum((0, 2)))),
    Mistake("this is the gradient of the loss of all tokens: only those of the second copy count (`second_copy_loss`)",
            lambda model, tokens, n: mlp_attribution_sweep(model, tokens, n) / 2),
    Mistake("this is the exact sweep: estimate it from one gradient",
            lambda model, tokens, n: mlp_patch_sweep(model, tokens, n)),
]


def _contribution(divide=True, targets=lambda tokens: tokens[:, 1:], positions=slice(None, -1)):
    def contributions(component, scale, W_U, tokens):
        scaled = component / scale if divide else component
        return (scaled[:, positions] * W_U.T[targets(tokens)]).sum(-1)
    return contributions


CONTRIBUTION_MISTAKES = [
    Mistake("the final norm is left out: divide by `scale` first", _contribution(divide=False)),
    Mistake("multiplied by the scale: the norm divides",
            lambda component, scale, W_U, tokens: logit_contributions(component, 1 / scale, W_U, tokens)),
    Mistake("these are the logits of the tokens that are there: position j is about token j + 1",
            _contribution(targets=lambda tokens: tokens[:, :-1])),
    Mistake("component and token are both shifted: the component at position j adds to the logit of token j + 1",
            _contribution(positions=slice(1, None))),
    Mistake("these are logits of all tokens: keep that of the token that came",
            lambda component, scale, W_U, tokens: component / scale @ W_U,
            lambda component, scale, W_U, tokens: (component / scale @ W_U)[:, :-1]),
    Mistake("the sum over d_model is missing: a logit is one number",
            lambda component, scale, W_U, tokens: (component / scale)[:, :-1] * W_U.T[tokens[:, 1:]]),
]


EXERCISES = [
    Exercise(
        id="03.second_copy_loss",
        title="The loss of the second copy",
        reference=second_copy_loss,
        check=compare_cases(loss_cases, LOSS_MISTAKES, keeps_inputs=True),
        hints=(
            "The second copy's tokens are tokens[:, seq_len + 1:]. At which positions are the logits about them?",
            "One earlier: logits[:, seq_len:-1]. `F.cross_entropy` takes logits [N, vocab] and targets [N].",
            "`F.cross_entropy(logits[:, seq_len:-1].flatten(0, 1), tokens[:, seq_len + 1:].flatten())`",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="03.mlp_patch_loop",
        title="The article's patching experiment",
        reference=mlp_patch_loop,
        check=compare_cases(sweep_cases, SWEEP_MISTAKES, keeps_inputs=True),
        hints=(
            "Run once with a cache of every layer's `mlp_out(layer)`. Then run again for each layer and each i, "
            "with a hook.",
            "The hook gets (activation, hook), sets activation[:, seq_len + 1 + i] to the cached [:, 1 + i] and "
            "returns it.",
            "`model.run_with_hooks(tokens, fwd_hooks=[(mlp_out(layer), patch)])` gives patched logits; the entry "
            "is their `second_copy_loss` minus that of the clean logits.",
        ),
        minutes=15,
        difficulty=2,
    ),
    Exercise(
        id="03.ablate",
        title="Zero, mean, resample",
        reference=ablate,
        check=compare_cases(ablate_cases, ABLATE_MISTAKES, keeps_inputs=True),
        hints=(
            "Keep activation[:, :1] as it is and replace activation[:, 1:]; `torch.cat` puts them together along "
            "dim 1.",
            "Mean: `.mean(dim=(0, 1))` of the part that is replaced. Resample: another row of the batch at each "
            "position.",
            "`rest.roll(-1, dims=0)` brings the next row to each row; `.expand_as(rest)` repeats a mean over all "
            "of them.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="03.loss_without_head",
        title="Take one head away",
        reference=loss_without_head,
        check=compare_cases(head_cases, HEAD_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "What a head has gathered is z, at `hook_z(layer)`: [batch, pos, head, d_head].",
            "In the hook replace z[:, :, head] by `ablate(z[:, :, head], kind)` and leave the other heads alone.",
            "Clone z, assign, return it; run with the hook and give the logits to `second_copy_loss`.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="03.mlp_attribution_sweep",
        title="All patches from one gradient",
        reference=mlp_attribution_sweep,
        check=compare_cases(attribution_cases, ATTRIBUTION_MISTAKES, keeps_inputs=True),
        hints=(
            "`gradients(model, tokens, names, loss)` gives {name: (activation, slope)}, both [batch, pos, d_model].",
            "Estimate of a patch: the sum over rows and components of (new − old) * slope, at the patched position.",
            "`((act[:, 1:seq_len + 1] - act[:, seq_len + 1:]) * slope[:, seq_len + 1:]).sum(dim=(0, 2))`, for "
            "every layer.",
        ),
        minutes=12,
        difficulty=3,
    ),
    Exercise(
        id="03.logit_contributions",
        title="What a part adds to the right logit",
        reference=logit_contributions,
        check=compare_cases(contribution_cases, CONTRIBUTION_MISTAKES, keeps_inputs=True),
        hints=(
            "A logit is the residual stream, divided by the norm's scale, times a column of W_U. Which column, "
            "for position j?",
            "`W_U.T[tokens[:, 1:]]` has the direction of each token that came: [batch, pos - 1, d_model].",
            "Divide the component by the scale, drop the last position, multiply by the directions, sum over d_model.",
        ),
        minutes=8,
        difficulty=2,
    ),
]
