"Every field of a configuration acts, or is refused; a field without its entry here fails."

import copy
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from tiny_runs import Notes, configure, make_place

from ltx_nb.config.explain import every_path
from ltx_nb.config.files import make_config
from ltx_nb.config.words import show
from ltx_nb.data.media import write_image, write_sound, write_video
from ltx_nb.flow.samplers import get_timestep_sampler
from ltx_nb.flow.strategies import get_training_strategy
from ltx_nb.model.latents import ConfigError
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.training import trainer as trainer_module
from ltx_nb.training import weights as weights_module
from ltx_nb.training.dataset import load_data
from ltx_nb.training.fit import fit_to_machine
from ltx_nb.training.memory import empty_model, memory_plan, two_blocks
from ltx_nb.training.optimizer import learning_rate, make_optimizer
from ltx_nb.training.progress import Progress
from ltx_nb.training.runtime import Precision, Runtime
from ltx_nb.training.trainer import LtxvTrainer
from ltx_nb.training.tracking import Guarded, Outlets, Tracking, WandbTracker, trackers_of
from ltx_nb.training.validation import samples_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RATE, FRAMES = 16000, 33


def own_name(model, name: str) -> str:
    "A field by the class that brings it in, so that heirs need no entry of their own."
    owner = next(kind for kind in model.__mro__ if name in vars(kind).get("__annotations__", {}))
    return f"{owner.__module__.rpartition('.')[2]}.{owner.__name__.strip('_')}.{name}"


def all_fields():
    "Every field that holds a value of its own: name here -> path, section, note."
    found = {}
    for path, model, note in every_path():
        if not note.inside:  # a section acts through its fields
            found.setdefault(own_name(model, note.name), (path, model, note))
    return found


def is_tag(model, name: str) -> bool:
    return (
        name in ("type", "name")
        and model.model_fields[name].default is not None
        and "Literal" in str(model.model_fields[name].annotation)
    )


# what is looked at


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    "One tiny checkpoint, another one, clips, and files for samples."
    place = make_place(tmp_path_factory.mktemp("fields"))
    folder, seeded = place.folder, torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (FRAMES, 3, 64, 64), generator=seeded, dtype=torch.uint8)
    sound = torch.rand(2, RATE * 2, generator=seeded) - 0.5
    for name in "a", "b":
        write_video(folder / f"{name}.mp4", frames if name == "a" else frames.flip(0), 24, sound, RATE)
        write_sound(folder / f"{name}.wav", sound if name == "a" else sound.flip(1), RATE)
        write_image(folder / f"{name}.png", frames[0] if name == "a" else frames[1])
        mask = torch.zeros(3, 64, 64, dtype=torch.uint8)
        mask[:, : 40 if name == "a" else 64, :32] = 255
        write_image(folder / f"mask_{name}.png", mask)
    other = make_tiny_checkpoint(folder / "other", seed=1).model
    return SimpleNamespace(place=place, folder=folder, other=other, more=place.with_data("more", 5).data)


def batch() -> dict:
    "A batch with every folder that a case here reads, each with numbers of its own."
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(4, *shape, generator=generator)
    video, sound, masks = ("latents", "other", "reference"), ("audio_latents", "other_sound"), ("masks", "more_masks")
    found = {name: {"latents": draw(128, 3, 2, 2), "fps": torch.full((4,), 24.0)} for name in video}
    found |= {name: {"latents": draw(8, 6, 16)} for name in sound}
    found |= {name: {"mask": (draw(3, 2, 2) > 0).float()} for name in masks}
    return found | {"conditions": {"video_context": draw(5, 32), "audio_context": draw(5, 16)}}


def inputs(config, setup):
    "What a training step is made of, and its loss."
    strategy = get_training_strategy(config.training_strategy)
    strategy.empty_caption = {"video_context": torch.zeros(5, 32), "audio_context": torch.zeros(5, 16)}
    sampler = get_timestep_sampler("uniform", {})
    made = strategy.prepare_training_inputs(batch(), sampler, torch.Generator().manual_seed(0))
    said = [type(strategy).__name__]
    for stream in "video", "audio":
        if (modality := getattr(made, stream)) is not None:
            said += [modality.latent.flatten().tolist(), modality.context.flatten().tolist()]
            mask = getattr(made, f"{stream}_loss_mask")
            said.append(None if mask is None else mask.flatten().tolist())
    ones = [None if t is None else torch.zeros_like(t) for t in (made.video_targets, made.audio_targets)]
    return [*said, strategy.compute_loss(*ones, made).tolist()]


