"How the weights move: rates, groups of parameters, an average; alone, and in runs that are resumed."

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_runs import Place, make_place, make_trainer, same, told, train, trained

from ltx_nb.config.settings import OptimizationConfig, ParameterGroup
from ltx_nb.data.batches import collate
from ltx_nb.model.latents import ConfigError
from ltx_nb.loading.checkpoint import load_transformer
from ltx_nb.loading.lora import add_lora, load_lora, read_lora
from ltx_nb.training.optimizer import (
    WeightAverage,
    learning_rate,
    make_optimizer,
    offloaded,
    parameter_groups,
    set_rates,
)
from ltx_nb.training.held_out import held_out_losses

RATE, DECAY = 3e-3, 0.6
N = 2  # a whole run has 2N steps, an interrupted one N
AVERAGED = {
    "optimization__ema_decay": DECAY,
    "optimization__steps": 2 * N,
    "checkpoints__interval": N,
    "checkpoints__precision": "float32",
}
FULL = {"model__training_mode": "full", "lora": None}
NAMES = [
    f"blocks.{i}.attn.{layer}.{part}" for i in range(2) for layer in ("to_q", "to_k") for part in ("weight", "bias")
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("optimizer"))


@pytest.fixture(scope="module")
def averaged(place):
    "A LoRA run of 2N steps that keeps an average: the trainer, its reports, and the weights before it and after each step."
    trainer = make_trainer(place, place.folder / "averaged", data__held_out=1, **AVERAGED).load()
    walk, reports = [trained(trainer)], []
    for report in trainer.steps():
        reports.append(report)
        walk.append(trained(trainer))
    return trainer, reports, walk


def parameters() -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.ones(2)) for name in NAMES}


def grouped(*groups: dict, **options) -> OptimizationConfig:
    return OptimizationConfig(
        learning_rate=RATE, parameter_groups=[ParameterGroup(**group) for group in groups], **options
    )


def average_of(walk: list[dict], decay: float) -> dict[str, torch.Tensor]:
    "What the chapter's formula makes of some weights."
    average = {name: weight.double() for name, weight in walk[0].items()}
    for n, weights in enumerate(walk[1:]):
        d = min(decay, (1 + n) / (10 + n))
        average = {name: d * average[name] + (1 - d) * weights[name].double() for name in average}
    return {name: weight.float() for name, weight in average.items()}


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        # float32 rounds each of a few updates by 6e-8 of a weight; a step forgotten is off by a tenth of a move, 1e-4 and more
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-7)


def exported(path) -> dict[str, torch.Tensor]:
    "A LoRA file under the names of the parameters that it came from."
    return {
        f"{name}.lora_{part}.default.weight": matrix
        for name, pair in read_lora(path)[0].items()
        for part, matrix in zip("AB", pair)
    }


# settings


def test_w48_weight_decay_betas_and_warm_up_are_settings():
    "The reference exposes none of them; with its defaults nothing changes."
    reference = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=RATE)
    usual = make_optimizer(parameters(), OptimizationConfig(learning_rate=RATE, steps=10))
    (group,) = usual.param_groups
    assert {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")} == {
        name: reference.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")
    }
    config = OptimizationConfig(learning_rate=RATE, steps=10, weight_decay=0.5, betas=(0.0, 0.5), warmup_steps=4)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, last = make_optimizer({"weight": weight}, config), torch.ones(2)
    for gradient in (4.0, 1.0):  # no memory of the last gradient, half of the last square
        weight.grad = torch.full((2,), gradient)
        optimizer.step()
        square = {4.0: 16.0, 1.0: (0.25 * 16 + 0.5) / 0.75}[gradient]
        last = last * (1 - 0.5 * RATE) - RATE * gradient / square**0.5
    torch.testing.assert_close(weight.detach(), last)  # PyTorch's default, 1.3e-6: a few roundings of numbers of size 1
    rates = [
        learning_rate(step, config) / learning_rate(step, config.model_copy(update={"warmup_steps": 0}))
        for step in range(6)
    ]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


