"The configuration: what is accepted, what is refused, and how a refusal reads."

import copy
import json
import os
import re
import subprocess
import sys
import warnings

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ltx_nb.config import samples, schema, strategy
from ltx_nb.config.section import ConfigWarning, models_in, tag_of
from ltx_nb.config.migration import TextToVideoConfig
from ltx_nb.config.strategy import FlexibleStrategyConfig
from ltx_nb.config.samples import DEFAULT_NEGATIVE_PROMPT, ValidationConfig
from ltx_nb.config.schema import LtxTrainerConfig
from ltx_nb.config.rules import kept_samples
from ltx_nb.config.checks import looks_like_gemma, looks_whole, resolve_data_root
from ltx_nb.config.files import (
    accelerate_configs,
    check_files,
    config_text,
    example_configs,
    load_config,
    make_config,
    save_config,
)
from ltx_nb.config.words import mode_name, plan_notes, plan_rows, show
from ltx_nb.data.batches import resolve_root
from ltx_nb.loading.checkpoint import read_header
from ltx_nb.model.latents import ConfigError
from ltx_nb.model.text import find_gemma

VIDEO = {"is_generated": True, "latents_dir": "latents"}
AUDIO = {"is_generated": True, "latents_dir": "audio_latents"}
VALID = {
    "model": {"model_path": "model.safetensors", "text_encoder_path": "gemma"},
    "lora": {"rank": 8, "alpha": 8},
    "training_strategy": {"name": "flexible", "video": VIDEO, "audio": AUDIO},
    "data": {"preprocessed_data_root": "data"},
    "validation": {"samples": [{"prompt": "rain"}], "video_dims": [64, 64, 17]},
}
SECTIONS = (
    "model",
    "lora",
    "training_strategy",
    "optimization",
    "acceleration",
    "data",
    "validation",
    "checkpoints",
    "hub",
    "flow_matching",
    "wandb",
    "tracking",
)
MEDIA_CONDITIONS = ("prefix", "suffix", "mask", "reference")


def changed(path, value, base=VALID):
    "A valid configuration with one value changed (or, with `...`, removed)."
    given = copy.deepcopy(base)
    *parents, last = path.split(".")
    here = given
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
    if value is ...:
        del here[last]
    else:
        here[int(last) if isinstance(here, list) else last] = value
    return given


def refusal(given, check_files=False):
    "The message with which a configuration is refused."
    with pytest.raises(ConfigError) as caught:
        make_config(given, check_files)
    return str(caught.value)


def with_condition(condition, stream="video"):
    return changed(f"training_strategy.{stream}.conditions", [condition])


def with_sample(**sample):
    return changed("validation.samples", [{"prompt": "rain", **sample}])


