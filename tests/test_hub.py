"What a hub gets of a run: all that others need, and nothing that should stay at home. The hub is a stand-in."

import dataclasses
import inspect
import json
import shutil

import pytest
import yaml
from hub_standin import hub_standin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_tracking import SAMPLES
from tiny_runs import make_place, make_trainer, names, told, train

from ltx_nb.data.store import note_trigger
from ltx_nb.training.hub import card_header, model_card, publication, push_to_hub, run_facts, without_paths
from ltx_nb.training.tracking import curve, read_metrics
from ltx_nb.tools.cli import main

CHANGES = SAMPLES | {"checkpoints.interval": 1, "lora.rank": 64, "data.held_out": 1, "optimization.batch_size": 1}
REPOSITORY = "me/orange-ball"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("hub"))
    note_trigger(place.data, "zanzibar")
    return place


@pytest.fixture(scope="module")
def run(place):
    train(place, place.folder / "outputs" / "ball", **CHANGES)
    return place.folder / "outputs" / "ball"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with hub_standin() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        yield hub


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


def test_a_run_arrives_whole_private_and_without_a_trace_of_its_machine(hub, run, place):
    assert push_to_hub(run, REPOSITORY, token="hf_secret", endpoint=hub.address) == f"{hub.address}/{REPOSITORY}"
    files = hub.files[REPOSITORY]
    assert set(files) == {"README.md", "orange-ball.safetensors", "training_config.yaml", "samples/step_000002_1.mp4"}
    assert hub.private[REPOSITORY] is True and hub.tokens - {""} == {"hf_secret"}
    assert files["orange-ball.safetensors"] == (run / "checkpoints/lora_weights_step_00002.safetensors").read_bytes()
    for name, content in files.items():
        for trace in (str(place.folder), str(place.folder.parent), "hf_secret", place.data.name + "/"):
            assert trace.encode() not in content, (name, trace)
    config = yaml.safe_load(files["training_config.yaml"])
    assert config["model"]["model_path"] == place.model.name and not {"wandb", "hub", "output_dir"} & config.keys()


def test_the_card_says_what_others_need(run):
    facts = run_facts(run)
    facts = dataclasses.replace(facts, metadata=facts.metadata | {"base_model": "my-own-ltx.safetensors"})
    card = model_card(facts, REPOSITORY)
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["instance_prompt"] == "zanzibar" and header["pipeline_tag"] == "text-to-video"
    assert header["widget"] == [{"text": "a red ball", "output": {"url": "samples/step_000002_1.mp4"}}]
    for words in (
        "begin your prompts with it", "LoraLoaderModelOnly", "ltx_pipelines.ti2vid_one_stage", "--lora orange-ball.safetensors",
        "| clips | 3 |", "| sizes (width x height x frames) | 32x32x9 |", "| steps | 2 |", "held out loss", "| rank, alpha | 64,",
        '<video src="samples/step_000002_1.mp4" width="320" controls>', "by the run itself, at step 2", "seconds |", "ltx-nb generate \"zanzibar",
    ):  # fmt: skip
        assert words in card, words


def test_a_lora_for_the_tiny_model_says_that_only_we_can_read_it(run):
    card = model_card(run_facts(run), REPOSITORY)
    assert "--model tiny --lora orange-ball.safetensors" in card and "no other program knows it" in card
    assert not {"ComfyUI", "ltx_pipelines", "library_name"} & set(card.replace("/", " ").replace(":", " ").split())


def test_first_and_last_losses_are_of_different_steps(run):
    first, last = run_facts(run).losses["training"]
    assert [first, last] == curve(read_metrics(run), "train/loss")[1]


