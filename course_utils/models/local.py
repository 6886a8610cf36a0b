"""From local files (or a seed) to a Hugging Face model with its tokenizer, and from those to a bridge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.house import DamagedModelFile, NotForThisModel, read_tensors
from course_utils.models.folders import quiet

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge


def from_folder(folder: Path, weights_file: str) -> tuple[Any, Any]:
    """A model and tokenizer from local files (config, tokenizer, safetensors), no network.

    Raises:
        DamagedModelFile: if no model can be made from them.
    """
    try:
        return _from_folder(folder, weights_file)
    except DamagedModelFile:
        raise
    except Exception as error:  # transformers and tokenizers raise many kinds for files they cannot use
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise DamagedModelFile(f"{folder} holds no model that can be loaded ({weights_file}): {reason}") from error


def _from_folder(folder: Path, weights_file: str) -> tuple[Any, Any]:
    import torch
    import transformers
    from tokenizers import Tokenizer

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    too_large = [name for name, value in config.to_dict().items() if isinstance(value, int) and abs(value) >= 2**63]
    if too_large:                                                   # for PyTorch
        named = ", ".join(too_large)[:200]
        raise DamagedModelFile(f"{folder / 'config.json'} contains an impossible value: {named}")
    stored, _ = read_tensors(folder / weights_file)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if layers > len(stored) or heads < 1 or not all(value.is_floating_point() for value in stored.values()):
        raise DamagedModelFile(f"{folder / weights_file} does not fit its config.json: {layers} layers, {heads} heads")
    weights = {key: value.float() for key, value in stored.items()}
    architecture = getattr(transformers, (config.architectures or ["GPT2LMHeadModel"])[0])
    with quiet():
        model, report = architecture.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
    wrong = {*report["missing_keys"], *report["unexpected_keys"]} - {"lm_head.weight"}
    if wrong:
        raise DamagedModelFile(f"{folder / weights_file} does not fit its config.json: {str(sorted(wrong))[:200]}")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = "<bos>" if backend.token_to_id("<bos>") is not None else backend.id_to_token(config.bos_token_id)
    if bos is None:
        raise DamagedModelFile(f"{folder / 'tokenizer.json'} has no token {config.bos_token_id} to begin a text")
    return model, _tokenizer(backend, bos)


def _tokenizer(backend: Any, bos: str) -> Any:
    """A Hugging Face tokenizer that puts BOS first, which TransformerBridge takes as it is, offline.

    (Given one that does not add BOS, TransformerLens loads another by name, from disk or the hub.)
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    unknown = getattr(backend.model, "unk_token", None)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=bos, pad_token=bos, add_bos_token=True,
        name_or_path="",  # TransformerLens looks for it; nothing is read from there
        **({"unk_token": unknown} if unknown else {}),
    )


def random_gpt2_small(seed: int) -> tuple[Any, Any]:
    """GPT-2 small's shape, random weights, and one made-up word per token; BOS is 50256 as in GPT-2."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config()  # its defaults are GPT-2 small's shape
    bos = "<|endoftext|>"
    tokenizer = word_tokenizer([*(f"w{i}" for i in range(config.vocab_size - 1)), bos], bos)
    return GPT2LMHeadModel(config), tokenizer


def word_tokenizer(words: list[str], bos: str) -> Any:
    """A tokenizer with one id per word, in the order given; words are separated by spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=bos))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _tokenizer(backend, bos)


def as_bridge(model: Any, tokenizer: Any, *, name: str, device: str | torch.device) -> TransformerBridge:
    """Wrap a Hugging Face model, and try the result out on a few tokens (`traits_of` has the record).

    Both parts are given, so TransformerLens stays off the network.

    Raises:
        NotForThisModel: if TransformerLens cannot wrap it, its predictions are not those of the model itself, or
            they depend on later tokens.
    """
    import torch

    from course_utils.passes import check_causal, check_same, trial_tokens, try_out

    model, config = model.to(device).eval(), model.config
    config.architectures = config.architectures or [type(model).__name__]
    with torch.no_grad():
        tokens = trial_tokens(config.vocab_size, getattr(config, "max_position_embeddings", 12)).to(device)
        before = model(tokens).logits
        _in_one_step(model)
        bridge, after = _wrapped(model, tokenizer, name, device, tokens)
        check_same(before, after, name)
        check_causal(bridge, tokens, name)
    bridge.course_traits = try_out(bridge)
    return bridge


def _in_one_step(model: Any) -> None:
    """GPT-2's activation as PyTorch has it: the same in one step, not eight. One with hooks on it stays."""
    import torch
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, part in module.named_children():
            if type(part) is NewGELUActivation and not (part._forward_hooks or part._forward_pre_hooks):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def _forget_patterns(bridge: TransformerBridge) -> None:
    """Let no layer keep its last pattern, [batch, head, query, key], and the graph behind it.

    TransformerLens 4.3 stores it in an attribute that nothing reads: with GPT-2 small and 8 texts of 1,024 tokens
    0.4 GB in each layer.
    """
    for module in bridge.modules():
        if hasattr(module, "_pattern"):
            module.register_forward_hook(_forget_pattern)


def _forget_pattern(attention: Any, arguments: tuple, output: Any) -> None:
    attention._pattern = None


def _wrapped(
    model: Any, tokenizer: Any, name: str, device: str | torch.device, tokens: torch.Tensor
) -> tuple[TransformerBridge, torch.Tensor]:
    """The bridge in compatibility mode, and its logits for some tokens."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        bridge = TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer, device=device)
        bridge.enable_compatibility_mode(disable_warnings=True)
        bridge.cfg.default_prepend_bos = True       # as everywhere in this course; Pythia's default is False
        bridge.eval()
        bridge.requires_grad_(False)
        _forget_patterns(bridge)
        logits, *_ = bridge(tokens), bridge.blocks, bridge.ln_final, bridge.unembed, bridge.W_E
    except Exception as error:  # it raises many kinds for architectures that it does not know, or lays out differently
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        raise NotForThisModel(f"{name} is not loaded: TransformerLens cannot wrap this model ({reason})") from error
    return bridge, logits