def write_checkpoint(path, config):
    "A whole safetensors file without tensors."
    header = json.dumps({"__metadata__": {"config": json.dumps(config)}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "A folder in which everything that VALID names exists."
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model.safetensors", {"transformer": {}})
    (tmp_path / "gemma").mkdir()
    write_checkpoint(tmp_path / "gemma" / "model.safetensors", {})
    (tmp_path / "gemma" / "tokenizer.json").write_text("{}", encoding="utf-8")
    gemma = {"model_type": "gemma3_text", "hidden_size": 8, "num_hidden_layers": 1}
    (tmp_path / "gemma" / "config.json").write_text(json.dumps(gemma), encoding="utf-8")
    for folder in "conditions", "latents", "audio_latents":
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "a.safetensors").touch()
    return tmp_path


def test_a_valid_configuration_passes_with_and_without_its_files(machine):
    assert make_config(VALID, check_files=True) == make_config(VALID)


def test_one_denoising_step_is_enough():
    "A distilled model may take a single one."
    assert make_config(changed("validation.inference_steps", 1)).validation.inference_steps == 1


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_key_is_refused_in_every_section(section):
    given = changed(f"{section}.surely_unknown", 1)
    assert f"{section}.surely_unknown: unknown key" in refusal(given)
    with pytest.raises(ValidationError):
        LtxTrainerConfig.model_validate(given)


@pytest.mark.parametrize(
    "path, meant",
    [
        ("sede", "seed"),
        ("optimization.learning_rat", "learning_rate"),
        ("training_strategy.video.is_generate", "is_generated"),
        ("validation.samples.0.promt", "prompt"),
    ],
)
def test_unknown_key_names_the_nearest_one(path, meant):
    assert f"{path}: unknown key; did you mean {meant}?" in refusal(changed(path, 1))


def test_unknown_key_inside_a_condition_is_located_without_the_union_tag():
    given = with_condition({"type": "mask", "mask_dir": "m", "mask_dirr": "m"})
    assert "training_strategy.video.conditions.0.mask_dirr: unknown key; did you mean mask_dir?" in refusal(given)
    given = with_sample(conditions=[{"type": "mask", "video": "a.mp4", "mask": 5}])
    assert "validation.samples.0.conditions.0.mask: given 5" in refusal(given)


@pytest.mark.parametrize(
    "path, value",
    [
        ("optimization.steps", 0),
        ("optimization.learning_rate", 0),
        ("optimization.learning_rate", float("nan")),
        ("optimization.batch_size", 0),
        ("optimization.gradient_accumulation_steps", -1),
        ("optimization.betas", [0.9, 1.0]),
        ("optimization.ema_decay", 1.0),
        ("optimization.ema_decay", 0.0),
        ("lora.rank", 1),
        ("lora.target_modules", []),
        ("lora.dropout", 1.5),
        ("checkpoints.interval", 0),
        ("checkpoints.keep_last_n", -2),
        ("data.num_dataloader_workers", -1),
        ("validation.video_cfg_scale", 0.5),
        ("validation.guidance_rescale", 1.1),
        ("validation.inference_steps", 0),
        ("validation.samples.0.prompt", " "),
        ("validation.frame_rate", 0),
        ("validation.video_dims", [64, 64]),
        ("acceleration.quantization", "int3-quanto"),
        ("model.model_path", "https://example.org/model.safetensors"),
        ("model.model_path", ""),
        ("output_dir", 5),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_path_and_what_was_given(path, value):
    message = refusal(changed(path, value))
    assert message.startswith("1 problem in") and re.search(rf"- {path}(: given|\.\d: given|\.\d: missing)", message)


@pytest.mark.parametrize(
    "group, said",
    [
        ({"match": ["*.lora_B.*"]}, ": a group sets learning_rate, weight_decay or both"),
        ({"match": [], "weight_decay": 0}, ".match: given []"),
        ({"match": ["*"], "learning_rate": 0}, ".learning_rate: given 0"),
        ({"match": ["*"], "lr": 1e-4}, ".lr: unknown key"),
        ({"weight_decay": 0}, ".match: missing"),
    ],
    ids=["sets nothing", "matches nothing", "no rate", "unknown", "no match"],
)
def test_a_wrong_parameter_group_is_named_with_its_place(group, said):
    assert f"- optimization.parameter_groups.0{said}" in refusal(changed("optimization.parameter_groups", [group]))


def test_all_problems_are_reported_at_once(machine):
    given = changed("optimization", {"steps": 0, "learning_rat": 1})
    given["sede"] = 1
    given["validation"]["video_dims"] = [64, 65, 16]
    given["model"] |= {"training_mode": "full", "model_path": "elsewhere.safetensors"}
    given["acceleration"] = {"quantization": "int8-quanto"}
    message = refusal(given, check_files=True)
    paths = (
        "optimization.steps",
        "optimization.learning_rat",
        "sede",
        "acceleration.quantization",
        "model.model_path",
        "validation.video_dims",
    )
    assert message.startswith(f"{len(paths)} problems")
    assert all(f"- {path}: " in message for path in paths)


@pytest.mark.parametrize("word", ["bad", "1e"])
def test_text_that_is_a_number_is_read_as_one(word):
    assert make_config(changed("optimization.learning_rate", "1e-4")).optimization.learning_rate == 1e-4
    assert "optimization.learning_rate: given" in refusal(changed("optimization.learning_rate", word))


def test_yaml_words_for_false_are_read_as_the_words(tmp_path):
    text = yaml.safe_dump(VALID) + "acceleration: {mixed_precision_mode: no}\ncheckpoints: {save_training_state: off}\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "a.yaml", check_files=False)
    assert (config.acceleration.mixed_precision_mode, config.checkpoints.save_training_state) == ("no", "off")


def test_an_empty_section_means_its_defaults():
    assert make_config(changed("validation", None)) == make_config(changed("validation", {}))


# --- strategies


def test_something_must_be_generated():
    frozen = {"name": "flexible", "video": VIDEO | {"is_generated": False}}
    assert "nothing is generated" in refusal(changed("training_strategy", frozen))


@pytest.mark.parametrize(
    "condition", [{"type": "first_frame"}, {"type": "spatial_crop", "spatial_region": [0, 0, 64, 64]}]
)
def test_conditions_of_pictures_are_refused_on_audio(condition):
    make_config(with_condition(condition, "video"))
    assert "audio cannot take" in refusal(with_condition(condition, "audio"))


@pytest.mark.parametrize("box", [[64, 0, 0, 64], [0, 64, 64, 64], [-1, 0, 64, 64]])
def test_a_region_without_inside_is_refused(box):
    assert "spatial_region" in refusal(with_condition({"type": "spatial_crop", "spatial_region": box}))


def test_data_sources_follow_the_blocks():
    given = with_condition({"type": "reference", "latents_dir": "reference_latents"})
    given["training_strategy"]["audio"] = AUDIO | {"conditions": [{"type": "mask", "mask_dir": "audio_masks"}]}
    sources = make_config(given).training_strategy.get_data_sources()
    assert set(sources) == {"conditions", "latents", "reference_latents", "audio_latents", "audio_masks"}


def test_data_sources_are_those_of_the_strategy():
    from ltx_nb.flow.strategies import FlexibleStrategy

    given = with_condition({"type": "reference", "latents_dir": "edges"})
    strategy = make_config(given).training_strategy
    assert FlexibleStrategy(strategy).get_data_sources() == strategy.get_data_sources()


@pytest.mark.parametrize("change", [("audio.latents_dir", "latents"), ("video.latents_dir", "conditions")])
def test_one_folder_for_two_kinds_of_records_is_refused(change):
    "W16: in the LTX Trainer the second role takes the place of the first."
    path, folder = change
    assert f"folder {folder} cannot hold" in refusal(changed(f"training_strategy.{path}", folder))


def test_a_reference_may_share_the_folder_of_its_target():
    make_config(with_condition({"type": "reference", "latents_dir": "latents"}))
    assert "cannot hold" in refusal(with_condition({"type": "mask", "mask_dir": "latents"}))


def test_a_condition_that_a_frozen_block_ignores_is_reported():
    "W15: the LTX Trainer ignores it silently."
    given = with_condition({"type": "first_frame"})
    given["training_strategy"]["video"]["is_generated"] = False
    with pytest.warns(ConfigWarning, match="first_frame changes nothing"):
        make_config(given)


# W69: in the LTX Trainer the warning is hidden, and says nothing about what to write.
@pytest.mark.parametrize(
    "old, conditions, audio",
    [
        (None, ["first_frame"], None),
        ({"name": "text_to_video", "first_frame_conditioning_p": 0}, [], None),
        ({"with_audio": True, "audio_latents_dir": "sound"}, ["first_frame"], "sound"),
        ({"name": "video_to_video", "first_frame_conditioning_p": 0.2}, ["reference", "first_frame"], None),
        ({"reference_latents_dir": "ref"}, ["reference", "first_frame"], None),
    ],
)
def test_an_old_strategy_is_translated_and_the_warning_carries_its_replacement(old, conditions, audio):
    with pytest.warns(ConfigWarning, match="deprecated") as caught:
        config = make_config(changed("training_strategy", old))
    strategy = config.training_strategy
    assert [c.type for c in strategy.video.conditions] == conditions
    assert (strategy.audio and strategy.audio.latents_dir) == audio
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replacement = yaml.safe_load(str(caught[0].message).split("\n\n", 1)[1])
        assert make_config(VALID | replacement) == config


def test_a_block_without_a_name_is_understood_by_its_keys():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_config(changed("training_strategy.name", ...)) == make_config(VALID)


def test_an_old_strategy_object_is_accepted_in_python():
    with pytest.warns(ConfigWarning):
        config = LtxTrainerConfig(**VALID | {"training_strategy": TextToVideoConfig()})
    assert isinstance(config.training_strategy, FlexibleStrategyConfig)


def test_unknown_strategy_lists_the_known_ones():
    assert "flexible" in refusal(changed("training_strategy", {"name": "image_to_video"}))


def test_what_is_ours_has_defaults_that_change_nothing():
    config = make_config(VALID)
    strategy, window = config.training_strategy, {"type": "prefix", "video": "a.mp4"}
    assert (strategy.caption_dropout, strategy.video.loss_weight, strategy.audio.loss_weight) == (0.0, 1.0, 1.0)
    assert config.data.held_out == 0
    assert make_config(with_sample(conditions=[window])).validation.samples[0].conditions[0].start == 0.0


@pytest.mark.parametrize(
    "path, value, problem",
    [
        ("training_strategy.caption_dropout", 1.5, "training_strategy.caption_dropout: given 1.5"),
        ("training_strategy.video.loss_weight", -1, "training_strategy.video.loss_weight: given -1"),
        ("data.held_out", -1, "data.held_out: given -1"),
    ],
)
def test_bounds_of_what_is_ours(path, value, problem):
    assert problem in refusal(changed(path, value))


def test_weights_that_are_all_zero_are_refused():
    one = changed("training_strategy.audio.loss_weight", 0)
    assert make_config(one).training_strategy.audio.loss_weight == 0
    assert "loss_weight is 0 on all that is generated" in refusal(
        changed("training_strategy.video.loss_weight", 0, one)
    )
    frozen = changed("training_strategy.video.is_generated", False, one)
    assert "loss_weight is 0" in refusal(frozen)  # a frozen stream has no loss


def test_caption_dropout_needs_what_encodes_the_empty_caption():
    given = changed("validation.interval", None, changed("model.text_encoder_path", None))
    make_config(given)
    assert "- training_strategy.caption_dropout: given 0.1" in refusal(
        changed("training_strategy.caption_dropout", 0.1, given)
    )


# --- rules between sections


@pytest.mark.parametrize(
    "changes, path",
    [
        ({"lora": None}, "lora: missing"),
        ({"model.text_encoder_path": None}, "model.text_encoder_path"),
        (
            {"training_strategy.audio": None, "lora.target_modules": ["audio_attn1.to_k", "audio_ff.net.2"]},
            "lora.target_modules",
        ),
        ({"optimization.steps": 10, "optimization.warmup_steps": 10}, "optimization.warmup_steps"),
        (
            {"model.training_mode": "full", "acceleration.quantization": "int8-quanto"},
            "acceleration.quantization: given 'int8-quanto'",
        ),
        ({"hub.push_to_hub": True}, "hub.hub_model_id"),
        ({"hub.push_to_hub": True, "hub.hub_model_id": "mine"}, "hub.hub_model_id"),
        ({"model.video_vae_path": "vae.safetensors"}, "model.video_vae_path"),
        ({"model.audio_vae_path": "vae.safetensors"}, "model.audio_vae_path"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(changes, path):
    given = VALID
    for name, value in changes.items():
        given = changed(name, value, given)
    assert f"- {path}" in refusal(given)
    with pytest.raises(ValidationError):
        LtxTrainerConfig.model_validate(given)


def test_prompts_need_no_text_encoder_when_nothing_is_validated():
    given = changed("validation.interval", None, changed("model.text_encoder_path", None))
    assert make_config(given).validation.samples


@pytest.mark.parametrize(
    "path, value",
    [
        ("acceleration.offload_optimizer_during_validation", True),
        ("acceleration.mixed_precision_mode", "fp16"),
        ("hub.hub_model_id", "me/mine"),
        ("wandb.project", "mine"),
    ],
)
def test_what_is_harmless_is_not_refused(machine, path, value):
    make_config(changed(path, value), check_files=True)


@pytest.mark.parametrize(
    "path, params, problem",
    [
        ("optimization.scheduler_params", {"end_facto": 0.5}, "did you mean end_factor?"),
        ("optimization.scheduler_params", {"end_factor": 2}, "end_factor: given 2"),
        ("optimization.scheduler_params", [1], "scheduler_params"),
        ("flow_matching.timestep_sampling_params", {"std": -1}, "std: given -1"),
        ("flow_matching.timestep_sampling_params", {"min_value": 0.1}, "min_value: unknown key"),
    ],
)
def test_bad_schedule_and_sampler_parameters_fail_early(path, params, problem):
    message = refusal(changed(path, params))
    assert path in message and problem in message


def test_schedule_fills_in_what_depends_on_the_steps_and_leaves_the_config_alone():
    given = changed(
        "optimization", {"steps": 200, "scheduler_type": "cosine_with_restarts", "scheduler_params": {"T_mult": "2"}}
    )
    config = make_config(given)
    before = config.model_dump()
    assert config.optimization.schedule() == {"T_0": 50, "T_mult": 2, "eta_min": 5e-5}
    assert config.model_dump() == before and config.optimization.scheduler_params == {"T_mult": 2}


def test_sampler_parameters_fit_the_sampler():
    from ltx_nb.flow.samplers import get_timestep_sampler

    params = {"std": 0.5, "eps": 0.01, "uniform_prob": 0.2, "max_shift": 2.05}
    flow = make_config(changed("flow_matching.timestep_sampling_params", params)).flow_matching
    sampler = get_timestep_sampler(flow.timestep_sampling_mode, flow.timestep_sampling_params)
    assert {name: getattr(sampler, name) for name in params} == params


# --- validation samples


@pytest.mark.parametrize("kind", MEDIA_CONDITIONS)
def test_a_condition_takes_exactly_one_medium(kind):
    condition = {"type": kind} | ({"mask": "m.png"} if kind == "mask" else {})
    for media in {}, {"video": "a.mp4", "audio": "a.wav"}:
        assert "either video or audio" in refusal(with_sample(conditions=[condition | media]))
    make_config(with_sample(conditions=[condition | {"video": "a.mp4"}]))


@pytest.mark.parametrize(
    "conditions",
    [
        [{"type": "video_to_audio", "video": "a.mp4"}, {"type": "audio_to_video", "audio": "a.wav"}],
        [{"type": "video_to_audio", "video": "a.mp4"}, {"type": "first_frame", "image_or_video": "a.png"}],
        [{"type": "video_to_audio", "video": "a.mp4"}, {"type": "reference", "video": "b.mp4"}],
        [{"type": "audio_to_video", "audio": "a.wav"}, {"type": "prefix", "audio": "b.wav"}],
    ],
)
def test_conditions_on_a_frozen_stream_conflict(conditions):
    assert "validation.samples.0" in refusal(with_sample(conditions=conditions))


def test_a_frozen_stream_leaves_the_other_one_free():
    conditions = [{"type": "video_to_audio", "video": "a.mp4"}, {"type": "prefix", "audio": "b.wav", "duration": 1}]
    assert len(make_config(with_sample(conditions=conditions)).validation.samples[0].conditions) == 2


@pytest.mark.parametrize(
    "conditions, generate, problem",
    [
        ([{"type": "video_to_audio", "video": "a.mp4"}], "audio", "video_to_audio makes the audio"),
        ([{"type": "audio_to_video", "audio": "a.wav"}], "video", "audio_to_video makes the video"),
        ([{"type": "first_frame", "image_or_video": "a.png"}], "video", "first_frame gives a part of the video"),
        ([{"type": "reference", "audio": "a.wav"}], "audio", "reference gives a part of the audio"),
    ],
)
def test_a_condition_on_what_is_not_generated_is_refused(conditions, generate, problem):
    given = with_sample(conditions=conditions)
    make_config(given)
    message = refusal(changed(f"validation.generate_{generate}", False, given))
    assert "- validation.samples.0.conditions.0: " in message and problem in message


@pytest.mark.parametrize("stream, other", [("video", "audio"), ("audio", "video")])
@pytest.mark.parametrize("kind", ["prefix", "suffix"])
def test_the_same_place_given_twice_is_refused(stream, other, kind):
    twice = [{"type": kind, stream: "a.mp4"}, {"type": kind, stream: "b.mp4"}]
    assert f"two conditions give the {kind} of the {stream}" in refusal(with_sample(conditions=twice))
    make_config(with_sample(conditions=[twice[0], {"type": kind, other: "b.mp4"}]))


def test_samples_need_an_output():
    given = changed("validation.generate_video", False, changed("validation.generate_audio", False))
    assert "both false" in refusal(given)


def test_old_prompts_become_samples():
    validation = ValidationConfig.model_validate(
        {
            "prompts": ["a", "b"],
            "images": ["a.png", "b.png"],
            "reference_videos": ["a.mp4", "b.mp4"],
            "reference_downscale_factor": 2,
            "include_reference_in_output": True,
        }
    )
    assert [s.prompt for s in validation.samples] == ["a", "b"]
    first, reference = validation.samples[1].conditions
    assert os.path.basename(first.image_or_video) == "b.png"
    assert (os.path.basename(reference.video), reference.downscale_factor, reference.include_in_output) == (
        "b.mp4",
        2,
        True,
    )


def test_prompts_beside_samples_are_ignored_aloud():
    with pytest.warns(ConfigWarning, match="ignored"):
        assert [s.prompt for s in make_config(changed("validation.prompts", ["snow"])).validation.samples] == ["rain"]


@pytest.mark.parametrize(
    "old, scales",
    [
        ({"guidance_scale": 4}, (4, 4, 1, 1)),
        ({"stg_scale": 0.5}, (3, 7, 0.5, 0.5)),
        ({"stg_scale": 0.5, "stg_mode": "stg_v"}, (3, 7, 0.5, 0)),
    ],
)
def test_old_guidance_is_migrated(old, scales):
    v = make_config(changed("validation", old)).validation
    assert (v.video_cfg_scale, v.audio_cfg_scale, v.video_stg_scale, v.audio_stg_scale) == scales


@pytest.mark.parametrize(
    "mixed",
    [
        {"guidance_scale": 4, "audio_cfg_scale": 3},
        {"stg_scale": 1, "video_stg_scale": 1},
        {"stg_mode": "stg_x"},
        {"prompts": ["a", "b"], "images": ["a.png"]},
        {"prompts": ["a"], "reference_videos": []},
    ],
)
def test_mixed_or_uneven_old_fields_are_refused(mixed):
    assert "- validation: " in refusal(changed("validation", mixed))


# --- files on this machine


def test_dataset_root_and_its_parent_are_the_same(machine):
    (machine / "parent").mkdir()
    (machine / "data").rename(machine / "parent" / ".precomputed")
    for root in "parent", "parent/.precomputed":
        make_config(changed("data.preprocessed_data_root", root), check_files=True)
        assert resolve_data_root(root) == resolve_root(root)  # what the dataset itself will read


@pytest.mark.parametrize("missing", ["conditions", "latents", "audio_latents"])
def test_a_missing_data_folder_is_named_with_what_is_there(machine, missing):
    (machine / "data" / missing / "a.safetensors").unlink()
    assert f"folder '{missing}'" in refusal(VALID, check_files=True)
    (machine / "data" / missing).rmdir()
    message = refusal(VALID, check_files=True)
    assert f"folder '{missing}'" in message and str(machine / "data" / missing) in message
    assert all(other in message for other in {"conditions", "latents", "audio_latents"} - {missing})


@pytest.mark.parametrize(
    "path",
    [
        "model.model_path",
        "model.text_encoder_path",
        "model.load_checkpoint",
        "data.preprocessed_data_root",
    ],
)
def test_a_missing_file_is_named(machine, path):
    message = refusal(changed(path, "nowhere/at_all"), check_files=True)
    assert message.startswith("1 problem") and f"- {path}: " in message and str(machine / "nowhere") in message


CONDITIONED = [
    {"samples": [{"prompt": "a", "conditions": [{"type": "reference", "video": "nowhere.mp4"}]}, {"prompt": "b"}]},
    {"prompts": ["a", "b"], "images": ["nowhere.png"] * 2, "reference_videos": ["nowhere.mp4"] * 2},
]


@pytest.mark.parametrize("samples", CONDITIONED)
def test_every_sample_is_kept_where_the_run_validates_and_none_where_it_does_not(samples):
    kept = kept_samples(make_config(changed("validation", samples)).validation)
    assert [sample.prompt for sample in kept.values()] == ["a", "b"] and kept[0].conditions
    assert not kept_samples(make_config(changed("validation", samples | {"interval": None})).validation)


@pytest.mark.parametrize("samples, files", [(CONDITIONED[0], 1), (CONDITIONED[1], 4)])
def test_missing_media_are_named_with_their_path_and_a_way_out_before_anything_loads(machine, samples, files):
    "W70, W54: the LTX Trainer finds these after minutes of loading."
    message = refusal(changed("validation", samples), check_files=True)
    assert message.startswith(f"{files} problem") and message.count("no such file") == files
    assert "validation.samples.0.conditions.0." in message and str(machine / "nowhere.") in message
    assert message.count("--set 'validation.samples=[]'") == 1
    make_config(changed("validation", {"samples": []}), check_files=True)
    make_config(changed("validation", samples | {"interval": None}), check_files=True)


def test_a_conditioned_sample_needs_the_text_encoder():
    given = with_sample(conditions=[{"type": "first_frame", "image_or_video": "a.png"}])
    assert "- model.text_encoder_path: missing" in refusal(changed("model.text_encoder_path", None, given))


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"PK, a pickle", "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}", "no configuration in its header"),
        (None, "cut short"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(machine, content, problem):
    path = machine / "model.safetensors"
    if content is None:
        header = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
        content = len(header).to_bytes(8, "little") + header + b"\0" * 35
    path.write_bytes(content)
    message = refusal(VALID, check_files=True)
    assert message.startswith("1 problem") and "- model.model_path: " in message and problem in message


@pytest.mark.parametrize(
    "damage", ["tokenizer.json", "model.safetensors", "config.json", "{}", '{"model_type": "gemma3"}']
)
def test_a_text_encoder_that_cannot_be_used_is_named(machine, damage):
    if (machine / "gemma" / damage).exists():
        (machine / "gemma" / damage).unlink()
    else:
        (machine / "gemma" / "config.json").write_text(damage, encoding="utf-8")
    message = refusal(VALID, check_files=True)
    assert message.startswith("1 problem") and "- model.text_encoder_path: " in message and "gemma" in message


@pytest.mark.parametrize(
    "layers, blocks, advice",
    [
        (4, [28], "this checkpoint has 4 blocks, 0 to 3; the same place is [2]"),
        (4, [1, 47], "the same place is [1, 3]"),
        (1, [100], "this checkpoint has 1 block, 0 to 0; the same place is [0]"),
        (None, [48], "this checkpoint has 48 blocks, 0 to 47; the same place is [47]"),
    ],
)
def test_blocks_that_the_checkpoint_lacks_name_the_same_place(machine, layers, blocks, advice):
    write_checkpoint(machine / "model.safetensors", {"transformer": {"num_layers": layers} if layers else {}})
    given = changed("validation.stg_blocks", blocks)
    message = refusal(given, check_files=True)
    assert f"validation.stg_blocks: given {blocks}; " in message and advice in message
    make_config(changed("validation.stg_blocks", json.loads(advice.split("place is ")[1]), given), check_files=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": []},
        {"interval": None},
        {"stg_blocks": None},
        {"video_stg_scale": 0, "audio_stg_scale": 0},
        {"video_stg_scale": 0, "generate_audio": False},
    ],
)
def test_blocks_do_not_matter_where_nothing_skips_them(machine, changes):
    write_checkpoint(machine / "model.safetensors", {"transformer": {"num_layers": 4}})
    assert "stg_blocks" in refusal(VALID, check_files=True)
    make_config(changed("validation", VALID["validation"] | changes), check_files=True)


def test_a_dataset_with_many_folders_is_not_listed_in_full(machine):
    for i in range(100):
        (machine / "data" / f"another_{i:03}").mkdir()
    for folder in "latents", "conditions":
        (machine / "data" / folder / "a.safetensors").unlink()
        (machine / "data" / folder).rmdir()
    message = refusal(VALID, check_files=True)
    assert message.startswith("2 problems") and message.count("the dataset has") == 1 and "101 in all" in message
    assert 1 < message.count("another_") < 10


@pytest.mark.parametrize(
    "size, near", [([960, 540, 89], "512 or 544"), ([960, 544, 90], "89 or 97"), ([16, 64, 17], "32")]
)
def test_a_size_off_the_grid_names_the_nearest(machine, size, near):
    message = refusal(changed("validation.video_dims", size), check_files=True)
    assert f"validation.video_dims: given {size}" in message and near in message


def test_the_grid_is_the_one_of_the_checkpoint(machine):
    config = {
        "vae": {"patch_size": 4, "encoder_blocks": [["compress_all", {}], ["compress_space", {}]]}
    }  # 2 frames, 16 pixels
    given = changed("validation.video_dims", [48, 48, 3])
    assert "[48, 48, 3]" in refusal(given, check_files=True)
    write_checkpoint(machine / "model.safetensors", config)
    make_config(given, check_files=True)


@pytest.mark.parametrize("kind, frames, near", [("prefix", 8, "1 or 9"), ("suffix", 9, "8 or 16")])
def test_a_window_off_the_grid_names_the_nearest(machine, kind, frames, near):
    (machine / "a.mp4").touch()
    message = refusal(
        with_sample(conditions=[{"type": kind, "video": "a.mp4", "num_frames": frames}]), check_files=True
    )
    assert f"num_frames: given {frames}" in message and near in message


CROP = {"type": "spatial_crop", "video": "a.mp4"}
REFERENCE = {"type": "reference", "video": "a.mp4"}
PREFIX, SUFFIX = {"type": "prefix", "video": "a.mp4"}, {"type": "suffix", "video": "b.mp4"}


@pytest.mark.parametrize(
    "size, conditions, path, words",
    [
        ([960, 544, 89], [CROP | {"spatial_region": [0, 0, 576, 288]}], "0.spatial_region", ["960 wide", "544 high"]),
        ([960, 544, 89], [CROP | {"spatial_region": [0, 0, 544, 960]}], "0.spatial_region", ["all 510 cells"]),
        ([960, 544, 89], [CROP | {"spatial_region": [1, 1, 63, 63]}], "0.spatial_region", ["no whole cell of 32x32"]),
        ([960, 544, 89], [REFERENCE | {"downscale_factor": 2}], "0.downscale_factor", ["480x272", "steps of 64"]),
        ([960, 544, 89], [REFERENCE | {"temporal_scale_factor": 3}], "0.temporal_scale_factor", ["24k + 1"]),
        ([64, 64, 17], [PREFIX | {"num_frames": 17}], "", ["3 latent frames (17 frames)", "prefix gives 3"]),
        ([64, 64, 17], [PREFIX | {"num_frames": 25}], "", ["prefix gives 4"]),
        (
            [64, 64, 17],
            [PREFIX | {"num_frames": 9}, SUFFIX | {"num_frames": 8}],
            "",
            ["prefix gives 2 and suffix gives 1"],
        ),
        ([64, 64, 1], [{"type": "first_frame", "image_or_video": "a.png"}], "", ["1 latent frames (1 frame)"]),
        ([64, 64, 17], [{"type": "prefix", "audio": "a.wav", "duration": 0.7}], "", ["nothing of the audio"]),
    ],
)
def test_a_condition_that_does_not_fit_its_sample_is_refused_with_numbers(machine, size, conditions, path, words):
    "W14, W19, W54, W70: found by the LTX Trainer after loading, or never."
    message = refusal(with_sample(video_dims=size, conditions=conditions), check_files=True)
    lines = [line for line in message.splitlines() if "no such file" not in line and " problem" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"  - validation.samples.0.conditions{'.' + path if path else ': '}")
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    "size, conditions",
    [
        ([960, 544, 89], [CROP | {"spatial_region": [0, 0, 288, 576]}]),
        ([960, 544, 89], [PREFIX | {"num_frames": 57}]),
        ([960, 544, 89], [SUFFIX | {"num_frames": 64}, {"type": "prefix", "audio": "a.wav", "duration": 1.0}]),
        ([960, 576, 97], [REFERENCE | {"downscale_factor": 2, "temporal_scale_factor": 4}]),
        ([64, 64, 17], [PREFIX | {"num_frames": 9}]),
        ([64, 64, 17], [PREFIX]),  # how long the file is, only its reader knows
    ],
)
def test_conditions_that_fit_are_not_refused(machine, size, conditions):
    lines = refusal(with_sample(video_dims=size, conditions=conditions), check_files=True).splitlines()[1:]
    assert all("no such file" in line for line in lines)


@pytest.mark.parametrize("downscale, slowdown, wrong", [(2, 1, 0), (1, 1, 1), (2, 2, 1), (1, 3, 2)])
def test_references_of_samples_are_as_in_the_data(machine, downscale, slowdown, wrong):
    "W1, W2: the LTX Trainer never compares the two."
    import torch

    from ltx_nb.data.store import write_record

    write_record(machine / "data", "latents", "a", {"latents": torch.zeros(128, 4, 4, 8)})
    write_record(machine / "data", "references", "a", {"latents": torch.zeros(128, 4, 2, 4)})
    given = with_condition({"type": "reference", "latents_dir": "references"})
    factors = {"downscale_factor": downscale, "temporal_scale_factor": slowdown}
    given["validation"] |= {"video_dims": [384, 384, 97]}
    given["validation"]["samples"][0]["conditions"] = [REFERENCE | factors]
    message = refusal(given, check_files=True)
    assert message.count("but the references in") == wrong and message.startswith(f"{wrong + 1} problem")
    (machine / "data" / "references" / "a.safetensors").write_bytes(b"damaged")
    assert "but the references in" not in refusal(given, check_files=True)


def test_a_training_region_without_a_whole_cell_is_refused(machine):
    "W19: the LTX Trainer rounds the region down and gives other pixels than were asked for."
    given = with_condition({"type": "spatial_crop", "spatial_region": [16, 0, 60, 64]})
    assert "training_strategy.video.conditions.0.spatial_region: given [16, 0, 60, 64]" in refusal(
        given, check_files=True
    )
    fits = make_config(with_condition({"type": "spatial_crop", "spatial_region": [16, 0, 100, 70]}), check_files=True)
    assert any("given are the cells wholly inside, [32, 0, 96, 64]" in note for note in plan_notes(fits))
    exact = make_config(with_condition({"type": "spatial_crop", "spatial_region": [32, 0, 96, 64]}), check_files=True)
    assert not any("cells wholly inside" in note for note in plan_notes(exact))


def test_the_cells_of_a_region_are_those_that_training_gives():
    from ltx_nb.flow.conditions import crop_mask
    from ltx_nb.config.checks import cells_of
    from ltx_nb.model.latents import ScaleFactors

    for box in (0, 0, 288, 576), (16, 33, 300, 500), (32, 64, 64, 96):
        top, left, bottom, right = cells_of(box, ScaleFactors())
        mask = crop_mask((1, 17, 30), box).reshape(17, 30)
        assert mask[top:bottom, left:right].all() and mask.sum() == (bottom - top) * (right - left)


@pytest.mark.parametrize("held_out, batch_size, left", [(1, 1, None), (2, 1, None), (3, 1, 0), (9, 1, 0), (2, 2, 1)])
def test_held_out_clips_leave_something_to_train_on(machine, held_out, batch_size, left):
    for name in "b", "c":
        for folder in "conditions", "latents", "audio_latents":
            (machine / "data" / folder / f"{name}.safetensors").touch()
    (machine / "data" / "latents" / "without_caption.safetensors").touch()
    given = changed("optimization.batch_size", batch_size, changed("data.held_out", held_out))
    if left is None:
        assert make_config(given, check_files=True).data.held_out == held_out
    else:
        message = refusal(given, check_files=True)
        assert f"data.held_out: given {held_out} of 3 clips, which leaves {left}" in message


@pytest.mark.parametrize("picture, sound", [(True, True), (True, False), (False, True), (False, False)])
def test_media_without_what_a_condition_needs_are_named(machine, picture, sound):
    import torch

    from ltx_nb.data.media import write_sound, write_video

    path, waveform = machine / "a.mp4", torch.linspace(-0.1, 0.1, 32_000).view(2, 16_000) if sound else None
    if picture:
        write_video(path, torch.zeros(24, 3, 32, 32, dtype=torch.uint8), 24, waveform, 16_000)
    elif sound:
        path = write_sound(machine / "a.wav", waveform, 16_000)
    else:
        path.write_bytes(b"no media at all")
    for stream, there in ("video", picture), ("audio", sound):
        given = with_sample(conditions=[{"type": "prefix", stream: str(path), "start": 0.5}])
        if there:
            make_config(given, check_files=True)
            late = changed("validation.samples.0.conditions.0.start", 1.5, given)
            assert "conditions.0.start: given 1.5, but" in refusal(late, check_files=True)
        else:
            message = refusal(given, check_files=True)
            assert message.startswith("1 problem") and f"- validation.samples.0.conditions.0.{stream}: " in message


@pytest.mark.parametrize("folder", ["x" * 300, "latents/deeper"])
def test_an_odd_folder_name_is_answered_in_words(machine, folder):
    given = changed("data.held_out", 1, with_condition({"type": "reference", "latents_dir": folder}))
    given["validation"]["samples"][0]["conditions"] = [REFERENCE]
    assert "data.preprocessed_data_root: folder" in refusal(given, check_files=True)


def test_a_missing_folder_names_the_field_that_asks_for_it(machine):
    given = with_condition({"type": "mask", "mask_dir": "video_masks"})
    assert "change training_strategy.video.conditions.0.mask_dir" in refusal(given, check_files=True)


def test_check_files_sees_later_edits(machine):
    config = make_config(VALID, check_files=True)
    assert check_files(config) == config
    config.optimization.steps = 0
    with pytest.raises(ConfigError, match="optimization.steps: given 0"):
        check_files(config)


@pytest.mark.parametrize(
    "path, value, package",
    [
        ("optimization.optimizer_type", "adamw8bit", "bitsandbytes"),
        ("optimization.optimizer_type", "prodigy", "prodigyopt"),
        ("optimization.optimizer_type", "schedulefree", "schedulefree"),
        ("acceleration.load_text_encoder_in_8bit", True, "bitsandbytes"),
        ("wandb.enabled", True, "wandb"),
        ("tracking.tensorboard", True, "tensorboard"),
        ("tracking.trackio", True, "trackio"),
    ],
)
def test_a_missing_package_is_named_before_training(machine, monkeypatch, path, value, package):
    monkeypatch.setattr("ltx_nb.config.checks.find_spec", lambda name: None)
    assert f"{path}: needs the package {package}" in refusal(changed(path, value), check_files=True)


# --- files of configuration


@pytest.mark.parametrize("name", example_configs())
def test_examples_are_valid_and_survive_a_round_trip(name, tmp_path):
    "W33: the LTX Trainer saves a file that its own command cannot read."
    config = load_config(name, check_files=False)
    saved = save_config(config, tmp_path / "deep" / "training_config.yaml")
    assert load_config(saved, check_files=False) == config
    assert os.listdir(saved.parent) == [saved.name]
    with open(saved, encoding="utf-8") as file:
        yaml.safe_load(file)
    assert not plan_notes(config)


ALL = ["to_k", "to_q", "to_v", "to_out.0"]
STREAM = {"video": "latents", "audio": "audio_latents"}
P, Q = (1e-4, 2000, -1), (2e-4, 3000, 3)  # learning rate, steps, checkpoints kept
REFERENCE_DIRS = {"video": "reference_latents", "audio": "reference_audio_latents"}
NO_AUDIO = {"video_modality_guidance_scale": 1, "generate_audio": False}
NO_VIDEO = {"audio_modality_guidance_scale": 1, "generate_video": False}


def attentions(*names, feed_forward=None):
    return [f"{name}.{target}" for name in names for target in ALL] + [
        f"{feed_forward}.{layer}" for layer in ("net.0.proj", "net.2") if feed_forward
    ]


def part(kind, stream="video", probability=1.0):
    "A condition of the table below, as the files say it."
    more = {
        "prefix": {"temporal_boundary": 8},
        "suffix": {"temporal_boundary": 8},
        "mask": {"mask_dir": f"{stream}_masks"},
        "spatial_crop": {"spatial_region": [0, 0, 288, 576]},
        "reference": {"latents_dir": REFERENCE_DIRS[stream]},
    }
    return {"type": kind, "probability": probability} | more.get(kind, {})


def stream(name, *conditions, generated=True):
    return {"is_generated": generated, "latents_dir": STREAM[name], "conditions": list(conditions)}


VID, AUD = attentions("attn1", "attn2"), attentions("audio_attn1", "audio_attn2", feed_forward="audio_ff")
VIDF = attentions("attn1", "attn2", feed_forward="ff")
BOTH = {"video": stream("video"), "audio": stream("audio")}
LOW = {"video_dims": [576, 576, 49]}
SILENT = {"audio_cfg_scale": 1, "audio_stg_scale": 0, "audio_modality_guidance_scale": 1, "generate_audio": False}
BLIND = {"video_cfg_scale": 1, "video_stg_scale": 0, "video_modality_guidance_scale": 1, "generate_video": False}
TABLE = {  # name: (strategy, targets, schedule, kinds in a sample, validation that differs)
    "t2v_lora": (BOTH, ALL, P, [], {}),
    "t2v_lora_low_vram": (BOTH, ALL, P, [], LOW),
    "i2v_lora": (BOTH | {"video": stream("video", part("first_frame", probability=0.5))}, ALL, P, ["first_frame"], {}),
    "v2v_ic_lora": (
        {"video": stream("video", part("reference"), part("first_frame", probability=0.2))}, VIDF, Q, ["reference"], NO_AUDIO,
    ),
    "a2v_lora": (  # the official file adapts the sound too; here a stream that is not trained is not adapted
        BOTH | {"audio": stream("audio", generated=False)}, VIDF + attentions("audio_to_video_attn"), P, ["audio_to_video"], SILENT,
    ),
    "v2a_lora": (
        BOTH | {"video": stream("video", generated=False)}, AUD + attentions("video_to_audio_attn"), P, ["video_to_audio"], BLIND,
    ),
    "video_extend_lora": (BOTH | {"video": stream("video", part("prefix"))}, ALL, P, ["prefix"], {}),
    "video_suffix_lora": (BOTH | {"video": stream("video", part("suffix"))}, ALL, P, ["suffix"], {}),
    "video_inpainting_lora": ({"video": stream("video", part("mask"))}, VID, P, ["mask"], NO_AUDIO),
    "video_outpainting_lora": ({"video": stream("video", part("spatial_crop"))}, VID, P, ["spatial_crop"], NO_AUDIO),
    "t2a_lora": ({"audio": stream("audio")}, AUD, Q, [], NO_VIDEO),
    "audio_extend_lora": ({"audio": stream("audio", part("prefix", "audio"))}, AUD, Q, ["prefix"], NO_VIDEO),
    "audio_suffix_lora": ({"audio": stream("audio", part("suffix", "audio"))}, AUD, Q, ["suffix"], NO_VIDEO),
    "audio_inpainting_lora": ({"audio": stream("audio", part("mask", "audio"))}, AUD, Q, ["mask"], NO_VIDEO),
    "a2a_ic_lora": ({"audio": stream("audio", part("reference", "audio"))}, AUD, Q, ["reference"], NO_VIDEO),
    "av2av_ic_lora": (
        {"video": stream("video", part("reference")), "audio": stream("audio", part("reference", "audio"))},
        ALL, Q, ["reference", "reference"], {},
    ),
}  # fmt: skip


def test_there_is_an_example_for_every_mode():
    assert {
        name for name in example_configs() if not name.startswith("tiny_") and not name.endswith(("gb", "_t4"))
    } == TABLE.keys() and len(TABLE) == 16
    names = {mode_name(load_config(name, check_files=False).training_strategy) for name in TABLE}
    assert len(names) == 15  # the low-memory one does what t2v_lora does


@pytest.mark.parametrize("name", TABLE)
def test_examples_hold_the_recipe_of_their_mode(name):
    strategy, targets, schedule, kinds, validation = TABLE[name]
    c = load_config(name, check_files=False)
    assert c.training_strategy == FlexibleStrategyConfig.model_validate(strategy)
    assert c.lora.target_modules == targets
    low = name.endswith("low_vram")
    assert (c.lora.rank, c.lora.alpha, c.optimization.optimizer_type) == (
        (16, 16, "adamw8bit") if low else (32, 32, "adamw")
    )
    o = c.optimization
    assert (o.learning_rate, o.steps, c.checkpoints.keep_last_n) == schedule
    shared = (
        o.batch_size,
        o.gradient_accumulation_steps,
        o.scheduler_type,
        o.enable_gradient_checkpointing,
        o.max_grad_norm,
    )
    assert shared == (1, 1, "linear", True, 1.0)
    assert (c.checkpoints.interval, c.checkpoints.precision, c.data.num_dataloader_workers, c.seed) == (
        250,
        "bfloat16",
        2,
        42,
    )
    assert (c.acceleration.mixed_precision_mode, c.wandb.enabled, c.wandb.project) == ("bf16", False, "ltx-2-trainer")
    assert c.acceleration.quantization == ("int8" if low else None)
    assert os.path.relpath(c.output_dir) == os.path.join("outputs", name) and len(c.validation.samples) == 2
    for sample in c.validation.samples:
        assert [condition.type for condition in sample.conditions] == kinds
    usual = ValidationConfig().model_dump(mode="json") | validation
    assert c.validation.model_dump(mode="json", exclude={"samples"}) == {
        k: v for k, v in usual.items() if k != "samples"
    }


@pytest.mark.parametrize("name", sorted(TABLE))
def test_an_example_lacks_nothing_but_files(machine, name):
    message = refusal(EXAMPLES[name], check_files=True)
    missing = message.splitlines()[1:]
    assert all(
        re.search("no such (file|folder)|needs the package bitsandbytes|needs a CUDA device", line) for line in missing
    ), message
    alone = refusal(changed("validation.samples", [], EXAMPLES[name]), check_files=True)
    assert "validation" not in alone


def test_the_files_for_accelerate_are_its_own():
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DistributedType

    from ltx_nb.model.transformer import TransformerBlock

    files = accelerate_configs()
    assert list(files) == ["ddp", "ddp_compile", "fsdp", "fsdp_compile"] and not files.keys() & set(example_configs())
    for name, path in files.items():
        config = load_config_from_file(str(path))
        assert config.distributed_type == (DistributedType.FSDP if "fsdp" in name else DistributedType.MULTI_GPU)
        assert (config.num_processes, config.num_machines, config.mixed_precision) == (4, 1, "bf16")
        assert (config.dynamo_config.get("dynamo_backend") == "INDUCTOR") == name.endswith("_compile")
        if "fsdp" in name:
            assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == TransformerBlock.__name__


@pytest.mark.parametrize("name", ["ddp", "ddp_compile", "fsdp", "fsdp_compile"])
def test_accelerate_would_launch_with_the_files(name):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    arguments = launch_command_parser().parse_args(["--config_file", str(accelerate_configs()[name]), "train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp == ("fsdp" in name) and arguments.num_processes == 4
    if arguments.use_fsdp:
        assert arguments.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
        assert arguments.fsdp_transformer_layer_cls_to_wrap == "TransformerBlock"


def test_saving_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    config = make_config(VALID)
    path = save_config(config, tmp_path / "c.yaml")
    before = path.read_text(encoding="utf-8")

    def disk_full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("ltx_nb.config.files.os.replace", disk_full)
    config.seed = 7
    with pytest.raises(OSError):
        save_config(config, path)
    assert path.read_text(encoding="utf-8") == before and os.listdir(tmp_path) == ["c.yaml"]


def test_overrides_change_single_values():
    config = load_config(
        "t2v_lora",
        [
            "optimization.steps=10",
            "lora.rank=8",
            "acceleration.quantization=null",
            "validation.samples.1.prompt=snow",
            "optimization.learning_rate=1e-5",
            "optimization.scheduler_params.end_factor=0.5",
            "validation.video_dims=[64, 64, 17]",
        ],
        check_files=False,
    )
    assert (config.optimization.steps, config.lora.rank, config.validation.samples[1].prompt) == (10, 8, "snow")
    assert (config.optimization.learning_rate, config.optimization.scheduler_params) == (1e-5, {"end_factor": 0.5})
    assert load_config("t2v_lora", {"seed": 3}, check_files=False).seed == 3


@pytest.mark.parametrize(
    "override, problem",
    [
        ("optimization.step=10", "did you mean steps?"),
        ("optimization.steps", "PATH=VALUE"),
        ("=1", "PATH=VALUE"),
        ("seed=[1", "not readable as YAML"),
        ("validation.samples.7.prompt=snow", "below 2"),
        ("seed.x=1", "seed"),
        ("seed..x=1", "PATH=VALUE"),
    ],
)
def test_bad_overrides_are_refused(override, problem):
    with pytest.raises(ConfigError, match="(?s)" + problem.replace("?", r"\?")):
        load_config("t2v_lora", [override], check_files=False)


@pytest.mark.filterwarnings("ignore::ltx_nb.config.section.ConfigWarning")
@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "should be a mapping"),
        ("- 1", "should be a mapping"),
        ("a: [1", "not readable as YAML"),
        ("seed: 1\nseed: 2", "written twice"),
        ("seed: !!timestamp x", "not readable as YAML"),
        ("model: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("model: 5", "model: given 5"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, text, problem):
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        load_config(tmp_path / "a.yaml")


def test_binary_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    for path in tmp_path / "a.yaml", tmp_path / "nothing.yaml", tmp_path:
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
            load_config(path)
    with pytest.raises(ConfigError, match="did you mean t2v_lora"):
        load_config("t2v_lra")


def test_a_file_written_by_the_reference_with_tuple_tags_is_read(tmp_path):
    given = changed("validation.video_dims", (576, 576, 49))
    (tmp_path / "old.yaml").write_text(yaml.dump(given), encoding="utf-8")
    assert "python/tuple" in (tmp_path / "old.yaml").read_text(encoding="utf-8")
    assert load_config(tmp_path / "old.yaml", check_files=False).validation.video_dims == (576, 576, 49)


# --- the plan


def test_plan_says_the_same_in_text_html_and_terminal():
    from rich.console import Console

    place = os.path.abspath("/runs/[bold]<x>")
    given = changed("validation.samples.0.prompt", "<b>rain</b>", changed("output_dir", place))
    plan = show(make_config(given))
    console = Console(width=160, record=True, file=open(os.devnull, "w", encoding="utf-8"))
    console.print(plan)
    for text in str(plan), console.export_text():
        assert "text to video with sound" in text and "LoRA of rank 8" in text and place in text
    assert place.replace("<x>", "&lt;x&gt;") in plan._repr_html_() and "<x>" not in plan._repr_html_()


@pytest.mark.parametrize(
    "changes, note",
    [
        ({"optimization.steps": 50}, "no samples of the trained model"),
        ({"optimization.steps": 1}, "the run has 1 step:"),
        ({"model.training_mode": "full"}, "lora is ignored"),
        ({"lora.target_modules": ["to_k", "audio_attn1.to_k"], "training_strategy.audio": None}, "audio_attn1.to_k"),
        (
            {"training_strategy.video.conditions": [{"type": "reference", "latents_dir": "r"}]},
            "a reference on the video, no validation sample has one",
        ),
        ({"training_strategy.video.conditions": [{"type": "first_frame"}]}, "a first_frame on the video"),
        ({"training_strategy.audio.is_generated": False}, "no validation sample does (audio_to_video)"),
        (
            {"training_strategy.audio.is_generated": False},
            "to_out.0: the audio is frozen, but its modules are adapted too",
        ),
        (
            {"training_strategy.video.is_generated": False, "lora.target_modules": ["audio_attn1.to_k", "attn1.to_k"]},
            "lora.target_modules attn1.to_k: the video is frozen",
        ),
        ({"training_strategy.audio": None}, "they match modules of the audio too"),
        ({"training_strategy.audio": None}, "the samples have audio"),
        ({"validation.generate_audio": False}, "the audio is trained, but validation.generate_audio is false"),
        (
            {"validation.samples": [{"prompt": "rain", "conditions": [{"type": "reference", "video": "a.mp4"}]}]},
            "training has none",
        ),
        ({"training_strategy.video.conditions": [{"type": "first_frame", "probability": 0}]}, "never applies"),
        (
            {
                "training_strategy.video.conditions": [
                    {"type": "first_frame"},
                    {"type": "first_frame", "probability": 0.5},
                ]
            },
            "conditions.1: first_frame is listed twice",
        ),
        (
            {"training_strategy.audio.is_generated": False, "training_strategy.audio.loss_weight": 2},
            "training_strategy.audio.loss_weight has no effect",
        ),
        ({"data.held_out": 1, "validation.interval": None}, "measured before the first step and after the last"),
    ],
)
def test_plan_notes_what_one_may_not_expect(changes, note):
    assert plan_notes(make_config(VALID)) == []
    given = VALID
    for name, value in changes.items():
        given = changed(name, value, given)
    assert any(note in line for line in plan_notes(make_config(given)))


MODES = {
    "text to video with sound": (VIDEO, AUDIO, [], []),
    "image to video with sound": (VIDEO, AUDIO, [{"type": "first_frame"}], []),
    "video extension forward with sound": (VIDEO, AUDIO, [{"type": "prefix", "temporal_boundary": 8}], []),
    "video extension backward with sound": (VIDEO, AUDIO, [{"type": "suffix", "temporal_boundary": 8}], []),
    "video inpainting": (VIDEO, None, [{"type": "mask", "mask_dir": "m"}], []),
    "video outpainting": (VIDEO, None, [{"type": "spatial_crop", "spatial_region": [0, 0, 32, 32]}], []),
    "V2V IC-LoRA": (VIDEO, None, [{"type": "reference", "latents_dir": "r"}], []),
    "audio to video": (VIDEO, AUDIO | {"is_generated": False}, [], []),
    "video to audio": (VIDEO | {"is_generated": False}, AUDIO, [], []),
    "text to audio": (None, AUDIO, [], []),
    "audio extension forward": (None, AUDIO, [], [{"type": "prefix", "temporal_boundary": 8}]),
    "audio extension backward": (None, AUDIO, [], [{"type": "suffix", "temporal_boundary": 8}]),
    "audio inpainting": (None, AUDIO, [], [{"type": "mask", "mask_dir": "m"}]),
    "A2A IC-LoRA": (None, AUDIO, [], [{"type": "reference", "latents_dir": "r"}]),
    "AV2AV IC-LoRA": (
        VIDEO,
        AUDIO,
        [{"type": "reference", "latents_dir": "r"}],
        [{"type": "reference", "latents_dir": "s"}],
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_has_a_name_of_its_own_and_the_plan_shows_it(name):
    video, audio, of_video, of_audio = MODES[name]
    strategy = {
        "video": video and video | {"conditions": of_video},
        "audio": audio and audio | {"conditions": of_audio},
    }
    config = make_config(changed("training_strategy", strategy))
    assert mode_name(config.training_strategy) == name and name in str(show(config))
    for condition in of_video + of_audio:
        assert condition["type"] in str(show(config))


def test_the_plan_shows_what_is_given_in_each_sample():
    "W71: the LTX Trainer's summary counts the prompts of older files and leaves out the strategy."
    given = [
        {"prompt": "rain", "conditions": [{"type": "prefix", "video": "a.mp4", "num_frames": 9, "start": 2}]},
        {"prompt": "snow", "conditions": [{"type": "reference", "video": "b.mp4", "downscale_factor": 2}]},
        {"prompt": "wind"},
    ]
    rows = {row[1]: row[2] for row in plan_rows(make_config(changed("validation.samples", given)))}
    assert rows["sample 1"] == "prefix 9 frames of a.mp4 from 2 s"
    assert rows["sample 2"] == "reference of b.mp4 at 1/2 size" and rows["sample 3"] == "the text alone"
    assert rows["samples"].startswith("every 100 steps, 3 prompts,")
    plain = {row[1]: row[2] for row in plan_rows(make_config(VALID))}
    assert "sample 1" not in plain and plain["given in them"] == "the text alone"


def test_plan_counts_in_english():
    once = {
        "optimization": {"batch_size": 1, "steps": 2, "warmup_steps": 1},
        "validation": VALID["validation"] | {"interval": 1},
        "checkpoints": {"interval": 1, "keep_last_n": 1},
    }
    plan = str(show(make_config(VALID | once)))
    assert not re.search(r"\b1 (clip|step|prompt|frame|token|denoising step)s", plan)
    for words in "each of 1 clip a device", "1 step of warm-up", "every step, 1 prompt", "every step and at the end":
        assert words in plan
    walk = {"ema_decay": 0.99, "parameter_groups": [{"match": ["*.bias", "*norm*"], "weight_decay": 0}]}
    plan = str(show(make_config(VALID | {"optimization": walk})))
    assert "*.bias, *norm*: decay 0" in plan and "an average of the weights, decay 0.99" in plan
    many = {"optimization": {"batch_size": 2, "gradient_accumulation_steps": 2}, "checkpoints": {"interval": 5}}
    assert all(words in str(show(make_config(VALID | many))) for words in ("each of 4 clips a device", "every 5 steps"))


@pytest.mark.parametrize(
    "flow, samples, line",
    [
        ({}, True, "training follows the clip's own token count; samples use the official 4,096 tokens (a shift of 2.05)"),
        ({"timestep_sampling_params": {"max_shift": 2.5}}, False, "training follows the clip's own token count up to a shift of 2.5"),
        ({"timestep_sampling_mode": "uniform"}, False, "training draws evenly from 0 to 1"),
    ],
)  # fmt: skip
def test_plan_says_which_noise_levels_are_used(flow, samples, line):
    given = changed("validation.interval", 10 if samples else None, changed("flow_matching", flow))
    assert dict(row[1:] for row in plan_rows(make_config(given)))["noise levels"] == line


def test_the_noise_levels_in_the_plan_are_those_of_the_samplers():
    from ltx_nb.flow.samplers import DEFAULT_SHIFT, DEFAULT_TOKENS

    assert f"{DEFAULT_TOKENS:,} tokens (a shift of {DEFAULT_SHIFT:g})" in str(show(make_config(VALID)))


# --- warnings


@pytest.mark.parametrize("read", ["model", "make", "load"])
def test_a_warning_names_the_line_that_asked(tmp_path, read):
    given = changed("validation.prompts", ["snow"])
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    readers = {
        "model": lambda: LtxTrainerConfig.model_validate(given),
        "make": lambda: make_config(given),
        "load": lambda: load_config(tmp_path / "a.yaml", check_files=False),
    }
    with pytest.warns(ConfigWarning, match="ignored") as caught:
        readers[read]()
    assert [warning.filename for warning in caught] == [__file__]


def test_the_negative_prompt_of_the_samples_is_the_public_one():
    assert make_config(VALID).validation.negative_prompt == DEFAULT_NEGATIVE_PROMPT


# --- anything at all

KEYS = st.sampled_from(
    [
        *SECTIONS,
        "seed",
        "output_dir",
        "name",
        "type",
        "video",
        "audio",
        "conditions",
        "samples",
        "prompts",
        "images",
        "prompt",
        "is_generated",
        "latents_dir",
        "model_path",
        "preprocessed_data_root",
        "scheduler_params",
        "steps",
        "video_dims",
        "flexible",
        "mask",
        "stg_scale",
        "guidance_scale",
        "reference_videos",
        "scheduler_type",
        "timestep_sampling_params",
    ]
) | st.text(max_size=3)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "flexible",
            "text_to_video",
            "video_to_video",
            "mask",
            "prefix",
            "lora",
            "full",
            "~",
            "a\0b",
            "\ud800",
            "x" * 300,
            1e400,
        ]
    )
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=4),
    max_leaves=12,
)


def accepted_or_refused(given, check_files):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        try:
            return make_config(given, check_files)
        except ConfigError as error:
            assert len(str(error)) < 20_000


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS | st.integers(), ANYTHING, max_size=5), st.booleans())
def test_any_mapping_is_a_configuration_or_a_config_error(given, check_files):
    accepted_or_refused(given, check_files)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(
        [
            "model",
            "lora",
            "training_strategy",
            "training_strategy.video",
            "training_strategy.video.conditions",
            "optimization",
            "optimization.scheduler_params",
            "flow_matching.timestep_sampling_params",
            "validation",
            "validation.samples",
            "validation.samples.0.conditions",
            "validation.prompts",
            "data.preprocessed_data_root",
            "model.model_path",
            "hub",
            "validation.samples.0",
            "validation.video_dims",
            "output_dir",
            "checkpoints",
            "acceleration",
        ]
    ),
    ANYTHING,
)
def test_any_value_anywhere_in_a_valid_configuration_is_taken_or_refused(path, value):
    config = accepted_or_refused(changed(path, value), check_files=False)
    if config:
        assert make_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.filterwarnings("ignore::ltx_nb.config.section.ConfigWarning")
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab:- \n[]{}&*!|>'\"#,?1.e~%@\t", max_size=40))
def test_any_text_is_a_configuration_or_a_config_error(text, tmp_path):
    path = tmp_path / "any.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(path)


def places(value, path=()):
    "Every place of a configuration: the paths of all its keys and entries."
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield (*path, key)
        yield from places(child, (*path, key))


EXAMPLES = {name: yaml.safe_load(config_text(name)) for name in example_configs()}
NUMBERS = st.sampled_from([0, -1, 1, 2, 7, 8, 9, 16, 31, 33, 64, 1e-9, 0.5, 1.5, 1e9, 10**6, 10**12])
PIECES = st.sampled_from(
    [EXAMPLES[name][section] for name in EXAMPLES for section in ("validation", "training_strategy")]
)


@st.composite
def mutated_examples(draw):
    "An example in which a few places were removed, replaced, renamed or filled from another place."
    given = copy.deepcopy(draw(st.sampled_from(list(EXAMPLES.values()))))
    for _ in range(draw(st.integers(1, 4))):
        *parents, last = draw(st.sampled_from(list(places(given)) or [("model",)]))
        here = given
        for part in parents:
            here = here[part]
        match draw(st.sampled_from(["remove", "replace", "rename", "double", "number", "move"])):
            case "remove":
                here.pop(last, None) if isinstance(here, dict) else here.pop(last)
            case "replace":
                here[last] = draw(ANYTHING)
            case "number":
                here[last] = draw(NUMBERS)
            case "move":
                here[last] = copy.deepcopy(draw(PIECES))
            case "rename" if isinstance(here, dict) and last in here:
                here[draw(KEYS)] = here.pop(last)
            case "double" if isinstance(here, list):
                here.append(copy.deepcopy(here[last]))
    return given


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(mutated_examples(), st.booleans())
def test_a_damaged_example_is_refused_or_has_a_plan(given, check_files):
    "Spec of bad input: a message or a valid plan, never a traceback."
    config = accepted_or_refused(given, check_files)
    if config:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)
            assert str(show(config)) and make_config(config.model_dump(mode="json")) == config


