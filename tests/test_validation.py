"Clips on request: what is refused, what is loaded, what comes out, and that a model is left as it was."

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import configure, make_place, names

from ltx_nb.data.media import probe, read_sound, read_video, write_image, write_sound, write_video
from ltx_nb.flow.sampling import Guidance
from ltx_nb.model.latents import ScaleFactors
from ltx_nb.loading.checkpoint import CheckpointError, load_transformer, read_header, read_metadata
from ltx_nb.loading.lora import add_lora, fuse_lora, lora_layers, save_lora
from ltx_nb.training.progress import make_progress
from ltx_nb.training.request import Request, read_media
from ltx_nb.tiny.checkpoint import file_tensors, make_tiny_checkpoint
from ltx_nb.config.samples import DEFAULT_NEGATIVE_PROMPT
from ltx_nb.training.validation import (
    Generated,
    ValidationRunner,
    decode_latents,
    encode_given,
    encode_prompts,
    generate,
    texts_of,
    walk,
)

PROMPT = "a rabbit yawns, birds sing"
SMALL = {"width": 32, "height": 32, "frames": 9, "steps": 2, "guidance": Guidance.off()}
SILENT, UNSEEN = {"audio": False}, {"video": False}
GUIDED = Guidance(stg_blocks=(1,))
NTSC = Fraction(24000, 1001)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("validation"))


def make(place, **options):
    return generate(PROMPT, place.model, place.text_encoder, **SMALL | options)


def without(place, folder, *prefixes):
    "A checkpoint that lacks the components with these prefixes."
    with safe_open(place.model, "pt") as file:
        metadata = file.metadata()
    kept = {name: tensor for name, tensor in load_file(place.model).items() if not name.startswith(prefixes)}
    assert 0 < len(kept) < len(load_file(place.model))
    save_file(kept, folder / place.model.name, metadata)
    return replace(place, model=folder / place.model.name)


# requests


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 100}, "(?s)100.*96.*128"),
        ({"height": 0}, "0"),
        ({"frames": 24}, "(?s)24.*17.*25"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"video": False, "audio": False}, "both are switched off"),
        ({"steps": 0}, "at least 1"),
        ({"fps": 0}, "frame rate.*0"),
        ({"fps": -24.0}, "frame rate.*-24"),
        ({"fps": float("nan")}, "frame rate.*nan"),
    ],
)
def test_requests_that_cannot_be_met(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(Request(PROMPT, **SMALL), **wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 4}, "no option 'step': did you mean steps"),
        ({"inference_step": 4}, "did you mean inference_steps"),
        ({"model_path": "ltx.safetensors"}, "here it is model="),
        ({"video_cfg_scale": 3}, r"guidance=Guidance\(video_cfg_scale"),
        ({"steps": 4, "num_inference_steps": 4}, "'steps' twice"),
    ],
)
def test_an_option_that_nobody_knows_names_its_neighbour(tmp_path, options, message):
    with pytest.raises(TypeError, match=message):
        generate(PROMPT, tmp_path / "none.safetensors", tmp_path / "none", **SMALL | options)


@pytest.mark.parametrize(
    "theirs", [{"inference_steps": 1}, {"num_inference_steps": 1, "video_dims": (64, 64, 17), "frame_rate": 12}]
)
def test_the_ltx_trainers_names_make_the_same_clip(place, theirs):
    "One step, as for a distilled model."
    size = {"width": 64, "height": 64, "frames": 17, "fps": 12}
    left = {name: value for name, value in size.items() if "video_dims" not in theirs}
    ours, same = (
        generate(PROMPT, place.model, place.text_encoder, guidance=Guidance.off(), **options)
        for options in (size | {"steps": 1}, left | theirs)
    )
    assert torch.equal(ours.frames, same.frames) and torch.equal(ours.sound, same.sound)


def test_a_wrong_request_is_refused_before_anything_is_opened(tmp_path):
    with pytest.raises(ValueError, match="multiple of 32"):
        generate(PROMPT, tmp_path / "none.safetensors", tmp_path / "none", width=33)


