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