def rates(config, setup):
    "The walk of the learning rate, and the optimizer."
    o = config.optimization
    named = {f"block.lora_{x}.default.weight": torch.nn.Parameter(torch.zeros(4, 4)) for x in "AB"}
    optimizer = make_optimizer(named, o)
    groups = [
        {k: str(v) for k, v in g.items() if k != "params"} | {"n": len(g["params"])} for g in optimizer.param_groups
    ]
    return [learning_rate(step, o) for step in range(o.steps)], type(optimizer).__name__, groups


def levels(config, setup):
    flow = config.flow_matching
    sampler = get_timestep_sampler(flow.timestep_sampling_mode, flow.timestep_sampling_params)
    return sampler.sample(256, 9000, generator=torch.Generator().manual_seed(0)).tolist()


def requests(config, setup):
    "The samples as they are asked for, with what is read of their files."
    told = []
    for media in samples_of(config.validation):
        request = media.request
        told.append([str(getattr(request, each.name)) for each in fields(request) if each.name != "conditions"])
        for part in media.parts:
            sound = part.sound and part.sound[0].sum(0)[::50].tolist()
            frames = part.clip and part.clip.frames.float().mean((1, 2, 3)).tolist()
            shape = part.clip and tuple(part.clip.frames.shape)
            mask = part.mask is not None and part.mask.tolist()
            told.append([part.type, part.stream, str(part.condition), sound, frames, shape, mask, part.beside])
    return told


def adapter(config, setup):
    "What is trained, on the empty model."
    model = two_blocks(config)
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    lora = {
        n: (m.scaling["default"], getattr(m.lora_dropout["default"], "p", 0))
        for n, m in model.named_modules()
        if hasattr(m, "scaling")
    }
    return trained, lora


def frozen(config, setup):
    "What weights are kept in, and what is computed in."
    return [str(p.dtype) for p in empty_model(config, 1).state_dict().values()], Precision.of(config)


def loading(config, setup):
    "What the loaders of weights are asked for, and what the model is told."
    asked = {}

    def loader(*given, **named):
        asked["with"] = [*map(str, given), *map(str, named.values())]
        return empty_model(config, 1)

    with pytest.MonkeyPatch.context() as patch:
        for name in "load_transformer", "load_streamed":
            patch.setattr(weights_module, name, loader)
        patch.setattr(weights_module, "add_lora", lambda *_: None)
        model = weights_module.model_to_train(config)
    return asked["with"], model.gradient_checkpointing, type(model.keep_inputs).__name__


def memory(config, setup):
    plan = memory_plan(config, step=False, sampling=True)
    return vars(plan)


def words(config, setup):
    return str(show(config))


def data(config, setup):
    "The dataset and its order."
    found = load_data(config, Runtime.of(config, Progress(Notes()), "cpu"))
    names = found.dataset.samples
    return (
        len(names),
        found.kept_out,
        len(found.samples),
        [list(each) for each, _ in zip(found.sampler, range(4), strict=False)],
    )


def run(config, setup):
    "A whole run: losses, what was saved and sampled."
    trainer = LtxvTrainer(config, Progress(Notes()), "cpu", overwrite=True)
    reports = list(trainer.steps())
    files = sorted(str(p.relative_to(trainer.runtime.output)) for p in trainer.runtime.output.rglob("*") if p.is_file())
    with safe_open(trainer.state.checkpoint, "pt") as file:
        kept = {name: file.get_tensor(name) for name in sorted(file.keys())[:4]}
    weights = [(str(t.dtype), t.float().sum().item()) for t in kept.values()]
    norms = [float(report.grad_norm) for report in reports]
    samples = [(report.step, len(report.samples)) for report in reports]
    found = [file for file in files if "tfevents" not in file] + ["tensorboard"] * any(
        "tfevents" in file for file in files
    )
    return [float(report.losses["loss"]) for report in reports], norms, weights, samples, found, trainer.state.step


