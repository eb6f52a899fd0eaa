"""The local updates: which tensors each step moves, what stays, what leaves, and an independent loop doing the same mathematics."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedhelp_core.algorithm.local_update import (
    SiloData,
    SiloState,
    UpdateSettings,
    _started_from_public,
    initial_weights,
    large_model_of,
    local_update,
    proxy_with,
    running_statistics_untouched,
)
from fedhelp_core.algorithm.randomness import generator_for
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import DataError, GlobalModelDiverges, RetryableError, WeightsError
from fedhelp_core.models.build import build_model, build_public_head, normalisation_keys
from fedhelp_core.objectives.open import objective_of

CLASSES, PUBLIC_CLASSES = 4, 6
TASK = TaskConfig(classes=("a", "b", "c", "d"), image_size=8)


def algorithm(**changes):
    base = {"method": "fedhelp", "proxy_model": "resnet8", "large_model": "resnet14", "rank_top_k": 2, "rounds": 2, "augmentation": "none"}
    return AlgorithmConfig(**{**base, **changes})


def silo(config, kind="small"):
    return UpdateSettings(algorithm=config, objective=objective_of(TASK), seed=7, silo="a", kind=kind)


def images(count, seed):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def data():
    answers = torch.rand((9, PUBLIC_CLASSES), generator=torch.Generator().manual_seed(3)).softmax(dim=1)
    return SiloData(
        images_NCHW=images(10, 1), labels_N=torch.arange(10) % CLASSES, public_images_MCHW=images(9, 2), public_probabilities_MP=answers)


def start(config):
    return initial_weights(config, objective_of(TASK), seed=7)


def update(config, data, kind="small", state=None, round_number=1, weights=None):
    return local_update(weights or start(config), state or SiloState.empty(), data, silo(config, kind), round_number=round_number)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_the_same_seed_silo_and_round_give_the_same_bits(data):
    assert same(update(algorithm(), data).weights, update(algorithm(), data).weights)


def test_another_round_draws_another_order(data):
    assert not same(update(algorithm(), data).weights, update(algorithm(), data, round_number=2).weights)


def test_nothing_depends_on_or_moves_the_global_generator(data):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = update(algorithm(augmentation="flips"), data)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert same(first.weights, update(algorithm(augmentation="flips"), data).weights)


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("normalisation", ["shared", "silo"])
def test_only_the_proxy_travels_and_with_silo_normalisation_only_what_is_not_batch_norm(data, kind, normalisation):
    config = algorithm(normalisation=normalisation)
    sent = update(config, data, kind).weights
    proxy = build_model("resnet8", outputs=CLASSES)
    expected = set(proxy.state_dict()) - (normalisation_keys(proxy) if normalisation == "silo" else set())
    assert set(sent) == expected


def test_the_public_head_stays_and_goes_on_from_round_to_round(data):
    config = algorithm()
    first = update(config, data)
    second = update(config, data, state=first.state, round_number=2, weights=first.weights)
    fresh = update(config, data, state=SiloState.empty(), round_number=2, weights=first.weights)
    assert "public_head/weight" in first.state.tensors
    assert not any("public_head" in name for name in first.weights)
    assert not torch.equal(second.state.tensors["public_head/weight"], fresh.state.tensors["public_head/weight"])


def test_the_large_model_stays_and_goes_on_from_round_to_round(data):
    config = algorithm()
    first = update(config, data, "large")
    second = update(config, data, "large", state=first.state, round_number=2, weights=first.weights)
    assert large_model_of(second.state, silo(config, "large")).state_dict()["backbone.conv.weight"].shape[0] == 16
    steps = [v for k, v in second.state.tensors.items() if k == "optimizer_large/0/step"]
    assert steps[0].item() == 6  # three batches a round, twice: the optimizer went on too


def test_optimizers_start_afresh_where_they_are_not_persisted(data):
    config = algorithm(persist_optimizer=False)
    assert not any(name.startswith("optimizer") for name in update(config, data).state.tensors)


def test_every_image_is_used_once_an_epoch_the_partial_batch_included(data):
    result = update(algorithm(batch_size=4, local_epochs=2), data)
    assert (result.samples, result.steps) == (10, 2 * 3)


@pytest.mark.parametrize("changes", [{"batch_size": 4, "local_epochs": 2}, {"batch_size": 10}, {"batch_size": 3}])
def test_the_hub_counts_a_silos_steps_as_the_silo_takes_them(data, changes):
    config = parse_federation({
        "name": "f", "store": {"url": "/nowhere"}, "silos": [{"name": "a", "dispatch": {"silo_config": "/nowhere"}}],
        "algorithm": {"method": "fedavg", **changes}}, source="test")
    assert config.steps(10) == update(algorithm(method="fedavg", **changes), data).steps


def test_sgd_keeps_its_momentum_from_round_to_round(data):
    config = algorithm(method="fedavg", optimizer={"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9})
    first = update(config, data)
    assert any(name.endswith("momentum_buffer") for name in first.state.tensors)
    on, anew = (update(config, data, state=state, round_number=2, weights=first.weights) for state in (first.state, SiloState.empty()))
    assert not same(on.weights, anew.weights)


def test_a_public_set_shorter_than_the_private_one_is_cycled(data):
    short = SiloData(
        images_NCHW=data.images_NCHW, labels_N=data.labels_N,
        public_images_MCHW=data.public_images_MCHW[:3], public_probabilities_MP=data.public_probabilities_MP[:3])
    assert update(algorithm(), short).metrics["public_loss"] > 0


@pytest.mark.parametrize("normalisation", ["shared", "silo"])
def test_every_silo_starts_from_the_same_steps_on_public_images(data, normalisation):
    """Eq 2 before the first round, written out: the server's batches, the private head and the running statistics untouched."""
    config = algorithm(normalisation=normalisation, public_start_steps=5, public_batch_size=4)
    proxy = build_model("resnet8", outputs=CLASSES, generator=generator_for(7, "server", 0, "proxy"))
    head = build_public_head(proxy, outputs=PUBLIC_CLASSES, generator=generator_for(7, "server", 0, "public_head"))
    model = torch.nn.Sequential(proxy.backbone, head).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    generator, order = generator_for(7, "server", 0, "public"), []
    for _ in range(5):
        if not order:
            order = list(torch.split(torch.randperm(9, generator=generator), 4))
        chosen = order.pop(0)
        optimizer.zero_grad()
        with running_statistics_untouched(model):
            logits = model((data.public_images_MCHW[chosen].float() / 255 - 0.5) / 0.25)
        functional.kl_div(logits.log_softmax(1), data.public_probabilities_MP[chosen], reduction="batchmean").backward()
        optimizer.step()
    expected = proxy.state_dict()

    for kind in ("small", "large"):
        started, state = _started_from_public(start(config), data, silo(config, kind), large=kind == "large")
        found = {name: torch.from_numpy(array) for name, array in started.items()}
        found |= {name.removeprefix("normalisation/"): t for name, t in state.tensors.items() if name.startswith("normalisation/")}
        assert found.keys() == expected.keys()
        off = torch.cat([(found[name].double() - expected[name].double()).abs().flatten() for name in expected])
        assert (off < 2e-5).double().mean() > 0.999  # Adam makes a step of a gradient's rounding error where the gradient is next to zero
    assert not any(name.startswith(("public_head/", "optimizer")) for name in state.tensors)  # a large silo has no use for them


