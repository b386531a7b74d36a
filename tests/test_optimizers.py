"Each optimizer that the configuration knows: in runs that are resumed, in what it is said to keep, in what it refuses."

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import Place, configure, make_place, make_trainer, same, told, train, trained

from ltx_nb.config.files import load_config
from ltx_nb.config.settings import OptimizationConfig
from ltx_nb.loading.lora import read_lora
from ltx_nb.model.latents import ConfigError
from ltx_nb.training.memory import memory_plan
from ltx_nb.training.optimizer import load_optimizer_state, make_optimizer
from ltx_nb.training.optimizers import AdamWBf16, counted_state, round_by_coin, seed_of
from ltx_nb.training.sharding import check_split

N = 2  # a whole run has 2N steps, an interrupted one N
USUAL = {
    "optimization__steps": 2 * N, "checkpoints__interval": N, "checkpoints__precision": "float32", "optimization__ema_decay": 0.6,
    "optimization__gradient_accumulation_steps": 2, "optimization__max_grad_norm": 0.1,
    "optimization__parameter_groups": [{"match": ["*.lora_B.*"], "weight_decay": 0.5}],
}  # fmt: skip
OWN = {
    "adamw8bit": {}, "adamw_bf16": {}, "adafactor": {}, "muon": {},
    "prodigy": {"optimization__learning_rate": 1.0},
    "schedulefree": {"optimization__scheduler_type": "constant", "optimization__ema_decay": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("optimizers"))


def changes(kind: str) -> dict:
    return USUAL | OWN[kind] | {"optimization__optimizer_type": kind}


@pytest.mark.parametrize("kind", OWN)
def test_a_run_moves_keeps_what_was_foretold_and_goes_on_as_if_nothing_had_been(place, tmp_path, kind):
    trainer, reports = train(place, tmp_path / "whole", **changes(kind))
    assert all(p.abs().max() > 0 for p in trained(trainer).values())  # B too, which begins at zero
    optimizer, weights = trainer.run.weights.optimizer, trainer.run.weights
    average = sum(w.nbytes for w in weights.average.weights.values()) if weights.average else 0
    gradients = sum(p.nbytes for p in weights.parameters.values())
    assert memory_plan(trainer.config).trained == gradients + average + counted_state(optimizer)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01, 0.5}

    resumed = make_trainer(
        place, tmp_path / "resumed", **changes(kind), model__load_checkpoint=reports[N - 1].checkpoint
    )
    later = list(resumed.steps())
    assert [report.step for report in later] == [N + 1, 2 * N] and "anew" not in told(resumed)
    assert [r.numbers() for r in later] == [r.numbers() for r in reports[N:]]
    assert same(trained(resumed), trained(trainer))
    assert same(load_file(later[-1].checkpoint), load_file(reports[-1].checkpoint))


def test_what_is_saved_is_the_average_of_a_schedule_free_run_and_saving_leaves_no_trace(place, tmp_path):
    often, reports = train(place, tmp_path / "often", **changes("schedulefree"))
    once, _ = train(place, tmp_path / "once", **changes("schedulefree") | {"checkpoints__interval": None})
    assert same(trained(often), trained(once))
    weights, optimizer = often.run.weights, often.run.weights.optimizer
    saved = read_lora(reports[-1].checkpoint)[0]
    for name, p in weights.parameters.items():
        layer, _, part = name.removesuffix(".default.weight").rpartition(".lora_")
        z, y = optimizer.state[p]["z"], p.detach()
        x = y + (z - y) * (1 - 1 / 0.9)  # y lies nine tenths of the way from z to x
        scale = 1.0 if part == "A" else often.model.get_submodule(layer).scaling["default"]
        torch.testing.assert_close(saved[layer]["AB".index(part)], x * scale, rtol=1e-5, atol=1e-7)


