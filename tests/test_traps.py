"What is accepted acts; what would not, or means something else to YAML than to its writer, is refused."

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ltx_nb.config.files import load_config, make_config, parse_override, read_yaml
from ltx_nb.data.prepare import prepare
from ltx_nb.flow.conditions import Condition
from ltx_nb.flow.samplers import get_timestep_sampler
from ltx_nb.flow.sampling import Guidance
from ltx_nb.flow.strategies import TEXT_TO_VIDEO, FlexibleStrategy
from ltx_nb.model.latents import ConfigError
from ltx_nb.training.request import Request
from ltx_nb.training.validation import generate
from tiny_runs import configure, make_place, make_trainer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("traps"))


@pytest.mark.parametrize(("text", "means"), [("010", 8), ("1:30", 90), ("-017", -15), ("00", 0)])
def test_numbers_that_yaml_reads_otherwise_are_refused(text, means):
    with pytest.raises(ConfigError, match=f"is {means} to YAML"):
        read_yaml(f"optimization: {{steps: {text}}}", "it")
    with pytest.raises(ConfigError, match=f"is {means} to YAML"):
        parse_override(f"optimization.steps={text}")


@pytest.mark.parametrize("text", ["0", "10", "1e-4", "0x10", "1_000", "'010'"])
def test_other_numbers_are_read(text):
    assert read_yaml(f"a: {text}", "it")["a"] is not None


@pytest.mark.parametrize(
    "field", ["seed", "optimization.steps", "optimization.learning_rate", "lora.rank", "data.held_out"]
)
@pytest.mark.parametrize("word", ["yes", "on", "true", "no"])
def test_a_switch_is_no_number(field, word):
    with pytest.raises(ConfigError, match=f"{field}: given .(true|false).; .*valid"):
        load_config("tiny_t2v_lora", [f"{field}={word}"], check_files=False)


def test_switches_still_switch():
    config = load_config(
        "tiny_t2v_lora", ["checkpoints.save_training_state=off", "validation.generate_audio=no"], False
    )
    assert config.checkpoints.save_training_state == "off" and not config.validation.generate_audio


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", ["a.png"]),
        ("reference_videos", ["a.mp4"]),
        ("include_reference_in_output", True),
        ("reference_downscale_factor", 2),
    ],
)
def test_fields_of_prompts_need_prompts(field, value):
    given = load_config("tiny_t2v_lora", check_files=False).model_dump(mode="json")
    given["validation"] |= {field: value, "samples": []}
    with pytest.raises(ConfigError, match=f"{field} belong"):
        make_config(given)