def test_the_samples_of_a_run_are_as_configured(place, tmp_path):
    samples = [{"prompt": "a", "seed": 0}, {"prompt": "b", "video_dims": [64, 32, 17]}, {"prompt": "c"}]
    config = configure(
        place, tmp_path, validation__interval=1, validation__samples=samples, validation__seed=5,
        validation__frame_rate=25.0, validation__video_cfg_scale=2.5, validation__generate_audio=False,
    )  # fmt: skip
    found = ValidationRunner(config, "cpu", torch.float32).requests
    assert [(r.prompt, r.seed, r.width, r.height, r.frames) for r in found] == [
        ("a", 0, 32, 32, 9), ("b", 5, 64, 32, 17), ("c", 5, 32, 32, 9),
    ]  # fmt: skip
    assert {(r.fps, r.steps, r.video, r.audio, r.guidance.video_cfg_scale) for r in found} == {
        (25.0, 2, True, False, 2.5)
    }
    assert ValidationRunner(configure(place, tmp_path), "cpu", torch.float32).requests == []


# seeds


def test_the_seed_decides_and_zero_is_a_seed(place):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    clip, others = make(place, seed=0), [make(place, seed=1), make(place)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again = make(place, seed=0)
    assert torch.equal(clip.frames, again.frames) and torch.equal(clip.sound, again.sound)
    for other in others:  # the second has the seed that is taken where none is given
        assert not torch.equal(clip.frames, other.frames) and not torch.equal(clip.sound, other.sound)


def test_several_requests_are_the_clips_of_each_alone(place, tmp_path):
    requests = [Request(PROMPT, **SMALL), Request("a drum", **SMALL | SILENT | {"frames": 17, "seed": 3})]
    made = generate(requests, place.model, place.text_encoder, [tmp_path / "one", tmp_path / "two"])
    alone = (
        make(place),
        generate("a drum", place.model, place.text_encoder, **SMALL | SILENT | {"frames": 17, "seed": 3}),
    )
    for one, other in zip(made, alone, strict=True):
        assert torch.equal(one.frames, other.frames) and (one.sound is None) == (other.sound is None)
    assert torch.equal(made[0].sound, alone[0].sound) and sorted(path.name for path in tmp_path.iterdir()) == [
        "one.mp4",
        "two.mp4",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [({"output": ["a"]}, "2 requests and 1 outputs"), ({"seed": 1}, "seed belong into each Request")],
)
def test_requests_and_outputs_have_to_go_together(place, more, message):
    with pytest.raises(ValueError, match=message):
        generate([Request(PROMPT, **SMALL)] * 2, place.model, place.text_encoder, **more)


def test_an_older_decoder_that_adds_noise_follows_the_seed_too(place, tmp_path):
    header = read_header(place.model)
    header["vae"]["timestep_conditioning"] = True
    path = tmp_path / "older.safetensors"
    save_file(
        {k: v.bfloat16() for k, v in file_tensors(header).items() if "vae" in k}, path, {"config": json.dumps(header)}
    )
    latents = {"video": torch.randn(1, 128, 2, 1, 1)}
    frames = [
        decode_latents([(read_media(Request(PROMPT, **SMALL, seed=seed)), latents)], path)[0].frames
        for seed in (0, 0, 1)
    ]
    assert torch.equal(frames[0], frames[1]) and not torch.equal(frames[0], frames[2])


@pytest.mark.parametrize("version", ["2", "2.3"])
def test_both_versions_make_a_clip_with_default_guidance(tmp_path, version):
    tiny = make_tiny_checkpoint(tmp_path, version)
    made = generate(PROMPT, tiny.model, tiny.text_encoder, **SMALL | {"guidance": None, "width": 64, "height": 64})
    assert made.frames.shape == (9, 3, 64, 64) and made.frames.float().std() > 0
    assert made.sound.shape == (2, round(9 / 24 * made.sample_rate)) and made.sound.isfinite().all()


# files


@pytest.mark.parametrize(
    ("name", "frames", "sound", "file"),
    [
        ("clip", 9, True, "clip.mp4"),
        ("clip", 1, True, "clip.mp4"),  # one picture with sound is a film
        ("clip", 1, False, "clip.png"),
        ("clip", 0, True, "clip.wav"),
        ("lora_v1.5", 9, True, "lora_v1.5.mp4"),
        ("lora_v1.5", 0, True, "lora_v1.5.wav"),
        ("clip.MP4", 9, False, "clip.MP4"),
        ("clip.mov", 9, True, "clip.mov"),
        ("clip.webm", 9, True, "clip.webm"),
        ("clip.flac", 0, True, "clip.flac"),
        ("clip.mp3", 0, True, "clip.mp3"),
    ],
)
def test_the_kind_of_file_is_the_one_that_was_asked_for(tmp_path, name, frames, sound, file):
    pictures = torch.randint(0, 255, (frames, 3, 32, 32), dtype=torch.uint8) if frames else None
    made = Generated(pictures, torch.rand(2, 48000) - 0.5 if sound else None, 24.0, 48000)
    path = made.save(tmp_path / "new folder" / name)
    assert path.name == file and names(tmp_path / "new folder") == [file]
    info = probe(path)
    assert (info.frames, info.has_sound) == (frames, sound)


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_a_picture_leaves_sound_out(tmp_path, name):
    pictures = torch.randint(0, 255, (9 if "gif" in name else 1, 3, 32, 32), dtype=torch.uint8)
    path = Generated(pictures, torch.rand(2, 4800) - 0.5, 24.0, 48000).save(tmp_path / name)
    info = probe(path)
    assert (path.name, info.frames, info.has_sound, info.width) == (name, len(pictures), False, 32)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp3", {}),
        ("a.wav", {}),
        ("a.png", {}),
        ("a.mkv", {}),
        ("a.mp4", {"video": False}),
        ("a.flac", {"audio": False}),
    ],
)
def test_what_a_file_cannot_hold_is_said_before_anything_is_loaded(tmp_path, name, options):
    with pytest.raises(ValueError, match=name):
        generate("a cat", "no model", "no text encoder", tmp_path / name, frames=9, **options)


