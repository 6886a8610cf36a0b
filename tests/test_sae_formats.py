"""Autoencoders that other libraries wrote: every layout against its library's own formula, one latent at a time."""

import json
import types

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from small_saes import D_IN, D_SAE, K, random_sae, same_weights, some_activations

from course_utils.house import ModelUnavailable
from course_utils.sae import SparseAutoencoder
from course_utils.sae_files import load_pretrained_sae
from course_utils.sae_formats.others import CLASSES

SCOPE = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


def numbers(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(turn_encoder=False, turn_decoder=False):
    """[encoder, its bias, decoder, its bias], each matrix one row a latent, or turned round."""
    encoder, decoder = numbers(D_SAE, D_IN, seed=0), numbers(D_SAE, D_IN, seed=2)
    return [encoder.T.contiguous() if turn_encoder else encoder, numbers(D_SAE, seed=1),
            decoder.T.contiguous() if turn_decoder else decoder, numbers(D_IN, seed=3)]


def by_hand(act, subtract=False, scale=torch.ones(D_SAE)):
    """Latents and reconstructions from `act`, a function of a position's pre-activations and of a latent's number."""
    encoder, b_enc, decoder, b_dec = (each.tolist() for each in tensors())
    all_latents, out = [], []
    for x in some_activations().tolist():
        seen = [x[j] - b_dec[j] if subtract else x[j] for j in range(D_IN)]
        pre = [sum(encoder[i][j] * seen[j] for j in range(D_IN)) + b_enc[i] for i in range(D_SAE)]
        latents = [float(act(pre, i)) for i in range(D_SAE)]
        out.append([b_dec[j] + sum(latents[i] * decoder[i][j] for i in range(D_SAE)) for j in range(D_IN)])
        all_latents.append(latents)
    return torch.tensor(all_latents) * scale, torch.tensor(out)


def jump(threshold):
    return lambda pre, i: pre[i] if pre[i] > max(threshold[i], 0) else 0


def largest(pre, i):
    return max(pre[i], 0) if pre[i] >= sorted(pre)[-K] else 0


def relu(pre, i):
    return max(pre[i], 0)


def check(folder, kind, expected):
    sae, x = SparseAutoencoder.load(folder), some_activations()
    assert (sae.kind, sae.d_in, sae.d_sae, sae.k) == (kind, D_IN, D_SAE, K if kind == "topk" else None)
    latents, out = expected
    assert (latents > 0).any() and (latents == 0).any()
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sae(x), out, atol=1e-4, rtol=1e-5)
    return sae


# --- Gemma Scope -----------------------------------------------------------------------------------------------------


def scope_arrays(prefix="W_"):
    names = [f"{prefix}enc", "b_enc", f"{prefix}dec", "b_dec"]
    return {**dict(zip(names, tensors(turn_encoder=True))), "threshold": numbers(D_SAE, seed=4)}


def write_scope(folder, **more):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in scope_arrays().items()}, **more)


def test_gemma_scope(tmp_path):
    write_scope(tmp_path)
    assert check(tmp_path, "jumprelu", by_hand(jump(numbers(D_SAE, seed=4)))).hook_name is None
    write_scope(tmp_path, scaling_factor=np.full(D_SAE, 2.0))
    with pytest.raises(ValueError, match="params.npz: its scaling_factor is not 1"):
        SparseAutoencoder.load(tmp_path)


def test_gemma_scope_2(tmp_path):
    save_file(scope_arrays("w_"), tmp_path / "params.safetensors")
    check(tmp_path, "jumprelu", by_hand(jump(numbers(D_SAE, seed=4))))


@pytest.mark.parametrize("path, hook_name", [
    (SCOPE, "blocks.20.hook_resid_post"),
    ("models--google--gemma-scope-9b-pt-att/snapshots/a1/layer_3/width_16k/average_l0_1", "blocks.3.attn.hook_z"),
    ("google/gemma-scope-2-1b-pt/resid_post/layer_12_width_16k", "blocks.12.hook_resid_post"),
    ("google/gemma-scope-2b-pt-mlp/layer_20/width_16k/average_l0_71", None),     # before or after a norm: not said
    ("google/gemma-scope-2b-pt-transcoders/layer_20/width_16k", "Gemma Scope's transcoder is not supported"),
    ("google/gemma-scope-2b-pt-res/embedding/width_4k", "Gemma Scope's embedding is not supported"),
])
def test_the_folders_of_gemma_scope_say_where_it_belongs(tmp_path, path, hook_name):
    write_scope(tmp_path / path)
    if hook_name and "not supported" in hook_name:
        with pytest.raises(ValueError, match=hook_name):
            SparseAutoencoder.load(tmp_path / path)
    else:
        assert SparseAutoencoder.load(tmp_path / path).hook_name == hook_name