def test_the_start_on_public_images_is_taken_once(data):
    plain, started = algorithm(), algorithm(public_start_steps=3)
    first = update(started, data)
    assert not same(first.weights, update(plain, data).weights)
    assert same(
        update(started, data, round_number=2, state=first.state, weights=first.weights).weights,
        update(plain, data, round_number=2, state=first.state, weights=first.weights).weights)
    assert same(update(algorithm(method="fedavg", public_start_steps=3), data).weights, update(algorithm(method="fedavg"), data).weights)


def test_public_images_may_come_at_the_start_alone(data):
    assert "public_loss" not in update(algorithm(public_start_steps=3, public_steps=0), data).metrics


def test_public_batches_never_move_the_running_statistics_of_the_backbone(data):
    with_public = update(algorithm(normalisation="shared", distillation_weight=0.0, optimizer={"weight_decay": 0.0, "learning_rate": 1e-3}), data)
    without = update(algorithm(normalisation="shared", method="fedavg", optimizer={"weight_decay": 0.0, "learning_rate": 1e-3}), data)
    for name in with_public.weights:
        if "running" in name or "num_batches" in name:
            assert np.array_equal(with_public.weights[name], without.weights[name]), name


def test_statistics_are_left_alone_inside_the_context_and_followed_again_after_it():
    norm = torch.nn.BatchNorm2d(2)
    x = torch.randn(4, 2, 3, 3) + 5
    with running_statistics_untouched(norm):
        inside = norm(x)
    assert norm.running_mean.tolist() == [0.0, 0.0] and norm.num_batches_tracked.item() == 0
    assert torch.allclose(inside, norm(x))  # the batch's own statistics both times
    assert norm.num_batches_tracked.item() == 1