# groups


def test_w48_groups_have_rates_and_decays_of_their_own():
    config = grouped(
        {"match": ["*.bias"], "weight_decay": 0.0},
        {"match": ["*to_q*"], "learning_rate": 16 * RATE},
        steps=10,
        weight_decay=0.5,
    )
    weights = parameters()
    optimizer = make_optimizer(weights, config)
    for step in (0, 5):
        assert set_rates(optimizer, config, step) == learning_rate(step, config)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(
            [learning_rate(step, config) * factor for factor in (1, 16, 1)]
        )
    set_rates(optimizer, config, 0)
    for weight in weights.values():
        weight.grad = torch.ones(2)
    optimizer.step()
    moved = {name: 1 - weight[0].item() for name, weight in weights.items()}
    expected = {
        ("to_q", "bias"): 1,
        ("to_k", "bias"): 1,
        ("to_q", "weight"): 16 * 1.5,
        ("to_k", "weight"): 1.5,
    }  # a step, and the decay of a one
    for name, distance in moved.items():
        # a move of 1e-3 of a weight of 1, which float32 rounds at 6e-8; the factors in question are 1.5 and 16
        assert distance == pytest.approx(RATE * expected[tuple(name.split(".")[-2:])], rel=1e-3), name


@given(
    st.lists(
        st.lists(st.sampled_from(["*", "*.bias", "*to_q*", "blocks.0.*", "*.1.*weight"]), min_size=1, max_size=2),
        max_size=4,
    )
)
def test_every_parameter_is_in_one_group(patterns):
    weights = parameters()
    try:
        groups = parameter_groups(weights, grouped(*({"match": match, "weight_decay": 0.0} for match in patterns)))
    except ConfigError as error:
        assert "take all that it matches" in str(error)
        return
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(map(id, weights.values())) and all(group["params"] for group in groups)


@pytest.mark.parametrize(
    "groups, said",
    [
        (
            [{"match": ["*norm*"], "weight_decay": 0.0}],
            "parameter_groups[0].match: '*norm*' matches none of the 8 trained parameters",
        ),
        ([{"match": ["*.bias", "to_q"], "weight_decay": 0.0}], "'to_q' matches none"),
        (
            [{"match": ["*"], "weight_decay": 0.0}, {"match": ["*.bias"], "learning_rate": RATE}],
            "parameter_groups[1].match: the groups before it",
        ),
    ],
    ids=["nothing", "one of two", "nothing left"],
)
def test_a_group_without_parameters_is_refused(groups, said):
    with pytest.raises(ConfigError) as error:
        parameter_groups(parameters(), grouped(*groups))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"optimization__parameter_groups": [{"match": ["*lora_C*"], "learning_rate": RATE}]},
            "'*lora_C*' matches none",
        ),
        ({"lora__target_modules": ["attn3.to_q"]}, "attn3.to_q"),
    ],
    ids=["group", "target"],
)
def test_names_that_match_nothing_are_found_before_anything_is_loaded(place, tmp_path, changes, said):
    trainer = make_trainer(place, tmp_path / "run", **changes)
    with pytest.raises(ValueError) as error:
        trainer.load()
    assert said in str(error.value) and not trainer.runtime.progress.phases and not (tmp_path / "run").exists()


def test_lora_plus_in_a_run(place, tmp_path):
    trainer, (report, *_) = train(
        place,
        tmp_path,
        optimization__parameter_groups=[{"match": ["*.lora_B.*"], "learning_rate": 16 * RATE}],
        optimization__learning_rate=RATE,
    )
    assert report.learning_rate == RATE
    fast, slow = trainer.run.weights.optimizer.param_groups
    assert fast["lr"] == pytest.approx(16 * slow["lr"]) and len(fast["params"]) == len(slow["params"])
    assert {id(p) for p in fast["params"]} == {
        id(p) for name, p in trainer.run.weights.parameters.items() if "lora_B" in name
    }