@pytest.mark.parametrize("content, says", [
    ({"b_dec": np.array([{"a": 1}])}, "missing or damaged: Object arrays cannot be loaded"),     # a pickled array
    ({"b_dec": np.ones(D_IN, int)}, "numbers of these kinds are not supported: b_dec"),
    ({"W_dec": np.ones(3)}, "has no decoder matrix"),
    ({"more": np.ones(3)}, "does not fit"),
    (b"PK\3\4 cut off", "missing or damaged"),
    (b"\x80\4N.", "missing or damaged"),                              # a pickle under that name
])
def test_arrays_that_are_not_an_autoencoder(tmp_path, content, says):
    if isinstance(content, bytes):
        (tmp_path / "params.npz").write_bytes(content)
    else:
        arrays = {name: value.numpy() for name, value in scope_arrays().items()}
        np.savez(tmp_path / "params.npz", **arrays | content)
    with pytest.raises(ValueError, match=says) as error:
        SparseAutoencoder.load(tmp_path)
    assert str(tmp_path / "params.npz") in str(error.value)


# --- sparsify --------------------------------------------------------------------------------------------------------


def write_sparsify(folder, more=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    names = ["encoder.weight", "encoder.bias", "W_dec", "b_dec"]
    save_file({**dict(zip(names, tensors())), **(more or {})}, folder / "sae.safetensors")
    config = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": D_SAE, "k": K, "d_in": D_IN, **changes}
    (folder / "cfg.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name, hook_name", [
    ("layers.10", "blocks.10.hook_resid_post"), ("h.3", "blocks.3.hook_resid_post"), ("layers.10.mlp", None)])
def test_sparsify(tmp_path, name, hook_name):
    write_sparsify(tmp_path / name, activation="topk", signed=False, multi_topk=True)
    assert check(tmp_path / name, "topk", by_hand(largest, subtract=True)).hook_name == hook_name
    write_sparsify(tmp_path / name, num_latents=0, expansion_factor=D_SAE // D_IN)
    check(tmp_path / name, "topk", by_hand(largest, subtract=True))


@pytest.mark.parametrize("changes, says", [
    ({"transcode": True}, "transcode True is not supported"), ({"signed": True}, "signed True is not supported"),
    ({"skip_connection": True}, "skip_connection True is not supported"),
    ({"activation": "groupmax"}, "activation groupmax"),
    ({"more": {"W_skip": torch.zeros(D_IN, D_IN)}}, "does not fit"), ({"num_latents": 10**12}, "does not fit"),
    ({"d_in": D_IN + 1}, "does not fit"), ({"k": None}, "does not say k"), ({"k": D_SAE + 1}, "topk needs k"),
])
def test_what_sparsify_may_ask_for_in_vain(tmp_path, changes, says):
    write_sparsify(tmp_path, **changes)
    with pytest.raises(ValueError, match=says) as error:
        SparseAutoencoder.load(tmp_path)
    assert str(tmp_path) in str(error.value)


# --- dictionary_learning ---------------------------------------------------------------------------------------------


def dictionary(dict_class):
    """Its tensors, and by hand its latents and reconstructions."""
    linear = dict(zip(("encoder.weight", "encoder.bias", "decoder.weight"), tensors(turn_decoder=True)))
    plain = dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), tensors(turn_encoder=True)))
    b_dec, thresholds, one = numbers(D_IN, seed=3), numbers(D_SAE, seed=4), torch.tensor(0.7)
    gate, scale, k = numbers(D_SAE, seed=5), numbers(D_SAE, seed=6), torch.tensor(K, dtype=torch.int32)
    norms = numbers(D_SAE, D_IN, seed=2).norm(dim=1)

    def gated(pre, i):
        product = pre[i] - linear["encoder.bias"][i]                # which stands in `by_hand`
        return max(product * scale[i].exp() + linear["encoder.bias"][i], 0) if product + gate[i] > 0 else 0

    without_bias = {"encoder.weight": linear["encoder.weight"], "decoder.weight": linear["decoder.weight"]}
    match dict_class:
        case "AutoEncoder":                                         # its latents are scaled as it is loaded
            return {**linear, "bias": b_dec}, by_hand(relu, True, norms)
        case "AutoEncoderNew":
            return {**linear, "decoder.bias": b_dec}, by_hand(relu)
        case "GatedAutoEncoder":
            biases = {"decoder_bias": b_dec, "gate_bias": gate, "mag_bias": linear["encoder.bias"], "r_mag": scale}
            return {**without_bias, **biases}, by_hand(gated, True)
        case "JumpReluAutoEncoder":
            return {**plain, "threshold": thresholds}, by_hand(jump(thresholds))
        case "AutoEncoderTopK":                                     # its threshold is not used
            return {**linear, "b_dec": b_dec, "k": k, "threshold": one}, by_hand(largest, True)
        case "BatchTopKSAE":
            return {**linear, "b_dec": b_dec, "k": k, "threshold": one}, by_hand(jump([0.7] * D_SAE), True)
        case "MatryoshkaBatchTopKSAE":
            groups = torch.tensor([4, D_SAE - 4])
            return {**plain, "k": k, "threshold": one, "group_sizes": groups}, by_hand(jump([0.7] * D_SAE), True)


