"""What tools/mutants.py has to know about the exercises: equivalent mutants."""


# exercise id -> {"the changed lines before  =>  after": why what was asked is done all the same}
EQUIVALENT = {
    "00.head_pattern": {
        "_, cache = model.run_with_cache(tokens, names_filter=name)  =>  _, cache = model.run_with_cache(tokens)":
            "without a filter the cache holds this pattern, too",
        "return cache[name][0, head]  =>  return cache[name][-1, head]":
            "there is one sequence: row 0 is also row −1",
    },
    "00.next_token_probs": {
        "return logits[:, -1].softmax(dim=-1)  =>  return logits[:, -1].softmax(dim=1)":
            "after [:, -1] the last axis is axis 1",
    },
    "00.top_tokens": {
        "probs = model(model.to_tokens(text))[0, -1].softmax(dim=-1)  =>"
        "  probs = model(text)[0, -1].softmax(dim=-1)":
            "the model makes tokens of a text itself, BOS in front",
        "probs = model(model.to_tokens(text))[0, -1].softmax(dim=-1)  =>"
        "  probs = model(model.to_tokens(text))[-1, -1].softmax(dim=-1)":
            "there is one text: row 0 is also row −1",
        "probs = model(model.to_tokens(text))[0, -1].softmax(dim=-1)  =>"
        "  probs = model(model.to_tokens(text))[0, -1].softmax(dim=-0)":
            "what is left has one axis",
    },
    "01.correct_token_log_probs": {
        "log_probs = logits[:, :-1].log_softmax(dim=-1)  =>  log_probs = logits[:, :].log_softmax(dim=-1)":
            "the index is one shorter: gather leaves the last logits out",
        "return log_probs.gather(dim=-1, index=tokens[:, 1:, None])[..., 0]  =>"
        "  return log_probs.gather(dim=-1, index=tokens[:, 1:, None])[..., -1]":
            "the last axis has one entry",
    },
    "01.order_gain": {
        "order = torch.rand(len(tokens), seq_len, generator=rng).argsort(dim=1).to(tokens.device)  =>"
        "  order = torch.rand(len(tokens), seq_len, generator=rng).argsort().to(tokens.device)":
            "the last axis is axis 1",
        "mixed[:, seq_len + 1:] = tokens[:, 1:seq_len + 1].gather(1, order)  =>"
        "  mixed[:, seq_len + 1:] = tokens[:, 1:].gather(1, order)":
            "the order asks for the first seq_len of them only",
        "mixed[:, seq_len + 1:] = tokens[:, 1:seq_len + 1].gather(1, order)  =>"
        "  mixed[:, seq_len + 1:] = tokens[:, 1:seq_len + 2].gather(1, order)":
            "the order asks for the first seq_len of them only",
    },
    "02.head_scores": {
        "scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)  =>"
        "  scores = torch.ones(model.cfg.n_layers, model.cfg.n_heads)":
            "every row is written",
        "scores[hook.layer()] = entries(pattern).mean(dim=(0, 2))  =>"
        "  scores[hook.layer()] = entries(pattern).mean(dim=(2, 0))":
            "the order of the axes of a mean does not matter",
        "model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(is_pattern, note)])  =>"
        "  model.run_with_hooks(tokens, fwd_hooks=[(is_pattern, note)])":
            "the logits are not used",
    },
    "02.induction_targets": {
        "before = tokens.roll(1, dims=1)  =>  before = tokens.roll(1)":
            "rolled over row ends, only key 0 differs, and that is set to False next",
    },
    "02.stripe": {
        "return pattern.diagonal(offset, -2, -1)[..., first:]  =>  return pattern.diagonal(offset, 2, -1)[..., first:]":
            "the pattern has four axes: axis 2 is also axis −2",
    },
    "02.uniform_score": {
        "n_visible = torch.arange(1, targets.shape[-1] + 1, device=targets.device)  =>"
        "  n_visible = torch.arange(1, targets.shape[-1] + 1)":
            "checks run on the CPU",
        "n_visible = torch.arange(1, targets.shape[-1] + 1, device=targets.device)  =>"
        "  n_visible = torch.arange(1, targets.shape[1] + 1, device=targets.device)":
            "there are as many keys as queries",
        "n_visible = torch.arange(1, targets.shape[-1] + 1, device=targets.device)  =>"
        "  n_visible = torch.arange(1, targets.shape[-2] + 1, device=targets.device)":
            "there are as many keys as queries",
    },
    "03.ablate": {
        "new = rest.mean(dim=(0, 1)).expand_as(rest)  =>  new = rest.mean(dim=(1, 0)).expand_as(rest)":
            "the order of the axes of a mean does not matter",
    },
    "03.estimate_on_path": {
        "way = torch.tensor((i + 0.5) / points, requires_grad=True)  =>"
        "  way = torch.tensor(i / points, requires_grad=True)":
            "other places near these: they are the learner's choice, and the estimate need only come close",
        "way = torch.tensor((i + 0.5) / points, requires_grad=True)  =>"
        "  way = torch.tensor((i + 0.25) / points, requires_grad=True)":
            "other places near these: they are the learner's choice, and the estimate need only come close",
    },
    "03.mlp_attribution_sweep": {
        "estimate = torch.zeros(len(names), seq_len)  =>  estimate = torch.ones(len(names), seq_len)":
            "every row is written",
        "estimate[layer] = (change * slope[:, seq_len + 1:]).sum(dim=(0, 2))  =>"
        "  estimate[layer] = (change * slope[:, seq_len + 1:]).sum(dim=(2, 0))":
            "the order of the axes of a sum does not matter",
    },
    "03.mlp_patch_loop": {
        "clean_logits, cache = model.run_with_cache(tokens, names_filter=names)  =>"
        "  clean_logits, cache = model.run_with_cache(tokens)":
            "without a filter the cache holds these activations, too",
        "changes = torch.zeros(len(layers), seq_len)  =>  changes = torch.ones(len(layers), seq_len)":
            "every entry is written",
        "for i in range(seq_len):  =>  for i in list(range(seq_len))[:-1]:":
            "the last patched position predicts no token that counts: its change is 0",
    },
    "04.copying_score": {
        "eigenvalues = torch.linalg.eigvals((circuit.B @ circuit.A).double())  =>"
        "  eigenvalues = torch.linalg.eigvals((circuit.A @ circuit.B).double())":
            "the large product has the same eigenvalues, and zeros",
    },
    "04.effective_embedding": {
        "return (residual + block.mlp(block.ln2(residual)))[0]  =>"
        "  return (residual + block.mlp(block.ln2(residual)))[-1]":
            "the batch has one row: row 0 is also row −1",
    },
    "04.kind_of_head": {
        "one_back = circuits.positional_pattern(model, layer, head, 16).diagonal(-1).mean()  =>"
        "  one_back = circuits.positional_pattern(model, layer, head, 15).diagonal(-1).mean()":
            "how many positions are looked at is the learner's choice",
        "where = 'previous position' if one_back > 0.5 else 'same token' if matched > 0.5 else 'something else'  =>"
        "  where = 'previous position' if one_back >= 0.5 else 'same token' if matched > 0.5 else 'something else'":
            "the kinds lie far apart: thresholds are the learner's choice",
        "where = 'previous position' if one_back > 0.5 else 'same token' if matched > 0.5 else 'something else'  =>"
        "  where = 'previous position' if one_back > 0.5 else 'same token' if matched >= 0.5 else 'something else'":
            "the kinds lie far apart: thresholds are the learner's choice",
        "where = 'previous position' if one_back > 0.5 else 'same token' if matched > 0.5 else 'something else'  =>"
        "  where = 'previous position' if one_back > 0.5 else 'same token' if matched > 0.25 else 'something else'":
            "the kinds lie far apart: thresholds are the learner's choice",
        "what = 'copies' if score > 0.5 else 'suppresses' if score < -0.5 else 'neither'  =>"
        "  what = 'copies' if score >= 0.5 else 'suppresses' if score < -0.5 else 'neither'":
            "the kinds lie far apart: thresholds are the learner's choice",
        "what = 'copies' if score > 0.5 else 'suppresses' if score < -0.5 else 'neither'  =>"
        "  what = 'copies' if score > 0.25 else 'suppresses' if score < -0.5 else 'neither'":
            "the kinds lie far apart: thresholds are the learner's choice",
        "what = 'copies' if score > 0.5 else 'suppresses' if score < -0.5 else 'neither'  =>"
        "  what = 'copies' if score > 0.5 else 'suppresses' if score <= -0.5 else 'neither'":
            "the kinds lie far apart: thresholds are the learner's choice",
        "what = 'copies' if score > 0.5 else 'suppresses' if score < -0.5 else 'neither'  =>"
        "  what = 'copies' if score > 0.5 else 'suppresses' if score < -0.25 else 'neither'":
            "the kinds lie far apart: thresholds are the learner's choice",
    },
    "04.positional_pattern": {
        "mean_square = (x.pow(2).sum(dim=-1) + W_E.var(dim=0, unbiased=False).sum()) / x.shape[-1]  =>"
        "  mean_square = (x.pow(2).sum(dim=1) + W_E.var(dim=0, unbiased=False).sum()) / x.shape[-1]":
            "x has two axes: axis 1 is also axis −1",
        "mean_square = (x.pow(2).sum(dim=-1) + W_E.var(dim=0, unbiased=False).sum()) / x.shape[-1]  =>"
        "  mean_square = (x.pow(2).sum(dim=-1) + W_E.var(dim=0, unbiased=False).sum()) / x.shape[1]":
            "x has two axes: axis 1 is also axis −1",
        "return scores.masked_fill(future, -torch.inf).softmax(dim=-1)  =>"
        "  return scores.masked_fill(future, -torch.inf).softmax(dim=1)":
            "the scores have two axes: axis 1 is also axis −1",
        "queries, keys = (x @ weights['Q'] + weights['b_Q'], x @ weights['K'] + weights['b_K'])  =>"
        "  queries, keys = (x @ weights['Q'] + weights['b_Q'], x @ weights['K'] - weights['b_K'])":
            "b_K adds the same to all keys of a query: softmax ignores it",
        "queries, keys = (x @ weights['Q'] + weights['b_Q'], x @ weights['K'] + weights['b_K'])  =>"
        "  queries, keys = (x @ weights['Q'] + weights['b_Q'], x @ weights['K'])":
            "b_K adds the same to all keys of a query: softmax ignores it",
    },
    "04.top_k_accuracy": {
        "rival = others.topk(k, dim=1).values[:, -1]  =>  rival = others.topk(k).values[:, -1]":
            "dim −1 is the default, and axis 1 of two",
    },
    "05.random_head_pairs": {
        "pairs = [(first, second) for first in heads for second in heads if first[0] < second[0]]  =>"
        "  pairs = [(first, second) for first in list(heads)[:-1] for second in heads if first[0] < second[0]]":
            "the last head is in the last layer: it comes before no other",
        "pairs = [(first, second) for first in heads for second in heads if first[0] < second[0]]  =>"
        "  pairs = [(first, second) for first in heads for second in list(heads)[1:] if first[0] < second[0]]":
            "the first head is in layer 0: it comes after no other",
    },
    "06.auc": {
        "return won.mean(dim=(0, 1))  =>  return won.mean(dim=(1, 0))":
            "the order of the axes of a mean does not matter",
    },
    "06.dead_latents": {
        "return ~((latents != 0) & mask[..., None]).any(dim=1).any(dim=0)  =>"
        "  return ~((latents != 0) & mask[..., None]).any(dim=0).any(dim=0)":
            "both any() reduce a leading axis: first the one or first the other",
    },
    "06.luck": {
        "order = torch.randperm(len(labels), generator=rng)  =>  order = torch.randperm(len(latent), generator=rng)":
            "both have one row for each text",
        "order = torch.randperm(len(labels), generator=rng)  =>  order = torch.randperm(len(known), generator=rng)":
            "both have one row for each text",
    },
    "06.sparse_probe": {
        "probe = torch.zeros_like(latents[0])  =>  probe = torch.zeros_like(latents[1])":
            "every row is as long",
        "probe = torch.zeros_like(latents[0])  =>  probe = torch.zeros_like(latents[-1])":
            "every row is as long",
    },
    "06.topk_step": {
        "optimizer.zero_grad()  =>  sae.zero_grad()":
            "the optimizer has all of the autoencoder's parameters",
    },
    "06.top_activations": {
        "sequences = largest.argsort(descending=True, stable=True)[:k]  =>"
        "  sequences = largest.argsort(descending=True)[:k]":
            "which of equal sequences comes first is not asked for",
        "sequences = largest.argsort(descending=True, stable=True)[:k]  =>"
        "  sequences = largest.argsort(descending=True, stable=False)[:k]":
            "which of equal sequences comes first is not asked for",
    },
    "06.top_k": {
        "values, indices = pre.topk(k, dim=-1)  =>  values, indices = pre.topk(k)":
            "dim −1 is the default",
    },
    "07.delta_cross_entropy": {
        "change = (log_p - log_q)[:, :-1]  =>  change = (log_p - log_q)[:, :]":
            "the index is one shorter: gather leaves the last logits out",
        "return change.gather(2, tokens[:, 1:, None])[..., 0]  =>"
        "  return change.gather(2, tokens[:, 1:, None])[..., -1]":
            "the last axis has one entry",
    },
    "07.known_cases": {
        "along_one_axis[0] = shift  =>  along_one_axis[1] = shift":
            "any axis will do",
        "along_one_axis[0] = shift  =>  along_one_axis[-1] = shift":
            "any axis will do",
        "return {'perfect': (x, 1.0), 'the mean, always': (mean.expand_as(x), 0.0), "
        "'half way to the mean': ((x + mean) / 2, 0.75), 'perfect but for a shift': (x + along_one_axis, 0.0)}  =>"
        "  return {'perfect': (mean.expand_as(x), 0.0), 'the mean, always': ((x + mean) / 2, 0.75), "
        "'half way to the mean': (x + along_one_axis, 0.0), 'perfect but for a shift': (x, 1.0)}":
            "the names are the learner's own",
        "return {'perfect': (x, 1.0), 'the mean, always': (mean.expand_as(x), 0.0), "
        "'half way to the mean': ((x + mean) / 2, 0.75), 'perfect but for a shift': (x + along_one_axis, 0.0)}  =>"
        "  return {'perfect': (x, 1.0), 'the mean, always': (mean.expand_as(x), 0.0), "
        "'half way to the mean': ((x + mean) / 2, 0.75), 'perfect but for a shift': (x - along_one_axis, 0.0)}":
            "the shift may point either way",
    },
    "07.reconstruction_score": {
        "return (ablated - patched) / cost if abs(cost) >= 1e-06 else torch.nan  =>"
        "  return (ablated - patched) / cost if abs(cost) > 1e-06 else torch.nan":
            "a cost of exactly 1e-6: rounding decides",
    },
    "08.score_interval": {
        "clean, sae, zero = (losses[draws].mean(dim=1) for losses in (ce_clean, ce_sae, ce_zero))  =>"
        "  clean, sae, zero = (losses[draws].sum(dim=1) for losses in (ce_clean, ce_sae, ce_zero))":
            "the number of sequences cancels in the score",
    },
    "08.tokens_needed": {
        "kl = (p * r).sum(dim=-1)  =>  kl = (p * r).sum(dim=1)":
            "there are two axes: axis 1 is also axis −1",
        "log_p, log_q = (p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1))  =>"
        "  log_p, log_q = (p_logits.log_softmax(dim=1), q_logits.log_softmax(dim=-1))":
            "there are two axes: axis 1 is also axis −1",
        "log_p, log_q = (p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1))  =>"
        "  log_p, log_q = (p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=1))":
            "there are two axes: axis 1 is also axis −1",
        "variance = (p * (r - kl[:, None]) ** 2).sum(dim=-1)  =>"
        "  variance = (p * (r - kl[:, None]) ** 2).sum(dim=1)":
            "there are two axes: axis 1 is also axis −1",
    },
    "09.circuit_score": {
        "n = clean.shape[1] // 2  =>  n = changed.shape[1] // 2":
            "both have the same shape",
    },
    "09.control": {
        "noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(direction)  =>"
        "  noise = torch.randn(direction.shape).to(direction)":
            "another direction at random is as good",
        "noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(direction)  =>"
        "  noise = torch.randn(direction.shape, generator=torch.Generator()).to(direction)":
            "another direction at random is as good",
        "noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(direction)  =>"
        "  noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(1)).to(direction)":
            "another direction at random is as good",
        "noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(direction)  =>"
        "  noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(-1)).to(direction)":
            "another direction at random is as good",
        "noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(direction)  =>"
        "  noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(x)":
            "all three have the same dtype and device",
        "noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(direction)  =>"
        "  noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(latent)":
            "all three have the same dtype and device",
        "across = noise - noise @ direction / (direction @ direction) * direction  =>"
        "  across = noise - direction @ noise / (direction @ direction) * direction":
            "a product of two vectors does not depend on their order",
        "return x - latent[..., None] * across * direction.norm() / across.norm()  =>"
        "  return x + latent[..., None] * across * direction.norm() / across.norm()":
            "the opposite direction is as far away",
    },
    "09.effect_of": {
        "return (patterns[0], kl_divergence(p_logits, q_logits))  =>"
        "  return (patterns[-1], kl_divergence(p_logits, q_logits))":
            "there is one pass: its first pattern is its last",
    },
    "09.mixed_activations": {
        "rng, half = (torch.Generator().manual_seed(0), number // 2)  =>"
        "  rng, half = (torch.Generator(), number // 2)":
            "other rows at random are as good",
        "rng, half = (torch.Generator().manual_seed(0), number // 2)  =>"
        "  rng, half = (torch.Generator().manual_seed(1), number // 2)":
            "other rows at random are as good",
        "rng, half = (torch.Generator().manual_seed(0), number // 2)  =>"
        "  rng, half = (torch.Generator().manual_seed(-1), number // 2)":
            "other rows at random are as good",
        "rng, half = (torch.Generator().manual_seed(0), number // 2)  =>"
        "  rng, half = (torch.Generator().manual_seed(0), number // 3)":
            "a third of one kind is a mixture, too",
        "drawn_of_each = [kind[torch.randperm(len(kind), generator=rng)[:size]] for kind, size in "
        "((stories, number - half), (repeats, half))]  =>"
        "  drawn_of_each = [kind[torch.randperm(len(kind))[:size]] for kind, size in ((stories, number - "
        "half), (repeats, half))]":
            "other rows at random are as good",
        "drawn_of_each = [kind[torch.randperm(len(kind), generator=rng)[:size]] for kind, size in "
        "((stories, number - half), (repeats, half))]  =>"
        "  drawn_of_each = [kind[torch.randperm(len(kind), generator=rng)[:size]] for kind, size in "
        "((repeats, half), (stories, number - half))]":
            "the order of the rows does not matter",
    },
    "09.same_token_auc": {
        "labelled, others = (int(labels[here].sum()), int((~labels[here]).sum()))  =>"
        "  labelled, others = (int((~labels[here]).sum()), int(labels[here].sum()))":
            "only their product counts",
    },
    "10.answer_difference": {
        "text = torch.arange(len(right))  =>  text = torch.arange(len(logits))":
            "there are as many texts as answers",
        "text = torch.arange(len(right))  =>  text = torch.arange(len(wrong))":
            "both have one answer for each text",
    },
    "10.edge_attribution": {
        "nothing = {receiver: torch.zeros_like(own[0], requires_grad=True) for receiver in graph.receivers}  =>"
        "  nothing = {receiver: torch.zeros_like(own[1], requires_grad=True) for receiver in graph.receivers}":
            "all senders' outputs have one shape",
        "nothing = {receiver: torch.zeros_like(own[0], requires_grad=True) for receiver in graph.receivers}  =>"
        "  nothing = {receiver: torch.zeros_like(own[-1], requires_grad=True) for receiver in graph.receivers}":
            "all senders' outputs have one shape",
    },
    "10.patch_map": {
        "found = torch.zeros(len(layers), len(positions))  =>  found = torch.ones(len(layers), len(positions))":
            "every entry is set",
    },
    "11.worse_examples": {
        "wrong = torch.rand(seen_labels.shape, generator=rng) < noise  =>"
        "  wrong = torch.rand(seen_labels.shape, generator=rng) <= noise":
            "a random number hardly ever equals the share",
        "return (rows, seen_labels ^ wrong)  =>  return (rows, wrong ^ seen_labels)":
            "exclusive or is symmetric",
    },
    "11.auc_by_text": {
        "return auc(values[asked][:, None], labels[asked])[0]  =>"
        "  return auc(values[asked][:, None], labels[asked])[-1]":
            "it is one AUC",
        "n = len(values)  =>  n = len(labels)":
            "both have a row for each text",
        "n = len(values)  =>  n = len(known)":
            "both have a row for each text",
    },
    "11.distance_from_truth": {
        "log_p = true_log_probs.masked_fill(leave_out, -torch.inf).log_softmax(dim=-1)  =>"
        "  log_p = true_log_probs.masked_fill(leave_out, -torch.inf).log_softmax(dim=1)":
            "the last axis is the second",
        "log_q = logits.masked_fill(leave_out, -torch.inf).log_softmax(dim=-1)  =>"
        "  log_q = logits.masked_fill(leave_out, -torch.inf).log_softmax(dim=1)":
            "the last axis is the second",
        "return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(dim=-1)  =>"
        "  return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(dim=1)":
            "the last axis is the second",
    },
    "12.transcode": {
        "largest = pre.topk(k, dim=-1)  =>  largest = pre.topk(k)":
            "the last axis is what topk takes if none is named",
        "largest = pre.topk(k, dim=-1)  =>  largest = pre.topk(k, dim=1)":
            "the last axis is the second",
        "f = torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())  =>"
        "  f = torch.zeros_like(pre).scatter(1, largest.indices, largest.values.relu())":
            "the last axis is the second",
    },
    "12.edge": {
        "return (read[target.position] @ direction).item()  =>  return (direction @ read[target.position]).item()":
            "the inner product of two vectors is symmetric",
    },
    "12.influence": {
        "A = sizes / sizes.sum(dim=1, keepdim=True).clamp(min=1e-10)  =>"
        "  A = sizes / sizes.sum(dim=1, keepdim=True).clamp(min=5e-11)":
            "it only keeps 0 / 0 away",
        "for _ in range(len(edges)):  =>  for _ in list(range(len(edges)))[1:]:":
            "no path has as many edges as there are nodes",
        "for _ in range(len(edges)):  =>  for _ in list(range(len(edges)))[:-1]:":
            "no path has as many edges as there are nodes",
        "for _ in range(len(edges)):  =>  for _ in range(len(weights)):":
            "there are as many weights as nodes",
    },
    "12.equally_large": {
        "free = [other for other in range(len(sizes)) if places[other] == places[node] and other not in chosen and "
        "(other not in found)]  =>"
        "  free = [other for other in range(len(places)) if places[other] == places[node] and other not in chosen and "
        "(other not in found)]":
            "every node has a size and a place",
    },
    "12.with_patterns_of": {
        "_, cache = model.run_with_cache(others, names_filter=names)  =>  _, cache = model.run_with_cache(others)":
            "without a filter the cache holds the patterns, too",
    },
}
