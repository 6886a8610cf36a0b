"""Autoencoders on disk and from the hub: our files, old files, damaged files, and SAELens's own."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_saes import D_IN, D_SAE, K, random_sae, same_weights, some_activations

from course_utils.house import ModelUnavailable
from course_utils.sae import KINDS, NORMS, SparseAutoencoder
from course_utils.sae_files import RELEASES, WEIGHTS, load_pretrained_sae
from course_utils.sae_formats import CONFIG, fold_decoder_norm
from course_utils.sae_formats.saelens import ARCHITECTURES

HOOK = "blocks.1.hook_resid_pre"


def edit_config(folder, *drop, **changes):
    """Change entries of cfg.json, and take others out."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({name: each for name, each in config.items() if name not in drop}))


# --- our own files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, normalize, subtract_b_dec", [
    ("relu", "none", True), ("topk", "constant_norm_rescale", False), ("jumprelu", "layer_norm", True),
    ("gated", "none", False)])
def test_what_was_saved_is_what_is_loaded(tmp_path, kind, normalize, subtract_b_dec):
    sae = random_sae(kind, normalize, subtract_b_dec=subtract_b_dec, hook_name="blocks.2.attn.hook_z", head=3,
                     model_name="tiny")
    sae.save(tmp_path / "new" / "folder")                           # which is made
    loaded, x = SparseAutoencoder.load(str(tmp_path / "new" / "folder")), some_activations()
    assert same_weights(sae, loaded)
    for name in ("kind", "k", "normalize", "subtract_b_dec", "hook_name", "head", "model_name", "d_in", "d_sae"):
        assert getattr(loaded, name) == getattr(sae, name), name
    assert torch.equal(loaded.encode(x), sae.encode(x)) and torch.equal(loaded(x), sae(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_is_kept_to_the_last_bit(tmp_path, kind, dtype):
    sae = random_sae(kind).to(dtype)
    if dtype == torch.float64:
        sae.W_enc += 1e-12                                          # more than float32 can hold
    sae.save(tmp_path)
    loaded = SparseAutoencoder.load(tmp_path)
    assert {value.dtype for value in loaded.state_dict().values()} == {dtype} and same_weights(sae, loaded)
    assert json.loads((tmp_path / CONFIG).read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_a_loaded_one_is_ready_for_use_and_saving_changes_nothing(tmp_path):
    sae = random_sae().requires_grad_(True).train()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    sae.save(tmp_path)
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())
    assert all(weight.requires_grad for weight in sae.parameters()) and sae.training
    loaded = SparseAutoencoder.load(tmp_path)
    assert not any(weight.requires_grad for weight in loaded.parameters()) and not loaded.training


def test_saving_again_replaces_both_files(tmp_path):
    random_sae("gated").save(tmp_path)
    other = random_sae("topk", seed=1)
    other.save(tmp_path)
    assert same_weights(SparseAutoencoder.load(tmp_path), other)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_those_of_saelens(tmp_path, kind):
    sae = random_sae(kind, "layer_norm", hook_name=HOOK, model_name="tiny")
    sae.save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    expected = {"architecture": ARCHITECTURES[kind], "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32",
                "apply_b_dec_to_input": True, "normalize_activations": "layer_norm"}
    assert expected.items() <= config.items()
    assert {"hook_name": HOOK, "hook_head_index": None, "model_name": "tiny"}.items() <= config["metadata"].items()
    assert config["metadata"]["sae_lens_version"].startswith("6.")  # older ones are read by other rules
    extra = (config.get("k"), config.get("rescale_acts_by_decoder_norm"))
    assert extra == ((K, False) if kind == "topk" else (None, None))
    own = {"gated": {"b_gate", "b_mag", "r_mag"}, "jumprelu": {"b_enc", "threshold"}}.get(kind, {"b_enc"})
    assert set(load_file(tmp_path / WEIGHTS)) == {"W_enc", "W_dec", "b_dec", *own}


# --- files of older versions -----------------------------------------------------------------------------------------


def old_folder(folder, kind="relu", drop=(), **changes):
    """A file as SAELens wrote it before version 6: everything in one level, other names."""
    sae = random_sae(kind)
    sae.save(folder)
    config = {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8,
              "hook_point_head_index": None, "d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "mps",
              "activation_fn_str": "relu", "activation_fn_kwargs": {}, "apply_b_dec_to_input": True,
              "finetuning_scaling_factor": False, "sae_lens_training_version": None, "prepend_bos": True,
              "normalize_activations": "none", "context_size": 128, **changes}
    (folder / CONFIG).write_text(json.dumps({name: each for name, each in config.items() if name not in drop}))
    return sae


@pytest.mark.parametrize("norm", ["none", False, None])
def test_a_standard_one_of_old(tmp_path, norm):
    sae = old_folder(tmp_path, normalize_activations=norm, hook_point_head_index=2)
    loaded = SparseAutoencoder.load(tmp_path)
    assert same_weights(sae, loaded)
    assert (loaded.kind, loaded.k, loaded.normalize) == ("relu", None, "none")
    assert (loaded.hook_name, loaded.head, loaded.model_name) == ("blocks.8.hook_resid_pre", 2, "gpt2-small")


def test_an_old_one_that_leaves_out_what_was_not_there_yet(tmp_path):
    sae = old_folder(tmp_path, drop=("normalize_activations", "activation_fn_str", "activation_fn_kwargs",
                                     "apply_b_dec_to_input", "finetuning_scaling_factor", "hook_point_head_index"))
    loaded, x = SparseAutoencoder.load(tmp_path), some_activations()
    assert (loaded.kind, loaded.normalize, loaded.subtract_b_dec, loaded.head) == ("relu", "none", True, None)
    assert torch.equal(loaded(x), sae(x))


@pytest.mark.parametrize("name", ["activation_fn_str", "activation_fn"])
@pytest.mark.parametrize("architecture", [{}, {"architecture": "topk"}, {"architecture": "standard"}])
def test_a_topk_one_of_old(tmp_path, name, architecture):
    """Before it had an architecture of its own, topk was an activation function of the standard one."""
    drop = () if name == "activation_fn_str" else ("activation_fn_str",)
    sae = old_folder(tmp_path, "topk", drop, **{name: "topk", "activation_fn_kwargs": {"k": K}}, **architecture)
    loaded, x = SparseAutoencoder.load(tmp_path), some_activations()
    assert (loaded.kind, loaded.k) == ("topk", K)
    assert torch.equal(loaded.encode(x), sae.encode(x))


def test_apply_b_dec_to_input_is_heeded(tmp_path):
    sae = old_folder(tmp_path, apply_b_dec_to_input=False)
    loaded, x = SparseAutoencoder.load(tmp_path), some_activations()
    assert not loaded.subtract_b_dec
    torch.testing.assert_close(loaded.encode(x), (x @ sae.W_enc + sae.b_enc).relu())


@pytest.mark.parametrize("announced", [True, False, None])
@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor", None])
def test_a_scaling_factor_is_dropped_only_if_it_scales_nothing(tmp_path, name, announced):
    sae = old_folder(tmp_path, finetuning_scaling_factor=announced)
    weights, factor = load_file(tmp_path / WEIGHTS), torch.ones(D_SAE)
    save_file({**weights, **({name: factor} if name else {})}, tmp_path / WEIGHTS)
    assert same_weights(SparseAutoencoder.load(tmp_path), sae)
    if name:
        factor[3] = 1.5
        save_file({**weights, name: factor}, tmp_path / WEIGHTS)
        with pytest.raises(ValueError, match=f"its {name} is not 1 everywhere") as error:
            SparseAutoencoder.load(tmp_path)
        assert str(tmp_path / WEIGHTS) in str(error.value)


def test_no_metadata_at_all(tmp_path):
    sae = old_folder(tmp_path, metadata=None)
    loaded = SparseAutoencoder.load(tmp_path)
    assert same_weights(loaded, sae) and loaded.hook_name == "blocks.8.hook_resid_pre"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_tensor_of_a_file_is_rounded(tmp_path, dtype):
    """SAELens trains JumpReLU with thresholds of 32 bits beside weights of 16."""
    sae = random_sae("jumprelu").to(dtype)
    sae.save(tmp_path)
    weights, x = load_file(tmp_path / WEIGHTS), some_activations()
    wide = {name: value.float() for name, value in weights.items()}
    pre = (x - wide["b_dec"]) @ wide["W_enc"] + wide["b_enc"]
    value = torch.nextafter(pre[0, 4].abs(), torch.tensor(0.0))     # which no 16 bits can hold: rounded, it is another
    threshold = torch.full((D_SAE,), value.item())
    assert not torch.equal(threshold.to(dtype).float(), threshold)
    save_file({**weights, "threshold": threshold}, tmp_path / WEIGHTS)
    loaded = SparseAutoencoder.load(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name].float(), wide[name]) for name in set(wide) - {"threshold"})
    assert torch.equal(loaded.threshold, threshold)
    torch.testing.assert_close(loaded.encode(x), torch.where(pre > threshold, pre, 0.0))