@pytest.mark.filterwarnings("ignore::ltx_nb.config.section.ConfigWarning")
def test_a_file_that_contains_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "model: &a {model_path: *a, lora: [*a, *a]}\nlora: *a\n" + yaml.safe_dump({"data": VALID["data"]}),
        encoding="utf-8",
    )
    with pytest.raises(ConfigError):
        load_config(tmp_path / "a.yaml")


# --- names that people know


@pytest.mark.parametrize("room, union", [(strategy, strategy.ConditionConfig), (samples, samples.ValidationCondition)])
def test_condition_classes_have_the_names_of_the_ltx_trainer(room, union):
    for model in models_in(union):
        name = "".join(word.title() for word in tag_of(model).split("_")) + "ConditionConfig"
        assert model.__name__ == name and getattr(room, name) is model


@pytest.mark.parametrize("name", LtxTrainerConfig.model_fields)
def test_the_class_of_every_section_stands_beside_the_whole(name):
    for model in models_in(LtxTrainerConfig.model_fields[name].annotation):
        assert name == "training_strategy" or getattr(schema, model.__name__) is model
    assert schema.TrainingStrategyConfig is strategy.TrainingStrategyConfig


# --- a quick look says yes only where the loader would


def tensors(*spans, dtype="F32", shape=(2,)):
    return {f"w{i}": {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)} for i, span in enumerate(spans)}