def workers(config, setup):
    "How clips are read ahead."
    asked = []

    class Stopped(Exception):
        pass

    def batches(self, workers=0, pin=False):
        asked.append(workers)
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltx_nb.training.dataset.RunData.batches", batches)
        with pytest.raises(Stopped):
            list(LtxvTrainer(config, Progress(Notes()), "cpu", overwrite=True).steps())
    return asked


def trackers(config, setup):
    "Who is told, and what Weights & Biases hears first."
    heard = [each.title for each in trackers_of(config)]

    class Inner:
        run = SimpleNamespace(define_metric=lambda *_, **__: None)

        def __init__(self, project, entity=None, tags=(), **_):
            heard.append((project, entity, tuple(tags)))

        def start(self):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.tracking.WandBTracker", Inner)
        patch.setenv("WANDB_MODE", "offline")
        WandbTracker().open(config, setup.folder, 0, {})
    return heard


def uploads(config, setup):
    sent = []
    state = SimpleNamespace(stopped=None)
    runtime = SimpleNamespace(progress=Progress(Notes()), processes=SimpleNamespace(rank=0), output="run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "push_to_hub", lambda *given: sent.append(given) or "")
        trainer_module.push_when_asked(SimpleNamespace(config=config, runtime=runtime, state=state))
    return sent


def checks(config, setup):
    return None  # the configuration itself is what is refused


# what changes what: field -> (where it is seen, the change, what both have)

VIDEO, AUDIO = "training_strategy.video", "training_strategy.audio"


def condition(kind: str, stream: str = "video", **said) -> dict:
    return {f"training_strategy.{stream}.conditions": [{"type": kind, **said}]}


def sample(*conditions, **said) -> dict:
    return {
        "validation.samples": [{"prompt": "a bird", "conditions": list(conditions), **said}], "validation.interval": 1,
        "validation.video_dims": [64, 64, 17],
    }  # fmt: skip


PAST, NEXT = {"type": "prefix", "video": "{a.mp4}"}, {"type": "prefix", "audio": "{a.wav}"}
MASKED = {"type": "mask", "video": "{a.mp4}", "mask": "{mask_a.png}"}
SHOWN_BESIDE = {"type": "reference", "video": "{a.mp4}"}
GROUP = {"match": ["*.lora_B.*"], "learning_rate": 1e-3}
OLD = {"training_strategy": {"name": "text_to_video", "first_frame_conditioning_p": 1.0}}
OLD_REFERENCE = {"training_strategy": {"name": "video_to_video", "reference_latents_dir": "other"}}
GATHERED = {"checkpoints.interval": 1}
o, a, v, c, w = "optimization.", "acceleration.", "validation.", "checkpoints.", "wandb."


def schedule(kind: str, **params) -> dict:
    return {o + "steps": 8, o + "scheduler_type": kind, o + "scheduler_params": params}


def draw(mode: str, **params) -> dict:
    return {"flow_matching.timestep_sampling_mode": mode, "flow_matching.timestep_sampling_params": params}


WHOLE = {"model.training_mode": "full", "lora": None, a + "mixed_precision_mode": "bf16"}
CASES = {
    "settings.ModelConfig.model_path": (run, {"model.model_path": "{other}"}),
    "settings.ModelConfig.text_encoder_path": (memory, {"model.text_encoder_path": None}),
    "settings.ModelConfig.training_mode": (adapter, {"model.training_mode": "full"}),
    "settings.ModelConfig.load_checkpoint": (run, {"model.load_checkpoint": "{earlier}", o + "steps": 3}, {o + "steps": 3}),
    "settings.LoraConfig.rank": (adapter, {"lora.rank": 4}),
    "settings.LoraConfig.alpha": (adapter, {"lora.alpha": 4}),
    "settings.LoraConfig.dropout": (adapter, {"lora.dropout": 0.5}),
    "settings.LoraConfig.target_modules": (adapter, {"lora.target_modules": ["attn2.to_q"]}),
    "strategy.ModalityConfig.is_generated": (inputs, {AUDIO + ".is_generated": False}),
    "strategy.ModalityConfig.latents_dir": (inputs, {VIDEO + ".latents_dir": "other"}),
    "strategy.ModalityConfig.loss_weight": (inputs, {VIDEO + ".loss_weight": 0.5}),
    "strategy.FlexibleStrategyConfig.caption_dropout": (inputs, {"training_strategy.caption_dropout": 0.5}),
    "strategy.OwnStrategyConfig.name": (inputs, {"training_strategy.name": "test_fields:Doubled"}),
    "strategy.OwnStrategyConfig.params": (inputs, {"training_strategy.params": {"times": 3}}, {"training_strategy.name": "test_fields:Doubled"}),
    "strategy.FirstFrameConditionConfig.probability": (inputs, condition("first_frame", probability=0), condition("first_frame")),
    "strategy.PrefixConditionConfig.temporal_boundary": (inputs, condition("prefix", temporal_boundary=2), condition("prefix", temporal_boundary=1)),
    "strategy.PrefixConditionConfig.probability": (inputs, condition("prefix", temporal_boundary=1, probability=0), condition("prefix", temporal_boundary=1)),
    "strategy.SuffixConditionConfig.temporal_boundary": (inputs, condition("suffix", temporal_boundary=2), condition("suffix", temporal_boundary=1)),
    "strategy.SuffixConditionConfig.probability": (inputs, condition("suffix", temporal_boundary=1, probability=0), condition("suffix", temporal_boundary=1)),
    "strategy.SpatialCropConditionConfig.spatial_region": (inputs, condition("spatial_crop", spatial_region=[0, 0, 64, 32]), condition("spatial_crop", spatial_region=[0, 0, 32, 64])),
    "strategy.SpatialCropConditionConfig.probability": (inputs, condition("spatial_crop", spatial_region=[0, 0, 32, 64], probability=0), condition("spatial_crop", spatial_region=[0, 0, 32, 64])),
    "strategy.MaskConditionConfig.mask_dir": (inputs, condition("mask", mask_dir="more_masks"), condition("mask", mask_dir="masks")),
    "strategy.MaskConditionConfig.probability": (inputs, condition("mask", mask_dir="masks", probability=0), condition("mask", mask_dir="masks")),
    "strategy.ReferenceConditionConfig.latents_dir": (inputs, condition("reference", latents_dir="other"), condition("reference", latents_dir="reference")),
    "strategy.ReferenceConditionConfig.probability": (inputs, condition("reference", latents_dir="other", probability=0), condition("reference", latents_dir="other")),
    "migration.TextToVideoConfig.first_frame_conditioning_p": (inputs, {"training_strategy.first_frame_conditioning_p": 0.0}, OLD),
    "migration.TextToVideoConfig.with_audio": (inputs, {"training_strategy.with_audio": True}, OLD),
    "migration.TextToVideoConfig.audio_latents_dir": (inputs, {"training_strategy.audio_latents_dir": "other_sound"}, {**OLD, "training_strategy.with_audio": True}),
    "migration.VideoToVideoConfig.first_frame_conditioning_p": (inputs, {"training_strategy.first_frame_conditioning_p": 1.0}, OLD_REFERENCE),
    "migration.VideoToVideoConfig.reference_latents_dir": (inputs, {"training_strategy.reference_latents_dir": "reference"}, OLD_REFERENCE),
    "settings.OptimizationConfig.learning_rate": (rates, {o + "learning_rate": 1e-3}),
    "settings.OptimizationConfig.steps": (rates, {o + "steps": 3}),
    "settings.OptimizationConfig.batch_size": (run, {o + "batch_size": 2}),
    "settings.OptimizationConfig.gradient_accumulation_steps": (run, {o + "gradient_accumulation_steps": 2}),
    "settings.OptimizationConfig.max_grad_norm": (run, {o + "max_grad_norm": 1e-9}),
    "settings.OptimizationConfig.optimizer_type": (rates, {o + "optimizer_type": "adamw_bf16"}),
    "settings.OptimizationConfig.scheduler_type": (rates, schedule("cosine"), schedule("linear")),
    "settings.LinearSchedule.start_factor": (rates, schedule("linear", start_factor=0.5), schedule("linear")),
    "settings.LinearSchedule.end_factor": (rates, schedule("linear", end_factor=0.5), schedule("linear")),
    "settings.CosineSchedule.eta_min": (rates, schedule("cosine", eta_min=1e-4), schedule("cosine")),
    "settings.CosineRestartsSchedule.T_0": (rates, schedule("cosine_with_restarts", T_0=3), schedule("cosine_with_restarts")),
    "settings.CosineRestartsSchedule.T_mult": (rates, schedule("cosine_with_restarts", T_mult=2), schedule("cosine_with_restarts")),
    "settings.CosineRestartsSchedule.eta_min": (rates, schedule("cosine_with_restarts", eta_min=0), schedule("cosine_with_restarts")),
    "settings.PolynomialSchedule.power": (rates, schedule("polynomial", power=2), schedule("polynomial")),
    "settings.StepSchedule.step_size": (rates, schedule("step", step_size=2), schedule("step")),
    "settings.StepSchedule.gamma": (rates, schedule("step", gamma=0.5), schedule("step")),
    "settings.OptimizationConfig.enable_gradient_checkpointing": (loading, {o + "enable_gradient_checkpointing": True}),
    "settings.OptimizationConfig.weight_decay": (rates, {o + "weight_decay": 0.5}),
    "settings.OptimizationConfig.betas": (rates, {o + "betas": [0.5, 0.9]}),
    "settings.OptimizationConfig.warmup_steps": (rates, {o + "warmup_steps": 4}, {o + "steps": 8}),
    "settings.OptimizationConfig.ema_decay": (run, {o + "ema_decay": 0.9}),
    "settings.ParameterGroup.match": (rates, {o + "parameter_groups.0.match": ["*.lora_*"]}, {o + "parameter_groups": [GROUP]}),
    "settings.ParameterGroup.learning_rate": (rates, {o + "parameter_groups.0.learning_rate": 1e-5}, {o + "parameter_groups": [GROUP]}),
    "settings.ParameterGroup.weight_decay": (rates, {o + "parameter_groups.0.weight_decay": 0.3}, {o + "parameter_groups": [GROUP]}),
    "settings.AccelerationConfig.mixed_precision_mode": (frozen, {a + "mixed_precision_mode": "bf16"}),
    "settings.AccelerationConfig.quantization": (frozen, {a + "quantization": "int8"}),
    "settings.AccelerationConfig.stream": (loading, {a + "stream": 1}),
    "settings.AccelerationConfig.stream_from": (loading, {a + "stream_from": "file"}, {a + "stream": 1}),
    "settings.AccelerationConfig.stream_slabs": (loading, {a + "stream_slabs": 1}, {a + "stream": 1}),
    "settings.AccelerationConfig.offload_activations": (loading, {a + "offload_activations": True}, {o + "enable_gradient_checkpointing": True}),
    "settings.AccelerationConfig.offload_optimizer": (memory, {a + "offload_optimizer": True}),
    "settings.AccelerationConfig.trained_weights": (memory, {a + "trained_weights": "bfloat16"}, WHOLE),
    "settings.AccelerationConfig.release_gradients": (memory, {a + "release_gradients": True}, WHOLE),
    "settings.AccelerationConfig.offload_optimizer_during_validation": (memory, {a + "offload_optimizer_during_validation": True}, sample()),
    "settings.AccelerationConfig.stream_text_encoder": (memory, {a + "stream_text_encoder": True}, sample()),
    "settings.AccelerationConfig.load_text_encoder_in_8bit": (memory, {a + "load_text_encoder_in_8bit": True}, {a + "stream_text_encoder": True}),
    "settings.DataConfig.preprocessed_data_root": (data, {"data.preprocessed_data_root": "{more}"}),
    "settings.DataConfig.num_dataloader_workers": (workers, {"data.num_dataloader_workers": 1}),
    "settings.DataConfig.held_out": (data, {"data.held_out": 1}),
    "samples.ValidationSample.prompt": (requests, {v + "samples.0.prompt": "a fish"}, sample()),
    "samples.ValidationSample.video_dims": (requests, {v + "samples.0.video_dims": [64, 64, 9]}, sample()),
    "samples.ValidationSample.seed": (requests, {v + "samples.0.seed": 0}, sample()),
    "samples.FirstFrameConditionConfig.image_or_video": (requests, {v + "samples.0.conditions.0.image_or_video": "{b.png}"}, sample({"type": "first_frame", "image_or_video": "{a.png}"})),
    "samples.OneMedium.video": (requests, {v + "samples.0.conditions.0.video": "{b.mp4}"}, sample(PAST | {"num_frames": 9})),
    "samples.OneMedium.audio": (requests, {v + "samples.0.conditions.0.audio": "{b.wav}"}, sample(NEXT | {"duration": 0.4})),
    "samples.Window.num_frames": (requests, {v + "samples.0.conditions.0.num_frames": 1}, sample(PAST | {"num_frames": 9})),
    "samples.Window.duration": (requests, {v + "samples.0.conditions.0.duration": 0.2}, sample(NEXT | {"duration": 0.4})),
    "samples.Window.start": (requests, {v + "samples.0.conditions.0.start": 0.5}, sample(PAST | {"num_frames": 9})),
    "samples.SpatialCropConditionConfig.video": (requests, {v + "samples.0.conditions.0.video": "{b.mp4}"}, sample({"type": "spatial_crop", "video": "{a.mp4}", "spatial_region": [0, 0, 32, 64]})),
    "samples.SpatialCropConditionConfig.spatial_region": (requests, {v + "samples.0.conditions.0.spatial_region": [32, 0, 64, 64]}, sample({"type": "spatial_crop", "video": "{a.mp4}", "spatial_region": [0, 0, 32, 64]})),
    "samples.MaskConditionConfig.mask": (requests, {v + "samples.0.conditions.0.mask": "{mask_b.png}"}, sample(MASKED)),
    "samples.MaskConditionConfig.mask_keep": (requests, {v + "samples.0.conditions.0.mask_keep": "any"}, sample(MASKED)),
    "samples.ReferenceConditionConfig.downscale_factor": (requests, {v + "samples.0.conditions.0.downscale_factor": 2}, sample(SHOWN_BESIDE)),
    "samples.ReferenceConditionConfig.temporal_scale_factor": (requests, {v + "samples.0.conditions.0.temporal_scale_factor": 2}, sample(SHOWN_BESIDE)),
    "samples.ReferenceConditionConfig.include_in_output": (requests, {v + "samples.0.conditions.0.include_in_output": True}, sample(SHOWN_BESIDE)),
    "samples.VideoToAudioConditionConfig.video": (requests, {v + "samples.0.conditions.0.video": "{b.mp4}"}, sample({"type": "video_to_audio", "video": "{a.mp4}"})),
    "samples.AudioToVideoConditionConfig.audio": (requests, {v + "samples.0.conditions.0.audio": "{b.wav}"}, sample({"type": "audio_to_video", "audio": "{a.wav}"})),
    "samples.ValidationConfig.prompts": (requests, {v + "prompts": ["a bird", "a fish"]}, {v + "samples": [], v + "interval": 1}),
    "samples.ValidationConfig.images": (requests, {v + "images": ["{a.png}"]}, {v + "samples": [], v + "interval": 1, v + "prompts": ["a bird"]}),
    "samples.ValidationConfig.reference_videos": (requests, {v + "reference_videos": ["{a.mp4}"]}, {v + "samples": [], v + "interval": 1, v + "prompts": ["a bird"]}),
    "samples.ValidationConfig.reference_downscale_factor": (requests, {v + "reference_downscale_factor": 2}, {v + "samples": [], v + "interval": 1, v + "prompts": ["a bird"], v + "reference_videos": ["{a.mp4}"], v + "video_dims": [64, 64, 17]}),
    "samples.ValidationConfig.include_reference_in_output": (requests, {v + "include_reference_in_output": True}, {v + "samples": [], v + "interval": 1, v + "prompts": ["a bird"], v + "reference_videos": ["{a.mp4}"]}),
    "samples.ValidationConfig.video_dims": (requests, {v + "video_dims": [64, 64, 9]}, sample()),
    "samples.ValidationConfig.interval": (run, {v + "interval": 2}, sample() | {v + "video_dims": [32, 32, 9], v + "skip_initial_validation": True}),
    "samples.ValidationConfig.skip_initial_validation": (run, {v + "skip_initial_validation": True}, sample() | {v + "video_dims": [32, 32, 9], v + "interval": 2}),
    "settings.CheckpointsConfig.interval": (run, GATHERED),
    "settings.CheckpointsConfig.keep_last_n": (run, {c + "keep_last_n": 1}, GATHERED),
    "settings.CheckpointsConfig.precision": (run, {c + "precision": "bfloat16"}),
    "settings.CheckpointsConfig.no_resume": (run, {c + "no_resume": True}, {"model.load_checkpoint": "{earlier}", o + "steps": 3}),
    "settings.CheckpointsConfig.save_training_state": (run, {c + "save_training_state": "off"}),
    "settings.HubConfig.push_to_hub": (uploads, {"hub.push_to_hub": True}, {"hub.hub_model_id": "a/b"}),
    "settings.HubConfig.hub_model_id": (uploads, {"hub.hub_model_id": "a/c"}, {"hub.hub_model_id": "a/b", "hub.push_to_hub": True}),
    "settings.HubConfig.private": (uploads, {"hub.private": False}, {"hub.hub_model_id": "a/b", "hub.push_to_hub": True}),
    "settings.FlowMatchingConfig.timestep_sampling_mode": (levels, draw("uniform")),
    "settings.UniformTimesteps.min_value": (levels, draw("uniform", min_value=0.5), draw("uniform")),
    "settings.UniformTimesteps.max_value": (levels, draw("uniform", max_value=0.5), draw("uniform")),
    "settings.ShiftedLogitNormalTimesteps.std": (levels, draw("shifted_logit_normal", std=0.5)),
    "settings.ShiftedLogitNormalTimesteps.eps": (levels, draw("shifted_logit_normal", eps=0.2)),
    "settings.ShiftedLogitNormalTimesteps.uniform_prob": (levels, draw("shifted_logit_normal", uniform_prob=0.9)),
    "settings.ShiftedLogitNormalTimesteps.max_shift": (levels, draw("shifted_logit_normal", max_shift=0.1)),
    "settings.WandbConfig.enabled": (trackers, {w + "enabled": True}),
    "settings.WandbConfig.project": (trackers, {w + "project": "mine"}),
    "settings.WandbConfig.entity": (trackers, {w + "entity": "us"}),
    "settings.WandbConfig.tags": (trackers, {w + "tags": ["red"]}),
    "settings.TrackingConfig.tensorboard": (trackers, {"tracking.tensorboard": True}),
    "settings.TrackingConfig.trackio": (trackers, {"tracking.trackio": True}),
    "schema.LtxTrainerConfig.seed": (run, {"seed": 7}),
}  # fmt: skip
CASES |= {
    f"samples.ValidationConfig.{name}": (requests, {v + name: value}, sample())
    for name, value in {
        "negative_prompt": "rain", "frame_rate": 12.0, "seed": 7, "inference_steps": 3, "video_cfg_scale": 2.0,
        "audio_cfg_scale": 2.0, "video_stg_scale": 0.5, "audio_stg_scale": 0.5, "stg_blocks": [0], "guidance_rescale": 0.5,
        "video_modality_guidance_scale": 2.0, "audio_modality_guidance_scale": 2.0, "generate_audio": False,
        "generate_video": False,
    }.items()
}  # fmt: skip
REFUSED = {
    "settings.ModelConfig.video_vae_path": ({"model.video_vae_path": "{a.mp4}"}, "this version loads everything from one file"),
    "settings.ModelConfig.audio_vae_path": ({"model.audio_vae_path": "{a.mp4}"}, "this version loads everything from one file"),
}  # fmt: skip
ELSEWHERE = {  # shown where it takes more than a configuration
    "settings.WandbConfig.log_validation_videos": "test_samples_can_be_kept_from_weights_and_biases",
    "settings.AccelerationConfig.memory": "test_memory_auto_is_answered_where_there_is_no_card",
    "schema.LtxTrainerConfig.output_dir": "test_a_run_writes_where_it_is_told",
}


class Doubled(get_training_strategy.__globals__["FlexibleStrategy"]):
    "A strategy of one's own, which configurations here name."

    def __init__(self, config, times: int = 2):
        super().__init__(config)
        self.times = times

    def compute_loss(self, *given):
        return self.times * super().compute_loss(*given)


def filled(value, setup):
    "`{a.mp4}` is a file of the setup."
    if isinstance(value, dict):
        return {key: filled(each, setup) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, setup) for each in value]
    if not (isinstance(value, str) and value.startswith("{")):
        return value
    known = {"other": setup.other, "more": setup.more, "earlier": setup.folder / "earlier"}
    return str(known.get(value[1:-1], setup.folder / value[1:-1]))