def test_each_batch_moves_each_models_statistics_exactly_once_in_a_large_silo(data):
    result = update(algorithm(normalisation="shared"), data, "large")
    assert result.weights["backbone.norm.num_batches_tracked"] == 3
    assert result.state.tensors["large/backbone.norm.num_batches_tracked"].item() == 3


def test_labels_train_the_large_model_in_every_method_that_keeps_one(data):
    for method in ("fedhelp", "fedhelp-one-way", "fedhelp-no-api"):
        config = algorithm(method=method)
        fresh = large_model_of(SiloState.empty(), silo(config, "large")).state_dict()
        trained = update(config, data, "large").state.tensors
        assert not torch.equal(fresh["head.weight"], trained["large/head.weight"])


def test_a_baseline_keeps_no_large_model_and_no_public_head(data):
    for kind in ("small", "large"):
        names = update(algorithm(method="fedavg"), data, kind).state.tensors
        assert not any(name.startswith(("large/", "public_head/")) for name in names)


def test_fedprox_with_a_strong_pull_moves_less_than_fedavg(data):
    def moved(method):
        config = algorithm(method=method, proximal_weight=1e3, optimizer={"learning_rate": 1e-3, "weight_decay": 0.0}, local_epochs=3)
        before, after = start(config), update(config, data).weights
        return sum(float(np.square(after[k] - before[k]).sum()) for k in after if "running" not in k and "num_batches" not in k)

    assert moved("fedprox") < moved("fedavg")


def test_local_uploads_nothing_and_continues_from_its_own_weights(data):
    config = algorithm(method="local")
    first = update(config, data)
    assert first.weights == {}
    proxy = proxy_with(start(config), first.state, silo(config)).state_dict()
    assert torch.equal(proxy["head.weight"], first.state.tensors["proxy/head.weight"])


def test_silo_normalisation_uses_the_silos_own_batch_norms_not_the_servers(data):
    config = algorithm(normalisation="silo")
    first = update(config, data)
    proxy = proxy_with(first.weights, first.state, silo(config)).state_dict()
    assert torch.equal(proxy["backbone.norm.running_mean"], first.state.tensors["normalisation/backbone.norm.running_mean"])
    assert proxy["backbone.norm.running_mean"].abs().sum() > 0


def test_weights_of_another_architecture_are_refused(data):
    config = algorithm()
    other = initial_weights(algorithm(proxy_model="resnet14"), objective_of(TASK), seed=7)
    with pytest.raises(WeightsError, match="do not fit model 'resnet8' with 4 classes"):
        update(config, data, weights=other)