@pytest.mark.parametrize("changes, says", [
    ({"normalize_activations": True}, "normalize is True; it must be one of none, "),
    ({"activation_fn_str": "tanh-relu"}, "activation_fn 'tanh-relu' with standard is not one that this course knows"),
    ({"activation_fn_str": "topk", "architecture": "gated"}, "activation_fn 'topk' with gated is not one"),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "signed": True}}, "activation_fn_kwargs signed"),
    ({"hook_name_out": "blocks.8.hook_mlp_out"}, "a transcoder: what it gives belongs at blocks.8.hook_mlp_out"),
])
def test_what_old_files_ask_for_in_vain(tmp_path, changes, says):
    old_folder(tmp_path, **changes)
    with pytest.raises(ValueError, match=says):
        SparseAutoencoder.load(tmp_path)


# --- decoder norms ---------------------------------------------------------------------------------------------------


def rescaled_by_hand(sae, x):
    """SAELens's formula: pre-activations times the norms of the decoder rows; undone on the way back."""
    norms = sae.W_dec.norm(dim=-1)
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    latents = torch.zeros_like(pre)
    for row, values in zip(latents, pre):
        for i in values.argsort(descending=True)[: sae.k]:
            row[i] = max(0.0, values[i].item())
    return latents, (latents / norms) @ sae.W_dec + sae.b_dec


