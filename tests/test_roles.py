"Masks and references: cut as their clip is cut, pooled as the autoencoders see it, refused when they cannot be right."

import json
import math
import re
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ltx_nb.flow.conditions import append_reference, video_tokens
from ltx_nb.data.clips import Bucket, Sample, check_sample, example_clips, parse_buckets, plan_clip
from ltx_nb.data.media import MediaError, probe, read_video, write_image, write_sound, write_video
from ltx_nb.data.roles import (
    check_reference_size,
    kept_steps,
    loud_steps,
    pool_video_mask,
    read_audio_mask,
    read_reference,
    read_video_mask,
    reference_frames,
    reference_step,
)
from ltx_nb.model.latents import ScaleFactors, audio_positions, latent_shape

RATE = Fraction(24)
SMALL = ScaleFactors(4, 16, 16)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "A clip of 80x64 pixels and 41 frames, each with its number as grey and a bright right half."
    folder = tmp_path_factory.mktemp("films")
    frames = numbered(41, 64, 80)
    write_video(folder / "clip.mp4", frames, RATE, quality=0)
    return folder


def numbered(count, height, width):
    frames = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    frames += (5 * torch.arange(count, dtype=torch.uint8))[:, None, None, None]
    return frames


def numbers(frames):
    "Which frames of the numbered clip these are."
    return (frames.float().mean((1, 2, 3)) / 5).round().int().tolist()


def plan_of(films, bucket="64x64x17", start=0.0, fps=None, name="clip.mp4"):
    return plan_clip(probe(films / name), parse_buckets(bucket), start, fps=fps)


def painted(folder, name, picture):
    return write_image(folder / name, picture.expand(3, -1, -1).to(torch.uint8) * 255)


def reason(call, *given, **more):
    with pytest.raises(MediaError) as caught:
        call(*given, **more)
    return caught.value.reason, str(caught.value)


# pooling


def brute_force(mask, factors, keep):
    "Every cell by itself, over the pixels that the causal autoencoder sees in it."
    f, h, w = latent_shape(mask.shape[2], mask.shape[1], mask.shape[0], factors)
    found = torch.zeros(f, h, w, dtype=torch.uint8)
    for i in range(f):
        frames = slice(0, 1) if i == 0 else slice(1 + (i - 1) * factors.time, 1 + i * factors.time)
        for j in range(h):
            for k in range(w):
                rows, columns = (slice(n * s, (n + 1) * s) for n, s in ((j, factors.height), (k, factors.width)))
                share = (mask[frames, rows, columns] > 0.5).double().mean()
                found[i, j, k] = {"all": share == 1, "majority": share > 0.5, "any": share > 0}[keep]
    return found