# an average


def test_w48_the_saved_file_is_the_average_of_the_weights(averaged):
    trainer, reports, walk = averaged
    for report in (reports[N - 1], reports[-1]):
        assert_near(exported(report.checkpoint), average_of(walk[: report.step + 1], DECAY))
    assert same(trained(trainer), walk[-1])  # the run itself has the weights, not their average


def test_without_a_decay_nothing_is_averaged(place, averaged, tmp_path):
    _, _, walk = averaged
    trainer, (*_, last) = train(place, tmp_path, data__held_out=1, **AVERAGED | {"optimization__ema_decay": None})
    assert same(trained(trainer), walk[-1])  # the average is beside the run and does not change it
    assert same(exported(last.checkpoint), walk[-1])


def test_held_out_losses_are_those_of_the_saved_file(place, averaged):
    trainer, reports, _ = averaged
    model = load_transformer(place.model, dtype=torch.float32)
    add_lora(model, trainer.config.lora.rank, trainer.config.lora.alpha, trainer.config.lora.target_modules)
    load_lora(model, reports[-1].checkpoint)
    clips = [collate([trainer.dataset[i]]) for i in trainer.run.data.kept_out]
    losses = held_out_losses(model, trainer.strategy, clips, seed=trainer.config.seed)
    found = {name: loss.mean().item() for name, loss in losses.items()}
    assert reports[-1].held_out == pytest.approx(
        found, rel=1e-5
    )  # a mean of thousands of float32 numbers: 1e-7 to 1e-6


def test_samples_are_those_of_the_average(place, tmp_path):
    samples = {
        "validation__samples": [{"prompt": "a bird", "seed": 1}],
        "validation__interval": 2,
        "validation__skip_initial_validation": True,
    }
    rate = {"optimization__learning_rate": 0.1}  # far apart
    trainer, (*_, report) = train(place, tmp_path, **samples, **rate, **AVERAGED | {"optimization__steps": 2})
    shown = report.samples[0].read_bytes()
    trainer.run.weights.average.restart()
    assert trainer.validate()[0].read_bytes() != shown  # of the weights themselves
    with torch.no_grad():
        for name, weight in exported(report.checkpoint).items():
            trainer.run.weights.parameters[name].copy_(weight)
    trainer.run.weights.average.restart()
    assert trainer.validate()[0].read_bytes() == shown


@pytest.mark.parametrize("mode", [{}, FULL], ids=["lora", "full"])
def test_an_averaged_run_resumes_exactly(place, tmp_path, mode):
    options = AVERAGED | mode | {"checkpoints__save_training_state": "full"}
    whole, reports = train(place, tmp_path / "whole", **options)
    resumed, later = train(place, tmp_path / "resumed", model__load_checkpoint=reports[N - 1].checkpoint, **options)
    assert same(trained(resumed), trained(whole))
    assert same(load_file(later[-1].checkpoint), load_file(reports[-1].checkpoint))


def test_a_full_run_without_its_state_goes_on_from_the_average(place, tmp_path):
    options = AVERAGED | FULL | {"checkpoints__save_training_state": "minimal"}
    _, reports = train(place, tmp_path / "whole", **options)
    resumed = make_trainer(
        place, tmp_path / "resumed", model__load_checkpoint=reports[N - 1].checkpoint, **options
    ).load()
    assert "no state of the average" in told(resumed)
    saved = load_file(reports[N - 1].checkpoint)
    weights = {f"model.diffusion_model.{name}": weight for name, weight in trained(resumed).items()}
    assert same(weights, {name: saved[name] for name in weights}) and same(
        resumed.run.weights.average.weights, trained(resumed)
    )


