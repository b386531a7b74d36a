"Training: what moves, what is saved, what a resumed run has to be, and what is said when it cannot go on."

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import (
    CONTEXT,
    SAMPLES,
    SIZE,
    Notes,
    TARGETS,
    configure,
    ctrl_c,
    make_place,
    make_trainer,
    names,
    same,
    told,
    train,
    trained,
)

from ltx_nb.config.files import load_config
from ltx_nb.data.batches import DummyDataset, PrecomputedDataset
from ltx_nb.data.store import Manifest, Recipe, WrongCheckpointError
from ltx_nb.data.batches import collate
from ltx_nb.data.store import checkpoint_identity, write_record
from ltx_nb.model.latents import ConfigError, patchify_video
from ltx_nb.loading.checkpoint import CheckpointError, load_embeddings_processor, load_text_encoder, load_transformer
from ltx_nb.loading.lora import export_lora, fuse_lora, read_lora
from ltx_nb.model.text import caption_record
from ltx_nb.training.optimizer import learning_rate, make_optimizer
from ltx_nb.training.progress import Progress
from ltx_nb.flow.strategies import FlexibleStrategy, ModelInputs
from ltx_nb.training.dataset import held_out_samples
from ltx_nb.training.held_out import held_out_losses, sample_losses
from ltx_nb.training.runtime import compile_options
from ltx_nb.training.trainer import LtxvTrainer, StepReport, losses_by_level
from ltx_nb.training.weights import trained_parameters

N = 2  # a whole run has 2N steps, an interrupted one N
RATE = 3e-3
DROPOUT = {"lora__dropout": 0.1}  # draws from the global random numbers: whoever touches them changes the run
STREAMS = {"loss", "video", "audio"}
# Two ways to the same float32 numbers. A loss is the mean of some thousand squares: another order of summation moves it by
# 1e-7 to 1e-6 of itself, and so the gradient. A fault (a clip too many, a factor, another level) moves it by percents.
SAME_SUM = 1e-5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def whole(place):
    "A LoRA run of 2N steps, with a checkpoint after N."
    return train(place, place.folder / "whole", optimization__steps=2 * N, checkpoints__interval=N, **DROPOUT)


@pytest.fixture(scope="module")
def full(place):
    "Every weight, 2N steps, with a checkpoint after N."
    more = {"model__training_mode": "full", "lora": None, "checkpoints__interval": N}
    return train(place, place.folder / "full", optimization__steps=2 * N, **more)


@pytest.fixture(scope="module")
def base(place):
    return load_transformer(place.model, dtype=torch.float32).state_dict()


@pytest.fixture(scope="module")
def interrupted(place):
    "The LoRA run again in a process of its own, killed when it was a step past the checkpoint of step N."
    output = place.folder / "killed"
    changes = {"optimization__steps": 2 * N, "checkpoints__interval": N, **DROPOUT}
    script = (
        "import sys\nfrom pathlib import Path\nfrom tiny_runs import Place, make_trainer\n"
        f"place = Place(*map(Path, {[str(getattr(place, f.name)) for f in fields(place)]!r}))\n"
        f"for report in make_trainer(place, Path({str(output)!r}), **{changes!r}).steps():\n"
        f"    print(report.step, flush=True)\n    if report.step == {N + 1}: sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parent}
    as_here = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads())
    }  # sums in the same order: bytes are compared
    with subprocess.Popen([sys.executable, "-c", script], env=as_here, **pipes) as process:
        lines = [process.stdout.readline().strip() for _ in range(N + 1)]
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and lines == [str(n) for n in range(1, N + 2)]
    return output / "checkpoints"


def adapters_of(path):
    return {name: (A, B) for name, (A, B) in read_lora(path)[0].items()}


# what moves


def test_only_adapters_move(whole, base):
    trainer, _ = whole
    state = trainer.model.state_dict()
    frozen = {name.replace(".base_layer", ""): value for name, value in state.items() if "lora_" not in name}
    assert same(frozen, base)
    moved = [name for name, value in state.items() if "lora_B" in name and value.abs().max() > 0]
    assert moved == [name for name in state if "lora_B" in name] and moved


def test_full_mode_trains_every_weight(full, base):
    trainer, _ = full
    after = trained(trainer)
    assert after.keys() == base.keys() and all(value.dtype == torch.float32 for value in after.values())
    still = [name for name, value in after.items() if torch.equal(value, base[name])]
    assert not still


def test_loss_falls_on_one_batch(place, tmp_path):
    trainer = make_trainer(place, tmp_path).load()
    optimizer = make_optimizer(trained_parameters(trainer.model), trainer.config.optimization)
    batch, losses = collate([trainer.dataset[0]]), []
    for _ in range(12):
        noise = torch.Generator().manual_seed(0)
        total, streams, _ = sample_losses(trainer.model, trainer.strategy, batch, trainer.run.data.timesteps, noise)
        loss = total.mean()
        loss.backward()
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]  # about 0.6; with the noise anew each time it goes up and down by a fifth
    assert streams.keys() == {"video", "audio"} and loss.item() == pytest.approx(
        sum(x.item() for x in streams.values())
    )


def test_same_seed_same_weights_another_seed_others(place, tmp_path, whole):
    again, _ = train(place, tmp_path / "again", optimization__steps=2 * N, checkpoints__interval=N, **DROPOUT)
    other, _ = train(place, tmp_path / "other", optimization__steps=1, seed=7, **DROPOUT)
    assert same(trained(again), trained(whole[0]))
    first, second = (dict(trainer.model.named_parameters()) for trainer in (again, other))
    assert not any(torch.equal(first[name], second[name]) for name in first if "lora_A" in name)


def like(strategy, kind):
    "The same strategy as another class."
    return kind(strategy.config, strategy.factors, strategy.device, strategy.dtype)