def test_a_published_base_model_brings_its_licence_and_the_lines_for_diffusers(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    weights = next((copy / "checkpoints").glob("lora*00002*"))
    with safe_open(weights, "pt") as file:
        said = file.metadata() | {"base_model": "ltx-2.3-22b-dev.safetensors", "reference_downscale_factor": "2"}
    save_file(load_file(weights), weights, said)
    facts = run_facts(copy)
    header = card_header(facts)
    assert header["base_model"] == "Lightricks/LTX-2.3" and header["base_model_relation"] == "adapter"
    assert header["license_name"] == "ltx-2-community-license" and "LTX-2.3" in header["license_link"]
    card = model_card(facts, REPOSITORY)
    assert 'pipe.load_lora_weights("me/orange-ball", weight_name="orange-ball.safetensors")' in card
    assert "`reference_downscale_factor` is 2" in card and "width=32, height=32, num_frames=9" in card
    assert card_header(facts, "mit")["license"] == "mit" and "license_name" not in card_header(facts, "mit")


def test_the_lines_for_diffusers_name_what_diffusers_has():
    from diffusers import LTX2Pipeline

    assert callable(LTX2Pipeline.load_lora_weights) and callable(LTX2Pipeline.enable_model_cpu_offload)
    asked = inspect.signature(LTX2Pipeline.__call__).parameters
    assert {"prompt", "width", "height", "num_frames", "return_dict"} <= asked.keys()


def test_a_broken_upload_goes_on_where_it_was(hub, run):
    hub.break_after = 1
    send = lambda: push_to_hub(run, REPOSITORY, all_checkpoints=True, token="t", endpoint=hub.address)
    with pytest.raises(OSError, match="push again to go on"):
        send()
    assert REPOSITORY not in hub.files and len(hub.stored) == 1  # nothing half is visible
    hub.break_after = None
    send()
    assert hub.uploads == len(hub.stored) and "checkpoints/lora_weights_step_00001.safetensors" in hub.files[REPOSITORY]
    send()  # nothing new
    assert hub.uploads == len(hub.stored)


@pytest.mark.parametrize(("status", "said"), [(401, "token is not valid"), (403, "may not write there")])
def test_a_refusal_is_a_sentence(hub, run, status, said):
    hub.refuse = status
    with pytest.raises(OSError, match=said):
        push_to_hub(run, REPOSITORY, token="t", endpoint=hub.address)


def test_nobody_is_logged_in_or_the_line_is_down(hub, run):
    with pytest.raises(PermissionError, match="hf auth login"):
        push_to_hub(run, REPOSITORY, endpoint=hub.address)
    assert not hub.private
    with pytest.raises(OSError, match="was not sent"):
        push_to_hub(run, REPOSITORY, token="t", endpoint="http://127.0.0.1:9")


def test_a_dry_run_writes_a_folder_and_asks_nobody(hub, run, capsys, tmp_path):
    code, out, _ = call(capsys, "push", run, REPOSITORY, "--dry-run", "-o", tmp_path / "look", "--license", "mit")
    assert code == 0 and "nothing was sent" in out and "orange-ball.safetensors" in out
    assert names(tmp_path / "look") == ["README.md", "orange-ball.safetensors", "samples", "training_config.yaml"]
    assert not hub.tokens and "license: mit" in (tmp_path / "look" / "README.md").read_text()


def test_the_command_sends_and_says_where_to(hub, run, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    code, out, _ = call(capsys, "push", run, REPOSITORY, "--public")
    assert code == 0 and out.splitlines()[-1] == f"{hub.address}/{REPOSITORY}"
    assert hub.private == {REPOSITORY: False}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "me/ball"], "no checkpoint at nowhere"),
        (["{run}", "ball"], "expected user/name"),
        (["{run}", "../ball"], "expected user/name"),
    ],
)
def test_a_mistake_is_a_sentence(hub, run, capsys, arguments, said):
    code, _, err = call(capsys, "push", *(text.format(run=run) for text in arguments))
    assert code == 1 and said in err and "Traceback" not in err and not hub.tokens


def test_a_run_sends_itself_at_its_end_and_is_done_if_that_fails(hub, place, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    asked = {"hub.push_to_hub": True, "hub.hub_model_id": "me/auto"}
    trainer = make_trainer(place, tmp_path / "one", **asked)
    assert trainer.train().steps == 2 and f"Sent to {hub.address}/me/auto" in told(trainer)
    assert "auto.safetensors" in hub.files["me/auto"] and hub.private["me/auto"]
    hub.refuse = 403
    trainer = make_trainer(place, tmp_path / "two", **asked)
    assert trainer.train().steps == 2 and "ltx-nb push" in told(trainer)


def test_an_upload_needs_a_token_before_the_run_begins(hub, place, tmp_path):
    with pytest.raises(ValueError, match="hub.push_to_hub: nobody is logged in"):
        make_trainer(place, tmp_path / "run", **{"hub.push_to_hub": True, "hub.hub_model_id": "me/auto"})


def test_a_run_of_the_ltx_trainer_has_a_card_too(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    weights = load_file(run / "checkpoints/lora_weights_step_00002.safetensors")
    save_file(weights, tmp_path / "checkpoints" / "lora_weights_step_00500.safetensors")
    found = publication(tmp_path, REPOSITORY)
    assert set(found) == {"README.md", "orange-ball.safetensors"} and "| steps | 500 |" in found["README.md"]


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("/data/clip.mp4", "clip.mp4"), ("~/clip.mp4", "clip.mp4"), ("..\\a\\clip.mp4", "clip.mp4"), ("D:/a/clip.mp4", "clip.mp4"),
        ("\\\\server\\share\\clip.mp4", "clip.mp4"), ("a ball / a dog", "a ball / a dog"), ("to_out.0", "to_out.0"), (3, 3), (None, None),
    ],
)  # fmt: skip
def test_paths_lose_their_folders_and_nothing_else_does(value, left):
    assert without_paths({"a": [value]}) == {"a": [left]} and json.dumps(without_paths([value]))