def test_the_rate_that_prodigy_finds_is_in_the_log(place, tmp_path):
    trainer, reports = train(place, tmp_path, **changes("prodigy"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [line["train/prodigy_d"] for line in lines if "train/prodigy_d" in line]
    assert logged == [report.found["prodigy_d"] for report in reports] and logged[0] > 0
    assert logged == sorted(logged)  # it only grows


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind != "prodigy"])
def test_states_come_back_bit_by_bit_in_the_dtype_that_they_have(kind):
    weights = lambda: {"a.weight": torch.nn.Parameter(torch.ones(64, 80)), "a.bias": torch.nn.Parameter(torch.ones(64))}
    config, noise = OptimizationConfig(optimizer_type=kind, learning_rate=1e-2), torch.Generator().manual_seed(0)
    one, other = weights(), weights()
    first = make_optimizer(one, config)
    for _ in range(2):
        for p in one.values():
            p.grad = torch.randn(p.shape, generator=noise)
        first.step()
    second = make_optimizer(other, config)
    load_optimizer_state(second, first.state_dict())
    for name, p in other.items():
        p.data.copy_(one[name].detach())
        mine, theirs = second.state[p], first.state[one[name]]
        assert mine.keys() == theirs.keys()
        assert all(
            x.dtype == theirs[key].dtype and torch.equal(x, theirs[key]) and x.data_ptr() != theirs[key].data_ptr()
            for key, x in mine.items() if torch.is_tensor(x)
        )  # fmt: skip
    for p, q in zip(one.values(), other.values()):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
    first.step(), second.step()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_adamw_in_bfloat16_is_adamw_in_the_mean():
    "Weights and averages are bfloat16: what the coins do to one weight cancels over many."
    noise, count, steps = torch.Generator().manual_seed(0), 8192, 100
    gradients = torch.randn(steps, generator=noise).mul(0.3).add(0.2)
    exact, rounded = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
    usual = {"lr": 2e-4, "betas": (0.9, 0.999), "weight_decay": 0.01}
    optimizers = torch.optim.AdamW([exact], **usual), AdamWBf16([rounded], **usual)
    for gradient in gradients:
        for p, optimizer in zip((exact, rounded), optimizers):
            p.grad = torch.full_like(p, gradient)
            optimizer.step()
    way, found = 1 - exact.item(), rounded.detach().double()
    nearest = torch.ones(()).to(torch.bfloat16)
    for _ in range(steps):
        nearest = (nearest.float() - 2e-4).to(torch.bfloat16)
    assert nearest == 1 and way > 0.01  # to the nearest, nothing would have moved
    # five spreads of the mean, and 1% of the way: gradients are bfloat16 themselves, which is 0.4% coarse
    assert abs(1 - found.mean().item() - way) < 5 * found.std().item() / count**0.5 + 0.01 * way


@pytest.mark.parametrize("value", [1.0, -1.0, 3.14159, -2.7e-20, 1e-40, 65504.0])
def test_rounding_by_a_coin_ends_at_a_neighbour_and_is_right_in_the_mean(value):
    x = torch.full((40_000,), value)
    found = round_by_coin(x, seed_of(3, 5)).float()
    apart = found.unique()
    assert len(apart) <= 2 and apart.min() <= x[0] <= apart.max()
    if len(apart) == 2:
        spread = (apart[1] - apart[0]).item() / 2 / len(x) ** 0.5  # of the mean of fair coins; others have less
        assert abs(found.double().mean().item() - x[0].item()) < 5 * spread


REFUSED = {
    "prodigy with a rate": ({"optimization.optimizer_type": "prodigy"}, "prodigy finds the rate itself.*set it to 1.0"),
    "prodigy with two rates": (
        {
            "optimization.optimizer_type": "prodigy", "optimization.learning_rate": 1.0,
            "optimization.parameter_groups": [{"match": ["*"], "learning_rate": 0.5}],
        },
        "parameter_groups.0.learning_rate: given 0.5, but prodigy finds one rate",
    ),
    "schedule": ({"optimization.optimizer_type": "schedulefree"}, "scheduler_type: given 'cosine'.*set it to constant"),
    "average": (
        {
            "optimization.optimizer_type": "schedulefree", "optimization.scheduler_type": "constant",
            "optimization.ema_decay": 0.9,
        },
        "ema_decay: given 0.9, but schedulefree averages the weights itself",
    ),
    "an unknown name": (
        {"optimization.optimizer_type": "Adafctor"},
        "should be 'adamw', 'adamw8bit', 'adamw_bf16', 'adafactor', 'prodigy', 'muon' or 'schedulefree'; did you mean adafactor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("given, said", REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_said_before_anything_is_loaded(given, said):
    with pytest.raises(ConfigError, match=said):
        load_config("tiny_t2v_lora", given)


def test_muon_needs_a_torch_that_has_it(place, tmp_path, monkeypatch):
    from ltx_nb.config.files import check_files

    config = configure(place, tmp_path, optimization__optimizer_type="muon")
    assert check_files(config) == config
    monkeypatch.setattr("ltx_nb.config.checks.version", lambda name: "2.8.1+cu128")
    with pytest.raises(ConfigError, match="muon needs PyTorch 2.9 or newer, and this is 2.8.1"):
        check_files(config)


@pytest.mark.parametrize("kind", ["muon", "prodigy", "adafactor"])
def test_rows_of_a_matrix_are_not_enough_for_some(place, tmp_path, kind):
    more = {"optimization__learning_rate": 1.0, "optimization__optimizer_type": kind}
    check_split(configure(place, tmp_path, **more))  # adapters are whole
    with pytest.raises(ConfigError, match=f"optimizer_type is {kind}, which needs whole matrices"):
        check_split(configure(place, tmp_path, **more, model__training_mode="full"))