class SameNoiseForASample(FlexibleStrategy):
    "A strategy whose noise belongs to the sample, whatever shares its batch."

    def prepare_training_inputs(self, batch, sampler, generator):
        parts = []
        for row, sample in enumerate(batch["idx"].tolist()):
            one = {k: {n: x[row : row + 1] for n, x in v.items()} for k, v in batch.items() if isinstance(v, dict)}
            own = torch.Generator().manual_seed(sample)
            parts.append(super().prepare_training_inputs(one, sampler, own))
        return join(parts)


def join(parts):
    "Inputs of single samples as those of a batch."
    first, joined = parts[0], {}
    for field in fields(first):
        values = [getattr(part, field.name) for part in parts]
        if torch.is_tensor(values[0]):
            joined[field.name] = torch.cat(values)
        elif hasattr(values[0], "latent"):
            joined[field.name] = join(values)
    return replace(first, **joined)


def distance(one, other) -> float:
    return sum((value - other[name]).square().sum().item() for name, value in one.items()) ** 0.5


def test_accumulation_equals_a_large_batch(place, tmp_path):
    two, found = place.with_data("two", 2), []
    for size, accumulated in ((2, 1), (1, 2)):
        more = {"optimization__batch_size": size, "optimization__gradient_accumulation_steps": accumulated}
        trainer = make_trainer(two, tmp_path / str(size), optimization__max_grad_norm=0.0, **more).load()
        trainer.run.data.strategy, start = like(trainer.strategy, SameNoiseForASample), trained(trainer)
        found.append(([report.numbers() for report in trainer.steps()], trained(trainer)))
    (large, large_weights), (small, small_weights) = found
    assert large[0].keys() == STREAMS | {"lr", "grad_norm"}
    for one, other in zip(large, small, strict=True):
        assert one == pytest.approx(other, rel=10 * SAME_SUM)  # the length of the gradient too: nothing counts twice
    # Adam's first moves have the size of the rate, whatever the gradient's: where that is a rounding away from zero its sign
    # is chance, which makes 1e-3 of the way. One clip of two gives half of the way.
    assert distance(large_weights, small_weights) < 0.02 * distance(large_weights, start)


def test_the_joined_inputs_of_that_comparison_are_what_a_batch_makes(place, tmp_path):
    trainer = make_trainer(place, tmp_path, optimization__batch_size=2).load()
    batch = collate([trainer.dataset[0], trainer.dataset[1]])
    whole = trainer.strategy.prepare_training_inputs(batch, trainer.run.data.timesteps, trainer.run.state.generator)
    joined = like(trainer.strategy, SameNoiseForASample).prepare_training_inputs(
        batch, trainer.run.data.timesteps, None
    )
    assert isinstance(joined, ModelInputs)
    assert joined.video.latent.shape == whole.video.latent.shape and torch.equal(
        joined.video.context, whole.video.context
    )


def test_partial_epochs_do_not_shift_the_count(place, tmp_path):
    more = {"optimization__gradient_accumulation_steps": 2, "checkpoints__interval": 2}
    trainer, reports = train(place, tmp_path, optimization__steps=5, **more)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert [report.step for report in reports if report.checkpoint] == [2, 4, 5]
    place_in_data = trainer.run.data.sampler.state_dict()
    assert place_in_data["epoch"] * SAMPLES + place_in_data["offset"] == 5 * 2


# going on


def test_kill_and_resume_is_the_uninterrupted_run(place, whole, interrupted):
    assert [n for n in names(interrupted) if n.endswith(".safetensors")] == [
        f"lora_weights_step_0000{N}.safetensors", f"training_state_step_0000{N}.safetensors",
    ]  # fmt: skip
    trainer, reports = whole
    changes = {"optimization__steps": 2 * N, "checkpoints__interval": N, **DROPOUT}
    resumed, later = train(place, interrupted.parent, model__load_checkpoint=interrupted, **changes)
    assert [report.step for report in later] == list(range(N + 1, 2 * N + 1))
    assert [report.numbers() for report in later] == [report.numbers() for report in reports[N:]]
    assert same(trained(resumed), trained(trainer))
    assert same(load_file(later[-1].checkpoint), load_file(reports[-1].checkpoint))
    phase = next(phase for phase in resumed.runtime.progress.phases if phase.name == "Training")
    assert (phase.start, phase.done, phase.total) == (N, 2 * N, 2 * N)


def test_full_mode_resumes_exactly(place, tmp_path, full):
    trainer, reports = full
    more = {"model__training_mode": "full", "lora": None, "model__load_checkpoint": reports[N - 1].checkpoint}
    resumed, later = train(place, tmp_path, optimization__steps=2 * N, **more)
    assert [report.numbers() for report in later] == [report.numbers() for report in reports[N:]]
    assert same(trained(resumed), trained(trainer))


def linear(step, steps):
    return RATE * (1 - 0.9 * step / steps)


def test_the_rate_follows_the_formula_over_a_resume_with_more_steps(place, tmp_path, whole):
    _, reports = whole
    assert [r.learning_rate for r in reports] == pytest.approx([linear(step, 2 * N) for step in range(2 * N)])
    more = {"model__load_checkpoint": reports[N - 1].checkpoint, "optimization__steps": 3 * N}
    trainer, later = train(place, tmp_path, **more, **DROPOUT)
    assert [r.learning_rate for r in later] == pytest.approx([linear(step, 3 * N) for step in range(N, 3 * N)])
    assert trainer.run.weights.optimizer.param_groups[0]["lr"] == later[-1].learning_rate
    assert learning_rate(3 * N, trainer.config.optimization) == pytest.approx(RATE * 0.1)


def test_no_resume_takes_the_weights_and_starts_at_step_zero(place, tmp_path, whole):
    checkpoint = whole[1][-1].checkpoint
    more = {"model__load_checkpoint": checkpoint, "checkpoints__no_resume": True}
    trainer = make_trainer(place, tmp_path, **more, **DROPOUT).load()
    state, pairs = trainer.model.state_dict(), adapters_of(checkpoint)
    assert all(torch.equal(state[f"{name}.lora_B.default.weight"], B) for name, (_, B) in pairs.items())
    first = next(trainer.steps())
    assert first.step == 1 and first.learning_rate == RATE and "no_resume" in told(trainer)