def test_decoder_norms_are_folded_into_the_weights(tmp_path):
    sae, x = random_sae("topk"), some_activations()
    sae.save(tmp_path)
    edit_config(tmp_path, rescale_acts_by_decoder_norm=True)
    loaded = SparseAutoencoder.load(tmp_path)
    latents, out = rescaled_by_hand(sae, x)
    assert ((latents > 0) != (sae.encode(x) > 0)).any()             # the norms decide which are the largest
    torch.testing.assert_close(loaded.encode(x), latents, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(loaded(x), out, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(D_SAE))


@pytest.mark.parametrize("k", [K, D_SAE])
def test_a_decoder_row_of_zeros(tmp_path, k):
    """Its latent is scaled by 0, so it is never active: all is as if it were not there."""
    sae, x, others = random_sae("topk"), some_activations(), [i for i in range(D_SAE) if i != 5]
    sae.W_dec[5], sae.k = 0, k
    sae.save(tmp_path)
    edit_config(tmp_path, rescale_acts_by_decoder_norm=True)
    loaded = SparseAutoencoder.load(tmp_path)
    without = SparseAutoencoder(D_IN, D_SAE - 1, "topk", k=min(k, D_SAE - 1)).requires_grad_(False)
    without.load_state_dict({"W_enc": sae.W_enc[:, others], "b_enc": sae.b_enc[others], "W_dec": sae.W_dec[others],
                             "b_dec": sae.b_dec})
    latents, out = rescaled_by_hand(without, x)
    assert (loaded.encode(x)[:, 5] == 0).all() and (loaded.W_dec[5] == 0).all()
    torch.testing.assert_close(loaded.encode(x)[:, others], latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded(x), out, atol=1e-5, rtol=1e-5)


# --- batch-TopK, as SAELens trains it --------------------------------------------------------------------------------


def batch_topk_folder(folder, architecture="batchtopk", rescale=True, threshold=torch.tensor(2.0, dtype=torch.float64)):
    sae = random_sae("relu")
    sae.save(folder)
    edit_config(folder, architecture=architecture, k=2.5, rescale_acts_by_decoder_norm=rescale, topk_threshold_lr=0.01)
    save_file({**load_file(folder / WEIGHTS), **({} if threshold is None else {"topk_threshold": threshold})},
              folder / WEIGHTS)
    return sae


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_batch_topk_autoencoder_as_it_is_trained(tmp_path, architecture, rescale):
    """After training one threshold decides, on pre-activations that are scaled by the decoder's norms."""
    sae, x = batch_topk_folder(tmp_path, architecture, rescale), some_activations()
    loaded, norms = SparseAutoencoder.load(tmp_path), sae.W_dec.norm(dim=1) if rescale else torch.ones(D_SAE)
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    latents = torch.where(pre > 2, pre, 0.0)
    assert ((pre > 0) & (latents == 0)).any() and (loaded.kind, loaded.k) == ("jumprelu", None)
    torch.testing.assert_close(loaded.encode(x), latents, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(loaded(x), latents / norms @ sae.W_dec + sae.b_dec, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [None, torch.ones(D_SAE), torch.tensor(-1.0), torch.tensor(torch.nan)])
def test_a_batch_topk_autoencoder_without_its_threshold(tmp_path, threshold):
    batch_topk_folder(tmp_path, threshold=threshold)
    with pytest.raises(ValueError, match="needs b_enc and topk_threshold, one number .* Save it for inference"):
        SparseAutoencoder.load(tmp_path)


def test_folding_leaves_the_given_weights_alone_and_does_nothing_the_second_time():
    given = {name: value.clone() for name, value in random_sae("topk").state_dict().items()}
    folded = fold_decoder_norm(given)
    assert all(torch.equal(given[name], value) for name, value in random_sae("topk").state_dict().items())
    again = fold_decoder_norm(folded)
    assert folded.keys() == given.keys()
    assert all(torch.allclose(again[name], value, atol=1e-6) for name, value in folded.items())


# --- files that are not what they should be --------------------------------------------------------------------------


@pytest.mark.parametrize("changes, says", [
    ({"architecture": "abstopk", "k": 2.5}, "architecture 'abstopk' is not one that this course knows; it knows "
                                            "standard, topk, jumprelu, gated, batchtopk, matryoshka_batchtopk"),
    ({"normalize_activations": "expected_average_only_in"},
     "normalize is 'expected_average_only_in'; it must be one of none, constant_norm_rescale, layer_norm"),
    ({"architecture": "topk"}, "topk needs k"),
    ({"d_in": 0}, "both must be positive"),
    ({"d_sae": D_SAE + 1}, "does not fit"),
    ({"d_in": D_IN + 1}, "does not fit"),
    ({"architecture": "gated"}, "does not fit"),
    ({"architecture": "jumprelu"}, "does not fit"),
])
def test_a_configuration_that_cannot_be(tmp_path, changes, says):
    random_sae().save(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        SparseAutoencoder.load(tmp_path)
    assert says in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_configuration_with_a_byte_order_mark_is_read(tmp_path, encoding):
    random_sae().save(tmp_path)
    (tmp_path / CONFIG).write_bytes((tmp_path / CONFIG).read_text(encoding="utf-8").encode(encoding))
    assert repr(SparseAutoencoder.load(tmp_path)) == repr(random_sae())


@pytest.mark.parametrize("text, says", [
    *((text, "missing or not valid JSON") for text in (None, "", "{\"d_in\": 6,", b"\xff\xfe\x00")),
    *((text, "does not say d_in and d_sae") for text in ("[]", "{}", "{\"d_in\": 6}")),
])
def test_a_damaged_or_missing_configuration(tmp_path, text, says):
    random_sae().save(tmp_path)
    (tmp_path / CONFIG).unlink()
    if text is not None:
        (tmp_path / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=says) as error:
        SparseAutoencoder.load(tmp_path)
    assert str(tmp_path / CONFIG) in str(error.value)


@pytest.mark.parametrize("cut", [None, 0, 5, 200])
def test_damaged_or_missing_weights(tmp_path, cut):
    random_sae().save(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).unlink()
    if cut is not None:
        (tmp_path / WEIGHTS).write_bytes(data[:cut])
    with pytest.raises(ValueError, match="is missing or damaged") as error:
        SparseAutoencoder.load(tmp_path)
    assert str(tmp_path / WEIGHTS) in str(error.value)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("edit", [lambda weights: weights.pop("b_enc"), lambda weights: weights.pop("W_dec"),
                                  lambda weights: weights.update(b_more=torch.zeros(2))])
def test_weights_that_are_too_few_or_too_many(tmp_path, edit, rescale):
    random_sae("topk").save(tmp_path)
    edit_config(tmp_path, rescale_acts_by_decoder_norm=rescale)
    weights = load_file(tmp_path / WEIGHTS)
    edit(weights)
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="does not fit"):
        SparseAutoencoder.load(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        SparseAutoencoder.load(tmp_path / "nowhere")


# --- the hub ---------------------------------------------------------------------------------------------------------

RELEASE, PLACE = "gpt2-small-res-jb", "blocks.8.hook_resid_pre"


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A folder in the place of the hub: owner/name/file. -> the folder, and what was asked for."""
    asked = []

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        if not (file := tmp_path / repo_id / filename).exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such file\nsecond line")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path, asked


@pytest.mark.parametrize("release", [RELEASE, RELEASES[RELEASE]])
def test_a_published_one_from_a_fake_hub(fake_hub, release):
    hub, asked = fake_hub
    sae = old_folder(hub / RELEASES[RELEASE] / PLACE)
    loaded = load_pretrained_sae(release, PLACE)
    assert same_weights(sae, loaded) and (loaded.hook_name, loaded.model_name) == (PLACE, "gpt2-small")
    assert asked == [(RELEASES[RELEASE], f"{PLACE}/{name}") for name in (CONFIG, WEIGHTS)]


def test_the_folder_names_the_hook_where_the_configuration_does_not(fake_hub):
    hub, _ = fake_hub
    old_folder(hub / "someone/else" / HOOK, drop=("hook_point",))
    assert load_pretrained_sae("someone/else", HOOK).hook_name == HOOK


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_published_one_that_cannot_be_had(fake_hub, missing):
    hub, _ = fake_hub
    old_folder(hub / RELEASES[RELEASE] / PLACE)
    (hub / RELEASES[RELEASE] / PLACE / missing).unlink()
    with pytest.raises(ModelUnavailable) as error:
        load_pretrained_sae(RELEASE, PLACE)
    text = str(error.value)
    for part in (RELEASE, PLACE, CONFIG, WEIGHTS, RELEASES[RELEASE], "no such file", "works now"):
        assert part in text
    assert "second line" not in text
    assert len(text.splitlines()) <= 6 and max(map(len, text.splitlines())) < 200


def test_without_a_network_the_message_is_the_same(monkeypatch, tmp_path):
    """The real download function, told to stay offline, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelUnavailable, match="could not be downloaded") as error:
        load_pretrained_sae(RELEASE, PLACE)
    assert str(tmp_path) in str(error.value) and len(str(error.value).splitlines()) <= 6


@pytest.mark.parametrize("problem", [OSError("full"), OSError(), ValueError("bad name"), ConnectionError("refused")])
def test_whatever_goes_wrong_on_the_way_is_told(monkeypatch, problem):
    def fail(*_, **__):
        raise problem

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ModelUnavailable) as error:
        load_pretrained_sae(RELEASE, PLACE)
    assert (str(problem) or "OSError") in str(error.value) and error.value.__cause__ is problem


def test_an_unknown_release_is_refused_before_the_hub_is_asked(fake_hub):
    with pytest.raises(ValueError, match="no release 'gpt2-small-res-xy'; known are gpt2-small-res-jb"):
        load_pretrained_sae("gpt2-small-res-xy", PLACE)
    assert fake_hub[1] == []


def test_a_published_one_of_an_unknown_architecture(fake_hub):
    old_folder(fake_hub[0] / "someone/else" / HOOK, architecture="transcoder")
    with pytest.raises(ValueError, match="architecture 'transcoder'"):
        load_pretrained_sae("someone/else", HOOK)


@pytest.mark.hub
def test_the_published_autoencoder_of_gpt2_small():
    try:
        sae = load_pretrained_sae(RELEASE, PLACE)
    except ModelUnavailable as error:
        pytest.skip(f"the hub does not answer: {error}")
    assert (sae.kind, sae.d_in, sae.d_sae, sae.normalize) == ("relu", 768, 24576, "none")
    assert (sae.hook_name, sae.model_name, sae.head) == (PLACE, "gpt2-small", None)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24576), atol=1e-3, rtol=0)


