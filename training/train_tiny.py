"""Train the course's `tiny` model: a four-layer GPT-2 that reads stories and repeats random tokens.

    python training/train_tiny.py --out build/tiny            # under an hour on two cores; resumes if killed
    python training/train_tiny.py --out build/tiny --export course_utils/weights/tiny

Half of every batch is stories, half is random tokens repeated with a period that differs from row to row.
Three things make induction form within minutes instead of hours:

* heads wide enough (64) to tell a thousand tokens apart;
* position embeddings that start as sinusoids, so that "the previous token" is a rotation away, not a table to learn;
* short periods first: with few tokens to choose from, half an induction circuit already pays.

Needs torch 2.9 or newer (for `torch.optim.Muon`); the locked version has it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from course_utils.house import check_checkpoint, claim_folder, damaged, read_tensors, whole_file
from course_utils.language import BOS, UNK, StoryLanguage, stream, vocabulary
from course_utils.models.folders import write_hashes


@dataclass(frozen=True)
class Config:
    seed: int = 0
    steps: int = 7500
    batch: int = 32  # rows per step; half stories, half repeated tokens
    context: int = 128
    lr: float = 2e-3
    warmup: int = 100
    story_rows: int = 60_000  # 7.7 M tokens of stories, made once
    widen: int = 600  # steps over which the longest period grows to its full length
    pairs_from: int = 1200  # step from which half of the random rows are pairs
    random_weight: float = 0.1  # weight in the loss of tokens that nobody can predict
    save_every: int = 100  # steps between checkpoints
    ship: tuple[int, ...] = (0, 400, 800, 1000, 1100, 1200, 2400)  # and the last: the ones the course ships


def make_model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    vocab = len(vocabulary())
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=128,
        n_embd=256,
        n_layer=4,
        n_head=4,
        n_inner=512,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(sinusoids(config.n_positions, config.n_embd))
    return model


def sinusoids(length: int, width: int) -> Tensor:
    """Sine and cosine of position at geometric frequencies, scaled like GPT-2's token embeddings."""
    angle = torch.arange(length)[:, None] * torch.logspace(0, -2.3, width // 2)
    return 0.04 * torch.cat([angle.sin(), angle.cos()], dim=1)


# --- data --------------------------------------------------------------------------------------------------------


def story_rows(config: Config, out: Path) -> np.ndarray:
    """All training stories, made once and kept beside the checkpoints. Raises ValueError if their file is damaged."""
    file = out / "stories.npy"
    if not file.exists():
        rows = tqdm(
            islice(stream(1001 + config.seed, config.context), config.story_rows),
            total=config.story_rows,
            desc="writing stories",
            unit="row",
        )
        with whole_file(file) as partial, open(partial, "wb") as opened:
            np.save(opened, np.array(list(rows), dtype=np.uint16))
    try:
        with open(file, "rb") as opened:
            stories = np.lib.format.read_array(opened, allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for what is not an array
        raise damaged(file, str(error)) from error
    size = (config.story_rows, config.context)
    if stories.shape != size or stories.dtype != np.uint16 or stories.max() >= len(vocabulary()):
        raise damaged(file, "these are not the stories of this run")
    return stories


def repeated_row(rng: np.random.Generator, longest: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """BOS, then a block of random tokens over and over; and which tokens could be predicted."""
    period = rng.integers(2, longest + 1)
    block = rng.integers(0, len(vocabulary()), period)
    predictable = np.arange(context) > period
    return np.resize(block, context - 1), predictable


def paired_row(rng: np.random.Generator, longest: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """BOS, then random pairs that come back in random order: only the token just before tells what follows."""
    pairs = rng.integers(0, len(vocabulary()), (rng.integers(2, 2 + longest // 3), 2))
    order = rng.integers(0, len(pairs), context // 2)
    seen_before = np.array([index in order[:place] for place, index in enumerate(order)])
    predictable = np.stack([np.zeros_like(seen_before), seen_before], 1).flatten()
    return pairs[order].flatten()[: context - 1], np.append(False, predictable)[:context]


def random_rows(rng: np.random.Generator, n: int, step: int, config: Config) -> tuple[Tensor, Tensor]:
    """`n` rows of repeats, later of repeats and pairs by turns, and each token's weight in the loss."""
    longest = min(63, 6 + int(58 * step / config.widen))
    makers = (repeated_row, paired_row) if step >= config.pairs_from else (repeated_row,)
    tokens, weights = np.zeros((n, config.context), int), np.zeros((n, config.context))
    for row in range(n):
        make = makers[row % len(makers)]
        tokens[row, 1:], predictable = make(rng, longest, config.context)
        weights[row] = np.where(predictable, 1.0, config.random_weight)
    return torch.tensor(tokens), torch.tensor(weights, dtype=torch.float32)


def batch_at(step: int, stories: np.ndarray, config: Config) -> tuple[Tensor, Tensor]:
    """The batch of one step: a function of (seed, step) alone, so a resumed run sees the same data."""
    rng = np.random.default_rng([config.seed, step])
    half = config.batch // 2
    repeats, weights = random_rows(rng, half, step, config)
    picked = torch.tensor(stories[rng.integers(0, len(stories), half)].astype(int))
    return torch.cat([picked, repeats]), torch.cat([torch.ones(half, config.context), weights])


# --- training ----------------------------------------------------------------------------------------------------


def optimizers(model: GPT2LMHeadModel, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, Adam for embeddings, biases and LayerNorm."""
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=config.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then level for half the run, then linear to zero."""
    decay = min(1.0, 2 * (config.steps - step) / config.steps)
    return config.lr * min(1.0, (step + 1) / config.warmup) * decay


def loss_of(model: GPT2LMHeadModel, tokens: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, held_out, seq_len: int = 50) -> dict[str, float]:
    """Log-prob (nats) by half on repeated tokens, and KL(truth ‖ model) on held-out stories."""
    rng = torch.Generator().manual_seed(12345)
    half = torch.randint(0, model.config.vocab_size, (16, seq_len), generator=rng)
    tokens = torch.cat([torch.zeros(16, 1, dtype=int), half, half], 1)
    log_probs = model(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    story = model(held_out.tokens).logits.log_softmax(-1)
    truth = held_out.true_log_probs
    kl = torch.where(truth.isfinite(), truth.exp() * (truth - story), 0.0).sum(-1)
    return {
        "first": log_probs[:, :seq_len].mean().item(),
        "second": log_probs[:, seq_len:].mean().item(),
        "no_boundary": log_probs[:, seq_len + 1 :].mean().item(),
        "kl": kl.mean().item(),
    }


def save_weights(model: GPT2LMHeadModel, file: Path) -> None:
    """float16 weights (the output matrix is the embedding, so it is left out), written then renamed."""
    weights = {
        name: p.detach().half().contiguous()
        for name, p in model.state_dict().items()
        if name != "lm_head.weight" and not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    with whole_file(file) as partial:
        save_file(weights, partial)


def save_state(model, optimisers, step: int, out: Path) -> None:
    """Everything needed to go on: weights, both optimisers' moments, and the step."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for index, optimiser in enumerate(optimisers):
        for key, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"opt/{index}/{key}/{name}": value for name, value in moments.items()}
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    with whole_file(out / "state.safetensors") as partial:
        save_file(tensors, partial, metadata={"step": str(step)})


def load_state(model, optimisers, out: Path) -> int:
    """The step to go on from; 0 if there is nothing saved. Raises ValueError if it is damaged."""
    file = out / "state.safetensors"
    if not file.exists():
        return 0
    tensors, texts = read_tensors(file)
    like = {f"model/{name}": value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    for index, optimiser in enumerate(optimisers if len(tensors) > len(like) else ()):  # none before the first step
        moments = ("momentum_buffer",) if isinstance(optimiser, torch.optim.Muon) else ("step", "exp_avg", "exp_avg_sq")
        for key, weight in enumerate(optimiser.param_groups[0]["params"]):
            like |= {f"opt/{index}/{key}/{name}": torch.tensor(0.0) if name == "step" else weight for name in moments}
    check_checkpoint(file, tensors, like)
    try:
        step = int(texts["step"])
    except (KeyError, ValueError) as error:
        raise damaged(file, "it has no step") from error
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")}, strict=False)
    for index, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"opt/{index}/"):
                _, _, key, moment = name.split("/")
                state.setdefault(int(key), {})[moment] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def claim(config: Config, out: Path) -> None:
    """Note the settings in the folder. Raises ValueError if it holds a run with other settings."""
    claim_folder(out, asdict(config), word="--out folder")


def train(config: Config, out: Path) -> GPT2LMHeadModel:
    """Train from where the folder stands to the end.

    Raises:
        ValueError: if the folder holds a run with other settings, or a damaged file.
        OSError: if a file cannot be written; the checkpoint before stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    claim(config, out)
    stories = story_rows(config, out)
    held_out = StoryLanguage(seed=7).sample(32, config.context)
    model = make_model(config.seed)
    optimisers = optimizers(model, config)
    first = load_state(model, optimisers, out)
    if not 0 <= first <= config.steps:
        raise damaged(out / "state.safetensors", f"step {first} of {config.steps}")
    bar = tqdm(
        range(first, config.steps), initial=first, total=config.steps, desc="training tiny", unit="step"
    )
    for step in bar:
        if step % config.save_every == 0:
            save_weights(model, out / f"step-{step:06d}.safetensors")
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, config)
        loss = loss_of(model, *batch_at(step, stories, config))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % 100 == 0:
            save_state(model, optimisers, step + 1, out)
            scores = evaluate(model, held_out)
            with open(out / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": step + 1, "loss": loss.item(), **scores}) + "\n")
            bar.set_postfix({k: f"{v:.2f}" for k, v in scores.items()})
    save_weights(model, out / f"step-{config.steps:06d}.safetensors")
    return model


# --- shipping ----------------------------------------------------------------------------------------------------


def write_tokenizer(file: Path) -> None:
    """A word-level tokenizer: words separated by spaces, `<bos>` first, `<unk>` for anything else."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    tokenizer.add_special_tokens([BOS, UNK])
    tokenizer.save(str(file))


def export(out: Path, target: Path, steps: list[int]) -> None:
    """Copy the chosen checkpoints, the config and the tokenizer to `target`, with the hash of each file.

    Raises FileNotFoundError, before anything is changed, if one of the checkpoints is not there.
    """
    files = [out / f"step-{step:06d}.safetensors" for step in steps]
    if missing := [file.name for file in files if not file.exists()]:
        raise FileNotFoundError(f"{out} has no {', '.join(missing)}: train to the end first")
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("step-*.safetensors"):
        old.unlink()
    for file in files:
        (target / file.name).write_bytes(file.read_bytes())
    make_model(0).config.to_json_file(target / "config.json")
    write_tokenizer(target / "tokenizer.json")
    write_hashes(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("build/tiny"), help="checkpoints, log and resume state"
    )
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--steps", type=int, default=Config.steps)
    parser.add_argument("--export", type=Path, help="copy the finished weights here")
    args = parser.parse_args()
    config = Config(seed=args.seed, steps=args.steps)
    train(config, args.out)
    if args.export:
        export(args.out, args.export, [*config.ship, config.steps])


if __name__ == "__main__":
    main()