def test_what_differs_from_the_saved_run_is_reported(place, tmp_path, whole):
    checkpoint = whole[1][N - 1].checkpoint
    same_run = make_trainer(place, tmp_path, model__load_checkpoint=checkpoint, optimization__steps=9, **DROPOUT).load()
    assert told(same_run) == ""
    more = {"lora__alpha": 4, "optimization__batch_size": 2, "optimization__optimizer_type": "adamw8bit", "seed": 1}
    trainer = make_trainer(place, tmp_path, model__load_checkpoint=checkpoint, optimization__steps=9, **more).load()
    for field in ("lora.alpha", "lora.dropout", "optimization.batch_size", "optimization.optimizer_type", "seed"):
        assert field in told(trainer)
    assert "needs a new optimizer" in told(trainer) and not trainer.run.weights.optimizer.state_dict()["state"]


def test_another_base_model_is_reported(place, tmp_path, whole):
    tensors = load_file(place.model)
    name = "model.diffusion_model.proj_out.weight"
    tensors[name] = tensors[name] + 1
    other = replace(place, model=tmp_path / place.model.name)
    with safe_open(place.model, "pt") as file:
        save_file(tensors, other.model, file.metadata())
    trainer = make_trainer(
        other, tmp_path, model__load_checkpoint=whole[1][N - 1].checkpoint, **DROPOUT, optimization__steps=9
    )
    assert "weights: saved" in told(trainer.load())


@pytest.mark.parametrize("mode", ["minimal", "off"])
def test_less_state_resumes_at_the_step_and_says_what_is_lost(place, tmp_path, mode, caplog):
    more = {"checkpoints__save_training_state": mode, "optimization__steps": N}
    trainer, reports = train(place, tmp_path, **more)
    assert any("training_state" in name for name in names(tmp_path / "checkpoints")) == (mode == "minimal")
    resumed = make_trainer(
        place, tmp_path, **more | {"optimization__steps": N + 1}, model__load_checkpoint=tmp_path
    ).load()
    assert resumed.state.step == N and same(trained(resumed), trained(trainer))
    assert "optimizer starts anew" in told(resumed) + caplog.text
    assert next(resumed.steps()).learning_rate == pytest.approx(linear(N, N + 1))


def test_a_finished_run_says_so(place, tmp_path, whole):
    with pytest.raises(ConfigError, match=rf"optimization.steps is {2 * N}.*raise it"):
        make_trainer(place, tmp_path, model__load_checkpoint=whole[1][-1].checkpoint, optimization__steps=2 * N).load()


def cut_lora(source, target, change):
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(source)), target, metadata)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "blocks.0.attn1.to_q" not in k}, "blocks.0.attn1.to_q"),
        (lambda t: {k: v for k, v in t.items() if "blocks.0.attn1.to_q.lora_A" not in k}, "blocks.0.attn1.to_q"),
        (lambda t: {k.replace("transformer_blocks", "double_blocks"): v for k, v in t.items()}, "0 of its"),
        (lambda t: {k: v[:4] if "lora_A" in k else v[:, :4] for k, v in t.items()}, "set lora.rank to 4"),
    ],
    ids=["a module missing", "half a pair", "another model", "another rank"],
)
def test_a_lora_that_does_not_fit_is_refused(place, tmp_path, whole, change, message):
    path = cut_lora(whole[1][-1].checkpoint, tmp_path / "part.safetensors", lambda t: contiguous(change(t)))
    trainer = make_trainer(place, tmp_path / "run", model__load_checkpoint=path, **DROPOUT)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        trainer.load()
    assert not names(tmp_path / "run")


def contiguous(tensors):
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


# what is saved


def test_the_last_checkpoint_survives_retention(place, tmp_path):
    train(place, tmp_path, optimization__steps=4, checkpoints__interval=2, checkpoints__keep_last_n=1)
    left = ["lora_weights_step_00004.safetensors", "training_state_step_00004.safetensors"]
    assert names(tmp_path / "checkpoints") == left


def test_lora_file(place, tmp_path, base):
    trainer, reports = train(place, tmp_path, lora__rank=4, lora__alpha=12, checkpoints__precision="bfloat16")
    path, state = reports[-1].checkpoint, trainer.model.state_dict()
    assert path.name == "lora_weights_step_00002.safetensors"
    tensors = load_file(path)
    shape = re.compile(r"diffusion_model\.transformer_blocks\.\d+\.\w*attn\d?\.to_(q|k|v|out\.0)\.lora_(A|B)\.weight")
    assert all(shape.fullmatch(key) and value.dtype == torch.bfloat16 for key, value in tensors.items())
    assert len(tensors) == sum("lora_" in name for name in state)
    for key, value in tensors.items():
        ours = state[key.removeprefix("diffusion_model.").replace(".weight", ".default.weight")]
        assert torch.equal(value, (ours * (3 if "lora_B" in key else 1)).bfloat16())  # alpha / rank lies in B
    with safe_open(path, "pt") as file:
        said = file.metadata()
    expected = {
        "lora_rank": "4",
        "lora_alpha": "12",
        "base_model": place.model.name,
        "training_mode": "lora",
        "step": "2",
    }
    assert expected.items() <= said.items() and said["target_modules"] == ",".join(TARGETS)


def test_a_saved_lora_is_as_strong_as_the_trained_one(place, whole):
    trainer, reports = whole
    fused = load_transformer(place.model, dtype=torch.float32)
    fuse_lora(fused, reports[-1].checkpoint)
    weights = fused.state_dict()
    for name, module in trainer.model.named_modules():
        if hasattr(module, "lora_A"):
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            expected = module.base_layer.weight + module.scaling["default"] * B @ A
            # a weight of size 0.1 and the sum of two products: float32 rounds at 1e-8; half the strength is off by 1e-4
            torch.testing.assert_close(weights[f"{name}.weight"], expected, rtol=0, atol=1e-6)