@pytest.mark.parametrize("fps", [24000 / 1001, 23.976, 12.5])
def test_rate_and_length_of_a_written_clip(place, tmp_path, fps):
    "W56: 23.976 became 23, and the end of the sound was lost."
    made = make(place, fps=fps, output=tmp_path / "clip")
    info, exact = probe(tmp_path / "clip.mp4"), NTSC if 23.9 < fps < 24 else Fraction(fps)
    assert (info.fps, info.frames) == (exact, 9)
    assert made.sound.shape[1] == round(9 / exact * made.sample_rate)
    read, rate = read_sound(info, 0.0, 9 / exact)
    assert read.shape[1] == round(9 / exact * rate) and info.sound_end == pytest.approx(
        float(9 / exact), abs=1024 / rate
    )


# what is loaded


def test_pictures_need_nothing_of_the_sound(place, tmp_path):
    silent = without(place, tmp_path, "vocoder.", "audio_vae.")
    made = make(silent, **SILENT, output=tmp_path / "silent")
    assert made.sound is None and made.frames.shape == (9, 3, 32, 32) and not probe(tmp_path / "silent.mp4").has_sound
    with pytest.raises(CheckpointError, match="AudioDecoder"):
        make(silent)


def test_sound_needs_nothing_of_the_pictures(place, tmp_path):
    blind = without(place, tmp_path, "vae.")
    made = make(blind, **UNSEEN, output=tmp_path / "birds")
    assert made.frames is None and probe(tmp_path / "birds.wav").duration == pytest.approx(9 / 24, abs=1e-4)
    with pytest.raises(CheckpointError, match="VideoDecoder"):
        make(blind)


