"""Training a sparse autoencoder, or a transcoder, on a model's activations: each step in plain sight, and exact resume.

The activations are collected once and kept in memory. A raw autoencoder (`normalize="none"`) is trained on
activations divided by one number, so that the mean of ‖x‖² is d_in whatever the layer, and the same learning rate and
penalty fit everywhere; at the end that number is multiplied back into the weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.house import bars_are_off, check_checkpoint, claim_folder, damaged, read_tensors, whole_file
from course_utils.passes import Site, checked_mask, collect_activations, largest
from course_utils.sae import BANDWIDTH, JumpReLU, SparseAutoencoder, Step
from course_utils.wide import FEW, Active, decode_active, top_active

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Trained = TypeVar("Trained", bound=SparseAutoencoder)
STATE = "state.safetensors"
LOG_EVERY = 50  # steps
MANY = 2**20    # weights of a decoder; with fewer, the dense step is as fast
LOGGED = {"step", "mse", "l0", "dead"}


@dataclass(frozen=True)
class TrainingConfig:
    """How to train, and what: the autoencoder's kind, width and norm are here, too."""

    d_sae: int
    kind: str = "relu"
    k: int | None = None
    normalize: str = "none"
    steps: int = 4000
    batch: int = 1024         # activations for each step
    lr: float = 1e-3
    sparsity: float = 1.0     # weight of the penalty; topk has none
    warm_up: int = 200        # steps over which learning rate and penalty grow to their full size
    decay: float = 0.2        # share of the steps, at the end, over which the learning rate falls to 0
    dead_after: int = 300     # steps without being active after which a latent counts as dead
    revive: float = 1 / 32    # weight of the loss that revives dead latents; 0 leaves them dead
    seed: int = 0
    save_every: int = 500     # steps between checkpoints, if a folder is given

    def __post_init__(self) -> None:
        for name in ("d_sae", "steps", "batch", "warm_up", "dead_after", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not (self.lr > 0 and self.sparsity >= 0 and self.revive >= 0 and 0 <= self.decay <= 1):  # also rejects NaN
            raise ValueError("lr must be positive, sparsity and revive not negative, and decay a share from 0 to 1")


def train_sae(
    model: TransformerBridge, hook_name: str, tokens: Int[Tensor, "n pos"], config: TrainingConfig, *,
    head: int | None = None, folder: str | Path | None = None, mask: Bool[Tensor, "n pos"] | None = None,
) -> SparseAutoencoder:
    """An autoencoder for the activations at one place, at every position but the first.

    Args:
        mask: at which positions instead. Padded text needs one: see `passes.without_padding`.
        folder: where to keep checkpoints. A run that was stopped continues from the last one, and ends with exactly
            the weights it would have had.
    Raises:
        ValueError: if the place, the configuration or the mask is wrong, a row looks padded, there are fewer
            activations than one batch, one of them is not finite, or the folder holds a run with other settings or a
            damaged file.
        OSError: if a checkpoint cannot be written; the previous one stays.
    """
    sae = SparseAutoencoder(
        Site(model, hook_name, head).width, config.d_sae, config.kind, k=config.k, normalize=config.normalize,
        hook_name=hook_name, head=head, model_name=model.cfg.model_name, seed=config.seed,
    )
    mask = checked_mask(model, tokens, mask)
    _check_count(int(mask.sum()), config)
    activations = collect_activations(model, hook_name, tokens, head=head, mask=mask)
    return fit(sae.to(model.cfg.device), activations, config, folder)


def _check_count(n: int, config: TrainingConfig) -> None:
    if n < config.batch:
        raise ValueError(f"there are {n} activations, fewer than one batch of {config.batch}")


def fit(
    sae: Trained, activations: Float[Tensor, "n d_in"], config: TrainingConfig,
    folder: str | Path | None = None, targets: Float[Tensor, "n d_out"] | None = None,
) -> Trained:
    """Train on these activations; see `train_sae`. What was seen on the way is in the answer's `training_log`.

    Args:
        targets: what a transcoder learns to give for each activation; None: an autoencoder gives the activation itself.
    """
    training = Training(sae, activations, config, Path(folder) if folder else None, targets)
    bar = tqdm(range(training.step, config.steps), initial=training.step, total=config.steps, delay=1,
               desc=f"training {config.kind}", unit="step", disable=bars_are_off())
    for _ in bar:
        seen = training.one_step(training.batch())
        if seen:
            bar.set_postfix({name: f"{value:.3g}" for name, value in seen.items() if name != "step"})
    training.finish()
    return sae


class Training:
    """The state of a run: the autoencoder, Adam's moments, the step, and when each latent was last active."""

    def __init__(
        self, sae: SparseAutoencoder, activations: Float[Tensor, "n d_in"], config: TrainingConfig,
        folder: Path | None = None, targets: Float[Tensor, "n d_out"] | None = None,
    ) -> None:
        _check_count(len(activations), config)
        if not all(each.isfinite().all() for each in (activations, targets) if each is not None):
            raise ValueError("some activations are not finite (NaN or infinite)")
        if targets is not None and (targets.shape != activations.shape or config.normalize != "none"):
            raise ValueError(f"targets are {list(targets.shape)} and activations {list(activations.shape)}, with "
                             f"normalize={config.normalize}; a transcoder needs one target for each activation, both "
                             "of the width d_in, and normalizes nothing")
        self.sae, self.config, self.folder = sae.requires_grad_(True).train(), config, folder
        self.activations, self.targets = activations, targets
        self.scale = _size(activations) if config.normalize == "none" else 1.0
        self.target_scale = self.scale if targets is None else _size(targets)
        for weight in sae.parameters():                             # a fused Adam reads memory in order, as files do
            weight.data = weight.data.contiguous()
        with torch.no_grad():
            given = activations if targets is None else targets
            sample = given[:: max(1, len(activations) // 20_000)].to(sae.b_dec) / self.target_scale
            sae.b_dec.copy_(sae.normalized(sample).mean(dim=0))
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=config.lr, fused=True)
        self.step, self.idle = 0, torch.zeros(sae.d_sae, device=sae.b_dec.device)      # idle: steps since last active
        self.log: list[dict[str, float]] = []
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        if folder:
            self._claim(folder)
            self._load(folder / STATE)

    def batch(self) -> Float[Tensor, "batch d_in"] | tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_out"]]:
        """The activations of this step, and their targets if there are any.

        They are a function of the seed and the step alone, so a resumed run sees the same.
        """
        per_epoch = len(self.activations) // self.config.batch
        epoch, place = divmod(self.step, per_epoch)
        if self._order[0] != epoch:
            rng = torch.Generator().manual_seed(self.config.seed + 1_000_003 * (epoch + 1))
            self._order = epoch, torch.randperm(len(self.activations), generator=rng)
        rows = self._order[1][place * self.config.batch : (place + 1) * self.config.batch]
        x = self.activations[rows].to(self.sae.b_dec) / self.scale
        return x if self.targets is None else (x, self.targets[rows].to(self.sae.b_dec) / self.target_scale)

    @torch.enable_grad()
    def one_step(
        self, x: Float[Tensor, "batch d_in"] | tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_out"]]
    ) -> dict[str, float]:
        """One step of Adam; every LOG_EVERY steps, what it saw."""
        config, sae = self.config, self.sae
        growth = min(1.0, (self.step + 1) / config.warm_up)
        left = (config.steps - self.step) / max(1.0, config.decay * config.steps)
        self.optimizer.param_groups[0]["lr"] = config.lr * growth * min(1.0, left)
        x, target = x if isinstance(x, tuple) else 2 * (sae.normalized(x),)
        pre = pre_activations(sae, x)
        few = few_active(sae, pre)
        if few is None:
            latents = sae.activate(pre)
            out = sae.write(latents, x)
            penalty = sparsity_loss(sae, x, pre, latents, config.sparsity * growth)
        else:
            few, out, penalty = sparse_step(sae, x, few, config.sparsity * growth)
        error = out - target
        mse = error.pow(2).sum(dim=1).mean()
        loss = mse + penalty
        dead = self.idle >= config.dead_after
        if config.revive and (n_dead := int(dead.sum())):
            towards = pre + sae.b_gate if sae.kind == "gated" else pre
            loss = loss + config.revive * revival_loss(sae, towards, error.detach(), dead, n_dead,
                                                       None if few is None else x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        constrain(sae)
        self.step += 1
        active = (latents.detach().amax(dim=0) > 0 if few is None else
                  few.latents[few.values != 0].bincount(minlength=sae.d_sae) > 0)
        self.idle = torch.where(active, 0.0, self.idle + 1)
        seen = {}
        if self.step % LOG_EVERY == 0 or self.step == config.steps:
            n_active = int(((latents if few is None else few.values).detach() != 0).sum())
            l0 = n_active / len(x)
            seen = {"step": self.step, "mse": mse.item() / sae.d_in, "l0": l0, "dead": dead.float().mean().item()}
            self.log.append(seen)
        if self.step % config.save_every == 0:
            self.save()
        return seen

    @torch.no_grad()
    def finish(self) -> SparseAutoencoder:
        """The autoencoder, for activations as they are: without the scale they had in training."""
        names = dict.fromkeys(("b_dec", "b_enc", "b_gate", "b_mag", "threshold"), self.target_scale)
        if self.targets is not None:
            names |= dict.fromkeys(("W_enc", "W_skip"), self.target_scale / self.scale)
        for name, scale in names.items():
            if hasattr(self.sae, name):
                getattr(self.sae, name).mul_(scale)
        self.scale = self.target_scale = 1.0
        self.sae.training_log = self.log
        return self.sae.requires_grad_(False).eval()

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _claim(self, folder: Path) -> None:
        """Note the settings in the folder. Raises ValueError if it holds a run with others."""
        folder.mkdir(parents=True, exist_ok=True)
        claim_folder(folder, {
            **asdict(self.config), "activations": list(self.activations.shape), "scale": f"{self.scale:.5g}",
            "model": self.sae.model_name, "hook": self.sae.hook_name, "head": self.sae.head,
            **({} if self.targets is None else {"target_scale": f"{self.target_scale:.5g}", "sae": repr(self.sae)})})

    def save(self) -> None:
        """Write a checkpoint, if the run has a folder, then give it its name: a kill leaves the previous one."""
        if self.folder is None:
            return
        tensors = {f"sae/{name}": value for name, value in self.sae.state_dict().items()} | {"idle": self.idle}
        for key, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{key}/{name}": value for name, value in moments.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with whole_file(self.folder / STATE) as partial:
            save_file(tensors, partial, metadata={"step": str(self.step), "log": json.dumps(self.log)})

    def _load(self, file: Path) -> None:
        """Continue from the checkpoint, if there is one. Raises ValueError if it is damaged."""
        if not file.exists():
            return
        weights = {f"sae/{name}": value for name, value in self.sae.state_dict().items()}
        adam = {(key, name): weight if name != "step" else torch.tensor(0.0)
                for key, weight in enumerate(self.sae.parameters()) for name in ("step", "exp_avg", "exp_avg_sq")}
        names = {f"adam/{key}/{name}": weight for (key, name), weight in adam.items()}
        tensors, texts = read_tensors(file)
        check_checkpoint(file, tensors, {**weights, **names, "idle": self.idle})
        try:
            step, log = int(texts["step"]), json.loads(texts["log"])
            whole = isinstance(log, list) and all(set(each) == LOGGED for each in log)
            if not (0 < step <= self.config.steps and whole):
                raise ValueError("its step or its log is not one of this run")
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise damaged(file, str(error)) from error
        self.step, self.log, self.idle = step, log, tensors["idle"].to(self.idle.device)
        self.sae.load_state_dict({name.removeprefix("sae/"): tensors[name] for name in weights})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, name in adam:
            moments.setdefault(key, {})[name] = tensors[f"adam/{key}/{name}"]
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _size(x: Float[Tensor, "n d"]) -> float:
    """The root of the mean square of all numbers; 1 if they are all 0."""
    return (x.double().pow(2).sum(1).mean() / x.shape[1]).sqrt().item() or 1.0


def pre_activations(sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
    """`sae.pre_activations(x)`, written as x W_enc + (b_enc − b_dec W_enc).

    Only b_dec needs a gradient through the product with W_enc. Here that is a product with one row, not with the
    whole batch, which saves one of six large products in each step.
    """
    return x @ sae.W_enc + encoder_bias(sae)


def encoder_bias(sae: SparseAutoencoder) -> Float[Tensor, "d_sae"]:
    """b_enc − b_dec W_enc; without b_enc if gated, without the rest if the encoder sees x as it is."""
    bias = torch.zeros_like(sae.b_gate) if sae.kind == "gated" else sae.b_enc
    return bias - sae.b_dec @ sae.W_enc if sae.subtract_b_dec else bias


# --- wide and sparse: the same step, from the active latents alone ----------------------------------------------------


@torch.no_grad()
def few_active(sae: SparseAutoencoder, pre: Float[Tensor, "batch d_sae"]) -> Active | None:
    """The pre-activations that have a part in the loss, if the weights are many and they are few; else None.

    Those of the active latents; with jumprelu, also those just below a threshold, from which it gets its gradient.
    """
    if sae.W_dec.numel() < MANY or getattr(sae, "skip", False):
        return None
    if sae.kind == "topk":
        few = top_active(pre, sae.k or 0)
    else:
        above = {"jumprelu": lambda: sae.threshold - BANDWIDTH / 2, "gated": lambda: -sae.b_gate}.get(sae.kind, float)()
        if (pre[:64] > above).float().mean() > FEW:                 # as at the start, when half of all are
            return None
        places, latents = (pre > above).nonzero(as_tuple=True)
        few = Active(places, latents, pre[places, latents], sae.d_sae)
    return few if len(few.values) <= FEW * pre.numel() else None


def sparse_step(
    sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], few: Active, weight: float
) -> tuple[Active, Float[Tensor, "batch d_in"], Float[Tensor, ""] | float]:
    """`sae.activate`, `sae.write` and `sparsity_loss`, from these pre-activations alone: all others give 0."""
    def decoded(values: Float[Tensor, "few"], W_dec: Tensor, b_dec: Tensor) -> Float[Tensor, "batch d_in"]:
        return decode_active(few._replace(values=values), W_dec, len(x)) + b_dec

    pre = SparseGradient.apply(few.values, x, sae.W_enc, encoder_bias(sae), few.places, few.latents)
    own = {name: value.index_select(0, few.latents) for name, value in sae.named_parameters()
           if name in ("threshold", "b_gate", "b_mag", "r_mag")}                # of the latent of each
    values, penalty = pre, 0.0
    if sae.kind == "relu":
        penalty = weight * pre.sum() / len(x)
    if sae.kind == "jumprelu":
        values = JumpReLU.apply(pre, own["threshold"])
        penalty = weight * Step.apply(pre, own["threshold"]).sum() / len(x)
    if sae.kind == "gated":
        values, open_part = (pre * own["r_mag"].exp() + own["b_mag"]).relu(), pre + own["b_gate"]
        by_itself = decoded(open_part, sae.W_dec.detach(), sae.b_dec.detach()) - x
        penalty = weight * open_part.sum() / len(x) + by_itself.pow(2).sum(dim=1).mean()
    return few._replace(values=values), decoded(values, sae.W_dec, sae.b_dec), penalty


class SparseGradient(torch.autograd.Function):
    """Values of x W_enc + bias at some latents, given; their gradient is a sum over the positions of each latent."""

    @staticmethod
    def forward(ctx, values: Float[Tensor, "active"], x: Float[Tensor, "batch d_in"],
                W_enc: Float[Tensor, "d_in d_sae"], bias: Float[Tensor, "d_sae"], places: Int[Tensor, "active"],
                latents: Int[Tensor, "active"]) -> Float[Tensor, "active"]:
        ctx.save_for_backward(x, places, latents)
        ctx.d_sae = len(bias)
        return values.clone()

    @staticmethod
    def backward(ctx, slope: Float[Tensor, "active"]) -> tuple[Tensor | None, ...]:
        x, places, latents = ctx.saved_tensors
        order = latents.argsort(stable=True)
        by_latent = Active(latents[order], places[order], slope[order], len(x))
        of_bias = slope.new_zeros(ctx.d_sae).index_add(0, latents, slope)
        return None, None, decode_active(by_latent, x, ctx.d_sae).T.contiguous(), of_bias, None, None


class GivenProduct(torch.autograd.Function):
    """x W + bias, given, with the gradient that it has for W and bias."""

    @staticmethod
    def forward(ctx, product: Float[Tensor, "batch some"], x: Float[Tensor, "batch d_in"],
                W: Float[Tensor, "d_in some"], bias: Float[Tensor, "some"]) -> Float[Tensor, "batch some"]:
        ctx.save_for_backward(x)
        return product.clone()

    @staticmethod
    def backward(ctx, slope: Float[Tensor, "batch some"]) -> tuple[Tensor | None, ...]:
        return None, None, ctx.saved_tensors[0].T @ slope, slope.sum(0)


# --- the loss ---------------------------------------------------------------------------------------------------------


def sparsity_loss(
    sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], pre: Float[Tensor, "batch d_sae"],
    latents: Float[Tensor, "batch d_sae"], weight: float,
) -> Float[Tensor, ""] | float:
    """The term added to the squared error to keep active latents few; decoder rows have norm 1.

    relu: weight · Σ f. jumprelu: weight · the number of active latents. topk: nothing. gated: weight · Σ of the gate's
    positive part, and the squared error that this part would make by itself, with the decoder held fixed: without it
    nothing would teach the gate what to let through (arXiv 2404.16014, eq. 8).
    """
    if sae.kind == "relu":
        return weight * latents.sum(dim=1).mean()
    if sae.kind == "jumprelu":
        return weight * Step.apply(pre, sae.threshold).sum(dim=1).mean()
    if sae.kind == "gated":
        open_part = (pre + sae.b_gate).relu()
        by_itself = open_part @ sae.W_dec.detach() + sae.b_dec.detach() - x
        return weight * open_part.sum(dim=1).mean() + by_itself.pow(2).sum(dim=1).mean()
    return 0.0


def revival_loss(
    sae: SparseAutoencoder, pre: Float[Tensor, "batch d_sae"], error: Float[Tensor, "batch d_in"],
    dead: Bool[Tensor, "d_sae"], n_dead: int, x: Float[Tensor, "batch d_in"] | None = None,
) -> Float[Tensor, ""]:
    """Let the dead latents explain what the others leave over (Gao et al. 2024, appendix A.2).

    The d_in / 2 dead latents with the largest pre-activations reconstruct the residual, −error. Given x, `pre` are
    numbers alone, and the encoder's columns of the dead get their gradient from it.
    """
    k, columns = min(sae.d_in // 2, n_dead), dead.nonzero()[:, 0]
    pre = pre[:, columns]                                           # [batch, n_dead]
    if x is not None:
        bias = encoder_bias(sae) + (sae.b_gate if sae.kind == "gated" else 0.0)
        pre = GivenProduct.apply(pre.detach(), x, sae.W_enc[:, columns], bias[columns])
    values, indices = largest(pre, k)
    revived = torch.zeros_like(pre).scatter(1, indices, values) @ sae.W_dec[columns]
    return (revived + error).pow(2).sum(dim=1).mean()


@torch.no_grad()
def constrain(sae: SparseAutoencoder) -> None:
    """Give each decoder row norm 1 (otherwise small latents with long rows evade an L1 penalty)."""
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    if sae.kind == "jumprelu":
        sae.threshold.clamp_(min=0)