def test_a_full_checkpoint_loads_as_a_base_model(place, tmp_path, full):
    trainer, reports = full
    path = reports[-1].checkpoint
    assert path.name == f"model_weights_step_0000{2 * N}.safetensors"
    assert same(load_transformer(path, dtype=torch.float32).state_dict(), trained(trainer))
    bare = {k.removeprefix("model.diffusion_model."): v for k, v in load_file(path).items()}
    save_file(bare, tmp_path / "model_weights_step_00001.safetensors")  # as the reference trainer writes it
    more = {"model__training_mode": "full", "lora": None, "checkpoints__no_resume": True}
    resumed = make_trainer(place, tmp_path / "run", model__load_checkpoint=tmp_path, **more).load()
    assert same(trained(resumed), trained(trainer))
    del bare["proj_out.weight"]
    save_file(bare, tmp_path / "model_weights_step_00001.safetensors")
    with pytest.raises(CheckpointError, match="proj_out.weight"):
        make_trainer(place, tmp_path / "run", model__load_checkpoint=tmp_path, **more).load()


def test_the_output_folder_holds_a_configuration_that_reads_back(place, whole):
    trainer, _ = whole
    again = load_config(place.folder / "whole" / "training_config.yaml")
    assert again == trainer.config and again.optimization.scheduler_params == {}


def test_a_notebook_can_stop_save_and_go_on(place, tmp_path, whole):
    trainer = make_trainer(place, tmp_path, optimization__steps=2 * N, checkpoints__interval=N, **DROPOUT)
    for report in trainer.steps():
        if report.step == 1:
            break
    assert trainer.state.step == 1 and trainer.save().name == "lora_weights_step_00001.safetensors"
    assert [report.step for report in trainer.steps()] == list(range(2, 2 * N + 1))
    assert same(trained(trainer), trained(whole[0]))


# being stopped


def ask_to_stop(*_):
    signal.raise_signal(signal.SIGINT)


class StopsInside(FlexibleStrategy):
    "A strategy during whose work somebody presses Ctrl-C."

    def prepare_training_inputs(self, *args):
        ask_to_stop()
        return super().prepare_training_inputs(*args)


@pytest.mark.parametrize("when", ["within a step", "between two steps"])
def test_an_interrupt_saves_and_stops(place, tmp_path, when, whole):
    trainer = make_trainer(place, tmp_path, optimization__steps=2 * N, **DROPOUT).load()
    with ctrl_c():
        if when == "within a step":
            trainer.run.data.strategy = like(trainer.strategy, StopsInside)
            result = trainer.train()
        else:
            result = trainer.train(on_step=ask_to_stop)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (result.stopped, result.steps) == ("SIGINT", 1)
    assert result.checkpoint.name == "lora_weights_step_00001.safetensors" and result.checkpoint.exists()
    assert "SIGINT" in told(trainer) and result.checkpoint.name in told(trainer)
    more = {"model__load_checkpoint": result.checkpoint, "optimization__steps": 2 * N}
    resumed, _ = train(place, tmp_path, **more, **DROPOUT)
    assert same(trained(resumed), trained(whole[0]))


def test_an_interrupt_that_was_ignored_at_the_start_stays_ignored(place, tmp_path):
    "As in `ltx-nb train ... &` of a script, whose terminal belongs to somebody else."
    with ctrl_c(signal.SIG_IGN):
        result = make_trainer(place, tmp_path, optimization__steps=2).train(on_step=ask_to_stop)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert (result.stopped, result.steps) == (None, 2)


def spoil_weights(report, trainer):
    with torch.no_grad():
        next(p for name, p in trainer.run.weights.parameters.items() if "to_out.0.lora_B" in name).fill_(float("nan"))


def spoil_gradients(report, trainer):
    next(iter(trainer.run.weights.parameters.values())).register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize(("spoil", "what"), [(spoil_weights, "loss"), (spoil_gradients, "gradient")])
def test_lost_numbers_end_the_run_and_are_not_saved(place, tmp_path, spoil, what):
    trainer = make_trainer(place, tmp_path, optimization__steps=4, checkpoints__interval=1)
    with pytest.raises(
        FloatingPointError, match=rf"{what} of .*step 2 .*is nan.*lora_weights_step_00001.*learning_rate"
    ):
        trainer.train(on_step=lambda report: spoil(report, trainer))
    assert names(tmp_path / "checkpoints") == [
        "lora_weights_step_00001.safetensors",
        "training_state_step_00001.safetensors",
    ]


# data


def test_a_dataset_of_another_checkpoint_is_refused(place, tmp_path):
    other = replace(place, data=shutil.copytree(place.data, tmp_path / "data"))
    made_by = checkpoint_identity(place.model)
    manifest = Manifest(other.data)
    manifest.add("latents", "sample_00000", Recipe(made_by={"video_vae": made_by["video_vae"]}))
    make_trainer(other, tmp_path / "right").load()
    made_by["video_vae"] = {"name": "ltx-video-0.9.safetensors", "fingerprint": "0" * 16}
    manifest.add("latents", "sample_00001", Recipe(made_by={"video_vae": made_by["video_vae"]}))
    with pytest.raises(WrongCheckpointError, match=r"(?s)video_vae of ltx-video-0.9.*Prepare it again"):
        make_trainer(other, tmp_path / "wrong").load()


def test_a_dataset_smaller_than_a_batch(place, tmp_path):
    with pytest.raises(ValueError, match=rf"has {SAMPLES} sample.*one batch takes 5.*batch_size"):
        make_trainer(place, tmp_path, optimization__batch_size=5).load()


def test_a_dataset_without_sound_is_refused_before_anything_is_loaded(place, tmp_path):
    silent = replace(place, data=tmp_path / "silent")
    shutil.copytree(place.data / "latents", silent.data / "latents")
    shutil.copytree(place.data / "conditions", silent.data / "conditions")
    with pytest.raises(ConfigError, match="'audio_latents'.*missing.*conditions, latents"):
        make_trainer(silent, tmp_path)