# --- SAELens reads ours, and we read theirs --------------------------------------------------------------------------


@pytest.fixture
def sae_lens():
    return pytest.importorskip("sae_lens")


def close(ours, theirs):
    """Equal but for rounding: four units in the last place of the largest number (0.9 were seen with AVX2)."""
    rounding = 4 * torch.finfo(theirs.dtype).eps * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, atol=rounding, rtol=0)


def with_hand_made_sizes(x):
    """Activations of very different sizes, as residual streams have them."""
    return x * torch.logspace(-2, 2, len(x))[:, None]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_saelens_loads_ours(sae_lens, tmp_path, kind, normalize, subtract_b_dec):
    sae = random_sae(kind, normalize, hook_name=HOOK, model_name="tiny", subtract_b_dec=subtract_b_dec)
    sae.save(tmp_path)
    theirs, x = sae_lens.SAE.load_from_disk(tmp_path), some_activations()
    latents = theirs.encode(x)
    close(sae.encode(x), latents)
    close(sae(x), theirs.decode(latents))                           # which remembers the norm of the last encode
    assert theirs.cfg.metadata.hook_name == HOOK and theirs.cfg.metadata.model_name == "tiny"


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_every_size_are_encoded_as_saelens_does(sae_lens, tmp_path, kind, normalize):
    """Small ones show what is added to a norm before it divides."""
    sae, x = random_sae(kind, normalize), with_hand_made_sizes(some_activations())
    sae.save(tmp_path)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    latents = theirs.encode(x)
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sae(x), theirs.decode(latents), atol=1e-3, rtol=1e-5)