def test_no_resume_needs_something_to_take():
    with pytest.raises(ConfigError, match="checkpoints.no_resume: given true, but model.load_checkpoint is not set"):
        load_config("tiny_t2v_lora", ["checkpoints.no_resume=true"], check_files=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_eight_bits_on_a_cpu_are_refused_by_the_name_of_the_field(place, tmp_path):
    with pytest.raises(ConfigError, match="acceleration.load_text_encoder_in_8bit: needs a CUDA device"):
        configure(place, tmp_path, acceleration__load_text_encoder_in_8bit=True)


def test_captions_of_an_older_checkpoint_are_named(place, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(place.data, data)
    for path in (data / "conditions").rglob("*.safetensors"):
        save_file({"prompt_embeds": torch.ones(128, 48), "prompt_attention_mask": torch.ones(128)}, path)
    with pytest.raises(ValueError, match=r"caption .*safetensors is of an older checkpoint than ltx-2.3-tiny"):
        make_trainer(place, tmp_path / "run", data__preprocessed_data_root=data).load()


# what the caller has set for all of PyTorch


@pytest.fixture
def usual_dtype():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("usual_dtype")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_default_dtype_is_said_before_anything_is_made(place, tmp_path, dtype):
    trainer = make_trainer(place, tmp_path / "run")
    torch.set_default_dtype(dtype)
    for ask in (
        trainer.train,
        lambda: generate("a ball", place.model, place.text_encoder, tmp_path / "a.mp4"),
        lambda: prepare(tmp_path, tmp_path / "data", place.model, place.text_encoder, "64x64x9"),
    ):
        with pytest.raises(ValueError, match="default dtype is .*set_default_dtype"):
            ask()
    assert not (tmp_path / "a.mp4").exists() and not (tmp_path / "data").exists()


@pytest.mark.usefixtures("usual_dtype")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sampler", ["uniform", "shifted_logit_normal"])
def test_the_inputs_of_a_step_are_the_same_under_any_default_dtype(dtype, sampler):
    draw = lambda *shape: torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    batch = {"latents": {"latents": draw(128, 2, 2, 2)}, "audio_latents": {"latents": draw(8, 6, 16)}}
    batch["conditions"] = {"video_context": draw(5, 32), "audio_context": draw(5, 16)}
    plan = replace(TEXT_TO_VIDEO, video=replace(TEXT_TO_VIDEO.video, conditions=(Condition("first_frame", 0.5),)))

    def made():
        given = batch, get_timestep_sampler(sampler, {}), torch.Generator().manual_seed(0)
        inputs = FlexibleStrategy(plan).prepare_training_inputs(*given)
        return [
            inputs.video.latent,
            inputs.video.sigma,
            inputs.video_targets,
            inputs.audio.latent,
            inputs.audio_targets,
        ]

    usual = made()
    torch.set_default_dtype(dtype)
    for before, now in zip(usual, made(), strict=True):
        assert now.dtype == torch.float32 and torch.equal(before, now)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_said_and_generating_is_the_same(place, tmp_path, mode):
    trainer = make_trainer(place, tmp_path / "run")
    with mode(), pytest.raises(ValueError, match=f"inside torch.{mode.__name__}"):
        trainer.train()
    small = dict(width=32, height=32, frames=9, fps=12, steps=1, guidance=Guidance.off(), device="cpu")
    ask = lambda: generate("a ball", place.model, place.text_encoder, **small).frames
    usual = ask()
    with mode():
        assert torch.equal(ask(), usual)


@pytest.mark.parametrize("seed", [2**64, 2**63, -1, 1.5, "1"])
def test_a_seed_that_a_generator_cannot_take_is_said(seed):
    with pytest.raises(ValueError, match="whole number from 0"):
        Request("a ball", seed=seed)


FOLDERS = {
    "latents_dir": lambda name: {"video": {"is_generated": True, "latents_dir": name}},
    "audio latents_dir": lambda name: {"audio": {"is_generated": True, "latents_dir": name}},
    "mask_dir": lambda name: condition({"type": "mask", "mask_dir": name}),
    "reference": lambda name: condition({"type": "reference", "latents_dir": name}),
    "audio_latents_dir": lambda name: {"name": "text_to_video", "with_audio": True, "audio_latents_dir": name},
    "reference_latents_dir": lambda name: {"name": "video_to_video", "reference_latents_dir": name},
}


def condition(block):
    return {"video": {"is_generated": True, "latents_dir": "latents", "conditions": [block]}}


def folder_read(field, name):
    given = load_config("tiny_t2v_lora", check_files=False).model_dump(mode="json")
    return make_config(given | {"training_strategy": FOLDERS[field](name)}).training_strategy.roles()


@pytest.mark.parametrize(
    "name", ["../victim", "/etc", "a/../../b", "..", ".", "/", "a//b", "a\\b", "a\x00b", "~/../x/.."]
)
@pytest.mark.parametrize("field", FOLDERS)
def test_a_folder_of_the_dataset_stays_in_it(field, name):
    with pytest.raises(ConfigError, match="_dir: given .*a folder inside the dataset is expected") as error:
        folder_read(field, name)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name, means", [("my/own", "my/own"), ("./own/", "own"), ("..own", "..own"), ("手", "手")])
@pytest.mark.parametrize("field", FOLDERS)
def test_other_folders_are_read_by_their_name(field, name, means):
    assert means in folder_read(field, name)