def test_an_average_that_begins_late_begins_with_the_weights(place, averaged, tmp_path):
    _, reports, walk = averaged
    plain = AVERAGED | {"optimization__ema_decay": None}
    _, before = train(place, tmp_path / "plain", data__held_out=1, **plain)
    trainer = make_trainer(
        place, tmp_path / "late", model__load_checkpoint=before[N - 1].checkpoint, data__held_out=1, **AVERAGED
    ).load()
    assert same(trainer.run.weights.average.weights, walk[N]) and trainer.run.weights.average.updates == 0
    assert "optimization.ema_decay: saved None, now 0.6" in told(trainer)


def test_another_alpha_keeps_the_average(place, averaged, tmp_path):
    trainer, reports, _ = averaged
    alpha = trainer.config.lora.alpha / 2
    resumed = make_trainer(
        place, tmp_path, model__load_checkpoint=reports[N - 1].checkpoint, data__held_out=1, lora__alpha=alpha, **AVERAGED
    ).load()  # fmt: skip
    before = exported(reports[N - 1].checkpoint)
    assert_near(
        resumed.run.weights.average.weights, {name: w * (2 if "lora_B" in name else 1) for name, w in before.items()}
    )


def test_weights_come_back_after_an_error():
    weights = parameters()
    average = WeightAverage(weights, DECAY)
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
    with pytest.raises(RuntimeError, match="on purpose"), average.in_use():
        assert all(weight.eq(1).all() for weight in weights.values())
        raise RuntimeError("on purpose")
    assert all(weight.eq(0).all() for weight in weights.values())


# settings of a resumed run


def test_a_resumed_run_has_the_settings_of_its_own_configuration(place, averaged, tmp_path):
    _, reports, _ = averaged
    new = {
        "optimization__weight_decay": 0.25,
        "optimization__betas": [0.8, 0.9],
        "model__load_checkpoint": reports[N - 1].checkpoint,
    }
    trainer = make_trainer(place, tmp_path, data__held_out=1, **AVERAGED, **new).load()
    (group,) = trainer.run.weights.optimizer.param_groups
    assert (group["weight_decay"], tuple(group["betas"])) == (0.25, (0.8, 0.9))
    assert trainer.run.weights.optimizer.state_dict()["state"]  # what was gathered is there all the same


def test_other_groups_need_a_new_optimizer(place, averaged, tmp_path):
    _, reports, _ = averaged
    groups = {"optimization__parameter_groups": [{"match": ["*lora_B*"], "learning_rate": RATE}]}
    more = AVERAGED | {"model__load_checkpoint": reports[N - 1].checkpoint, "data__held_out": 1}
    trainer, later = train(place, tmp_path, **more, **groups)
    assert "optimization.parameter_groups" in told(trainer) and "needs a new optimizer" in told(trainer)
    assert [report.step for report in later] == [N + 1, 2 * N]


# in host memory


def test_a_run_whose_optimizer_waits_elsewhere_is_the_same_run(place, tmp_path):
    sampled = {
        "validation__interval": 1,
        "validation__samples": [{"prompt": "a"}],
        "validation__skip_initial_validation": True,
    }
    runs = []
    for offload in (True, False):
        option = {"acceleration__offload_optimizer_during_validation": offload}
        trainer, reports = train(place, tmp_path / str(offload), optimization__steps=N, **sampled, **option)
        runs.append((trained(trainer), [path.read_bytes() for report in reports for path in report.samples]))
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1] and len(runs[0][1]) == N


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_state_waits_in_host_memory_and_comes_back(kind):
    weights = {"w": torch.nn.Parameter(torch.ones(128, 128, device="cuda"))}
    optimizer = make_optimizer(weights, OptimizationConfig(optimizer_type=kind))
    weights["w"].grad = torch.randn(128, 128, device="cuda")
    optimizer.step()
    tensors = lambda: [
        value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    before = [value.clone() for value in tensors()]
    with pytest.raises(RuntimeError, match="on purpose"), offloaded(optimizer):
        assert {value.device.type for value in tensors()} == {"cpu"}
        raise RuntimeError("on purpose")
    assert all(
        torch.equal(one, other) and one.device == other.device for one, other in zip(before, tensors(), strict=True)
    )
    optimizer.step()