def made_by_saelens(kind, normalize, folder, **more):
    """An object of SAELens with random weights, saved by itself."""
    import sae_lens

    name = {"relu": "Standard", "topk": "TopK", "jumprelu": "JumpReLU", "gated": "Gated"}[kind] + "SAE"
    config = getattr(sae_lens, f"{name}Config")(
        d_in=D_IN, d_sae=D_SAE, normalize_activations=normalize, **({"k": K} if kind == "topk" else {}), **more)
    config.metadata.hook_name, config.metadata.model_name = HOOK, "tiny"
    theirs = getattr(sae_lens, name)(config)
    for weight, value in random_sae(kind, seed=3).state_dict().items():
        getattr(theirs, weight).data = value
    theirs.save_model(folder)
    return theirs


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize(
    "kind, more", [*((kind, {}) for kind in KINDS), ("topk", {"rescale_acts_by_decoder_norm": True})])
def test_we_load_theirs(sae_lens, tmp_path, kind, more, normalize, apply_b_dec_to_input):
    theirs = made_by_saelens(kind, normalize, tmp_path, apply_b_dec_to_input=apply_b_dec_to_input, **more)
    sae, x = SparseAutoencoder.load(tmp_path), some_activations()
    assert (sae.kind, sae.normalize, sae.hook_name, sae.model_name) == (kind, normalize, HOOK, "tiny")
    assert sae.subtract_b_dec is apply_b_dec_to_input
    latents = theirs.encode(x).detach()
    close(sae.encode(x), latents)
    close(sae(x), theirs.decode(latents).detach())


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_saelens_reads_the_old_files_of_these_tests_as_we_do(sae_lens, tmp_path, kind):
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "architecture": "standard"}
    old_folder(tmp_path, kind, **({} if kind == "relu" else topk))
    theirs, x = sae_lens.SAE.load_from_disk(tmp_path), some_activations()
    ours = SparseAutoencoder.load(tmp_path)
    close(ours.encode(x), theirs.encode(x))
    assert theirs.cfg.metadata.hook_name == ours.hook_name


def test_weights_that_are_no_numbers_and_a_file_for_a_folder_are_named(tmp_path):
    sae = random_sae("topk")
    sae.W_enc.data[0, 0] = float("nan")
    sae.save(tmp_path / "x")
    with pytest.raises(ValueError, match="W_enc is not finite"):
        SparseAutoencoder.load(tmp_path / "x")
    with pytest.raises(ValueError, match="name the folder"):
        SparseAutoencoder.load(tmp_path / "x" / "cfg.json")