def write_dictionary(folder, dict_class, weights=None, buffer=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dictionary(dict_class)[0] if weights is None else weights, folder / "ae.safetensors")
    trainer = {"dict_class": dict_class, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "layer": 8,
               "lm_name": "a/b"}
    (folder / "config.json").write_text(json.dumps({"trainer": {**trainer, **changes}, "buffer": buffer}))


@pytest.mark.parametrize("dict_class", CLASSES)
def test_dictionary_learning(tmp_path, dict_class):
    write_dictionary(tmp_path, dict_class)
    assert check(tmp_path, CLASSES[dict_class][0], dictionary(dict_class)[1]).hook_name == "blocks.8.hook_resid_post"


@pytest.mark.parametrize("more", [{"submodule_name": "mlp_out_layer_8"}, {"buffer": {"io": "in"}}, {"layer": None}])
def test_a_place_of_dictionary_learning_that_is_not_said(tmp_path, more):
    write_dictionary(tmp_path, "AutoEncoderTopK", **more)
    assert SparseAutoencoder.load(tmp_path).hook_name is None


def test_what_dictionary_learning_may_ask_for_in_vain(tmp_path):
    write_dictionary(tmp_path, "CrossCoder", weights={})
    says = "dict_class 'CrossCoder' is not one that this course knows; it knows AutoEncoder"
    with pytest.raises(ValueError, match=says):
        SparseAutoencoder.load(tmp_path)
    never = {**dictionary("BatchTopKSAE")[0], "threshold": torch.tensor(-1.0)}      # as it is before training
    write_dictionary(tmp_path, "BatchTopKSAE", weights=never)
    with pytest.raises(ValueError, match="threshold, one number that training has estimated"):
        SparseAutoencoder.load(tmp_path)
    write_dictionary(tmp_path, "AutoEncoderTopK", k="3")
    with pytest.raises(ValueError, match="trainer.k must be int, not str"):
        SparseAutoencoder.load(tmp_path)


@pytest.mark.parametrize("name, says", [
    ("ae.pt", "ae.pt, a pickle.*\n.*dictionary_learning's.*\n.*weights_only=True.*\n.*'ae.safetensors'"),
    ("sae_weights.bin", "sae_weights.bin, a pickle.*\n.*as SAELens does"),
])
def test_a_pickle_is_named_and_never_read(tmp_path, name, says):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(ValueError, match=says) as error:
        SparseAutoencoder.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_llama_scope_is_named_and_the_way_to_read_it(tmp_path):
    (tmp_path / "hyperparams.json").write_text("{}")
    with pytest.raises(ValueError, match="hyperparams.json: it looks like Llama Scope.*\n.*save_model"):
        SparseAutoencoder.load(tmp_path)


# --- from the hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the place of the hub, which says of every other file that it has none."""
    def download(repo_id, filename, *, local_files_only=False):
        if (tmp_path / repo_id / filename).exists():
            return str(tmp_path / repo_id / filename)
        raise (LocalEntryNotFoundError if local_files_only else NotThere)(f"no {filename}")

    def listed(repo_id, path):
        return [types.SimpleNamespace(path=f"{path}/{file.name}") for file in (tmp_path / repo_id / path).iterdir()]

    class NotThere(EntryNotFoundError):
        def __init__(self, message):
            Exception.__init__(self, message)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_tree", listed)
    return tmp_path