CAPTIONS = ["a rabbit yawns", "a bird sings, the rabbit listens"]


@pytest.fixture(scope="module")
def encoder(place):
    processor = load_embeddings_processor(place.model, dtype=torch.float32)
    return load_text_encoder(place.text_encoder, dtype=torch.float32, embeddings_processor=processor)


@pytest.fixture(scope="module")
def foreign(place, encoder):
    "A dataset as the LTX Trainer writes it: pickles, features before the connectors, and latents in either layout."
    root = place.folder / "foreign" / ".precomputed"
    for number, caption in enumerate(CAPTIONS):
        latents, sound = torch.randn(128, 2, 1, 1), torch.randn(8, 9, 16)
        place_of = {"num_frames": 2, "height": 1, "width": 1, "fps": 24.0}
        if number:
            latents = patchify_video(latents[None])[0]
        records = {
            "latents": {"latents": latents.bfloat16(), **place_of},
            "audio_latents": {"latents": sound, "num_time_steps": 9, "frequency_bins": 16, "duration": 0.375},
            "conditions": caption_record(encoder.precompute(caption), dtype=torch.float32),
        }
        for folder, record in records.items():
            (root / folder / "clips").mkdir(parents=True, exist_ok=True)
            torch.save(record, root / folder / "clips" / f"{number}.pt")
    return root


@pytest.mark.parametrize("inner", [True, False], ids=["the folder itself", "its parent"])
def test_a_dataset_of_the_reference_trainer_trains(place, tmp_path, foreign, encoder, inner):
    theirs = replace(place, data=foreign if inner else foreign.parent)
    trainer, reports = train(theirs, tmp_path, optimization__batch_size=2, optimization__steps=1)
    assert all(torch.isfinite(loss) for loss in reports[0].losses.values())
    assert [item["latents"]["latents"].shape for item in trainer.dataset] == [(128, 2, 1, 1)] * 2
    for item, caption in zip(trainer.dataset, CAPTIONS, strict=True):
        ours = encoder(caption)
        assert torch.equal(item["conditions"]["video_context"], ours.video[0].bfloat16())
        assert torch.equal(item["conditions"]["audio_context"], ours.audio[0].bfloat16())


# precision and memory


def test_bf16_keeps_adapters_in_float32(place, tmp_path):
    trainer, reports = train(place, tmp_path, acceleration__mixed_precision_mode="bf16")
    assert all(torch.isfinite(loss) for report in reports for loss in report.losses.values())
    dtypes = {("lora_" in name, p.dtype) for name, p in trainer.model.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    plain = train(place, tmp_path / "plain")[1]
    # bfloat16 rounds at 2**-9 in each of some dozen layers on the way: about a percent. Noise of another seed gives 20 %.
    assert [r.numbers()["loss"] for r in reports] == pytest.approx([r.numbers()["loss"] for r in plain], rel=0.05)


def test_gradient_checkpointing_changes_nothing_but_memory(place, tmp_path, whole):
    more = {
        "optimization__enable_gradient_checkpointing": True,
        "optimization__steps": 2 * N,
        "checkpoints__interval": N,
    }
    trainer, reports = train(place, tmp_path, **more, **DROPOUT)
    for ours, theirs in zip(reports, whole[1], strict=True):
        assert ours.numbers() == pytest.approx(theirs.numbers(), rel=SAME_SUM)  # dropout drawn anew would give percents


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ({}, None),
        ({"backend": "inductor"}, {"backend": "inductor", "dynamic": False}),
        (
            {"backend": "inductor", "dynamic": True, "use_regional_compilation": True},
            {"backend": "inductor", "dynamic": None},
        ),
        (
            {"backend": "eager", "fullgraph": True, "mode": "max-autotune"},
            {"backend": "eager", "fullgraph": True, "dynamic": False},
        ),
    ],
)
def test_what_a_launch_says_about_compiling(said, options):
    found = compile_options(SimpleNamespace(state=SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(**said))))
    assert (
        found == options
        if options is None
        else options.items() <= found.items() and "use_regional_compilation" not in found
    )


def test_compiled_blocks_make_the_same_step_under_the_same_names(place, tmp_path, monkeypatch):
    plain = make_trainer(place, tmp_path).load()
    expected = next(plain.steps()).numbers()
    compiled = make_trainer(place, tmp_path)
    graphs = []
    plugin = TorchDynamoPlugin(
        backend="eager", fullgraph=True
    )  # fullgraph: an error where something cannot be compiled
    monkeypatch.setattr(compiled.runtime.accelerator.state, "dynamo_plugin", plugin)
    monkeypatch.setattr(
        plugin,
        "to_kwargs",
        lambda: {"backend": lambda graph, _: graphs.append(graph) or graph.forward, "fullgraph": True},
    )
    assert next(compiled.load().steps()).numbers() == pytest.approx(expected, rel=SAME_SUM)
    assert (
        list(compiled.run.weights.parameters) == list(plain.run.weights.parameters)
        and len(compiled.model.transformer_blocks) > len(graphs) == 2
    )


def test_eight_bit_optimizer(place, tmp_path):
    trainer, reports = train(place, tmp_path, optimization__optimizer_type="adamw8bit")
    assert type(trainer.run.weights.optimizer.optimizer).__name__ == "AdamW8bit"
    assert all(p.abs().max() > 0 for p in trained(trainer).values())
    again = make_trainer(
        place, tmp_path, optimization__optimizer_type="adamw8bit", optimization__steps=3,
        model__load_checkpoint=reports[-1].checkpoint,
    )  # fmt: skip
    assert next(again.steps()).step == 3


def test_a_device_that_would_not_be_used_is_refused(place, tmp_path):
    with pytest.raises(ValueError, match="device is cuda:99, but Accelerate found"):
        LtxvTrainer(configure(place, tmp_path), device="cuda:99")