def configured(setup, changes: dict):
    "The configuration, without a look at the files that only some of the looks need."
    plain = configure(setup.place, setup.folder / "run").model_dump(mode="json")
    plain["optimization"]["steps"] = 2
    from ltx_nb.config.files import override

    for path, value in filled(changes, setup).items():
        plain = override(plain, path, copy.deepcopy(value))
    return make_config(plain)


@pytest.fixture(scope="module")
def seen(setup):
    "What a look sees of changes; each pair of them is looked at once."
    setup.earlier = run(configured(setup, {"output_dir": str(setup.folder / "earlier")}), setup)
    kept = {}

    def see(look, changes):
        key = look.__name__, repr(changes)
        if key not in kept:
            kept[key] = look(configured(setup, changes), setup)
        return kept[key]

    return see


def test_every_field_has_its_entry():
    tags = {name for name, (_, model, note) in all_fields().items() if is_tag(model, note.name)}
    entries = [*CASES, *REFUSED, *ELSEWHERE]
    assert sorted(entries) == sorted(all_fields().keys() - tags) and len(entries) == len(set(entries))


@pytest.mark.parametrize("field", CASES)
def test_a_field_acts(setup, seen, field):
    look, changes, base = (*CASES[field], {})[:3]
    assert seen(look, base | changes) != seen(look, base), f"{field} changes nothing in {look.__name__}"


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_without_effect_is_refused(setup, field):
    changes, said = REFUSED[field]
    with pytest.raises(ConfigError, match=said):
        configured(setup, changes)