def test_a_loss_that_is_no_number_names_silo_round_and_what_to_change(data):
    config = algorithm(normalisation="shared")
    broken = {k: np.full_like(v, np.nan) if k == "head.weight" else v for k, v in start(config).items()}
    with pytest.raises(DataError, match=r"silo 'a', round 1: private_loss became nan; lower algorithm.optimizer.learning_rate"):
        update(config, data, weights=broken)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_global_model_that_diverges_before_the_silo_has_trained_it_is_not_the_silos_fault(data, value):
    config = algorithm(normalisation="shared")
    broken = {k: np.full_like(v, value) if k == "head.weight" else v for k, v in start(config).items()}
    said = r"silo 'a', round 3: the global model after round 2 has a loss of .* before this silo has trained it"
    with pytest.raises(GlobalModelDiverges, match=said):
        update(config, data, weights=broken, round_number=3)
    assert issubclass(GlobalModelDiverges, RetryableError)


# An independent, plain loop: the same mathematics written straight from docs/algorithm.md, in float64.

def _as_input(batch):
    return (batch.double() / 255 - 0.5) / 0.25


def _order(count, purpose):
    return torch.randperm(count, generator=generator_for(7, "a", 1, purpose))


def _plain_kl(target, scores, temperature):
    log_q = functional.log_softmax(scores / temperature, dim=1)
    return (target * (torch.log(target.clamp_min(1e-300)) - log_q)).sum(dim=1).mean() * temperature**2


def _plain_small(config, data):
    net = build_model("resnet8", outputs=CLASSES, generator=generator_for(7, "server", 0, "proxy")).double()
    head = build_public_head(net, outputs=PUBLIC_CLASSES, generator=generator_for(7, "server", 0, "public_head")).double()
    settings = {"lr": 1e-3, "weight_decay": 1e-4}
    private, public = torch.optim.Adam(net.parameters(), **settings), torch.optim.Adam([*net.backbone.parameters(), *head.parameters()], **settings)
    public_generator = generator_for(7, "a", 1, "public")
    public_order = [chosen for _ in range(2) for chosen in torch.randperm(9, generator=public_generator).split(4)]
    for index in _order(10, "private").split(4):
        private.zero_grad()
        functional.cross_entropy(net(_as_input(data.images_NCHW[index])), data.labels_N[index]).backward()
        private.step()
        kept = {k: v.clone() for k, v in net.state_dict().items() if "running" in k or "num_batches" in k}
        for _ in range(config.public_steps):
            public.zero_grad()
            chosen = public_order.pop(0)
            target = data.public_probabilities_MP[chosen].double()
            scores = head(net.backbone(_as_input(data.public_images_MCHW[chosen])))
            (config.distillation_weight * _plain_kl(target, scores, config.temperature)).backward()
            public.step()
        net.load_state_dict(kept, strict=False)
    return net.state_dict()