def test_another_alpha_on_resume_keeps_what_was_learned(place, tmp_path):
    first, _ = train(place, tmp_path / "one", lora__alpha=8, checkpoints__precision="float32")
    saved = load_file(first.state.checkpoint)
    second = make_trainer(
        place,
        tmp_path / "two",
        lora__alpha=32,
        optimization__steps=3,
        model__load_checkpoint=str(first.state.checkpoint),
    ).load()
    again = export_lora(second.model, torch.float32)
    # B of size 1e-2 is divided by one scale and multiplied by another: two roundings of 1e-9; forgotten, it is 4 times as large
    assert all(torch.allclose(again[name], saved[name], atol=1e-6) for name in saved)


def test_captions_of_another_width_are_refused(place, tmp_path):
    wide = DummyDataset(**SIZE, **CONTEXT | {"context_width": 999}, dataset_length=SAMPLES).save(tmp_path / "data")
    with pytest.raises(ValueError, match="999 wide, this checkpoint reads 128"):
        make_trainer(place, tmp_path, data__preprocessed_data_root=wide).load()


# samples along the way


@pytest.fixture(scope="module")
def watched(place):
    "The same run as `whole`, with samples along the way, and whether the model was back in training mode."
    more = {"optimization__steps": 2 * N, "checkpoints__interval": N, "validation__interval": N, **DROPOUT}
    trainer, modes = make_trainer(place, place.folder / "watched", **more), []
    result = trainer.train(on_step=lambda report: modes.append(all(m.training for m in trainer.model.modules())))
    return trainer, result, modes


def test_samples_come_at_step_zero_and_on_their_interval(place, watched):
    expected = [f"step_00000{step}_1.mp4" for step in (0, N, 2 * N)]
    assert names(place.folder / "watched" / "samples") == expected
    assert [path.name for path in watched[1].samples] == expected


def test_samples_leave_no_trace_in_the_run(watched, whole):
    trainer, result, modes = watched
    assert same(trained(trainer), trained(whole[0])) and modes == [True] * 2 * N
    assert result.losses == whole[1][-1].numbers()


def test_a_resumed_run_does_not_sample_its_step_again_but_a_new_run_does(place, tmp_path, watched):
    output = shutil.copytree(place.folder / "watched", tmp_path / "again")
    for path in (output / "samples").iterdir():
        path.write_bytes(b"old")
    more = {"optimization__steps": 2 * N, "validation__interval": N, **DROPOUT}
    older = output / "checkpoints" / f"lora_weights_step_0000{N}.safetensors"
    resumed = make_trainer(place, output, True, model__load_checkpoint=older, **more).train()
    assert [path.name for path in resumed.samples] == [f"step_00000{2 * N}_1.mp4"]
    fresh = make_trainer(place, output, True, **more | {"optimization__steps": 1}).train()
    assert [path.name for path in fresh.samples] == ["step_000000_1.mp4"] and fresh.samples[0].stat().st_size > 3


def test_no_first_samples_where_they_are_not_wanted(place, tmp_path):
    more = {"validation__interval": 5, "validation__skip_initial_validation": True}
    train(place, tmp_path, optimization__steps=1, **more)
    assert not names(tmp_path / "samples")


def test_samples_of_a_full_run_in_bf16(place, tmp_path):
    more = {"model__training_mode": "full", "lora": None, "acceleration__mixed_precision_mode": "bf16"}
    trainer, reports = train(place, tmp_path, **more, optimization__steps=1, validation__interval=1)
    assert names(tmp_path / "samples") == ["step_000000_1.mp4", "step_000001_1.mp4"]
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32} and torch.isfinite(
        reports[0].losses["loss"]
    )


# held-out clips


SILENT = {"validation__samples": [], "validation__prompts": []}
HELD = {"data__held_out": 2, "optimization__steps": 2 * N, "checkpoints__interval": N}
CLIPS = 6


@pytest.fixture(scope="module")
def larger(place):
    return place.with_data("larger", CLIPS)


@pytest.fixture(scope="module")
def measured(larger):
    "A LoRA run with two clips held out, measured after N and 2N steps."
    trainer = make_trainer(larger, larger.folder / "measured", validation__interval=N, **SILENT, **HELD, **DROPOUT)
    reports = []
    return trainer, reports, trainer.train(on_step=reports.append)


def read_measurements(output):
    return json.loads((output / "held_out.json").read_text())


def test_held_out_clips_are_never_trained_on(larger, measured):
    trainer = measured[0]
    used = {
        trainer.run.data.samples[i]["idx"]
        for epoch in range(3)
        for batch in trainer.run.data.sampler.batches(epoch)
        for i in batch
    }
    assert len(trainer.run.data.kept_out) == 2 and used == set(range(CLIPS)) - set(trainer.run.data.kept_out)
    assert trainer.run.facts()["samples"] == CLIPS - 2


def test_which_clips_are_held_out_follows_from_the_seed_and_their_names():
    clips = [f"clip {n}" for n in range(30)]
    chosen = held_out_samples(clips, 5, 42)
    assert chosen == held_out_samples(clips, 5, 42) == sorted(chosen) and chosen != held_out_samples(clips, 5, 7)
    fewer = [clip for n, clip in enumerate(clips) if n in chosen or n % 2]  # clips that went away change nothing
    assert [fewer[i] for i in held_out_samples(fewer, 5, 42)] == [clips[i] for i in chosen]
    assert held_out_samples(clips, 0, 42) == []


def test_too_many_held_out_clips_are_refused(larger, tmp_path):
    with pytest.raises(ConfigError, match=f"held_out.*{CLIPS}"):
        make_trainer(larger, tmp_path, data__held_out=CLIPS).load()


