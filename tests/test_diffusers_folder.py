"A folder as diffusers writes it: its own classes and ours, read from it, give the same answers."

import json

import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from safetensors.torch import load_file, save_file
from test_cli import call
from test_lora_diffusers import assert_agree, make_pair, their_options

from ltx_nb.data.store import checkpoint_identity
from ltx_nb.loading.checkpoint import (
    CheckpointError,
    load_audio_vae_decoder,
    load_audio_vae_encoder,
    load_component,
    load_embeddings_processor,
    load_video_vae_decoder,
    load_video_vae_encoder,
    load_vocoder,
    read_header,
)
from ltx_nb.loading.components import find_parts, join_parts, joined, whole_checkpoint
from ltx_nb.loading.diffusers_folder import our_name
from ltx_nb.model.audio_vae import AudioEncoder
from ltx_nb.model.transformer import LTXModel
from ltx_nb.model.video_vae import VideoDecoder, VideoEncoder
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint, tiny_header
from ltx_nb.tools.options import find_models

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
BLOCK = {"resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]]}
SECOND = {f"bwe_{name}": value for name, value in BLOCK.items()}
TEXT = {"caption_channels": 64, "text_proj_in_factor": 4, "rope_type": "split"}
SIZES = {  # version -> folder -> class of diffusers and its arguments
    "2": {
        "vae": (AutoencoderKLLTX2Video, {
            "latent_channels": 16, "block_out_channels": (16, 32, 32, 32), "layers_per_block": (1, 0, 1, 0, 1),
            "decoder_block_out_channels": (16, 32, 64), "decoder_layers_per_block": (1, 0, 1, 1), "decoder_causal": False,
        }),
        "vocoder": (LTX2Vocoder, {"hidden_channels": 64, **BLOCK}),
        "connectors": (LTX2TextConnectors, {
            **TEXT, **{f"{s}_connector_{n}": v for s in ("video", "audio")
                       for n, v in (("num_attention_heads", 4), ("attention_head_dim", 16), ("num_layers", 1))},
        }),
    },
    "2.3": {
        "vae": (AutoencoderKLLTX2Video, {
            "latent_channels": 16, "block_out_channels": (16, 32, 32, 64), "layers_per_block": (1, 0, 1, 0, 1),
            "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"), "decoder_causal": False,
            "decoder_block_out_channels": (16, 16, 32, 64), "decoder_layers_per_block": (0, 1, 1, 0, 1),
            "decoder_spatio_temporal_scaling": (True,) * 4, "upsample_residual": (False,) * 4, "upsample_factor": (1, 1, 2, 2),
            "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"), "decoder_spatial_padding_mode": "zeros",
            "decoder_inject_noise": (False,) * 5,
        }),
        "vocoder": (LTX2VocoderWithBWE, {
            "hidden_channels": 64, **BLOCK, "bwe_hidden_channels": 32, **SECOND, "filter_length": 256, "window_length": 256,
        }),
        "connectors": (LTX2TextConnectors, {
            **TEXT, "video_connector_num_attention_heads": 4, "video_connector_attention_head_dim": 32, "video_connector_num_layers": 1,
            "audio_connector_num_attention_heads": 4, "audio_connector_attention_head_dim": 16, "audio_connector_num_layers": 1,
            "video_gated_attn": True, "audio_gated_attn": True, "per_modality_projections": True, "video_hidden_dim": 128,
            "audio_hidden_dim": 64, "proj_bias": True,
        }),
    },
}  # fmt: skip
AUDIO = (AutoencoderKLLTX2Audio, {"base_channels": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1})
SHARD = 300_000  # bytes: the transformer lies in several files


def random_buffers(module):
    "What a class leaves at zero or one, and a trained file does not."
    generator = torch.Generator().manual_seed(3)
    for name, buffer in module.named_buffers():
        if name.endswith(("latents_mean", "latents_std", "basis")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * (0.01 if name.endswith("basis") else 1) + 0.1)
    return module.eval().requires_grad_(False)