@pytest.mark.parametrize("write, place, hook_name", [
    (write_scope, SCOPE, "blocks.20.hook_resid_post"),
    (write_sparsify, "someone/saes/layers.10", "blocks.10.hook_resid_post"),
    (lambda folder: write_dictionary(folder, "AutoEncoderTopK"), "someone/dictionaries/resid_post_layer_8/trainer_0",
     "blocks.8.hook_resid_post"),
])
def test_each_layout_from_a_repository(hub, write, place, hook_name):
    owner, name, folder = place.split("/", 2)
    write(hub / place)
    loaded = load_pretrained_sae(f"{owner}/{name}", folder)
    assert loaded.hook_name == hook_name and same_weights(loaded, SparseAutoencoder.load(hub / place))


def test_a_folder_s_name_that_is_no_place_is_not_taken_for_one(hub):
    random_sae().save(hub / "someone/else/first try")
    assert load_pretrained_sae("someone/else", "first try").hook_name is None


def test_a_repository_with_a_pickle(hub):
    (hub / "someone/else/trainer_0").mkdir(parents=True)
    (hub / "someone/else/trainer_0/ae.pt").touch()
    with pytest.raises(ValueError, match="someone/else/trainer_0 keeps its weights in trainer_0/ae.pt, a pickle"):
        load_pretrained_sae("someone/else", "trainer_0")


def test_a_repository_of_llama_scope(hub):
    (hub / "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L0R-8x").mkdir(parents=True)
    (hub / "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L0R-8x/hyperparams.json").touch()
    with pytest.raises(ValueError, match="L0R-8x has a hyperparams.json: it looks like Llama Scope"):
        load_pretrained_sae("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L0R-8x")


def test_a_repository_with_nothing(hub):
    (hub / "someone/else/blocks.1.hook_resid_pre").mkdir(parents=True)
    with pytest.raises(ModelUnavailable) as error:
        load_pretrained_sae("someone/else", "blocks.1.hook_resid_pre")
    for part in ("no blocks.1.hook_resid_pre/cfg.json", "params.npz", "sae.safetensors", "ae.safetensors"):
        assert part in str(error.value)


# --- SAELens reads them as we do -------------------------------------------------------------------------------------


def theirs(loader, monkeypatch, folder):
    """An object of SAELens, by one of its loaders, from a folder in the place of the hub."""
    import sae_lens
    from sae_lens.loading import pretrained_sae_loaders

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download",
                        lambda repo_id, filename, **more: str(folder / filename.rpartition("/")[2]))
    overrides = {"d_in": D_IN, "d_sae": D_SAE} if "gemma" in loader else {}
    read = getattr(pretrained_sae_loaders, loader)
    config, weights, _ = read("gemma-scope-2b-pt-res", "layer_20", "cpu", False, overrides)
    config = pretrained_sae_loaders.handle_config_defaulting(config)
    config_class = sae_lens.SAE.get_sae_config_class_for_architecture(config["architecture"]).from_dict(config)
    sae = sae_lens.SAE.get_sae_class_for_architecture(config["architecture"])(config_class)
    sae.load_state_dict(weights)
    return sae, config_class.metadata.hook_name


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_saelens_reads_gemma_scope_as_we_do(monkeypatch, tmp_path):
    pytest.importorskip("sae_lens")
    write_scope(tmp_path / SCOPE)
    ours, (sae, hook_name) = SparseAutoencoder.load(tmp_path / SCOPE), theirs(
        "gemma_2_sae_huggingface_loader", monkeypatch, tmp_path / SCOPE)
    assert same_weights(ours, sae) and ours.hook_name == hook_name
    torch.testing.assert_close(ours(some_activations()), sae(some_activations()).detach(), atol=1e-5, rtol=1e-6)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dict_class", [name for name in CLASSES if name != "AutoEncoderNew"])   # which SAELens cannot
def test_saelens_reads_dictionary_learning_as_we_do(monkeypatch, tmp_path, dict_class):
    """Its reconstructions; AutoEncoder's latents are scaled as dictionary_learning itself loads them."""
    pytest.importorskip("sae_lens")
    write_dictionary(tmp_path, dict_class, buffer={"ctx_len": 128})
    torch.save(dictionary(dict_class)[0], tmp_path / "ae.pt")
    sae, hook_name = theirs("dictionary_learning_sae_huggingface_loader_1", monkeypatch, tmp_path)
    ours, x = SparseAutoencoder.load(tmp_path), some_activations()
    assert ours.hook_name == hook_name
    torch.testing.assert_close(ours(x), sae(x).detach(), atol=1e-4, rtol=1e-5)
    if dict_class != "AutoEncoder":
        torch.testing.assert_close(ours.encode(x), sae.encode(x).detach(), atol=1e-4, rtol=1e-5)