def test_the_held_out_loss_is_measured_at_the_start_and_with_each_validation(measured):
    "W60: per stream, of the base and of every due step, in the reports, in the result and in a file."
    trainer, reports, result = measured
    assert [report.step for report in reports if report.held_out] == [N, 2 * N]
    assert result.held_out["now"] == reports[-1].held_out and result.held_out["base"].keys() == STREAMS
    found = read_measurements(trainer.runtime.output)
    assert [(m["step"], m["base"]) for m in found["measurements"]] == [(0, True), (N, False), (2 * N, False)]
    assert found["clips"] == [trainer.dataset.samples[i] for i in trainer.run.data.kept_out]
    base, last = found["measurements"][0], found["measurements"][-1]
    for name in ("video", "audio", "loss"):
        table = torch.tensor(last["losses"][name])
        difference = (table - torch.tensor(base["losses"][name])).mean(1)
        assert table.shape == (2, len(found["sigmas"])) and table.mean().item() == pytest.approx(last["mean"][name])
        assert last["change"][name] == pytest.approx(
            [difference.mean().item(), difference.std().item() / 2**0.5],
            abs=1e-6,  # of float32 losses of size 1
        )
    assert base["mean"]["loss"] == pytest.approx(base["mean"]["video"] + base["mean"]["audio"])
    phase = next(phase for phase in trainer.runtime.progress.phases if phase.name == "Training")
    assert [count for count, metrics in phase.history if "held_out_loss" in metrics] == [0, N, 2 * N]


def test_measuring_leaves_no_trace_in_the_run(larger, tmp_path, measured):
    "The same run with nothing measured on the way, by the last bit, with dropout from the global random numbers."
    trainer, reports = train(larger, tmp_path, **HELD, **DROPOUT)
    assert same(trained(trainer), trained(measured[0]))
    assert [r.numbers() for r in reports] == [r.numbers() for r in measured[1]]
    assert [bool(r.held_out) for r in reports] == [False] * (2 * N - 1) + [True]  # the end is always measured
    assert reports[-1].held_out == measured[1][-1].held_out


def test_the_base_is_the_model_without_a_lora(place, measured):
    trainer = measured[0]
    bare, clips = (
        load_transformer(place.model, dtype=torch.float32),
        [collate([trainer.dataset[i]]) for i in trainer.run.data.kept_out],
    )
    found = held_out_losses(bare, trainer.strategy, clips, seed=trainer.config.seed)
    assert found["loss"].tolist() == read_measurements(trainer.runtime.output)["measurements"][0]["losses"]["loss"]


def test_a_resumed_run_goes_on_with_its_measurements(larger, tmp_path, measured):
    output = shutil.copytree(measured[0].runtime.output, tmp_path / "again")
    older = output / "checkpoints" / f"lora_weights_step_0000{N}.safetensors"
    more = {"validation__interval": N, "model__load_checkpoint": older}
    result = make_trainer(larger, output, True, **more, **SILENT, **HELD, **DROPOUT).train()
    assert result.held_out == measured[2].held_out
    assert read_measurements(output) == read_measurements(measured[0].runtime.output)


def test_the_base_of_a_lora_that_was_resumed_elsewhere_is_measured_anew(larger, tmp_path, measured):
    older = measured[0].runtime.output / "checkpoints" / f"lora_weights_step_0000{N}.safetensors"
    trainer = make_trainer(larger, tmp_path, model__load_checkpoint=older, **HELD, **DROPOUT).load()
    assert trainer.measure(base=True) == pytest.approx(measured[2].held_out["base"], rel=SAME_SUM)
    assert trainer.measure() == pytest.approx(measured[1][N - 1].held_out, rel=SAME_SUM)
    assert (
        abs(trainer.measure()["loss"] / trainer.measure(base=True)["loss"] - 1) > 10 * SAME_SUM
    )  # they can be told apart
    assert all(module.training for module in trainer.model.modules())


def test_the_base_of_a_full_run_is_looked_up_or_missing(larger, tmp_path):
    more = {"model__training_mode": "full", "lora": None, **HELD}
    first = make_trainer(larger, tmp_path, **more, validation__interval=N, **SILENT).train()
    older = tmp_path / "checkpoints" / f"model_weights_step_0000{N}.safetensors"
    resume = {"model__load_checkpoint": older, **more}
    assert make_trainer(larger, tmp_path, **resume).load().measure(base=True) == first.held_out["base"]
    assert make_trainer(larger, tmp_path / "elsewhere", **resume).load().measure(base=True) == {}


def test_measuring_knows_no_dropout(larger, tmp_path):
    "Neither of adapters nor of captions; and it puts the model back."
    trainer = make_trainer(larger, tmp_path, lora__dropout=0.5, **HELD).load()
    for name, parameter in trainer.run.weights.parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    clips = [collate([trainer.dataset[i]]) for i in trainer.run.data.kept_out]
    before = torch.get_rng_state()
    plain = held_out_losses(trainer.model, trainer.strategy, clips)
    trainer.strategy.caption_dropout = 1.0
    again = held_out_losses(trainer.model, trainer.strategy, clips)
    assert all(torch.equal(again[name], loss) for name, loss in plain.items()) and plain.keys() == STREAMS
    assert torch.equal(torch.get_rng_state(), before) and trainer.strategy.caption_dropout == 1.0
    assert all(module.training for module in trainer.model.modules())
    other = held_out_losses(trainer.model, trainer.strategy, clips, seed=1)
    assert not torch.equal(other["loss"], plain["loss"])


# loss by noise level


def test_each_stream_is_put_by_its_own_noise_level(measured):
    "W59: the two streams of a sample have levels of their own."
    for report in measured[1]:
        assert report.draws.keys() == {"video", "audio"}
        assert report.draws["video"][0, 0] != report.draws["audio"][0, 0]
        for name, draws in report.draws.items():
            assert draws[:, 1].mean().item() == pytest.approx(report.numbers()[name])
    table = losses_by_level(measured[1], (0.0, 1.0))
    assert table["audio"] == [pytest.approx(sum(r.numbers()["audio"] for r in measured[1]) / (2 * N))]