FILES = {  # entries of the header, bytes behind it, whether it is whole
    "one tensor": (tensors((0, 8)), 8, True),
    "two tensors, the last first": (tensors((8, 16), (0, 8)), 16, True),
    "half precision": (tensors((0, 4), dtype="BF16"), 4, True),
    "eight bits": (tensors((0, 2), dtype="F8_E4M3"), 2, True),
    "truth values": (tensors((0, 2), dtype="BOOL"), 2, True),
    "a single number": (tensors((0, 4), shape=()), 4, True),
    "none": ({}, 0, True),
    "cut short": (tensors((0, 8)), 7, False),
    "something behind": (tensors((0, 8)), 9, False),
    "a gap": (tensors((0, 8), (9, 17)), 17, False),
    "an overlap": (tensors((0, 8), (4, 12)), 12, False),
    "not from the start": (tensors((1, 9)), 9, False),
    "another size than its shape": (tensors((0, 8), shape=(3,)), 8, False),
    "backwards": (tensors((8, 0)), 8, False),
    "no offsets": ({"w": {"dtype": "F32", "shape": [2]}}, 8, False),
    "a list": ([1], 8, False),
}


@pytest.mark.parametrize("entries, size, whole", FILES.values(), ids=FILES)
def test_a_quick_look_at_a_file_agrees_with_its_loader(tmp_path, entries, size, whole):
    if isinstance(entries, dict):
        entries = entries | {"__metadata__": {"config": "{}"}}
    header, path = json.dumps(entries).encode(), tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    assert looks_whole(path) == whole
    try:
        read_header(path)
    except ValueError:
        assert not whole
    else:
        assert whole


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors", None])
def test_a_quick_look_at_gemma_agrees_with_its_loader(machine, missing):
    if missing:
        (machine / "gemma" / missing).unlink()
    assert looks_like_gemma(machine / "gemma") == (missing is None)
    if missing:
        with pytest.raises((ValueError, OSError)):
            find_gemma(machine / "gemma")
    else:
        assert find_gemma(machine / "gemma").weights == machine / "gemma"