@pytest.mark.parametrize(
    "path, model, name", [(p, m, n.name) for p, m, n in all_fields().values() if is_tag(m, n.name)]
)
def test_a_kind_is_one_that_there_is(path, model, name):
    with pytest.raises(ValidationError) as error:
        model.model_validate({name: "dream"})
    assert [each for each in error.value.errors() if each["loc"] == (name,)]


def test_memory_auto_is_answered_where_there_is_no_card(setup):
    given, auto = configured(setup, {}), configured(setup, {a + "memory": "auto"})
    assert fit_to_machine(given, "cpu")[1] is None and "no GPU to fit" in fit_to_machine(auto, "cpu")[1]


def test_a_run_writes_where_it_is_told(setup, seen):
    folder = setup.folder / "elsewhere"
    run(configured(setup, {"output_dir": str(folder)}), setup)
    assert list((folder / "checkpoints").glob("*.safetensors"))


@pytest.mark.parametrize("wanted", [True, False])
def test_samples_can_be_kept_from_weights_and_biases(setup, wanted):
    sent = []

    class Heard(WandbTracker):
        def sample(self, *given):
            sent.append(given)

    config = configured(setup, {w + "log_validation_videos": wanted})
    tracking = Tracking(config, print, trackers=[])
    tracking.outlets = Outlets(SimpleNamespace(write=lambda *_: None), [Guarded(Heard(), print)], print)
    tracking.samples(1, [setup.folder / "a.mp4"], ["a bird"])
    assert len(sent) == wanted