def test_a_frozen_stream_has_no_level(place, tmp_path):
    "W59: a film that is only looked at does not say where the sound stands."
    trainer, reports = train(place, tmp_path, training_strategy__video__is_generated=False, optimization__steps=1)
    assert reports[0].draws.keys() == {"audio"} and reports[0].draws["audio"][0, 0] > 0
    assert reports[0].losses.keys() == {"loss", "audio"}


def test_levels_on_an_edge_belong_above():
    report = StepReport(
        1, {}, 0.0, None, 0.0, draws={"video": torch.tensor([[0.0, 1.0], [0.5, 2.0], [1.0, 4.0], [0.49, 3.0]])}
    )
    assert losses_by_level([report], (0.0, 0.5, 1.0)) == {"video": [2.0, 3.0]}


# found before anything is loaded


def rules(**condition):
    return {"training_strategy__video__conditions": [condition]}


@pytest.fixture(scope="module")
def guided(place):
    "Clips of 2x2 cells with references of half the size, and masks."
    data = DummyDataset(**SIZE | {"width": 64, "height": 64}, **CONTEXT, dataset_length=SAMPLES).save(
        place.folder / "guided"
    )
    for n in range(SAMPLES):
        small = {"latents": torch.randn(128, 2, 1, 1), "fps": 24.0}
        write_record(data, "reference_latents", f"sample_{n:05d}", {"latents": small["latents"]}, {"fps": 24.0})
        write_record(
            data, "broken", f"sample_{n:05d}", {"latents": torch.randn(128, 2, 1, 2 if n == 1 else 1)}, {"fps": 24.0}
        )
        mask = torch.zeros(2, 2, 2, dtype=torch.uint8)
        mask[0], mask[1] = 1, n == 1
        write_record(data, "video_masks", f"sample_{n:05d}", {"mask": mask}, {})
    return replace(place, data=data)


def test_factors_of_references_are_in_the_metadata_of_the_lora(guided, tmp_path, monkeypatch):
    "W1: read off the dataset, wherever the process was started."
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(
        guided, tmp_path / "run", **rules(type="reference", latents_dir="reference_latents"), optimization__steps=1
    )
    result = trainer.train()
    with safe_open(result.checkpoint, "pt") as file:
        said = file.metadata()
    assert said["reference_spatial_scale_factor"] == said["reference_downscale_factor"] == "2"
    assert "reference_temporal_scale_factor" not in said and "reference_downscale_factor = 2" in told(trainer)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            {"type": "reference", "latents_dir": "broken"},
            "sample_00001.*2 frames, 1x2 cells does not fit a sample of 2 frames, 2x2",
        ),
        ({"type": "prefix", "temporal_boundary": 2}, "(?s)sample_00000.*of 8 tokens, prefix gives 8"),
        ({"type": "mask", "mask_dir": "video_masks"}, "video_masks: the masks of sample_00001 keep everything"),
        ({"type": "mask", "mask_dir": "reference_latents"}, "sample_00000.*nothing is called 'mask'"),
    ],
)
def test_data_that_cannot_be_trained_on_is_found_before_the_model_is_loaded(guided, tmp_path, condition, message):
    "W2, W14: with the name of the sample."
    trainer = make_trainer(guided, tmp_path, **rules(**condition))
    with pytest.raises(ValueError, match=message):
        trainer.load()
    assert not hasattr(trainer, "model")


def test_a_mask_that_only_sometimes_applies_may_keep_everything(guided, tmp_path):
    "W14: such a sample is drawn again without it."
    trainer = make_trainer(
        guided, tmp_path, **rules(type="mask", mask_dir="video_masks", probability=0.5), optimization__steps=6
    )
    assert trainer.train().steps == 6 and trainer.strategy.redrawn > 0


# captions that are dropped


def test_dropped_captions_are_empty_ones(place, tmp_path, encoder):
    "W17: the empty caption is encoded before the transformer is loaded."
    data = place.with_data("long", SAMPLES).data
    for sample in PrecomputedDataset(data, ["conditions"]).samples:
        write_record(
            data,
            "conditions",
            sample,
            {"video_context": torch.randn(128, 128), "audio_context": torch.randn(128, 64)},
            {},
        )
    trainer = make_trainer(replace(place, data=data), tmp_path, training_strategy__caption_dropout=1.0).load()
    inputs = trainer.strategy.prepare_training_inputs(
        collate([trainer.dataset[0]]), trainer.run.data.timesteps, trainer.run.state.generator
    )
    nothing = encoder("")
    # read once alone and once from the cache of a run, in float32, through a dozen layers: 1e-6. Another caption is 1 away.
    torch.testing.assert_close(inputs.video.context, nothing.video, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inputs.audio.context, nothing.audio, atol=1e-4, rtol=1e-4)
    assert [report.step for report in trainer.steps()] == [1, 2]


# a strategy of one's own


class SoundOnly(FlexibleStrategy):
    "Nothing of the film counts."

    def compute_loss(self, video_pred, audio_pred, inputs):
        return self.stream_losses(video_pred, audio_pred, inputs)["audio"]


def test_a_strategy_of_ones_own(place, tmp_path, whole):
    config = configure(place, tmp_path, optimization__steps=2 * N, **DROPOUT)
    trainer = LtxvTrainer(config, Progress(Notes()), "cpu", SoundOnly(config.training_strategy))
    first = next(trainer.steps()).numbers()
    usual = whole[1][0].numbers()
    assert first["loss"] == first["audio"] == usual["audio"] and first["video"] == usual["video"]
    assert trainer.strategy.device == trainer.runtime.device and trainer.strategy.dtype == torch.float32
    assert trainer.run.facts()["strategy"] == "SoundOnly"


def test_another_strategy_on_resume_is_reported(place, tmp_path, whole):
    config = configure(
        place, tmp_path, model__load_checkpoint=whole[1][N - 1].checkpoint, optimization__steps=9, **DROPOUT
    )
    trainer = LtxvTrainer(config, Progress(Notes()), "cpu", SoundOnly(config.training_strategy)).load()
    assert "strategy: saved None, now 'SoundOnly'" in told(trainer)