def write_folder(folder, version):
    "A pipeline's folder, and the classes that were written into it."
    pair = make_pair(version)
    made = {"transformer": pair.theirs}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part, (build, options) in (SIZES[version] | {"audio_vae": AUDIO}).items():
            module = build(**options)
            if part == "audio_vae":  # the class takes its width for that of a latent, which is so in the published one
                module.latents_mean, module.latents_std = torch.zeros(128), torch.ones(128)
            made[part] = random_buffers(module)
    for part, module in made.items():
        module.save_pretrained(folder / part, max_shard_size=SHARD if part == "transformer" else "1GB")
    index = {
        "_class_name": "LTX2Pipeline",
        **{part: ["diffusers", type(module).__name__] for part, module in made.items()},
    }
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "x"]}))
    return pair, made


@pytest.fixture(scope="module", params=["2", "2.3"])
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers")
    pair, made = write_folder(folder, request.param)
    return folder, pair, made, join_parts(find_parts(folder), folder / "one.safetensors")


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def test_the_transformer_answers_the_same(written):
    folder, pair, _, whole = written
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    pair.ours = load_component(LTXModel, whole, dtype=torch.float32, kind="av", cross_timestep="other")
    assert_agree(pair)


def test_pictures_are_encoded_and_decoded_the_same(written):
    _, _, made, whole = written
    vae, pixels = made["vae"], draw(1, 3, 9, 64, 64).clamp(-1, 1)
    stats = [buffer[None, :, None, None, None] for buffer in (vae.latents_mean, vae.latents_std)]
    theirs = (vae.encode(pixels).latent_dist.mode() - stats[0]) / stats[1]
    ours = load_video_vae_encoder(whole, dtype=torch.float32)(pixels)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    decoded = load_video_vae_decoder(whole, dtype=torch.float32)(theirs)
    torch.testing.assert_close(decoded, vae.decode(theirs * stats[1] + stats[0]).sample, **CLOSE)


def test_sound_is_encoded_decoded_and_heard_the_same(written):
    _, _, made, whole = written
    vae, mel = made["audio_vae"], draw(1, 2, 17, 64)
    encoded = vae.encode(mel).latent_dist.mode()
    flat = encoded.transpose(1, 2).flatten(2)  # as the pipeline of diffusers normalizes sound
    theirs = ((flat - vae.latents_mean) / vae.latents_std).unflatten(2, encoded.shape[1::2]).transpose(1, 2)
    ours = load_audio_vae_encoder(whole, dtype=torch.float32)(mel)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    decoded = load_audio_vae_decoder(whole, dtype=torch.float32)(ours)
    torch.testing.assert_close(decoded, vae.decode(encoded).sample, **CLOSE)
    heard = load_vocoder(whole)(mel)
    torch.testing.assert_close(heard, made["vocoder"](mel), **CLOSE)


def test_captions_are_connected_the_same(written):
    _, _, made, whole = written
    states, mask = draw(2, 128, 64, 4), torch.ones(2, 128, dtype=torch.int64)
    mask[0, :50] = 0
    processor = load_embeddings_processor(whole, dtype=torch.float32)
    video, audio = processor.feature_extractor(list(states.unbind(-1)), mask)
    found = processor.create_embeddings(video, audio, mask)
    theirs = made["connectors"](states, mask)
    for ours, expected in zip((found.video, found.audio), theirs):
        torch.testing.assert_close(ours, expected, **CLOSE)


def test_a_command_joins_what_it_needs(written, tmp_path, capsys):
    folder, _, _, whole = written
    made = joined(folder)
    assert made.parent == folder and "model.diffusion_model.patchify_proj.weight" not in load_file(made)
    assert whole_checkpoint(folder, "prepare", print) == made and read_header(made) == read_header(whole)
    code, out, _ = call(capsys, "join", folder, "-o", tmp_path / "one.safetensors")
    assert code == 0 and "vocoder/diffusion_pytorch_model.safetensors: vocoder" in out and "without" not in out
    assert load_file(tmp_path / "one.safetensors").keys() == load_file(whole).keys()


@pytest.fixture
def fresh(tmp_path):
    write_folder(tmp_path, "2.3")
    return tmp_path