@pytest.mark.parametrize(
    "config", [{"model_type": "gemma2"}, {"model_type": "gemma3_text"}, [], {"model_type": "gemma3", "text_config": 3}]
)
def test_a_configuration_that_is_not_gemmas_is_not_taken_for_it(machine, config):
    (machine / "gemma" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not looks_like_gemma(machine / "gemma")


def test_a_shard_of_gemma_that_its_index_names_is_missed(machine):
    index = {"weight_map": {"w": "model.safetensors", "v": "more.safetensors"}}
    (machine / "gemma" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert not looks_like_gemma(machine / "gemma")
    assert "more.safetensors" in refusal(VALID, check_files=True)


HEAVY = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "numpy", "av", "rich")


def test_a_typing_error_is_told_without_anything_heavy(machine):
    "Modules are counted and not seconds: PyTorch alone takes longer than the second that an answer may take."
    (machine / "a.yaml").write_text(yaml.safe_dump(changed("lora.rnk", 8)), encoding="utf-8")
    code = "import sys; from ltx_nb.tools.cli import main\ntry: main(['train', 'a.yaml'])\n"
    code += f"except SystemExit: print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert "lora.rnk: unknown key; did you mean rank?" in done.stderr and done.stderr.count("\n  - ") == 1
    assert not done.stdout.split()


def test_reading_a_configuration_does_not_import_torch():
    code = "import sys; from ltx_nb.config.files import load_config; load_config('t2v_lora', check_files=False)"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
