"What a request gives: which window of a file, what is refused before anything is loaded, and the same numbers as training."

from fractions import Fraction

import pytest
import torch

from ltx_nb.flow.conditions import Condition
from ltx_nb.data.media import probe, read_sound, read_video, write_image, write_sound, write_video
from ltx_nb.data.encode import encode_pictures, encode_sound
from ltx_nb.model.latents import audio_latent_length
from ltx_nb.training.request import FROZEN, Request, beside, encode_media, read_media
from ltx_nb.flow.strategies import read_streams
from ltx_nb.tiny.checkpoint import tiny_checkpoint
from ltx_nb.tiny.measure import load_world_model
from ltx_nb.tiny.world import TINY, Scene, render

PROMPT = "a red ball, a whistle"
WIDTH, HEIGHT, FRAMES, FPS = 64, 64, 17, 12
GRID, STEPS = (3, 2, 2), audio_latent_length(FRAMES / FPS)
# Latents are stored in bfloat16. Another order of summation lets single numbers round the other way, by 2**-8 of their size at
# most: 1e-5 in the mean here. A film that is read one frame late gives 0.1, another stream's numbers 1.
STORED = 2**-8
SCENE = Scene.seen("red", "ball", "right", "day")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A film with sound, its sound, its first picture, masks, and a film of twice its length."
    folder = tmp_path_factory.mktemp("given")
    frames, sound = (made[0] for made in render([SCENE]))
    write_video(folder / "film.mp4", frames, FPS, sound, TINY.sample_rate)
    write_video(
        folder / "long.mp4",
        torch.cat([frames, frames.flip(0)]),
        FPS,
        torch.cat([sound, sound.flip(1)], 1),
        TINY.sample_rate,
    )
    write_video(folder / "silent.mp4", frames, FPS)
    write_video(folder / "short.mp4", frames[:6], FPS, sound[:, : TINY.sample_rate // 2], TINY.sample_rate)
    write_sound(folder / "sound.wav", sound, TINY.sample_rate)
    write_image(folder / "picture.png", read_video(folder / "film.mp4", sound=False).frames[0])  # as it was compressed
    left = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    left[:, :, : WIDTH // 2] = 255
    write_image(folder / "left.png", left)
    (folder / "middle.txt").write_text("0.4-0.8", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoders():
    parts = load_world_model(tiny_checkpoint())
    return {"video": parts.video_vae_encoder, "audio": parts.audio_vae_encoder}


def ask(files, *conditions, **options):
    "A request whose conditions name files of the folder."
    named = [{k: str(files / v) if isinstance(v, str) and "." in v else v for k, v in c.items()} for c in conditions]
    return Request(
        PROMPT, **{"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "fps": FPS, "conditions": named} | options
    )


def whole(files, encoders, stream, name):
    "Latents of all of a film, or of all of a sound."
    if stream == "video":
        return encode_pictures(encoders["video"], read_video(files / name, 0, FRAMES, FPS, (WIDTH, HEIGHT), False))[0][
            "latents"
        ].float()
    seconds = Fraction(FRAMES, FPS)
    return encode_sound(encoders["audio"], *read_sound(files / name, 0, seconds), seconds)[0]["latents"]


def off(one, other):
    "How far apart some numbers are, relative to their size."
    return ((one - other).abs().mean() / other.abs().mean()).item()


def given_cells(media, record):
    "For each stream, its latents and where something is given."
    found = {}
    for name, tokens in read_streams(media.plan, record, certain=True).items():
        latents = record[getattr(media.plan, name).latents_dir]["latents"][0]
        given = tokens.given[0, : tokens.length].reshape(tokens.grid)
        found[name] = latents, given if name == "video" else given.flatten()[:, None].expand(-1, latents.shape[-1])
    return found


INSIDE = [
    ({"type": "first_frame", "image_or_video": "film.mp4"}, "video", 4),
    ({"type": "prefix", "video": "film.mp4", "num_frames": 9}, "video", 8),
    ({"type": "suffix", "video": "film.mp4", "num_frames": 8}, "video", 4),
    ({"type": "spatial_crop", "video": "film.mp4", "spatial_region": [0, 0, 64, 32]}, "video", 6),
    ({"type": "mask", "video": "film.mp4", "mask": "left.png"}, "video", 6),
    ({"type": "prefix", "audio": "sound.wav", "duration": 0.4}, "audio", 10),
    ({"type": "suffix", "audio": "film.mp4", "duration": 0.4}, "audio", 10),
    ({"type": "mask", "audio": "sound.wav", "mask": "middle.txt"}, "audio", 9),
    ({"type": "video_to_audio", "video": "film.mp4"}, "video", 12),
    ({"type": "audio_to_video", "audio": "film.mp4"}, "audio", STEPS),
]


@pytest.mark.parametrize(
    ("condition", "stream", "count"), INSIDE, ids=lambda v: v.get("type") if isinstance(v, dict) else str(v)
)
def test_what_is_given_has_the_latents_of_the_whole_clip(files, encoders, condition, stream, count):
    "W52-W57: a validation clip and a training clip are the same record."
    media = read_media(ask(files, condition))
    record = encode_media(media, encoders)
    latents, given = given_cells(media, record)[stream]
    per_token = 1 if stream == "video" else latents.shape[-1]
    assert int(given.sum()) == count * per_token
    truth = whole(files, encoders, stream, condition.get("image_or_video") or condition[stream])
    assert off(latents[:, given], truth[:, given]) < STORED
    assert not latents[:, ~given].any()
    other = "audio" if stream == "video" else "video"
    assert not given_cells(media, record)[other][1].any()


@pytest.mark.parametrize("mask", ["0.4-0.8", [[0.4, 0.8]], "[[0.4, 0.8]]"])
def test_a_mask_of_sound_may_be_seconds(files, mask):
    written = read_media(ask(files, {"type": "mask", "audio": "sound.wav", "mask": "middle.txt"}))
    conditions = [{"type": "mask", "audio": str(files / "sound.wav"), "mask": mask}]
    said = read_media(Request(PROMPT, width=WIDTH, height=HEIGHT, frames=FRAMES, fps=FPS, conditions=conditions))
    assert torch.equal(said.record["audio_masks"]["mask"], written.record["audio_masks"]["mask"])


@pytest.mark.parametrize(("rule", "columns"), [("all", 1), ("majority", 2), ("any", 3)])
def test_a_mask_keeps_cells_by_the_rule_of_its_dataset(files, tmp_path, rule, columns):
    "Of cells of 32 pixels the first is white, the second white to three quarters, the third to a quarter."
    picture = torch.zeros(3, 64, 128, dtype=torch.uint8)
    picture[:, :, :56] = picture[:, :, 64:72] = 255
    write_image(tmp_path / "mask.png", picture)
    condition = {
        "type": "mask",
        "video": str(files / "film.mp4"),
        "mask": str(tmp_path / "mask.png"),
        "mask_keep": rule,
    }
    request = Request(PROMPT, width=128, height=64, frames=17, fps=12, conditions=[condition])
    mask = read_media(request).record["video_masks"]["mask"][0]
    assert mask.any(0).any(0).sum() == columns


def test_a_mask_of_pictures_may_not_be_seconds(files):
    with pytest.raises(ValueError, match="0.4-0.8.*seconds of sound.*picture or a video"):
        Request(PROMPT, conditions=[{"type": "mask", "video": str(files / "film.mp4"), "mask": "0.4-0.8"}])


def test_a_reference_keeps_its_own_record(files, encoders):
    condition = {"type": "reference", "video": "film.mp4", "downscale_factor": 2, "temporal_scale_factor": 2}
    media = read_media(ask(files, condition, {"type": "reference", "audio": "sound.wav"}))
    record = encode_media(media, encoders)
    assert record["reference_latents"]["latents"].shape == (1, 128, 2, 1, 1)
    assert record["reference_latents"]["fps"].tolist() == [FPS / 2]
    assert record["reference_audio_latents"]["latents"].shape == (1, 8, STEPS, 16)
    assert not record["latents"]["latents"].any()
    streams = read_streams(media.plan, record, certain=True)
    assert streams["video"].given.shape[1] == 12 + 2 and streams["audio"].given.shape[1] == 2 * STEPS


@pytest.mark.parametrize("first", [0, 1])
def test_the_order_of_conditions_does_not_matter(files, encoders, first):
    "W53: the reference applies them in the order of the list."
    conditions = [
        {"type": "first_frame", "image_or_video": "picture.png"}, {"type": "mask", "video": "film.mp4", "mask": "left.png"},
        {"type": "reference", "video": "film.mp4"}, {"type": "suffix", "video": "long.mp4", "num_frames": 8},
    ]  # fmt: skip
    turned = conditions[2:] + conditions[:2] if first else conditions[::-1]
    one, other = (encode_media(read_media(ask(files, *order)), encoders) for order in (conditions, turned))
    for folder in ("latents", "reference_latents", "video_masks"):
        key = "mask" if folder == "video_masks" else "latents"
        assert torch.equal(one[folder][key], other[folder][key])


def test_two_masks_and_two_references_do_not_meet(files, encoders):
    (files / "end.txt").write_text("1.0-1.2")
    media = read_media(
        ask(files, *[{"type": "mask", "audio": "sound.wav", "mask": f"{name}.txt"} for name in ("middle", "end")])
    )
    record = encode_media(media, encoders)
    assert (
        record["audio_masks"]["mask"].sum() + record["audio_masks_2"]["mask"].sum()
        == given_cells(media, record)["audio"][1][:, 0].sum()
    )


@pytest.mark.parametrize(
    ("suffix", "name", "count", "frames"),
    [
        ({"num_frames": 8}, "long.mp4", 1, range(17)),  # as in training: the end of the file's first 17 frames
        ({}, "short.mp4", None, None),  # six frames are less than eight
        (
            {"num_frames": 8, "start": 9 / 12},
            "film.mp4",
            1,
            [9, *range(9, 17)],
        ),  # nothing stands before: the first frame twice
        ({"num_frames": 8, "start": 4 / 12}, "film.mp4", 1, range(8, 17)),
    ],
)
def test_which_frames_a_suffix_reads(files, suffix, name, count, frames):
    "W58: the window is documented and can be moved."
    request = ask(files, {"type": "suffix", "video": name, **suffix})
    if count is None:
        with pytest.raises(ValueError, match="(?s)suffix.*8 frames.*has 6"):
            read_media(request)
        return
    (part,) = read_media(request).parts
    source = read_video(files / name, sound=False).frames
    assert part.condition == Condition("suffix", temporal_boundary=count)
    assert torch.equal(part.clip.frames, source[list(frames)])


def test_a_prefix_without_a_length_gives_all_whole_latent_frames_of_a_shorter_file(files):
    "W54: without num_frames the reference conditions the entire clip."
    (part,) = read_media(ask(files, {"type": "prefix", "video": "film.mp4"}, frames=33)).parts
    assert len(part.clip.frames) == 17 and part.condition.temporal_boundary == 3
    (part,) = read_media(ask(files, {"type": "prefix", "audio": "sound.wav"}, frames=33)).parts
    assert part.condition.temporal_boundary == STEPS


@pytest.mark.parametrize(
    ("condition", "options", "message"),
    [
        ({"type": "prefix", "video": "film.mp4"}, {}, "film.mp4 is as long as the clip.*num_frames: 9 or less"),
        (
            {"type": "prefix", "video": "film.mp4", "num_frames": 17},
            {},
            "nothing is left to generate.*12 tokens.*prefix gives 12",
        ),
        ({"type": "prefix", "video": "film.mp4", "num_frames": 10}, {}, "prefix.*num_frames is 10.*9 or 17"),
        ({"type": "suffix", "video": "film.mp4", "num_frames": 9}, {}, "suffix.*num_frames is 9.*8 or 16"),
        ({"type": "prefix", "video": "short.mp4", "num_frames": 9}, {}, "9 frames.*has 6"),
        ({"type": "prefix", "audio": "sound.wav", "duration": 3.0}, {}, "1.42 s of sound, and 3.00 s are needed"),
        ({"type": "prefix", "audio": "sound.wav"}, {}, "nothing is left to generate.*35 tokens"),
        (
            {"type": "spatial_crop", "video": "short.mp4", "spatial_region": [0, 0, 64, 32]},
            {},
            "short.mp4 has 6 frames at 12 fps, and 17",
        ),
        (
            {"type": "spatial_crop", "video": "film.mp4", "spatial_region": [0, 0, 64, 64]},
            {},
            "nothing is left to generate",
        ),
        ({"type": "spatial_crop", "video": "film.mp4", "spatial_region": [0, 0, 20, 20]}, {}, "no whole cell"),
        ({"type": "mask", "video": "picture.png", "mask": "left.png"}, {}, "picture.png is one picture, and 17"),
        ({"type": "video_to_audio", "video": "short.mp4"}, {}, "short.mp4 has 6 frames"),
        ({"type": "audio_to_video", "audio": "silent.mp4"}, {}, "silent.mp4 has no sound"),
        ({"type": "suffix", "audio": "picture.png"}, {}, "picture.png has no sound"),
        ({"type": "first_frame", "image_or_video": "sound.wav"}, {}, "sound.wav holds sound only"),
        ({"type": "first_frame", "image_or_video": "nothing.png"}, {}, "nothing.png"),
    ],
)
def test_what_cannot_be_given_is_refused_with_numbers(files, condition, options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_media(ask(files, condition, **options))


@pytest.mark.parametrize(
    ("conditions", "options", "message"),
    [
        (
            [{"type": "prefix", "audio": "sound.wav"}],
            {"audio": False},
            "prefix gives a part of the audio, but the request makes no audio",
        ),
        ([{"type": "video_to_audio", "video": "film.mp4"}], {"audio": False}, "all of the video is given"),
        (
            [{"type": "video_to_audio", "video": "film.mp4"}, {"type": "first_frame", "image_or_video": "film.mp4"}],
            {},
            "remove first_frame",
        ),
        (
            [{"type": "video_to_audio", "video": "film.mp4"}, {"type": "audio_to_video", "audio": "film.mp4"}],
            {},
            "nothing is left",
        ),
        ([{"type": "mask", "video": "film.mp4"}], {}, "mask: missing"),
        (
            [{"type": "mask", "audio": "sound.wav", "mask": "middle.txt", "mask_keep": "any"}],
            {},
            "mask_keep: a step of sound is kept or not",
        ),
        ([{"type": "mask", "video": "film.mp4", "mask": "left.png", "mask_keep": "most"}], {}, "mask_keep"),
        ([{"type": "masc", "video": "film.mp4"}], {}, "masc"),
        ([{"type": "prefix", "video": "film.mp4", "frames": 9}], {}, "did you mean num_frames"),
    ],
)
def test_requests_that_contradict_themselves(files, conditions, options, message):
    with pytest.raises(ValueError, match=message):
        ask(files, *conditions, **options)


@pytest.mark.parametrize("condition", FROZEN)
def test_a_frozen_stream_is_there_whatever_was_asked(files, condition):
    frozen = FROZEN[condition]
    key = "video" if frozen == "video" else "audio"
    for wanted in (True, False):
        media = read_media(ask(files, {"type": condition, key: "film.mp4"}, **{frozen: wanted}))
        assert media.request.streams[frozen] == "frozen"
        assert not getattr(media.plan, frozen).is_generated and [part.stream for part in media.parts] == [frozen]


def test_a_frozen_sound_that_is_short_is_followed_by_silence(files):
    (part,) = read_media(ask(files, {"type": "audio_to_video", "audio": "sound.wav"}, frames=33)).parts
    sound, rate = part.sound
    assert sound.shape[1] == round(33 / FPS * rate) and not sound[:, -rate // 2 :].any() and sound[:, : rate // 2].any()


def test_mono_becomes_stereo_as_in_a_preparation(files, encoders):
    "W55: one function reads sound for training and for samples."
    sound, rate = read_sound(files / "sound.wav")
    write_sound(files / "mono.wav", sound[:1], rate)
    media = read_media(ask(files, {"type": "audio_to_video", "audio": "mono.wav"}))
    record = encode_media(media, encoders)
    both, _ = encode_sound(encoders["audio"], sound[:1].expand(2, -1), rate, Fraction(FRAMES, FPS))
    assert off(record["audio_latents"]["latents"][0], both["latents"].float()) < STORED


def test_films_are_read_at_the_rate_of_the_request(files):
    (part,) = read_media(ask(files, {"type": "prefix", "video": "film.mp4", "num_frames": 9}, fps=24)).parts
    source = read_video(files / "film.mp4", sound=False).frames
    assert torch.equal(part.clip.frames, source[[0, 0, 1, 1, 2, 2, 3, 3, 4]])
    assert probe(files / "film.mp4").fps == FPS


@pytest.mark.parametrize("slowdown", [1, 2])
def test_a_reference_beside_the_result_lasts_as_long_as_it_counts(files, slowdown):
    media = read_media(
        ask(
            files,
            {"type": "reference", "video": "film.mp4", "temporal_scale_factor": slowdown, "include_in_output": True},
        )
    )
    shown, read = beside(media), media.parts[0].clip.frames
    assert shown.shape == (FRAMES, 3, HEIGHT, WIDTH) and len(read) == (FRAMES - 1) // slowdown + 1
    held = [0] + [1 + i // slowdown for i in range(FRAMES - 1)]
    assert torch.equal(shown, read[held])


def test_nothing_is_shown_beside_unless_asked_for(files):
    assert beside(read_media(ask(files, {"type": "reference", "video": "film.mp4"}))) is None
    assert beside(read_media(ask(files))) is None
