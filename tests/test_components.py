"A model in pieces, as the hub has them too: prepared and decoded with like the whole; what is missing is named."

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import call

from ltx_nb.data.decode import decode
from ltx_nb.data.media import write_video
from ltx_nb.data.prepare import prepare
from ltx_nb.data.store import checkpoint_identity
from ltx_nb.loading.checkpoint import CheckpointError, load_transformer, read_header
from ltx_nb.loading.components import find_parts, join_parts, joined
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint

TEXT = ("text_embedding_projection.", "model.diffusion_model.video_emb", "model.diffusion_model.audio_emb")
PIECES = {  # name -> what it holds, the sections of its header, what is cut off the front of each name
    "vae/video_vae": ("vae.", ["vae"], "vae."),
    "vae/audio_vae": (("audio_vae.", "vocoder."), ["audio_vae", "vocoder"], ""),
    "text_encoders/text_projection": (TEXT, ["transformer", "text_encoder"], "model.diffusion_model."),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("whole") / "tiny")


@pytest.fixture(scope="module")
def whole(tiny):
    return load_file(tiny.model), read_header(tiny.model)


def write_pieces(folder, whole, names=PIECES, bare=True):
    tensors, config = whole
    for name in names:
        keep, sections, cut = PIECES[name]
        kept = {k.removeprefix(cut) if bare else k: v for k, v in tensors.items() if k.startswith(keep)}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        said = {"config": json.dumps({section: config[section] for section in sections})}
        save_file(kept, folder / f"{name}.safetensors", said)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    tone = torch.sin(torch.arange(44100 * 9 // 24) / 20).expand(2, -1) / 2
    write_video(
        folder / "a.mp4",
        (torch.arange(9)[:, None, None, None] * 20 + torch.zeros(9, 3, 32, 32)).byte(),
        24,
        tone,
        44100,
    )
    (folder / "a.txt").write_text("a grey wall gets brighter, a low hum")
    return folder


@pytest.mark.parametrize("bare", [True, False], ids=["without their own names", "with them"])
def test_pieces_prepare_what_the_whole_file_prepares(tiny, whole, clips, tmp_path, bare):
    pieces = write_pieces(tmp_path / "models", whole, bare=bare)
    save_file({"blocks.0.lora_A.weight": torch.zeros(2, 2)}, pieces / "style_lora.safetensors")  # lies about
    how = {"text_encoder": tiny.text_encoder, "resolution_buckets": "32x32x9", "device": "cpu", "dtype": "float32"}
    report = prepare(clips, tmp_path / "data", pieces, **how)
    assert report.exit_code == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.safetensors")}
    assert prepare(clips, tmp_path / "data", tiny.model, **how).exit_code == 0  # the same weights: all of it is kept
    assert written == {path: path.stat().st_mtime_ns for path in written}
    made = {
        path.relative_to(tmp_path / "data"): path.read_bytes() for path in (tmp_path / "data").rglob("*.safetensors")
    }
    prepare(clips, tmp_path / "other", tiny.model, **how)
    other = {path.relative_to(tmp_path / "other") for path in (tmp_path / "other").rglob("*.safetensors")}
    assert set(made) == other and len(made) == 3
    for name in made:
        ours, theirs = load_file(tmp_path / "data" / name), load_file(tmp_path / "other" / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    digits = lambda model: {name: said["fingerprint"] for name, said in checkpoint_identity(model).items()}
    assert digits(joined(pieces)) == digits(tiny.model)
    assert len(list(pieces.rglob("joined_*"))) == 1


def test_a_video_vae_alone_decodes_pictures(whole, tiny, clips, tmp_path):
    how = {"text_encoder": tiny.text_encoder, "resolution_buckets": "32x32x9", "device": "cpu"}
    prepare(clips, tmp_path / "data", tiny.model, **how)
    vae = write_pieces(tmp_path / "models", whole, ["vae/video_vae"])
    report = decode(tmp_path / "data", tmp_path / "seen", f"{vae / 'vae' / 'video_vae.safetensors'};", device="cpu")
    assert "has no audio decoder" in str(report) and (tmp_path / "seen" / "films" / "a.mp4").is_file()


def test_a_transformer_of_its_own_is_joined_and_loads(tiny, whole, tmp_path, capsys):
    tensors, config = whole
    pieces = write_pieces(tmp_path / "models", whole)
    begin = "model.diffusion_model."
    blocks = {
        k.removeprefix(begin): v for k, v in tensors.items() if k.startswith(begin) and "embeddings_connector" not in k
    }
    save_file(
        blocks, pieces / "transformer.safetensors", {"config": json.dumps({"transformer": config["transformer"]})}
    )
    code, out, _ = call(capsys, "join", pieces, "-o", tmp_path / "one.safetensors")
    assert code == 0 and "transformer.safetensors: transformer" in out and "without" not in out
    ours, theirs = load_file(tmp_path / "one.safetensors"), tensors
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    load_transformer(tmp_path / "one.safetensors")
    code, _, err = call(capsys, "join", pieces, "-o", tmp_path / "one.safetensors")
    assert code == 1 and "--overwrite" in err


@pytest.mark.parametrize(
    ("names", "command", "said"),
    [
        (["vae/audio_vae", "text_encoders/text_projection"], "prepare", "prepare needs a video encoder, which none"),
        (["vae/video_vae"], "prepare", "needs a text projection and a text connector"),
        (["text_encoders/text_projection"], "decode", "decode needs a video decoder"),
        ([], "decode", "none of 0 .safetensors files"),
    ],
)
def test_what_is_missing_is_named(whole, tmp_path, names, command, said):
    (tmp_path / "models").mkdir()
    with pytest.raises(CheckpointError, match=said) as error:
        joined(write_pieces(tmp_path / "models", whole, names), command)
    assert all(f"{name.rpartition('/')[2]}.safetensors:" in str(error.value) for name in names)
    assert not list(tmp_path.rglob("joined_*"))


def test_the_same_component_twice_is_a_question(whole, tmp_path):
    pieces = write_pieces(tmp_path, whole)
    (pieces / "vae" / "video_vae_fp8.safetensors").write_bytes((pieces / "vae" / "video_vae.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError, match="video_vae.safetensors and in .*video_vae_fp8.safetensors: give the files"
    ):
        joined(pieces)
    files = [pieces / f"{name}.safetensors" for name in PIECES]
    assert joined(files).is_file() and joined(";".join(map(str, files))) == joined(files)


def test_a_piece_that_is_not_described_or_damaged_is_named(whole, tmp_path):
    pieces = write_pieces(tmp_path, whole)
    vae = pieces / "vae" / "video_vae.safetensors"
    save_file(load_file(vae), vae)
    with pytest.raises(CheckpointError, match="video_vae.safetensors holds the video encoder, and no header says"):
        join_parts(find_parts(pieces), tmp_path / "one.safetensors")
    vae.write_bytes(vae.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="video_vae.safetensors is cut short"):
        find_parts(pieces)
    assert not (tmp_path / "one.safetensors").exists()


def test_a_command_says_it_in_a_sentence(whole, clips, tiny, tmp_path, capsys):
    pieces = write_pieces(tmp_path / "models", whole, ["vae/video_vae"])
    asked = ["prepare", clips, "-o", tmp_path / "data", "--model", pieces, "--text-encoder", tiny.text_encoder]
    code, _, err = call(capsys, *asked)
    assert code == 1 and "needs a text projection" in err and "Traceback" not in err