@pytest.mark.parametrize(
    ("guidance", "streams", "needed"),
    [
        (None, {}, True),
        (Guidance.off(), {}, False),
        (replace(Guidance.off(), video_cfg_scale=2), {}, True),
        (replace(Guidance.off(), audio_cfg_scale=2), {}, True),
        (replace(Guidance.off(), audio_cfg_scale=2), SILENT, False),
        (replace(Guidance.off(), video_cfg_scale=2), UNSEEN, False),
        (replace(Guidance.off(), video_stg_scale=1, stg_blocks=(0,)), {}, False),
    ],
)
def test_the_negative_prompt_is_read_only_where_it_counts(place, guidance, streams, needed):
    request = Request(PROMPT, **SMALL | streams | {"guidance": guidance})
    assert texts_of([request, request]) == [PROMPT, DEFAULT_NEGATIVE_PROMPT] * 2 if needed else [PROMPT] * 2
    contexts = encode_prompts(texts_of([request, request]), place.model, place.text_encoder, dtype=torch.float32)
    assert list(contexts) == ([PROMPT, DEFAULT_NEGATIVE_PROMPT] if needed else [PROMPT])
    assert walk_of(place, request, contexts).keys() == {"video", "audio"} - {k for k, v in streams.items() if not v}


def walk_of(place, request, contexts, transformer=None):
    transformer, media = transformer or load_transformer(place.model, dtype=torch.float32), read_media(request)
    return walk(transformer, media, media.record, contexts, "cpu", torch.float32, ScaleFactors(), make_progress("none"))


def test_the_negative_prompt_matters(place):
    guided = {"guidance": replace(Guidance.off(), video_cfg_scale=4), **SILENT}
    one, other = (make(place, negative_prompt=text, **guided) for text in ("snow", "a loud drum"))
    assert not torch.equal(one.frames, other.frames)


# the model