@pytest.mark.parametrize("keep", ["all", "majority", "any"])
@pytest.mark.parametrize(
    ("factors", "shape"), [(ScaleFactors(), (17, 64, 96)), (SMALL, (9, 32, 16)), (ScaleFactors(2, 4, 8), (1, 8, 8))]
)
def test_pooling_is_that_of_every_cell_by_itself(keep, factors, shape):
    """W11: causal groups, and a cell is kept only if all of its pixels are, unless another rule is asked for."""
    coarse = torch.rand(shape[0], shape[1] // 4, shape[2] // 4, generator=torch.Generator().manual_seed(shape[0]))
    mask = (coarse**0.2).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(pool_video_mask(mask, factors, keep), brute_force(mask, factors, keep))
    assert pool_video_mask(mask, factors, keep).dtype == torch.uint8


@given(frame=st.integers(0, 40), time=st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None, max_examples=40)
def test_one_frame_concerns_the_latent_frame_that_holds_it(frame, time):
    """W11: frame 0 belongs to latent 0, frames 1..8 to latent 1, 9..16 to latent 2."""
    mask = torch.ones(41, 32, 32)
    mask[frame] = 0
    cells = pool_video_mask(mask, ScaleFactors(time)).flatten()
    assert (cells == 0).nonzero().flatten().tolist() == [math.ceil(frame / time)]


def test_half_is_not_kept_and_an_unknown_rule_is_named():
    assert (
        not pool_video_mask(torch.full((1, 32, 32), 0.5)).any() and pool_video_mask(torch.full((1, 32, 32), 0.51)).all()
    )
    with pytest.raises(ValueError, match="all, majority, any; got 'most'"):
        pool_video_mask(torch.ones(1, 32, 32), keep="most")
    with pytest.raises(ValueError, match="nearest"):
        pool_video_mask(torch.ones(1, 32, 33))


# video masks


def test_mask_is_cropped_as_its_clip_is(films):
    """W12: the mask of a part of the picture keeps exactly that part of the trained, cropped picture."""
    frames = torch.zeros(9, 3, 64, 192, dtype=torch.uint8)
    frames[..., 96:128] = 255  # a bright column; the crop to 64x64 begins at column 64
    wide = write_video(films / "wide.mp4", frames, RATE)
    plan = plan_clip(probe(wide), parse_buckets("64x64x9"))
    seen = read_video(wide, frames=9, size=plan.cover).frames.float().mean((0, 1)) > 127
    assert plan.cover.left == 64 and seen[:, 32:].all() and not seen[:, :32].any()
    for size in (64, 192), (32, 96), (128, 384), (63, 192):
        picture = torch.zeros(*size)
        picture[:, size[1] // 2 : size[1] * 2 // 3] = 1
        mask = read_video_mask(painted(films, "column.png", picture), plan)
        assert mask.tolist() == [[[0, 1], [0, 1]]] * 2, size


def test_mask_of_the_buckets_shape_is_taken_as_cropped(films):
    plan = plan_of(films, "64x32x9")
    picture = torch.zeros(16, 32)
    picture[:, :16] = 1
    assert read_video_mask(painted(films, "bucket.png", picture), plan).tolist() == [[[1, 0]]] * 2


@pytest.mark.parametrize(
    ("start", "fps", "rate", "frame"), [(0, None, 24, 9), (0.25, None, 24, 15), (0, "12", 24, 18), (0.25, 12, 48, 48)]
)
def test_film_mask_is_read_in_the_window_of_its_clip(films, start, fps, rate, frame):
    "The mask lets go from the tenth frame of the window on, whatever its own rate."
    plan = plan_of(films, start=start, fps=fps)
    film = torch.full((rate * 41 // 24, 3, 64, 80), 255, dtype=torch.uint8)
    film[frame:, :, :, :40] = 0
    mask = read_video_mask(write_video(films / "mask.mp4", film, rate), plan)
    assert mask[:2].all() and not mask[2, :, 0].any() and mask[2, :, 1].all()


def test_a_still_holds_for_all_frames_and_a_film_for_a_still(films):
    half = torch.zeros(64, 80)
    half[:32] = 1
    mask = read_video_mask(painted(films, "half.png", half), plan_of(films))
    assert mask.tolist() == [[[1, 1], [0, 0]]] * 3
    picture = write_image(films / "picture.png", numbered(1, 64, 80)[0])
    film = write_video(films / "film.mp4", half.expand(20, 3, -1, -1), RATE)
    assert read_video_mask(film, plan_of(films, "64x64x1", name=picture.name)).tolist() == [[[1, 1], [0, 0]]]


def test_grey_is_the_mean_of_the_colours(films):
    yellow = torch.tensor([1.0, 1.0, 0.0])[:, None, None].expand(3, 64, 80).clone()
    yellow[:, :, 40:] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert read_video_mask(write_image(films / "colours.png", yellow), plan_of(films))[0].tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        ("missing", "missing", "does not exist"),
        ("text", "corrupt", "cannot be decoded"),
        ("empty", "corrupt", "0 bytes"),
        ("sound", "no video", "sound only"),
        ("wide", "other shape", "128x64, its clip 80x64"),
        ("white", "keeps all", "all of the 12"),
        ("black", "keeps nothing", "none of the 12"),
        ("short", "too short", "12 frames at 24 fps .*0.50 s.* 17 .*0.71 s"),
        ("thin", "keeps nothing", "2% of it is white.*'any'"),
    ],
)
def test_bad_video_masks_are_refused_with_numbers(films, kind, expected, words):
    path = films / f"{kind}.png"
    if kind == "text":
        path.write_text("no picture", "utf-8")
    elif kind == "empty":
        path.touch()
    elif kind == "sound":
        path = write_sound(films / "sound.wav", torch.zeros(2, 16000), 16000)
    elif kind == "short":
        path = write_video(films / "short.mp4", numbered(12, 64, 80), RATE)
    elif kind != "missing":
        picture = torch.zeros(64, 128 if kind == "wide" else 80)
        picture[:, :: {"white": 1, "wide": 2, "thin": 64}.get(kind, 1)] = kind != "black"
        painted(films, path.name, picture)
    found, text = reason(read_video_mask, path, plan_of(films))
    assert found == expected
    assert re.search(words, text), text


# audio masks


@pytest.mark.parametrize("start", [0.0, 0.3, 7.25])
@given(low=st.floats(0, 2), length=st.floats(0.01, 2))
@settings(deadline=None, max_examples=30)
def test_a_step_is_kept_only_if_wholly_inside(start, low, length):
    begin, end = (audio_positions(50)[0, 0].double() + start).unbind(-1)
    low, high = start + low, start + low + length
    kept = kept_steps([(low, high)], 50, start).bool()
    assert not (kept & ((begin < low - 2e-4) | (end > high + 2e-4))).any()
    assert not (~kept & (begin > low) & (end < high)).any()


TEXTS = "0.5-1.2; 2-", "2 - 99, 0.5-0.8;0.7-1.2", "[[0.5, 1.2], [2, null]]", [[0.5, 1.2], [2, 60]]


def test_every_way_to_write_the_same_mask(tmp_path):
    one = read_audio_mask(TEXTS[0], 75)
    assert (one.sum(), one.dtype, one.shape) == (40, torch.uint8, (75,))
    (tmp_path / "a.txt").write_text("0.5-1.2\n2-\n", "utf-8")
    (tmp_path / "a.json").write_text(json.dumps([[0.5, 1.2], [2, None]]), "utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"intervals": "0.5-1.2; 2-"}), "utf-8")
    torch.save(one.float(), tmp_path / "a.pt")
    torch.save({"rate": torch.ones(1), "mask": one.bool()[None]}, tmp_path / "b.pt")
    save_file({"anything": torch.cat([one.float(), torch.ones(1)])}, tmp_path / "a.safetensors")  # one step more
    files = [tmp_path / name for name in ("a.txt", "a.json", "b.json", "a.pt", "b.pt", "a.safetensors")]
    for source in [*TEXTS[1:], *files, str(files[0])]:
        assert torch.equal(read_audio_mask(source, 75), one), source


def tone(frequency, level=1.0, rate=16000, begin=0.5, end=1.2, seconds=3):
    time = torch.arange(seconds * rate) / rate
    return level * torch.sin(2 * math.pi * frequency * time) * ((time >= begin) & (time < end))


@pytest.mark.parametrize("frequency", [50, 220, 1000, 7000])
@pytest.mark.parametrize("rate", [16000, 44100, 11025])
def test_a_tone_is_the_mask_of_its_time(frequency, rate):
    """W13: the envelope counts, not single samples, which are small wherever a tone crosses zero."""
    if frequency >= rate / 2:
        return
    sound = tone(frequency, rate=rate)
    assert torch.equal(loud_steps(sound[None], rate, 75), kept_steps([(0.5, 1.2)], 75))
    steps = (torch.arange(75) * rate / 25).long()
    assert (sound.abs()[steps] > 0.5).int().tolist() != kept_steps([(0.5, 1.2)], 75).tolist() or frequency == 7000


def test_sound_masks_are_read_in_the_window_and_the_louder_channel_counts(tmp_path):
    left = torch.stack([tone(300), torch.zeros(48000)])
    path = write_sound(tmp_path / "left.wav", left, 16000)
    assert torch.equal(read_audio_mask(path, 30, 0.4), kept_steps([(0.5, 1.2)], 30, 0.4))
    quiet = write_sound(tmp_path / "quiet.wav", tone(300, level=0.4)[None], 16000)
    assert reason(read_audio_mask, quiet, 30, 0.4)[0] == "keeps nothing"


@pytest.mark.parametrize(
    ("source", "steps", "start", "expected", "words"),
    [
        ("nowhere.wav", 25, 0, "missing", "does not exist"),
        ("3-2", 25, 0, "corrupt", "smaller to a larger"),
        ([], 25, 0, "corrupt", "no list"),
        ([[0, 1, 2]], 25, 0, "corrupt", "no list"),
        ("0-9", 25, 0, "keeps all", "25 latent steps"),
        ("0-1", 25, 2.0, "keeps nothing", "begins at 2.00 s"),
        ("text.wav", 25, 0, "corrupt", "cannot be decoded"),
        ("text.pt", 25, 0, "corrupt", "tensor"),
        ("text.txt", 25, 0, "corrupt", "no intervals"),
        ("text.json", 25, 0, "corrupt", "text.json"),
        ("list.pt", 40, 0, "other length", "25 values.*40 latent steps"),
        ("tone.wav", 50, 2.0, "too short", "ends at 3.00 s.*3.97 s"),
    ],
)
def test_bad_audio_masks_are_refused_with_numbers(tmp_path, source, steps, start, expected, words):
    for suffix in "wav", "pt", "txt", "json":
        (tmp_path / f"text.{suffix}").write_text("nothing", "utf-8")
    torch.save(torch.ones(25), tmp_path / "list.pt")
    write_sound(tmp_path / "tone.wav", tone(300)[None], 16000)
    given_file = isinstance(source, str) and "." in source
    found, text = reason(read_audio_mask, tmp_path / source if given_file else source, steps, start)
    assert found == expected
    assert re.search(words, text), text


# references


@pytest.mark.parametrize(
    ("bucket", "downscale", "slowdown"), [("64x64x17", 1, 1), ("64x64x33", 2, 2), ("64x64x33", 2, 4), ("64x64x1", 2, 3)]
)
def test_reference_frames_stand_beside_those_of_the_clip(films, bucket, downscale, slowdown):
    "Same window, smaller and sparser; and the positions that the model is given say the same."
    plan = plan_of(films, bucket, start=0.25)
    clip = read_video(films / "clip.mp4", plan.start, plan.bucket.frames, plan.fps, plan.cover, sound=False)
    reference = read_reference(films / "clip.mp4", plan, downscale, slowdown)
    picks = reference_frames(plan.bucket.frames, slowdown)
    assert reference.frames.shape == (len(picks), 3, 64 // downscale, 64 // downscale) and reference.sound is None
    assert (
        numbers(reference.frames) == [numbers(clip.frames)[i] for i in picks] and reference.fps == plan.fps / slowdown
    )
    if plan.bucket.frames > 1:
        grids = [latent_shape(f.shape[3], f.shape[2], len(f)) for f in (clip.frames, reference.frames)]
        target, small = (video_tokens(torch.zeros(1, 128, *g), r) for g, r in zip(grids, (plan.fps, reference.fps)))
        tokens = append_reference(target, small)
        seconds = tokens.positions[0, 0, target.length :, 0].reshape(grids[1])[:, 0, 0]
        assert (seconds * float(plan.fps)).tolist() == pytest.approx([picks[0], *picks[1::8]])
        assert tokens.positions[0, 1:, target.length :].amax() == 64


@pytest.mark.parametrize("rate", [12, 24, 30, 48])
def test_reference_of_another_rate_shows_the_same_moments(films, rate):
    shown = (torch.arange(41 * rate // 24) * 24 // rate).clamp(max=40)
    path = write_video(films / "other_rate.mp4", numbered(41, 64, 80)[shown], rate, quality=0)
    plan = plan_of(films, start=0.5)
    found, wanted = (numbers(read_reference(p, plan).frames) for p in (path, films / "clip.mp4"))
    assert max(abs(a - b) for a, b in zip(found, wanted)) <= (1 if rate < 48 and rate != 24 else 0)


def test_reference_is_cropped_as_its_clip_is(films):
    "An upright and a wide part of the same picture, at three sizes."
    scene = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0))
    clip = scene.repeat_interleave(16, 1).repeat_interleave(16, 2).expand(9, -1, -1, -1)
    target = write_video(films / "scene.mp4", clip, RATE, quality=0)
    for bucket in "64x128x9", "128x64x9":
        plan = plan_clip(probe(target), parse_buckets(bucket))
        wanted = torch.nn.functional.avg_pool2d(read_video(target, frames=9, size=plan.cover).frames.float(), 2)
        for size in (192, 256), (96, 128), (95, 128):
            frames = torch.nn.functional.interpolate(clip, size, mode="bicubic", antialias=True)
            path = write_video(films / "smaller.mp4", frames, RATE, quality=0)
            found = read_reference(path, plan, downscale=2).frames.float()
            shifted = [(found - wanted.roll(shift, (2, 3))).abs().mean() for shift in ((0, 0), (3, 0), (0, 3))]
            assert shifted[0] < 16 and shifted[0] < 0.6 * min(shifted[1:]), (bucket, size, shifted)


@pytest.mark.parametrize(
    ("path", "bucket", "factors", "expected", "words"),
    [
        ("short.mp4", "64x64x17", (1, 1), "too short", r"12 frames at 24 fps from 0.00 s on \(0.50 s\).*17 \(0.71 s\)"),
        ("tall.mp4", "64x64x17", (1, 1), "other shape", "64x80, its clip 80x64"),
        ("clip.mp4", "96x64x17", (2, 1), "wrong size", "96x64x17 .* 2 times smaller .*nearest: 64 or 128"),
        ("clip.mp4", "64x64x25", (1, 2), "wrong size", "25 frames is not 16k .*nearest: 17 or 33"),
        ("sound.wav", "64x64x17", (1, 1), "no video", "sound"),
        ("nowhere.mp4", "64x64x17", (1, 1), "missing", "does not exist"),
    ],
)
def test_bad_references_are_refused_with_numbers(films, path, bucket, factors, expected, words):
    write_video(films / "short.mp4", numbered(12, 64, 80), RATE)
    write_video(films / "tall.mp4", numbered(41, 80, 64), RATE)
    write_image(films / "still.png", numbered(1, 64, 80)[0])
    write_sound(films / "sound.wav", torch.zeros(2, 16000), 16000)
    found, text = reason(read_reference, films / path, plan_of(films, bucket), *factors)
    assert found == expected
    assert re.search(words, text), text


@given(
    columns=st.integers(1, 8),
    rows=st.integers(1, 8),
    frames=st.integers(0, 12),
    downscale=st.integers(1, 4),
    slowdown=st.integers(1, 4),
)
@settings(deadline=None, max_examples=80)
def test_a_size_has_references_where_cells_stay_whole(columns, rows, frames, downscale, slowdown):
    bucket = Bucket(32 * columns, 32 * rows, 8 * frames + 1)
    whole = columns % downscale == rows % downscale == frames % slowdown == 0
    if not whole:
        with pytest.raises(MediaError, match=str(bucket)):
            check_reference_size(bucket, downscale, slowdown)
        return
    check_reference_size(bucket, downscale, slowdown)
    picks = reference_frames(bucket.frames, slowdown)
    assert len(picks) == 1 + (bucket.frames - 1) // slowdown and (len(picks) - 1) % 8 == 0 and picks[-1] < bucket.frames


@pytest.mark.parametrize("factors", [(0, 1), (1, 0), (-2, 1), (1.5, 1)])
def test_factors_are_whole_numbers(factors):
    with pytest.raises(ValueError, match="whole factors"):
        reference_step(*factors)


def test_without_a_clip_the_reference_makes_the_plan():
    "In a generation there is no clip to follow."
    path = example_clips() / "bird_sings.mp4"
    plan = plan_clip(probe(path), [Bucket(128, 64, 17)], fps=12)
    reference = read_reference(path, plan, downscale=2)
    assert reference.frames.shape == (17, 3, 32, 64) and reference.fps == 12
    assert read_reference(path, replace(plan, source=None), downscale=2).frames.shape == (17, 3, 32, 64)


def counted(path, count, rate, size=(64, 64)):
    "A film whose frames carry their number in eight bars."
    frames = torch.full((count, 3, size[1], size[0]), 16, dtype=torch.uint8)
    for number in range(count):
        for bit in range(8):
            if number >> bit & 1:
                frames[number, :, :, 8 * bit : 8 * bit + 8] = 235
    return write_video(path, frames, rate, quality=4)


def counts(clip):
    bars = clip.frames[:, 0, 32, 4::8].int() > 128
    return (bars * 2 ** torch.arange(8)).sum(1).tolist()


@pytest.mark.parametrize("rate, other", [("30000/1001", 29), ("24000/1001", 23), (24, 16), (24, 30), (24, 24)])
@pytest.mark.parametrize("start", [0.0, 1.5])
def test_equal_counts_pair_by_number_whatever_the_rates(tmp_path, rate, other, start):
    counted(tmp_path / "clip.mp4", 98, rate)
    counted(tmp_path / "other.mp4", 98, other)
    plan = plan_clip(probe(tmp_path / "clip.mp4"), parse_buckets("64x64x33"), start)
    wanted = counts(read_video(tmp_path / "clip.mp4", plan.start, 33))
    assert counts(read_reference(tmp_path / "other.mp4", plan)) == wanted
    sample = Sample("a", "A film.", {"video": tmp_path / "clip.mp4", "reference_video": tmp_path / "other.mp4"}, start)
    finding = check_sample(sample, parse_buckets("64x64x33"))
    assert finding.state != "no" and any("frame by frame" in r for r in finding.remarks) == (rate != other)


def test_other_counts_and_rates_are_paired_by_the_clock_and_said(tmp_path):
    counted(tmp_path / "clip.mp4", 49, 24)
    counted(tmp_path / "other.mp4", 98, 48)
    plan = plan_clip(probe(tmp_path / "clip.mp4"), parse_buckets("64x64x33"))
    assert counts(read_reference(tmp_path / "other.mp4", plan)) == list(range(0, 66, 2))
    sample = Sample("a", "A film.", {"video": tmp_path / "clip.mp4", "reference_video": tmp_path / "other.mp4"})
    assert any("by the clock" in remark for remark in check_sample(sample, parse_buckets("64x64x33")).remarks)


def test_a_mask_of_the_same_frames_in_another_rate_follows_by_number(tmp_path):
    grows = torch.zeros(98, 3, 64, 160, dtype=torch.uint8)
    for number in range(98):
        grows[number, :, :, : 32 * (number * 5 // 98 + 1)] = 255
    counted(tmp_path / "clip.mp4", 98, 24, (160, 64))
    plan = plan_clip(probe(tmp_path / "clip.mp4"), parse_buckets("160x64x65"))
    masks = [read_video_mask(write_video(tmp_path / f"{r}.mp4", grows, r, quality=1), plan) for r in (24, 16)]
    assert torch.equal(*masks) and masks[0][0].sum() < masks[0][-1].sum()


def test_a_picture_of_any_shape_is_a_reference_of_one_frame(tmp_path):
    counted(tmp_path / "clip.mp4", 49, 24)
    write_image(tmp_path / "face.png", torch.full((3, 90, 50), 200, dtype=torch.uint8))
    plan = plan_clip(probe(tmp_path / "clip.mp4"), parse_buckets("64x64x33"))
    found = read_reference(tmp_path / "face.png", plan, downscale=2)
    assert found.frames.shape == (1, 3, 32, 32) and found.fps is None
