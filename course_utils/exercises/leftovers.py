"""What an answer may leave changed: models that it was given, and settings and random numbers of the whole kernel.

Everything is put back, so that the next answer is judged as if it were the first; and the learner is told.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

EVERY_LATER_RUN = "every later run of the model would be changed too"
HOOK_LEFT = f"it leaves a hook on the model: {EVERY_LATER_RUN}"
WEIGHTS_CHANGED = f"it changes the model's weights: {EVERY_LATER_RUN}"
MODE_CHANGED = ("it switches the model between training and evaluation (`model.train()`, `model.eval()`): "
                f"{EVERY_LATER_RUN}")
CONFIG_CHANGED = f"it changes the model's configuration (`model.cfg`): {EVERY_LATER_RUN}"
TOKENIZER_CHANGED = f"it replaces the model's tokenizer: {EVERY_LATER_RUN}"
WEIGHT_STORED = ("it leaves a weight stored where the model keeps an activation, so that the model's next run fails: "
                 "pass a plain tensor to the model's parts, such as `model.W_E.detach()`")
GRADIENTS_ASKED = "it changes which weights of the model take gradients (`requires_grad`)"
MODEL_CHANGED = f"it leaves the model changed, with other logits for the same tokens: {EVERY_LATER_RUN}"
SEEDED = ("it seeds torch's global random numbers: all that the notebook draws later would be changed. Draw from a "
          "generator of your own: `torch.Generator().manual_seed(seed)`")

# --- the kernel: how a setting is read, how it is set, what checks need, and what is said when it is left changed ---

SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any], Any, str], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled, True,
     "it leaves gradients switched off for everything that runs later: use `with torch.no_grad():`"),
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32,
     "it leaves torch's default dtype changed for everything that runs later: say `dtype=` where a tensor is made"),
)
OWN_SEED = 1_618_033_988  # one that no answer is likely to use: another shows that the answer has set its own


@contextmanager
def as_checks_need_it(stream: int = 0) -> Iterator[None]:
    """Gradients, float32 and a fixed seed inside, whatever the notebook has set; afterwards the notebook's own again.

    `stream` chooses torch's global random numbers among different ones.
    """
    # Where there is no GPU, `torch.manual_seed` notes for each kind of one from where it was called: milliseconds.
    seed_torch = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    before = [read() for read, _, _, _ in SETTINGS]
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            _set([needed for _, _, needed, _ in SETTINGS])
            for seed, value in ((seed_torch, OWN_SEED + stream), (random.seed, 0), (np.random.seed, 0)):
                seed(value)
            yield
    finally:
        _set(before)
        random.setstate(pythons)
        np.random.set_state(numpys)


def _set(values: Iterable[Any]) -> None:
    for (_, write, _, _), value in zip(SETTINGS, values):
        write(value)


def settings_left(stream: int = 0) -> list[str]:
    """What is said about each setting of the kernel that is not as checks need it; they are put back."""
    left = [message for read, _, needed, message in SETTINGS if read() != needed]
    _set([needed for _, _, needed, _ in SETTINGS])
    return left + [SEEDED] * (torch.initial_seed() != OWN_SEED + stream)


# --- one model ---------------------------------------------------------------------------------------------


class Kept:
    """What a model is: its modules, their weights and flags, its configuration and its tokenizer, as they were when
    this was made."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.config = getattr(model, "cfg", None)
        self.entries = dict(getattr(self.config, "__dict__", {}))
        self.model, self.tokenizer = model, vars(model).get("_tokenizer")  # setting `tokenizer` would change `cfg`
        inner = getattr(model, "original_model", None)  # a bridge does not count the model that it wraps among its own
        modules = {id(module): module for each in (model, inner) if each is not None for module in each.modules()}
        self.modules = [(module, module.training, [(table, dict(table)) for table in (
            module._parameters, module._buffers, module._modules)]) for module in modules.values()]
        self.weights = [(weight, weight.detach().clone(), weight.requires_grad)
                        for weight in (*model.parameters(), *model.buffers())]

    def put_back(self) -> list[str]:
        """Undo what has changed since, and say what it was."""
        left = []
        if self.entries and self.config.__dict__ != self.entries:
            self.config.__dict__.clear()
            self.config.__dict__.update(self.entries)
            left.append(CONFIG_CHANGED)
        if vars(self.model).get("_tokenizer") is not self.tokenizer:
            vars(self.model)["_tokenizer"] = self.tokenizer
            left.append(TOKENIZER_CHANGED)
        if any(module.training != training for module, training, _ in self.modules):
            left.append(MODE_CHANGED)
        for module, training, tables in self.modules:
            module.training = training
            for table, entries in tables:
                if table.keys() != entries.keys() or any(table[name] is not entry for name, entry in entries.items()):
                    left.append(MODEL_CHANGED if table is module._modules else
                                WEIGHT_STORED if table.keys() - entries.keys() else WEIGHTS_CHANGED)
                    table.clear()
                    table.update(entries)
        if any(weight.requires_grad != asked for weight, _, asked in self.weights):
            left.append(GRADIENTS_ASKED)
        with torch.no_grad():
            for weight, copy, asked in self.weights:
                weight.requires_grad_(asked)
                if not torch.equal(weight, copy):
                    weight.copy_(copy)
                    left.append(WEIGHTS_CHANGED)
        return left


HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",  # PyTorch's
               "fwd_hooks", "bwd_hooks")  # TransformerLens's own lists


def hooks_on(values: Iterable[Any]) -> list[tuple[torch.nn.Module, str, Any]]:
    """A copy of every table of hooks on the models among the values: (module, table's name, copy)."""
    models = [value for value in values if isinstance(value, torch.nn.Module)]
    modules = [module for model in models for module in model.modules()]
    return [(module, name, module.__dict__[name].copy())
            for module in modules for name in HOOK_TABLES if name in module.__dict__]


def remove_new_hooks(before: list[tuple[torch.nn.Module, str, Any]]) -> bool:
    """Remove the hooks that have been added since; True when there were any."""
    found = False
    for module, name, kept in before:
        table = module.__dict__[name]
        if isinstance(table, list):
            new = [hook for hook in table if hook not in kept]
            table[:] = [hook for hook in table if hook in kept]
        else:
            new = [key for key, hook in table.items() if key not in kept and not _is_transformers_own(hook)]
            for key in new:
                del table[key]
        found |= bool(new)
    return found


def _is_transformers_own(hook: Any) -> bool:
    """The transformers library adds hooks of its own when first asked for attention or hidden states."""
    return (getattr(hook, "__module__", None) or "").partition(".")[0] == "transformers"


# --- the models that many checks share ---------------------------------------------------------------------

FEW_TOKENS = torch.tensor([[0, 1, 2, 3, 2, 1]])
_as_made: weakref.WeakKeyDictionary[torch.nn.Module, torch.Tensor] = weakref.WeakKeyDictionary()
_to_forget: list[Callable[[], Any]] = []  # what to call so that checks make their models again


def made_once(make: Callable[[], torch.nn.Module]) -> Callable[[], torch.nn.Module]:
    """Decorator for a function that makes a model: the same one for all checks, until an answer has changed it."""

    def made() -> torch.nn.Module:
        model = make()
        model.run_with_cache(FEW_TOKENS)  # the libraries put hooks of their own on it then, which are not the learner's
        _as_made[model] = _logits(model)
        return model

    kept = lru_cache(made)
    forget_with_the_models(kept.cache_clear)
    return kept


def forget_with_the_models(forget: Callable[[], Any]) -> None:
    """Have this called when the models must be made again: it forgets what holds them."""
    _to_forget.append(forget)


def is_shared(model: Any) -> bool:
    """Whether `made_once` made this model."""
    return isinstance(model, torch.nn.Module) and model in _as_made


def spoiled(models: Iterable[torch.nn.Module]) -> bool:
    """Whether one of these shared models no longer gives its logits; then all are forgotten, to be made again."""
    found = any(not _same(model) for model in models)
    if found:
        for forget in _to_forget:
            forget()
    return found


def _same(model: torch.nn.Module) -> bool:
    try:
        return torch.equal(_logits(model), _as_made[model])
    except Exception:  # it does not even run
        return False


@torch.no_grad()
def _logits(model: torch.nn.Module) -> torch.Tensor:
    return model(FEW_TOKENS).clone()