def _plain_large(config, data):
    proxy = build_model("resnet8", outputs=CLASSES, generator=generator_for(7, "server", 0, "proxy")).double()
    large = build_model("resnet14", outputs=CLASSES, generator=generator_for(7, "a", 0, "large")).double()
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3, weight_decay=1e-4) for m in (proxy, large)]
    lam, t, k = config.distillation_weight, config.temperature, config.rank_top_k
    for index in _order(10, "private").split(4):
        x, y = _as_input(data.images_NCHW[index]), data.labels_N[index]
        p, f = proxy(x), large(x)
        p_fixed, f_fixed = p.detach(), f.detach()
        proxy_loss = functional.cross_entropy(p, y) + lam * _plain_kl((f_fixed / t).softmax(1), p, t)
        rank = torch.zeros((), dtype=torch.float64)
        for b in range(len(y)):
            favourites = set(p_fixed[b].topk(k).indices.tolist())
            others = set(range(CLASSES)) - favourites
            pairs = [torch.clamp(f[b, j] - f[b, i], min=0) for i in favourites for j in others]
            rank = rank + torch.stack(pairs).sum() / (k * (CLASSES - k))
        large_loss = functional.cross_entropy(f, y) + lam * _plain_kl((p_fixed / t).softmax(1), f, t) + config.rank_weight * rank / len(y)
        for optimizer, loss in zip(optimizers, (proxy_loss, large_loss), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return proxy.state_dict(), large.state_dict()


@pytest.fixture
def in_double(monkeypatch):
    """The product's own code in float64, so that rounding cannot hide or fake a difference."""
    from fedhelp_core.algorithm import batches
    from fedhelp_core.algorithm import local_update as module
    from fedhelp_core.objectives import of_images

    real = of_images.build_model, module.build_public_head, batches.to_input
    monkeypatch.setattr(of_images, "build_model", lambda *a, **k: real[0](*a, **k).double())
    monkeypatch.setattr(module, "build_public_head", lambda *a, **k: real[1](*a, **k).double())
    monkeypatch.setattr(batches, "to_input", lambda x, _device: x.double().mul_(batches._SCALE).add_(batches._SHIFT))


def _close(ours, theirs):
    worst = max(float((torch.as_tensor(ours[k]).double() - theirs[k].double()).abs().max()) for k in theirs)
    assert ours.keys() == theirs.keys()
    assert worst < 1e-6, worst


@pytest.mark.parametrize("public_steps", [1, 2])
def test_a_plain_loop_of_eq1_and_eq2_gives_the_same_small_silo(data, in_double, public_steps):
    config = algorithm(normalisation="shared", temperature=2.0, distillation_weight=0.7, public_steps=public_steps)
    double = copy.copy(data)
    object.__setattr__(double, "public_probabilities_MP", data.public_probabilities_MP.double())
    _close(update(config, double).weights, _plain_small(config, data))


def test_a_plain_loop_of_eq3_to_eq5_gives_the_same_large_silo(data, in_double):
    config = algorithm(normalisation="shared", temperature=2.0, distillation_weight=0.7, rank_weight=0.3)
    ours = update(config, data, "large")
    proxy, large = _plain_large(config, data)
    _close(ours.weights, proxy)
    _close({k.removeprefix("large/"): v for k, v in ours.state.tensors.items() if k.startswith("large/")}, large)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_class_weights_look_at_the_silos_own_training_images(data, kind):
    """With classes of 3, 3, 2 and 2 images every rule trains another model, and the public step is the same: nothing of its own changes."""
    found = {how: update(algorithm(class_weights=how), data, kind) for how in ("none", "balanced", "logit-adjusted")}
    assert not same(found["none"].weights, found["balanced"].weights) and not same(found["none"].weights, found["logit-adjusted"].weights)
    skewed = SiloData(images_NCHW=data.images_NCHW, labels_N=torch.zeros(10, dtype=torch.int64))
    assert all(np.isfinite(tensor).all() for how in found for tensor in update(algorithm(class_weights=how), skewed, kind).weights.values())


@pytest.mark.parametrize("how", ["balanced", "logit-adjusted"])
def test_class_weights_are_nothing_where_classes_are_equally_common(how):
    even = SiloData(images_NCHW=images(8, 1), labels_N=torch.arange(8) % CLASSES)
    plain, weighted = (update(algorithm(class_weights=rule), even).weights for rule in ("none", how))
    assert all(np.allclose(plain[name], weighted[name], atol=1e-4) for name in plain)


def test_a_method_of_soft_labels_that_would_never_take_a_public_step_is_refused():
    with pytest.raises(ValueError, match="learns nothing from soft labels"):
        algorithm(public_steps=0)
    assert algorithm(public_steps=0, public_start_steps=1).public_steps == 0
    assert algorithm(public_steps=0, method="fedavg").public_steps == 0
