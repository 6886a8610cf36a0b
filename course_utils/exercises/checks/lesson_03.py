"""Exercises of lesson 03: ablations and attributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from course_utils import ablation
from course_utils.ablation import gradients
from course_utils.exercises.checking import (
    Case,
    CompareThenState,
    Exercise,
    compare_cases,
    property_check,
    require,
)
from course_utils.exercises.checks.shared import grouped_query_model, random_logits, random_model, repeated_distinct
from course_utils.exercises.mistakes import seen, variants
from course_utils.logit_attribution import logit_contributions
from course_utils.passes import hook_z, mlp_out

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answers ------------------------------------------------------------------------------------------


def second_copy_loss(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of the tokens of the second copy, its first token included."""
    predicted, targets = logits[:, seq_len:-1], tokens[:, seq_len + 1:]  # logits at j are about token j + 1
    return F.cross_entropy(predicted.flatten(0, 1), targets.flatten())


def mlp_patch_loop(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layers: list[int]
) -> Float[Tensor, "layer seq_len"]:
    """Change of `second_copy_loss` when position seq_len + 1 + i gets a layer's MLP output of position 1 + i."""
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


def ablate(activation: Float[Tensor, "batch pos ..."], kind: str) -> Float[Tensor, "batch pos ..."]:
    """What takes an activation's place; position 0 (BOS) keeps its own."""
    bos, rest = activation[:, :1], activation[:, 1:]
    if kind == "zero":
        new = torch.zeros_like(rest)
    elif kind == "mean":
        new = rest.mean(dim=(0, 1)).expand_as(rest)
    else:
        new = rest.roll(-1, dims=0)                                     # each row gets the next one
    return torch.cat([bos, new], dim=1)


def loss_without_head(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layer: int, head: int,
    kind: str = "mean"
) -> Float[Tensor, ""]:
    """`second_copy_loss` (nats) when the z of one head is replaced by `ablate(z, kind)`."""
    def remove(z, hook):                                                # [batch, pos, head, d_head]
        z = z.clone()
        z[:, :, head] = ablate(z[:, :, head], kind)
        return z
    logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), remove)])
    return second_copy_loss(logits, tokens, seq_len)


def mlp_attribution_sweep(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int
) -> Float[Tensor, "layer seq_len"]:
    """First-order estimate (nats) of the sweep of section 2, for all layers."""
    names = [mlp_out(layer) for layer in range(model.cfg.n_layers)]
    found = gradients(model, tokens, names, lambda logits: second_copy_loss(logits, tokens, seq_len))
    estimate = torch.zeros(len(names), seq_len)
    for layer, name in enumerate(names):
        old, slope = found[name]                                        # both [batch, pos, d_model]
        change = old[:, 1:seq_len + 1] - old[:, seq_len + 1:]
        estimate[layer] = (change * slope[:, seq_len + 1:]).sum(dim=(0, 2))
    return estimate


def estimate_on_path(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, layer: int, head: int,
    points: int
) -> float:
    """Estimate (nats) of what mean ablation of one head adds to `second_copy_loss`, from `points` gradients."""
    slopes = []
    for i in range(points):
        way = torch.tensor((i + 0.5) / points, requires_grad=True)      # the middle of each piece of the path
        def move(z, hook):
            z = z.clone()
            z[:, :, head] += way * (ablate(z[:, :, head], "mean") - z[:, :, head])
            return z
        logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_z(layer), move)])
        slope, = torch.autograd.grad(second_copy_loss(logits, tokens, seq_len), way)
        slopes.append(slope.item())
    return sum(slopes) / points


# --- inputs --------------------------------------------------------------------------------------------------------


def loss_cases() -> list[Case]:
    with_gradient = random_logits(2, 11, 20).requires_grad_()           # section 5 of the lesson takes its gradient
    return [
        Case(with_gradient, repeated_distinct(2, 5), 5, label="2 rows, seq_len 5, with a gradient"),
        Case(random_logits(3, 7, 20, seed=1), repeated_distinct(3, 3, seed=1), 3, label="3 rows, seq_len 3"),
        Case(random_logits(1, 9, 20, seed=2), torch.tensor([[0, 7, 0, 3, 5, 7, 0, 3, 5]]), 4,
             label="1 row in which token 0 is in both copies"),
    ]


