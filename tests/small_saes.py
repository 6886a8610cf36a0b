"""Small autoencoders and activations for tests."""

import torch

from course_utils.sae import SparseAutoencoder
from course_utils.sae_training import TrainingConfig

D_IN, D_SAE, K = 6, 12, 3


def random_sae(kind="relu", normalize="none", *, d_in=D_IN, d_sae=D_SAE, k=K, seed=0, dtype=torch.float32, **more):
    """Every weight random, decoder rows of any length."""
    sae = SparseAutoencoder(d_in, d_sae, kind, k=k if kind == "topk" else None, normalize=normalize, **more).to(dtype)
    rng = torch.Generator().manual_seed(seed)
    for name, weight in sae.named_parameters():
        weight.data = torch.randn(weight.shape, generator=rng, dtype=dtype)
        if name == "threshold":
            weight.data.abs_()
    return sae.requires_grad_(False)


def some_sae(width=24, kind="relu", *, d_sae=20, seed=0, dead=0, **more):
    """As one that is begun, with random biases; so many of its first latents are dead."""
    sae = SparseAutoencoder(width, d_sae, kind, k=4 if kind == "topk" else None, seed=seed, **more)
    rng = torch.Generator().manual_seed(seed)
    for name, weight in sae.named_parameters():
        if name.startswith("b_") or name == "r_mag":
            weight.data = 0.3 * torch.randn(weight.shape, generator=rng)
    getattr(sae, "b_gate" if kind == "gated" else "b_enc").data[:dead] = -1e4
    return sae.requires_grad_(False)


def same_weights(one, other):
    return one.state_dict().keys() == other.state_dict().keys() and all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def some_activations(n=100, d_in=D_IN, seed=0, scale=3.0):
    return scale * torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)) + 1


def training_config(kind="relu", **more):
    settings = {"d_sae": D_SAE, "kind": kind, "k": K if kind == "topk" else None, "steps": 60, "batch": 16,
                "warm_up": 10, "dead_after": 5, "save_every": 7, "sparsity": 0.1, "lr": 0.01}
    return TrainingConfig(**{**settings, **more})


def new_sae(config, d_in=D_IN, **more):
    """The autoencoder that a training with these settings begins with."""
    return SparseAutoencoder(d_in, config.d_sae, config.kind, k=config.k, normalize=config.normalize, seed=config.seed,
                             **more)


class Plain:
    """An object that can encode and decode, and no more. Its latents have both signs."""

    def __init__(self, width, seed=0):
        self.directions = torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) / width**0.5

    def encode(self, x):
        latents = x @ self.directions
        return torch.where(latents.abs() > 0.5, latents, 0.0)

    def decode(self, latents):
        return latents @ self.directions.T