def change_config(folder, part, **changes):
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder, part, change):
    file = folder / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def drop(folder, *names):
    for name in names:
        for file in folder.glob(name):
            file.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: change_config(f, "transformer", patch_size=2), r"config.json says patch_size = 2; .* with 1 are read"),
        (lambda f: change_config(f, "transformer", use_keyframes_abs_pos_embedding=True), "use_keyframes_abs_pos_embedding is True"),
        (lambda f: change_config(f, "vae", timestep_conditioning=True), "timestep_conditioning = True"),
        (lambda f: change_weights(f, "vae", lambda t: t.pop("encoder.conv_out.conv.bias")), "VideoEncoder in .*vae: .*encoder.conv_out.conv.bias"),
        (lambda f: change_weights(f, "vocoder", lambda t: t.update(new=torch.zeros(1))), "vocoder: 1 tensors are left over.*vocoder.new"),
        (lambda f: change_weights(f, "vae", lambda t: t.update(stranger=torch.zeros(1))), "1 tensors that no part of LTX-2 has: stranger"),
        (lambda f: drop(f, "transformer/*-00002-of-*.safetensors"), "transformer lacks 1 of 33 weight files, first"),
        (lambda f: drop(f, "vocoder/config.json"), "vocoder has weights and no config.json"),
        (lambda f: drop(f, "transformer/config.json", "transformer/*.safetensors*"), "connectors/ is there, and transformer/config.json"),
        (lambda f: (f / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'), "is for FluxPipeline of diffusers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_named(fresh, spoil, said):
    spoil(fresh)
    with pytest.raises(ValueError, match=said):
        join_parts(find_parts(fresh), fresh / "one.safetensors")
    assert not (fresh / "one.safetensors").exists()


def test_a_folder_without_its_transformer_prepares_but_does_not_train(fresh):
    drop(fresh, "transformer/*.safetensors*")
    assert joined(fresh).is_file()
    with pytest.raises(CheckpointError, match="train needs a transformer, which none of these files holds"):
        joined(fresh, "train")


def test_a_folder_brings_its_own_text_encoder(written):
    folder = str(written[0])
    assert find_models(folder, None) == (folder, folder) and find_models(folder, "gemma")[1] == "gemma"


TINY = {  # the sizes of the tiny checkpoint of LTX-2.3, in the words of diffusers
    "vae": {
        "latent_channels": 128, "block_out_channels": (128,) * 4, "layers_per_block": (0, 0, 0, 1, 0), "decoder_causal": False,
        "decoder_block_out_channels": (32, 32, 64, 128), "decoder_layers_per_block": (0, 1, 1, 1, 0),
        "decoder_spatio_temporal_scaling": (True,) * 4, "upsample_residual": (False,) * 4, "upsample_factor": (1, 1, 2, 2),
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"), "decoder_spatial_padding_mode": "zeros",
        "decoder_inject_noise": (False,) * 5,
    },
    "vocoder": {
        "hidden_channels": 96, "upsample_factors": [5, 4, 4, 2], "upsample_kernel_sizes": [11, 8, 8, 4], **BLOCK,
        "bwe_hidden_channels": 32, "bwe_upsample_factors": [6, 5, 4, 2], "bwe_upsample_kernel_sizes": [12, 11, 8, 4], **SECOND,
        "filter_length": 256, "window_length": 256,
    },
    "connectors": SIZES["2.3"]["connectors"][1],
    "audio_vae": AUDIO[1],
}  # fmt: skip


def test_what_was_written_by_diffusers_is_the_official_file_again(tmp_path):
    tiny = make_tiny_checkpoint(tmp_path / "tiny")
    whole, kinds = load_file(tiny.model), SIZES["2.3"] | {"audio_vae": AUDIO}
    with torch.device("meta"):
        made = {part: kinds[part][0](**options) for part, options in TINY.items()}
        made["transformer"] = LTX2VideoTransformer3DModel(**their_options(tiny_header("2.3")["transformer"], "2.3"))
    for part, module in made.items():
        module.save_config(tmp_path / "theirs" / part)
        tensors = {name: whole[our_name(part, name)] for name in module.state_dict()}
        save_file(tensors, tmp_path / "theirs" / part / "diffusion_pytorch_model.safetensors")
    (tmp_path / "theirs" / "model_index.json").write_text('{"_class_name": "LTX2Pipeline"}')
    again = join_parts(find_parts(tmp_path / "theirs"), tmp_path / "again.safetensors")
    found = load_file(again)
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    digits = lambda model: {name: said["fingerprint"] for name, said in checkpoint_identity(model).items()}
    assert digits(again) == digits(tiny.model)  # what was prepared with the one is right for the other
    headers = read_header(again), read_header(tiny.model)
    for build in (LTXModel, VideoEncoder, VideoDecoder, AudioEncoder):
        ours, theirs = (build.from_config(header).config for header in headers)
        assert ours == theirs