def sweep_cases() -> list[Case]:
    return [
        Case(random_model(), repeated_distinct(1, 3, vocab=40), 3, [0, 1, 2], label="a random model, 1 row"),
        Case(random_model(), repeated_distinct(3, 3, vocab=40, seed=1), 3, [2, 0], label="3 rows, layers 2 and 0"),
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


def path_cases() -> list[Case]:
    two, one = repeated_distinct(2, 6, vocab=40, seed=2), repeated_distinct(1, 4, vocab=40, seed=1)
    return [
        Case(random_model(), one, 4, 2, 1, 3, label="head 2.1 of a random model, nearly linear, 3 points"),  # soon done
        Case(random_model(), one, 4, 1, 1, 20, label="its head 1.1, 20 points"),
        Case(grouped_query_model(), two, 6, 0, 3, 20, label="head 0.3 of a grouped-query model, 2 rows, 20 points"),
        Case(grouped_query_model(), one, 4, 0, 4, points=20, label="its head 0.4, 20 points"),
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

LOSS_MISTAKES = variants(second_copy_loss, {
    "logits and tokens are cut at the same places: the logits at position j are about token j + 1":
        ({"seq_len:-1": "seq_len:", "seq_len + 1:": "seq_len:"}, {"seq_len:-1": "seq_len + 1:"},
         {"seq_len + 1:": "seq_len:-1"}),
    "this is the loss of all tokens: the second copy's tokens begin at position seq_len + 1":
        {"seq_len:-1": ":-1", "seq_len + 1:": "1:"},
    "this is the first copy's loss": {"seq_len:-1": ":seq_len", "seq_len + 1:": "1:seq_len + 1"},
    "the boundary token is left out: the second copy has seq_len tokens, the first of them at seq_len + 1":
        {"seq_len + 1:": "seq_len + 2:", "seq_len:-1": "seq_len + 1:-1"},
    "softmax is applied twice: cross_entropy takes logits and applies it itself "
    "(log_softmax twice would have been harmless: the second time changes nothing)":
        {"predicted.flatten": "predicted.softmax(-1).flatten"},
    "this is the mean log-probability: the loss is minus that": {"return ": "return -"},
    "summed over tokens: take the mean": ({"targets.flatten()": "targets.flatten(), reduction='sum'"},
                                          {"return ": "return seq_len * "}),
})

TO, FROM = "[:, seq_len + 1 + i]", "[hook.name][:, 1 + i]"             # what is patched, and from where
PATCH_MISTAKES = variants(mlp_patch_loop, {
    "this is the article's range, one position early: column 0 patches the first copy's last token with the "
    "output of BOS. The second copy begins at seq_len + 1": {TO: "[:, seq_len + i]", FROM: "[hook.name][:, i]"},
    "the source is one position early: the same token stood seq_len positions before": {FROM: "[hook.name][:, i]"},
    "only the first row of the batch is patched: `[:, position]`, not `[0, position]`":
        {TO: "[0, seq_len + 1 + i]", FROM: "[hook.name][0, 1 + i]"},
    "the first copy is patched from the second: it should be the other way round":
        {TO: "[:, 1 + i]", FROM: "[hook.name][:, seq_len + 1 + i]"},
    "every position is patched at once: patch one at a time":
        {TO: "[:, seq_len + 1:]", FROM: "[hook.name][:, 1:seq_len + 1]"},
    "this patches what attention adds (hook_attn_out): the MLP's output is hook_mlp_out":
        {"mlp_out(layer)": "f'blocks.{layer}.hook_attn_out'"},
    "this patches the whole residual stream: the MLP's output is hook_mlp_out":
        {"mlp_out(layer)": "f'blocks.{layer}.hook_resid_post'"},
    "the sign is flipped: patched minus clean, so that damage is positive": "-changes",
    "this is the patched loss: subtract the clean loss": {" - clean_loss": ""},
    "rows are positions here: the answer is [layer, seq_len]": "changes.T",
    "these are layers 0, 1, 2 …: rows are the layers asked for, in their order": (
        {"in layers": "in range(len(layers))"}, {"in layers": "in sorted(layers)"},
        {"in layers": "in range(model.cfg.n_layers)", "len(layers)": "len(names)"}),
    "this is the change of the loss of all tokens: only those of the second copy count (`second_copy_loss`)":
        "changes / 2",
    "patches pile up: when position i is patched, those before it must be clean again":
        {TO: "[:, seq_len + 1:seq_len + 2 + i]", FROM: "[hook.name][:, 1:2 + i]"},
    "nothing changes: does the hook return the patched activation, and does the run use it? Does it see "
    "the right i, and is the source a different position from the target?":
        seen(lambda got, expected: (got == 0).all()),
})

MEAN, NEXT = "rest.mean(dim=(0, 1))", "rest.roll(-1, dims=0)"
ABLATE_MISTAKES = variants(ablate, {
    "position 0 is replaced too: BOS keeps its own activation":
        seen(lambda got, expected: got.shape == expected.shape and
             not torch.allclose(got[:, 0].float(), expected[:, 0], atol=1e-5)),
    "the mean counts BOS, whose activation is unlike any other: take positions 1 and later":
        {MEAN: "activation.mean(dim=(0, 1))"},
    "this is a mean for each position: take one mean over batch and positions": {MEAN: "rest.mean(dim=0)"},
    "this is a mean for each sequence: take one mean over batch and positions":
        {MEAN: "rest.mean(dim=1, keepdim=True)"},
    "the mean is taken over heads too: keep the last axes, average over batch and positions only":
        {MEAN: "rest.flatten(0, -2).mean(dim=0)"},
    "the mean is one number: keep the last axes, average over batch and positions only": {MEAN: "rest.mean()"},
    "this takes another position of the same sequence: resample from another sequence, same position":
        ({NEXT: "rest.roll(-1, dims=1)"}, {NEXT: "rest.roll(1, dims=1)"}, {NEXT: "activation.roll(1, dims=1)[:, 1:]"}),
    "this is the sequence before: take the next one (for the last, the first)": {NEXT: "rest.roll(1, dims=0)"},
})

ONE, REPLACED = "[:, :, head]", "ablate(z[:, :, head], kind)"
HEAD_MISTAKES = variants(loss_without_head, {
    "all heads of the layer are ablated: only one of them should be": {ONE: "[:]"},
    "all the other heads are ablated, and the one in question is kept":
        {ONE: "[:, :, torch.arange(z.shape[2]) != head]"},
    "`kind` is ignored: it is an argument": ({", kind)": ", 'mean')"}, {", kind)": ", 'zero')"}),
    "`kind` is ignored and position 0 is replaced too: `ablate` with `kind` takes care of both":
        ({REPLACED: "0"}, {REPLACED: "z[:, :, head].mean(dim=(0, 1))"}),
    "position 0 is replaced too: BOS keeps its own activation (`ablate` takes care of that)":
        {REPLACED: "ablate(z[:, [0, *range(z.shape[1])], head], kind)[:, 1:]"},          # a second BOS, in front
    "the head is the third axis: z is [batch, pos, head, d_head]": (
        {ONE: "[:, head]"}, {ONE: "[..., head]"}, {ONE + " = " + REPLACED: "[:, head] = ablate(z, kind)[:, head]"}),
    "heads of other layers are ablated too: hook one layer only": {"hook_z(layer)": "lambda name: 'hook_z' in name"},
    "this is the loss without ablation: does the hook return the changed z?":
        "second_copy_loss(model(tokens), tokens, seq_len)",
    "this is the change of the loss: return the loss itself":
        "second_copy_loss(logits, tokens, seq_len) - second_copy_loss(model(tokens), tokens, seq_len)",
    "this is the loss of all tokens: only those of the second copy count (`second_copy_loss`)":
        "F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())",
})

ATTRIBUTION_MISTAKES = variants(mlp_attribution_sweep, {
    "the sign is flipped: (new − old) · gradient": "-estimate",
    "the old activation is not subtracted: the loss changes with the *change* of the activation":
        {" - old[:, seq_len + 1:]": ""},
    "this is old · gradient, the change to zero: the new activation is that of the first copy":
        {"old[:, 1:seq_len + 1] - old": "-old"},
    "the gradient is taken in the first copy: it must be at the patched position":
        {"slope[:, seq_len + 1:]": "slope[:, 1:seq_len + 1]"},
    "averaged over rows or components: the loss is a mean already; sum over both":
        tuple({"sum(dim=(0, 2))": instead} for instead in
              ("mean(dim=(0, 2))", "sum(dim=2).mean(dim=0)", "mean(dim=2).sum(dim=0)")),
    "positions are one too early: the second copy begins at seq_len + 1":
        {"1:seq_len + 1]": ":seq_len]", "seq_len + 1:]": "seq_len:-1]"},
    "this is the gradient of the loss of all tokens: only those of the second copy count (`second_copy_loss`)":
        "estimate / 2",
    "this is the exact sweep: estimate it from one gradient":
        "mlp_patch_loop(model, tokens, seq_len, range(model.cfg.n_layers))",
})

MOVED = 'z[:, :, head] += way * (ablate(z[:, :, head], "mean") - z[:, :, head])'
WAY = "(i + 0.5) / points"
PATH_MISTAKES = variants(estimate_on_path, {
    "every gradient is taken at the head's own z: that is attribution patching. Spread the points over the path":
        {WAY: "0.0"},
    "every gradient is taken at the mean, the end of the path: spread the points over the path": {WAY: "1.0"},
    "the slopes are summed: each stands for one piece of the path, so weigh it by its length (or take the mean)":
        "sum(slopes)",
    "the sign is flipped: (new − old) · gradient, loss ablated minus loss clean": "-sum(slopes) / points",
    "the slopes' median hides the steep pieces, which are the point: take the mean":
        "torch.tensor(slopes).median().item()",
    "only some of the path is walked: the points go from the head's own z (0) to its mean (1)":
        ({WAY: "0.5 * (i + 0.5) / points"}, {WAY: "0.1 * (i + 0.5) / points"}),
    "all heads of the layer are moved: only one of them should be": {MOVED: 'z += way * (ablate(z, "mean") - z)'},
    "position 0 is moved too: BOS keeps its own activation (`ablate` takes care of that)":
        {MOVED: "z[:, :, head] += way * (z[:, 1:, head].mean(dim=(0, 1)) - z[:, :, head])"},
    "the gradients are those of the loss of all tokens: only those of the second copy count (`second_copy_loss`)":
        {"second_copy_loss(logits, tokens, seq_len)": "F.cross_entropy(logits[:, :-1].flatten(0, 1), "
                                                      "tokens[:, 1:].flatten())"},
    "this moves the head towards zero: the path ends at its mean": {'"mean"': '"zero"'},
})

NO_ESTIMATE = ("with a single point it is as good as with many: is `points` used, and are gradients used, not "
               "the difference of two losses?")


@property_check(mistakes=[NO_ESTIMATE])
def one_point_is_few(attempt):
    """with a single point: a slope times the way, which is not exact"""
    case = path_cases()[1]
    *args, _ = case.args
    one, many = (float(attempt(*args, points)) for points in (1, 20))
    require(abs(one - many) > 0.05, NO_ESTIMATE, got=f"{one:.4f} with 1 point, {many:.4f} with 20")


CONTRIBUTION_MISTAKES = variants(logit_contributions, {
    "the final norm is left out: divide by `scale` first": {" / scale[:, :-1]": ""},
    "multiplied by the scale: the norm divides": {"/ scale": "* scale"},
    "these are the logits of the present tokens: position j is about token j + 1":
        {"tokens[:, 1:]": "tokens[:, :-1]"},
    "component and token are both shifted: the component at position j adds to the logit of token j + 1":
        {"component[:, :-1] / scale[:, :-1]": "(component / scale)[:, 1:]"},
    "these are log-probabilities: a component adds to a logit, so leave the softmax out":
        "(component / scale @ W_U).log_softmax(dim=-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]",
    "these are the logits of all tokens: keep only that of the actual next token":
        ("component / scale @ W_U", "(component / scale @ W_U)[:, :-1]"),
    "the sum over d_model is missing: a logit is one number": "component[:, :-1] / scale[:, :-1] * directions",
})


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
        check=compare_cases(sweep_cases, PATCH_MISTAKES, keeps_inputs=True),
        hints=(
            "Run the model again for each layer and each i, with a hook. Nothing before the patch has changed, so both "
            "outputs are in the activation that the hook gets.",
            "The hook gets (activation, hook), sets activation[:, seq_len + 1 + i] to activation[:, 1 + i] and "
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
        title="Remove one head",
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
        id="03.estimate_on_path",
        title="Your experiment: slopes along the path",
        reference=estimate_on_path,
        check=CompareThenState(
            compare_cases(path_cases, PATH_MISTAKES, keeps_inputs=True, loose_scalars=True, rtol=0.03, atol=0.01),
            one_point_is_few),
        hints=(
            "Let `way` go from 0 (the head's own z) to 1 (its mean). If you know the slope of the loss at many places "
            "in between, how do you get the difference between the ends?",
            "`way = torch.tensor(0.3, requires_grad=True)`; a hook that moves z by way * (new − old); "
            "`torch.autograd.grad(loss, way)` is the slope there. The mean of the slopes is the whole change.",
            "For i from 0 to points − 1 take way = (i + 0.5) / points and, on a clone of z, "
            '`z[:, :, head] += way * (ablate(z[:, :, head], "mean") - z[:, :, head])`; return the mean of the slopes.',
        ),
        minutes=20,
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
            "`W_U.T[tokens[:, 1:]]` has the direction of each actual next token: [batch, pos - 1, d_model].",
            "Divide the component by the scale, drop the last position, multiply by the directions, sum over d_model.",
        ),
        minutes=8,
        difficulty=2,
    ),
]


def _mlp_patch_sweep(model, tokens, seq_len, layers):
    return ablation.mlp_patch_sweep(model, tokens, seq_len, layers=layers)


IN_THE_PACKAGE = {
    "03.second_copy_loss": ablation.second_copy_loss,
    "03.mlp_patch_loop": _mlp_patch_sweep,
    "03.ablate": ablation.ablate,
    "03.mlp_attribution_sweep": ablation.mlp_attribution_sweep,
}