@pytest.fixture(scope="module")
def adapted(place):
    "A transformer with adapters that change something, and their file."
    model = load_transformer(place.model, dtype=torch.float32)
    add_lora(model, 4, 8, ["attn1.to_q", "audio_attn1.to_v", "video_to_audio_attn.to_out.0"], dropout=0.5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            weight = layer.lora_B["default"].weight
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model, save_lora(model, place.folder / "some.safetensors", torch.float32)


@pytest.fixture(scope="module")
def contexts(place):
    return encode_prompts([PROMPT, DEFAULT_NEGATIVE_PROMPT], place.model, place.text_encoder, dtype=torch.float32)


@pytest.mark.parametrize("training", [True, False])
def test_sampling_is_done_in_evaluation_mode_and_the_mode_comes_back(place, adapted, contexts, training):
    "W51: the reference samples with LoRA dropout active."
    model, _ = adapted
    model.train(training)
    modes = []
    handle = model.register_forward_pre_hook(lambda module, _: modes.append(any(m.training for m in module.modules())))
    first, second = (walk_of(place, Request(PROMPT, **SMALL), contexts, model) for _ in range(2))
    handle.remove()
    assert modes == [False] * 2 * SMALL["steps"] and all(m.training is training for m in model.modules())
    assert torch.equal(first["video"], second["video"]) and torch.equal(first["audio"], second["audio"])  # no dropout


def test_a_fused_lora_generates_what_its_adapters_generate(place, adapted, contexts):
    model, path = adapted
    request = Request(PROMPT, **SMALL | {"guidance": GUIDED})
    fused, plain = (load_transformer(place.model, dtype=torch.float32) for _ in range(2))
    fuse_lora(fused, path)
    beside, inside, without = (walk_of(place, request, contexts, m) for m in (model, fused, plain))
    for stream in ("video", "audio"):
        # two steps with guidance, which multiplies roundings of 1e-7 by a dozen; without the LoRA: see the next line
        torch.testing.assert_close(inside[stream], beside[stream], rtol=1e-4, atol=1e-4)
        assert (inside[stream] - without[stream]).abs().max() > 1e-2


def test_the_strength_of_a_lora(place, adapted):
    plain, half, full = (
        make(place, lora=adapted[1], lora_strength=s, **SILENT).frames.float() for s in (0.0, 0.5, 1.0)
    )
    assert 0 < (half - plain).abs().mean() < (full - plain).abs().mean()


# what is given


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    "A film with sound, a picture, a mask for each stream."
    folder, draw = tmp_path_factory.mktemp("media"), torch.Generator().manual_seed(3)
    coarse = torch.rand(3, 3, 4, 4, generator=draw)
    frames = torch.nn.functional.interpolate(coarse.movedim(1, 0)[None], (9, 64, 64), mode="trilinear")[0].movedim(0, 1)
    frames = (frames * 255).to(torch.uint8)
    sound = 0.3 * torch.sin(torch.arange(16000) * 0.2).expand(2, -1)
    write_video(folder / "film.mp4", frames, 24, sound[:, :6000], 16000)
    write_sound(folder / "sound.wav", sound[:, :6000], 16000)
    write_image(folder / "picture.png", read_video(folder / "film.mp4", sound=False).frames[0])  # as it was compressed
    left = torch.zeros(3, 64, 64, dtype=torch.uint8)
    left[:, :, :32] = 255
    write_image(folder / "left.png", left)
    (folder / "mask.txt").write_text("0.1-0.3", encoding="utf-8")
    return folder


FILM, SOUND = {"video": "film.mp4"}, {"audio": "sound.wav"}
KINDS = {
    "first_frame": {"image_or_video": "picture.png"},
    "prefix": FILM | {"num_frames": 1},
    "prefix of sound": SOUND | {"duration": 0.2},
    "suffix": FILM | {"num_frames": 8},
    "suffix of sound": SOUND | {"duration": 0.2},
    "spatial_crop": FILM | {"spatial_region": [0, 0, 64, 32]},
    "mask": FILM | {"mask": "left.png"},
    "mask of sound": SOUND | {"mask": "mask.txt"},
    "reference": FILM | {"downscale_factor": 2, "include_in_output": True},
    "reference of sound": SOUND,
    "video_to_audio": FILM,
    "audio_to_video": SOUND,
}
WIDE = {"width": 64, "height": 64, "frames": 9}


def condition(media, kind):
    "As a configuration has it, with the files of the folder."
    fields = {k: str(media / v) if isinstance(v, str) else v for k, v in KINDS[kind].items()}
    return {"type": kind.split()[0], **fields}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_condition_makes_a_clip(place, media, tmp_path, kind):
    made = make(place, **WIDE, conditions=[condition(media, kind)], output=tmp_path / "clip")
    info = probe(tmp_path / "clip.mp4")
    assert made.frames.shape == (9, 3, 64, 64) and info.frames == 9 and info.has_sound
    assert info.width == (128 if kind == "reference" else 64)
    other = make(place, **WIDE)
    assert not torch.equal(made.frames, other.frames) or not torch.equal(made.sound, other.sound)


@pytest.mark.parametrize(
    ("kind", "region"),
    [
        ("first_frame", (slice(0, 1), slice(None))), ("prefix", (slice(0, 1), slice(None))),
        ("suffix", (slice(1, None), slice(None))), ("spatial_crop", (slice(None), slice(0, 1))), ("mask", (slice(None), slice(0, 1))),
    ],
)  # fmt: skip
def test_what_is_given_of_a_picture_is_kept_to_the_last_bit(place, media, contexts, kind, region):
    "Latents of the result equal the input's own encoding, whatever guidance does."
    request = Request(PROMPT, **SMALL | WIDE | {"guidance": GUIDED, "conditions": [condition(media, kind)]})
    read = read_media(request)
    (record,) = encode_given([read], place.model, dtype=torch.float32)
    transformer = load_transformer(place.model, dtype=torch.float32)
    done = walk(transformer, read, record, contexts, "cpu", torch.float32, ScaleFactors(), make_progress("none"))
    frames, columns = region
    kept, given = (x[0, :, frames, :, columns] for x in (done["video"], record["latents"]["latents"]))
    assert torch.equal(kept, given) and given.any()
    whole = encode_given(
        [read_media(replace(request, conditions=[condition(media, "video_to_audio")]))],
        place.model,
        dtype=torch.float32,
    )
    expected = whole[0]["latents"]["latents"][0, :, frames, :, columns]
    # bfloat16 on the way: a number that rounds the other way is 2**-8 off, and few do (1e-7 in the mean); one frame late: 0.1
    assert (given - expected).abs().mean() < 2**-8 * expected.abs().mean()


def test_a_frozen_stream_is_in_the_file_as_it_was_read(place, media):
    "Not through the autoencoder, and whether or not that stream was asked for (W61: explicit rules)."
    given = {"conditions": [condition(media, "video_to_audio")]}
    for video in (True, False):
        made = make(place, **WIDE, **given, video=video)
        assert torch.equal(made.frames, read_video(media / "film.mp4", sound=False).frames)
        assert made.sound.shape == (2, round(9 / 24 * made.sample_rate))
    given = {"conditions": [condition(media, "audio_to_video")]}
    made = make(place, **WIDE, **given, audio=False)
    assert torch.equal(made.sound, read_sound(media / "sound.wav")[0]) and made.sample_rate == 16000


@pytest.mark.parametrize(
    ("kind", "missing", "streams"),
    [
        ("first_frame", ("audio_vae.", "vocoder."), SILENT),
        ("video_to_audio", ("vae.decoder.",), {}),
        ("audio_to_video", ("audio_vae.decoder.", "vocoder."), {}),
        ("prefix of sound", ("vae.",), UNSEEN),
    ],
)
def test_only_the_components_that_a_request_needs_are_loaded(place, media, tmp_path, kind, missing, streams):
    "W43: the reference loads every decoder whatever is asked."
    poor = without(place, tmp_path, *missing)
    assert make(poor, **WIDE, **streams, conditions=[condition(media, kind)]).fps == 24


def test_a_reference_follows_the_lora_that_it_is_for(place, media, adapted):
    "Its factors stand in the file: they need not be said, and may not be contradicted."
    lora = save_lora(adapted[0], place.folder / "half.safetensors", reference_downscale_factor="2")
    reference = {"type": "reference", "video": str(media / "film.mp4"), "include_in_output": True}
    said, unsaid = (
        make(place, **WIDE, lora=lora, conditions=[reference | more]) for more in ({"downscale_factor": 2}, {})
    )
    assert torch.equal(said.frames, unsaid.frames)
    with pytest.raises(ValueError, match="downscale_factor 1, but half.safetensors was trained with 2"):
        make(place, **WIDE, lora=lora, conditions=[reference | {"downscale_factor": 1}])


def test_a_run_generates_samples_with_conditions(place, tmp_path, adapted, media):
    samples = [{"prompt": "a", "conditions": [condition(media, kind)]} for kind in KINDS]
    config = configure(
        place, tmp_path, validation__interval=1, validation__samples=samples, validation__video_dims=[64, 64, 9],
        validation__video_cfg_scale=1.0, validation__audio_cfg_scale=1.0,
    )  # fmt: skip
    runner = ValidationRunner(config, "cpu", torch.float32)
    runner.encode()
    files = runner.run(adapted[0], 0)
    assert len(files) == len(KINDS) and {path.suffix for path in files} == {".mp4"}


def test_prompts_are_encoded_once_for_all_runs(place, tmp_path):
    "W46: the reference encodes the same prompts at every start."
    place = place.with_data("data_of_prompts", 2)
    config = configure(place, tmp_path, validation__interval=1, validation__samples=[{"prompt": "a"}, {"prompt": "b"}])

    def contexts():
        runner = ValidationRunner(config, "cpu", torch.float32)
        runner.encode()
        return runner.contexts

    first, cache = contexts(), place.data / ".contexts" / "prompts"
    kept = sorted(cache.glob("*.safetensors"))
    assert len(kept) == len(first) == 2
    for path in kept:
        save_file({name: 2 * value for name, value in load_file(path).items()}, path, read_metadata(path))
    second = contexts()
    assert all(torch.equal(second[text].video, 2 * first[text].video) for text in first)  # read, not made again
    other = encode_prompts(["a"], place.model, place.text_encoder, dtype=torch.bfloat16, cache=cache)
    assert other["a"].video.dtype == torch.bfloat16 and len(list(cache.glob("*.safetensors"))) == 3


def test_given_content_is_encoded_once_for_all_processes_and_runs(place, tmp_path, media):
    "W45: every process of the reference encodes all media; here whoever comes second reads what the first one kept."
    place = place.with_data("data_of_given", 2)
    picture = write_image(tmp_path / "picture.png", torch.full((3, 64, 64), 90, dtype=torch.uint8))
    given = [{"type": "first_frame", "image_or_video": str(picture)}, condition(media, "prefix of sound")]
    samples = [{"prompt": "a", "conditions": given}]
    config = configure(
        place, tmp_path, validation__interval=1, validation__samples=samples, validation__video_dims=[64, 64, 9]
    )

    def records():
        runner = ValidationRunner(config, "cpu", torch.float32)
        runner.encode()
        return runner.records[0]

    first = records()
    (kept,) = (place.data / ".contexts" / "given").glob("*.safetensors")
    save_file({name: 2 * value for name, value in load_file(kept).items()}, kept, read_metadata(kept))
    second = records()
    for role, record in first.items():
        assert all(torch.equal(second[role][name], 2 * value) for name, value in record.items())  # read, not made again
    write_image(picture, torch.zeros(3, 64, 64, dtype=torch.uint8))  # the same name, another picture
    assert not torch.equal(records()["latents"]["latents"], second["latents"]["latents"])


def test_a_model_that_is_wrapped_for_several_processes_makes_the_same_samples(place, tmp_path, adapted):
    "W50: the reference asks the wrapper for the number of blocks, which it does not know."
    config = configure(
        place, tmp_path, validation__interval=1, validation__samples=[{"prompt": "a"}], validation__stg_blocks=None
    )
    runner = ValidationRunner(config, "cpu", torch.float32)
    runner.encode()
    (plain,) = runner.run(adapted[0], 0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        (wrapped,) = runner.run(torch.nn.parallel.DistributedDataParallel(adapted[0]), 1)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(read_video(plain).frames, read_video(wrapped).frames)


def test_a_sample_that_cannot_be_read_is_named_before_anything_is_loaded(place, tmp_path, media):
    samples = [
        {"prompt": "a"},
        {"prompt": "b", "conditions": [condition(media, "video_to_audio")], "video_dims": [64, 64, 17]},
    ]
    config = configure(place, tmp_path, validation__interval=1, validation__samples=samples)
    with pytest.raises(ValueError, match="validation sample 2: condition 1 .video_to_audio.: film.mp4 has 9 frames"):
        ValidationRunner(config, "cpu", torch.float32)


def test_the_order_of_two_samples_and_of_their_conditions_changes_nothing(place, media):
    kinds = ["first_frame", "suffix of sound", "reference"]
    one, other = (
        make(place, **WIDE, conditions=[condition(media, k) for k in order]) for order in (kinds, kinds[::-1])
    )
    assert (
        torch.equal(one.frames, other.frames)
        and torch.equal(one.sound, other.sound)
        and torch.equal(one.beside, other.beside)
    )


def test_a_runner_writes_its_samples_and_knows_them(place, tmp_path, adapted):
    samples = [{"prompt": "a"}, {"prompt": "b"}]
    config = configure(
        place, tmp_path, validation__interval=1, validation__samples=samples, validation__generate_audio=False
    )
    runner = ValidationRunner(config, "cpu", torch.float32)
    runner.encode()
    assert set(runner.contexts) == {"a", "b"} and not runner.complete(3)
    files = runner.run(adapted[0], 3)
    assert [path.name for path in files] == names(tmp_path / "samples") == ["step_000003_1.mp4", "step_000003_2.mp4"]
    assert runner.complete(3) and runner.paths(3) == files and not runner.complete(30)
    files[0].unlink()
    assert not runner.complete(3)
