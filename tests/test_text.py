import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import oracle  # noqa: F401
import pytest
import torch
from bars import near

import ltx_nb
from ltx_nb.model.latents import ConfigError
from ltx_nb.model.text import (
    CAPTION_KEYS,
    Connector,
    EmbeddingsProcessor,
    FeatureExtractorV1,
    FeatureExtractorV2,
    GemmaTextEncoder,
    TextFeatures,
    caption_record,
    caption_states,
    caption_tokens,
    find_gemma,
    gemma_states,
    read_caption_record,
)
from ltx_nb.tiny.text import make_tiny_gemma

ROWS, VALID = 128, 7
CAPTIONS = ["a red circle moves left", "Björk hums; a rabbit wakes up and yawns", ""]
SHIPPED = {"rope_type": "split", "frequencies_precision": "float64", "connector_positional_embedding_max_pos": [4096]}
V1_HEADER = {"transformer": SHIPPED | {
    "num_attention_heads": 3, "attention_head_dim": 16, "audio_num_attention_heads": 3, "audio_attention_head_dim": 8,
    "connector_num_attention_heads": 4, "connector_attention_head_dim": 8, "connector_num_layers": 2,
}}  # fmt: skip
V2_HEADER = {"transformer": V1_HEADER["transformer"] | CAPTION_KEYS | {
    "connector_num_attention_heads": 3, "connector_attention_head_dim": 16, "audio_connector_attention_head_dim": 8,
    "connector_apply_gated_attention": True,
}}  # fmt: skip
HEADERS = {"V1": V1_HEADER, "V2": V2_HEADER}
REAL_HEADERS = {
    "19B": {"transformer": SHIPPED | {
        "connector_num_attention_heads": 30, "connector_attention_head_dim": 128, "connector_num_layers": 2,
        "audio_connector_num_attention_heads": 30, "audio_connector_attention_head_dim": 128,
        "audio_connector_num_layers": 2,
    }},
    "22B": {"transformer": SHIPPED | CAPTION_KEYS | {
        "num_attention_heads": 32, "attention_head_dim": 128,
        "audio_num_attention_heads": 32, "audio_attention_head_dim": 64,
        "connector_num_attention_heads": 32, "connector_attention_head_dim": 128, "connector_num_layers": 8,
        "audio_connector_attention_head_dim": 64, "connector_apply_gated_attention": True,
    }},
}  # fmt: skip
REAL_COUNTS = {"19B": (722_534_400, 354_470_400, 354_470_400), "22B": (1_156_061_184, 1_612_546_304, 403_620_096)}
GEMMA = 32, 7  # width and hidden states in the checksum cases


# ---- helpers: the fill rules and checksums of the recipe


def wave(shape, offset):
    flat = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(offset + 0.61803398875 * flat).reshape(shape).float()


def filled(names_and_shapes):
    weights = {}
    for k, name in enumerate(sorted(names_and_shapes)):
        shape = names_and_shapes[name]
        value = torch.sin(k + 1 + 0.7548776662 * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)
        scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        weights[name] = (value * scale + (len(shape) == 1 and "norm" in name)).float()
    return weights


def fill(module, keys=lambda name: name):
    shapes = {keys(name): tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    weights = filled(shapes)
    module.load_state_dict({name: weights[keys(name)] for name in module.state_dict()})
    return module.requires_grad_(False)


def file_key(name):
    for prefix, root in EmbeddingsProcessor.CHECKPOINT_KEYS.items():
        if name.startswith(root):
            return prefix + name.removeprefix(root)
    raise KeyError(name)


def checksum(tensor):
    flat = tensor.double().flatten()
    weight = (7919 * torch.arange(flat.numel()) % 1000) / 1000
    return flat.sum().item(), (flat * weight).sum().item(), flat.norm().item()


def recipe_states(shape, count):
    return [wave(shape, 0.1 * i) * (1 + i) for i in range(count)]


def last_rows(rows, valid):
    return (torch.arange(rows) >= rows - valid).long()[None]


def randomized(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2 + ("norm" in name))
    return module.requires_grad_(False)


def random_states(batch, rows, width, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, rows, width, generator=generator) * (1 + i) for i in range(count)]


def our_processor(header, gemma=GEMMA, seed=None, **options):
    processor = EmbeddingsProcessor.from_config(header, gemma=gemma, **options)
    return fill(processor, file_key) if seed is None else randomized(processor, seed)


def oracle_processor(header, gemma=GEMMA):
    "The official processor for any size of Gemma."
    import ltx_core.text_encoders.gemma.encoders.encoder_configurator as EC

    size = SimpleNamespace(text_config=SimpleNamespace(hidden_size=gemma[0], num_hidden_layers=gemma[1] - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EC, "GEMMA3_CONFIG_FOR_LTX", size)
        return EC.EmbeddingsProcessorConfigurator.from_config(header).float().requires_grad_(False)


def copied(header, gemma=GEMMA, seed=0):
    "Ours and the official one with the same random weights."
    ours, theirs = our_processor(header, gemma, seed), oracle_processor(header, gemma)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def hidden(encoder):
    return caption_states(encoder.model, encoder.tokenizer, ["a rabbit wakes up"], encoder.max_length)[0]


@pytest.fixture(scope="module")
def gemma_folder(tmp_path_factory):
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def encoder(gemma_folder):
    return GemmaTextEncoder.from_folder(gemma_folder, dtype=torch.float32)


# ---- checksums that anyone can reproduce


@pytest.mark.parametrize(
    "build, stream, expected",
    [
        (lambda: FeatureExtractorV1(16, 4), 0, (0.027420, 0.498745, 4.339074)),
        (lambda: FeatureExtractorV2(16, 4, 24, 12), 0, (-1.221719, -0.575903, 2.663553)),
        (lambda: FeatureExtractorV2(16, 4, 24, 12), 1, (3.858806, 0.167587, 1.506105)),
    ],
    ids=["V1", "V2 video", "V2 audio"],
)
def test_feature_checksums(build, stream, expected):
    features = fill(build())(recipe_states((1, 16, 16), 4), last_rows(16, 10))
    assert checksum(features[stream]) == near(expected, magnitude=features[stream].abs().sum().item())


SPLIT = {"layout": "split", "max_position": 4096, "double": True}
INTERLEAVED = {"layout": "interleaved", "max_position": 1, "double": False}


@pytest.mark.parametrize(
    "extractor, stream, heads, head_dim, options, expected",
    [
        (lambda: FeatureExtractorV1(16, 4), 0, 2, 8, SPLIT, (-11.380852, 2.155363, 15.999986)),
        (lambda: FeatureExtractorV1(16, 4), 0, 2, 8, INTERLEAVED, (-11.094894, -2.347575, 15.999977)),
        (
            lambda: FeatureExtractorV2(16, 4, 24, 12),
            0,
            3,
            8,
            SPLIT | {"gated": True},
            (-12.126904, -1.429119, 19.595918),
        ),
        (
            lambda: FeatureExtractorV2(16, 4, 24, 12),
            1,
            3,
            4,
            SPLIT | {"gated": True},
            (-9.182660, -2.254998, 13.856395),
        ),
    ],
    ids=["19B", "19B interleaved", "22B video", "22B audio"],
)
def test_connector_checksums(extractor, stream, heads, head_dim, options, expected):
    mask = last_rows(16, 10)
    features = fill(extractor())(recipe_states((1, 16, 16), 4), mask)[stream]
    context = fill(Connector(heads, head_dim, layers=2, registers=8, **options))(features, mask)
    assert checksum(context) == near(expected, magnitude=context.abs().sum().item())


CHECKPOINT_CASES = {
    ("V1", "proc"): [(-0.132564, 0.624989, 3.104504), None, (14.788687, -0.985837, 63.999967), (-10.094676, -3.111736, 63.999983)],
    ("V2", "proc"): [(21.784443, 10.194784, 5.729023), (3.461857, 2.028913, 4.073028), (-397.052980, -205.298325, 78.383610), (40.430418, 10.892544, 55.425626)],
    ("V1", "gemma"): [(42.865263, 32.391718, 92.022512), None, (20.620336, 6.610309, 63.999969), (-4.013276, 6.068717, 63.999984)],
    ("V2", "gemma"): [(42.113976, 73.489176, 76.516125), (12.144142, 11.291992, 37.980027), (-371.321050, -198.458234, 78.383617), (44.386752, 9.309901, 55.425625)],
}  # fmt: skip


def recipe_gemma_states():
    "The small text-only Gemma of the recipe, on `a cat walks on the beach`."
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=16, max_position_embeddings=2048,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = filled(names)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    ids = torch.tensor([[0] * (ROWS - VALID) + [2, 260, 261, 262, 263, 264, 265]])
    return gemma_states(model.model, ids, last_rows(ROWS, VALID))


@pytest.mark.parametrize("version, source", CHECKPOINT_CASES)
def test_checkpoint_checksums(version, source):
    states = recipe_states((1, ROWS, 32), 7) if source == "proc" else recipe_gemma_states()
    processor = our_processor(HEADERS[version])
    features = processor.extract(states, last_rows(ROWS, VALID))
    context = processor.create_embeddings(*features)
    expected = CHECKPOINT_CASES[version, source]
    for tensor, triple in zip((features.video, features.audio, context.video, context.audio), expected):
        if triple is not None:
            assert checksum(tensor) == near(triple, magnitude=tensor.abs().sum().item())
    assert (features.audio is features.video) == (version == "V1")


def test_gemma_state_checksum():
    valid = torch.stack([state[:, -VALID:] for state in recipe_gemma_states()], dim=-1)
    assert checksum(valid) == near((-13.078989, 7.610028, 198.385604), magnitude=valid.abs().sum().item())


def test_file_has_the_tensors_of_the_recipe():
    counts = {}
    for version, header in HEADERS.items():
        shapes = our_processor(header).state_dict()
        counts[version] = len(shapes), sum(tensor.numel() for tensor in shapes.values())
    assert counts == {"V1": (59, 65_920), "V2": (70, 96_564)}


# ---- live against the official code, weights copied over


@pytest.mark.parametrize("version", HEADERS)
@pytest.mark.parametrize("valid", [1, 7, 128])
def test_processor_equals_the_official_one(version, valid):
    ours, theirs = copied(HEADERS[version], seed=valid)
    states, mask = random_states(1, ROWS, *GEMMA, seed=valid), last_rows(ROWS, valid)
    expected_features = theirs.feature_extractor(torch.stack(states, dim=-1), mask)
    features = ours.extract(states, mask)
    close(features.video, expected_features[0])
    close(features.audio, expected_features[1])
    expected = theirs.process_hidden_states(tuple(states), mask)
    context = ours.create_embeddings(*features)
    close(context.video, expected.video_encoding)
    close(context.audio, expected.audio_encoding)
    assert torch.equal(context.mask, expected.attention_mask) and context.mask.all()


@pytest.mark.parametrize(
    "change",
    [
        {"rope_type": "interleaved"},
        {"frequencies_precision": "float32"},
        {"connector_positional_embedding_max_pos": [1]},
        {"connector_num_layers": 1, "audio_connector_num_layers": 3},
        {"connector_apply_gated_attention": False},
        {
            "connector_num_attention_heads": 6,
            "connector_attention_head_dim": 8,
            "audio_connector_num_attention_heads": 3,
        },
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_header_feature_equals_the_official_one(change):
    ours, theirs = copied({"transformer": V2_HEADER["transformer"] | change})
    states, mask = random_states(1, ROWS, *GEMMA), last_rows(ROWS, 11)
    expected = theirs.process_hidden_states(tuple(states), mask)
    context = ours.create_embeddings(*ours.extract(states, mask))
    close(context.video, expected.video_encoding)
    close(context.audio, expected.audio_encoding)


def test_header_without_options_equals_the_official_one():
    header = {"transformer": {"connector_num_attention_heads": 4, "connector_attention_head_dim": 8}}
    ours, theirs = copied(header)
    states, mask = random_states(1, ROWS, *GEMMA), last_rows(ROWS, 11)
    close(
        ours.create_embeddings(*ours.extract(states, mask)).video,
        theirs.process_hidden_states(tuple(states), mask).video_encoding,
    )


@pytest.mark.parametrize("version", HEADERS)
def test_bfloat16_rounds_in_the_official_places(version):
    ours, theirs = (processor.bfloat16() for processor in copied(HEADERS[version]))
    states, mask = [state.bfloat16() for state in random_states(1, ROWS, *GEMMA)], last_rows(ROWS, ROWS)
    expected = theirs.feature_extractor(torch.stack(states, dim=-1), mask)
    features = ours.extract(states, mask)
    assert torch.equal(features.video, expected[0]) and torch.equal(features.audio, expected[1])


@pytest.mark.parametrize("version", HEADERS)
def test_the_whole_path_equals_the_official_one(version, gemma_folder, encoder):
    from ltx_core.text_encoders.gemma.encoders.base_encoder import GemmaTextEncoder as Official
    from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(gemma_folder, dtype=torch.float32, local_files_only=True)
    official = Official(model=model, tokenizer=LTXVGemmaTokenizer(str(gemma_folder), ROWS), dtype=torch.float32)
    header = HEADERS[version]
    if version == "V1":
        header = {"transformer": header["transformer"] | {"connector_num_attention_heads": 8}}
    ours, theirs = copied(header, gemma=(64, 4))
    contexts = encoder(CAPTIONS, ours, batch_size=2)
    for i, caption in enumerate(CAPTIONS):
        with torch.no_grad():
            states, mask = official.encode(caption)
            expected = theirs.process_hidden_states(states, mask)
        close(contexts.video[i : i + 1], expected.video_encoding)
        close(contexts.audio[i : i + 1], expected.audio_encoding)
        ids, our_mask = caption_tokens(encoder.tokenizer, [caption], ROWS)
        assert torch.equal(our_mask, mask)


@pytest.mark.parametrize("model", REAL_HEADERS)
def test_real_sizes_have_the_official_keys_and_shapes(model):
    with torch.device("meta"):
        ours = EmbeddingsProcessor.from_config(REAL_HEADERS[model])
        theirs = oracle_processor(REAL_HEADERS[model], gemma=(3840, 49))
    shapes = lambda module: {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes(ours) == shapes(theirs)
    parts = ours.feature_extractor, ours.video_connector, ours.audio_connector
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == REAL_COUNTS[model]


def test_keys_lead_to_the_official_places():
    import ltx_core.text_encoders.gemma.encoders.encoder_configurator as EC

    for header in HEADERS.values():
        for name in our_processor(header).state_dict():
            assert EC.EMBEDDINGS_PROCESSOR_KEY_OPS.apply_to_key(file_key(name)) == name


# ---- behaviour of our own


@pytest.mark.parametrize("version", HEADERS)
def test_batch_and_padding_side_do_not_matter(version):
    processor = our_processor(HEADERS[version], seed=1)
    states = random_states(3, ROWS, *GEMMA)
    mask = torch.cat([last_rows(ROWS, valid) for valid in (3, 128, 60)])
    together = processor.create_embeddings(*processor.extract(states, mask))
    for i in range(3):
        one = [state[i : i + 1] for state in states]
        alone = processor.create_embeddings(*processor.extract(one, mask[i : i + 1]))
        close(together.video[i : i + 1], alone.video)
        shift = -int(ROWS - mask[i].sum())  # the same caption padded on the right
        moved = processor.extract([state.roll(shift, 1) for state in one], mask[i : i + 1].roll(shift, 1))
        close(processor.create_embeddings(*moved).audio, alone.audio)


@pytest.mark.parametrize("version", HEADERS)
def test_padded_rows_may_hold_anything(version):
    processor = our_processor(HEADERS[version], seed=1)
    states, mask = random_states(1, ROWS, *GEMMA), last_rows(ROWS, 9)
    poisoned = [state.masked_fill(mask[..., None] == 0, float("nan")) for state in states]
    assert torch.equal(processor.extract(states, mask).video, processor.extract(poisoned, mask).video)


def test_additive_mask_is_understood():
    from ltx_core.text_encoders.gemma.embeddings_processor import convert_to_additive_mask

    processor = our_processor(V2_HEADER, seed=1)
    features = processor.extract(random_states(1, ROWS, *GEMMA), last_rows(ROWS, 9))
    for dtype in (torch.float32, torch.bfloat16):
        additive = convert_to_additive_mask(features.mask, dtype)
        context = processor.create_embeddings(features.video, features.audio, additive)
        assert torch.equal(context.video, processor.create_embeddings(*features).video)


@pytest.mark.parametrize("stream", ["video", "audio"])
@pytest.mark.parametrize("version", HEADERS)
def test_only_the_streams_asked_for(version, stream):
    both = our_processor(HEADERS[version], seed=1)
    one = EmbeddingsProcessor.from_config(HEADERS[version], streams=[stream], gemma=GEMMA).requires_grad_(False)
    left_over = one.load_state_dict(both.state_dict(), strict=False)
    other = "audio" if stream == "video" else "video"
    assert not left_over.missing_keys and left_over.unexpected_keys
    assert all(other in key for key in left_over.unexpected_keys)
    states, mask = random_states(1, ROWS, *GEMMA), last_rows(ROWS, 9)
    context = one.create_embeddings(*one.extract(states, mask))
    assert getattr(context, other) is None
    assert torch.equal(getattr(context, stream), getattr(both.create_embeddings(*both.extract(states, mask)), stream))
    features = both.extract(states, mask)
    with pytest.raises(ValueError, match=f"without {other}"):
        one.create_embeddings(*features)


@pytest.mark.parametrize("version", HEADERS)
def test_gradients_on_request_equal_the_official_ones(version):
    ours, theirs = (processor.requires_grad_(True) for processor in copied(HEADERS[version]))
    states, mask = random_states(1, ROWS, *GEMMA), last_rows(ROWS, 9)
    features = ours.extract(states, mask)
    assert not ours.create_embeddings(*features).video.requires_grad
    context = ours.create_embeddings(*features, with_grad=True)
    expected = theirs.process_hidden_states(tuple(states), mask)
    (context.video.sin().sum() + context.audio.cos().sum()).backward()
    (expected.video_encoding.sin().sum() + expected.audio_encoding.cos().sum()).backward()
    official = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = official[name].grad.abs().max().clamp(min=1e-3)
        close(parameter.grad / scale, official[name].grad / scale)


def test_contexts_can_enter_a_graph(encoder):
    processor = our_processor(V2_HEADER, gemma=(64, 4), seed=1)
    context = encoder("a rabbit", processor).video
    weight = torch.ones(48, requires_grad=True)
    (context * weight).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_rows_must_be_a_multiple_of_the_registers():
    processor = our_processor(V2_HEADER, seed=1)
    with pytest.raises(ValueError, match="200 rows.*128"):
        processor.create_embeddings(torch.zeros(1, 200, 48), None, torch.ones(1, 200))


def test_components_hold_nothing_that_the_file_lacks():
    processor = our_processor(V2_HEADER, seed=1)
    before = set(processor.state_dict())
    processor.create_embeddings(*processor.extract(random_states(1, ROWS, *GEMMA), last_rows(ROWS, 9)))
    assert set(processor.state_dict()) == before


@pytest.mark.parametrize(
    "header, said",
    [
        ({}, '"transformer"'),
        ({"transformer": {"caption_proj_before_connector": True}}, "caption_proj_input_norm"),
        (
            {"transformer": V2_HEADER["transformer"] | {"caption_projection_first_linear": True}},
            "caption_projection_first_linear=True",
        ),
        ({"transformer": V2_HEADER["transformer"] | {"rope_type": "spiral"}}, "spiral"),
        (
            {"transformer": V2_HEADER["transformer"] | {"connector_attention_head_dim": 8}},
            "video connector.* 24 wide.*48",
        ),
        (
            {"transformer": V1_HEADER["transformer"] | {"audio_connector_attention_head_dim": 2}},
            "audio connector.* 8 wide.*32",
        ),
    ],
)
def test_headers_that_make_no_sense_are_refused(header, said):
    with pytest.raises(ConfigError, match=said):
        EmbeddingsProcessor.from_config(header, gemma=GEMMA)


def test_gemma_size_may_stand_in_the_header():
    header = V2_HEADER | {"text_encoder": {"hidden_size": 64, "num_hidden_layers": 3}}
    assert EmbeddingsProcessor.from_config(header).feature_extractor.video_aggregate_embed.in_features == 256


# ---- the encoder


def test_captions_are_told_apart_and_batches_do_not_matter(encoder):
    processor = our_processor(V2_HEADER, gemma=(64, 4), seed=1)
    one_by_one = encoder.precompute(CAPTIONS, processor, batch_size=1)
    together = encoder.precompute(CAPTIONS, processor, batch_size=8)
    for a, b in zip(one_by_one, together):
        close(a.float(), b.float())
    assert (together.video[0] - together.video[1]).abs().max() > 0.1
    assert together.mask.sum(1).tolist()[-1] == 1
    single = encoder.precompute(CAPTIONS[0], processor)
    close(single.video, together.video[:1])


def test_shared_features_stay_shared_across_batches(encoder):
    header = {"transformer": V1_HEADER["transformer"] | {"connector_num_attention_heads": 8}}
    features = encoder.precompute(CAPTIONS, our_processor(header, gemma=(64, 4), seed=1), batch_size=1)
    assert features.audio is features.video and features.video.shape == (3, ROWS, 64)


def test_white_space_around_a_caption_is_dropped_and_nothing_else(encoder):
    rows = [caption_tokens(encoder.tokenizer, [caption])[0] for caption in ("a cat", "  a cat\n", "a  cat")]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_long_captions_keep_bos_and_are_reported(encoder):
    with pytest.warns(UserWarning, match="cut to 128"):
        ids, mask = caption_tokens(encoder.tokenizer, ["cat " * 300], ROWS)
    assert mask.all() and ids[0, 0] == encoder.tokenizer.bos_token_id


@pytest.mark.parametrize("captions, error", [([], ValueError), ([3], TypeError), (["a", None], TypeError)])
def test_captions_must_be_strings(encoder, captions, error):
    with pytest.raises(error, match="caption"):
        encoder.precompute(captions, our_processor(V2_HEADER, gemma=(64, 4), seed=1))


def test_real_folders_pad_to_1024(gemma_folder, encoder):
    tokenizer = SimpleNamespace(model_max_length=10**30)
    assert GemmaTextEncoder(encoder.model, tokenizer).max_length == 1024
    assert encoder.max_length == 128


@pytest.mark.parametrize("vision", [True, False], ids=["multimodal", "text only"])
def test_both_layouts_give_the_same_states(tmp_path, vision):
    make_tiny_gemma(tmp_path, vision=vision)
    encoder = GemmaTextEncoder.from_folder(tmp_path)
    assert encoder.model.dtype == torch.bfloat16
    from safetensors.torch import load_file

    root = "language_model.model." if vision else "model."
    weights = {
        k.removeprefix(root): v for k, v in load_file(tmp_path / "model.safetensors").items() if k.startswith(root)
    }
    loaded = encoder.model.state_dict()
    assert loaded.keys() == weights.keys(), "the text tower and nothing else"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.items())


def test_folder_as_transformers_saves_it(gemma_folder, encoder, tmp_path):
    "Newer versions write other key names, and shards."
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(gemma_folder, local_files_only=True)
    model.save_pretrained(tmp_path / "text_encoder", max_shard_size="100KB")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 1
    saved = GemmaTextEncoder.from_folder(tmp_path, dtype=torch.float32)
    for a, b in zip(hidden(saved), hidden(encoder), strict=True):
        assert torch.equal(a, b)


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage, error, said",
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), FileNotFoundError, "no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "no weights.*download"),
        (lambda folder: (folder / "config.json").unlink(), ValueError, "not a Gemma 3 folder.*no config.json"),
        (lambda folder: change_config(folder, model_type="llama"), ValueError, "found llama"),
        (lambda folder: change_config(folder, model_type="gemma4"), ValueError, "found gemma4"),
        (lambda folder: truncate(folder / "model.safetensors"), ValueError, "not a whole safetensors file"),
        (shutil.rmtree, FileNotFoundError, "is not a folder"),
    ],
    ids=["tokenizer", "weights", "config", "llama", "gemma4", "truncated", "folder"],
)
def test_damaged_folders_are_named(gemma_folder, tmp_path, damage, error, said):
    folder = shutil.copytree(gemma_folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(error, match=f"(?is){said}"):
        GemmaTextEncoder.from_folder(folder)


def test_a_missing_shard_is_named(gemma_folder, tmp_path):
    folder = shutil.copytree(gemma_folder, tmp_path / "copy")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="1 of 2 weight files, first model-00002"):
        find_gemma(folder)


def test_missing_tensors_are_named(gemma_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(gemma_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors.*norm.weight"):
        GemmaTextEncoder.from_folder(folder)


@pytest.mark.parametrize("address", ["https://huggingface.co/google/gemma-3-12b-it", "s3://bucket/gemma"])
def test_an_address_is_no_path(address):
    with pytest.raises(ValueError, match="address.*local folder"):
        GemmaTextEncoder.from_folder(address)


def test_a_hub_name_is_no_path():
    with pytest.raises(FileNotFoundError, match="ltx-nb download gemma-3"):
        GemmaTextEncoder.from_folder("google/gemma-3-12b-it")


def test_a_gemma_of_the_wrong_size_is_refused_before_and_after_loading(gemma_folder, encoder):
    processor = our_processor(V2_HEADER, seed=1)
    for use in (
        lambda: GemmaTextEncoder.from_folder(gemma_folder, embeddings_processor=processor),
        lambda: encoder.precompute("a rabbit", processor),
    ):
        with pytest.raises(ValueError, match="4 hidden states of width 64.*7 of width 32.*Pass the Gemma folder"):
            use()


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks about machines without CUDA")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_eight_bit_needs_cuda(gemma_folder, device):
    with pytest.raises(ValueError, match="needs a CUDA device.*load_in_8bit=False"):
        GemmaTextEncoder.from_folder(gemma_folder, device=device, load_in_8bit=True)


@pytest.mark.gpu
def test_eight_bit_on_cuda(gemma_folder, encoder):
    small = GemmaTextEncoder.from_folder(gemma_folder, device="cuda", load_in_8bit=True)
    assert {p.dtype for p in small.model.layers.parameters() if p.ndim == 2} == {torch.int8}
    states, expected = hidden(small), hidden(encoder)
    assert torch.nn.functional.cosine_similarity(states[-1].float().cpu(), expected[-1], dim=-1).min() > 0.97


# ---- caption caches


def test_records_of_the_reference_trainer(encoder, tmp_path):
    features = encoder.precompute(CAPTIONS, our_processor(V2_HEADER, gemma=(64, 4), seed=1))
    record = caption_record(features, 1)
    assert {name: (tensor.dtype, tensor.ndim) for name, tensor in record.items()} == {
        "video_prompt_embeds": (torch.bfloat16, 2),
        "audio_prompt_embeds": (torch.bfloat16, 2),
        "prompt_attention_mask": (torch.int64, 1),
    }
    torch.save(record, tmp_path / "0.pt")
    assert (tmp_path / "0.pt").stat().st_size < 2 * sum(t.numel() * t.element_size() for t in record.values())
    restored = read_caption_record(torch.load(tmp_path / "0.pt", weights_only=True))
    assert torch.equal(restored.video[0], features.video[1].bfloat16())
    assert torch.equal(restored.audio[0], features.audio[1].bfloat16())


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_legacy_records_serve_both_streams(batch):
    record = {"prompt_embeds": torch.randn(*batch, ROWS, 32), "prompt_attention_mask": torch.ones(*batch, ROWS).long()}
    features = read_caption_record(record)
    assert features.audio is features.video and features.video.shape == (batch or (1,)) + (ROWS, 32)


def test_new_records_win_over_old_ones_and_may_lack_audio():
    record = {name: torch.full((ROWS, 4), float(i)) for i, name in enumerate(("prompt_embeds", "video_prompt_embeds"))}
    features = read_caption_record(record | {"prompt_attention_mask": torch.ones(ROWS)})
    assert features.audio is None and (features.video == 1).all()


@pytest.mark.parametrize("record", [{}, {"prompt_embeds": torch.zeros(4, 4)}, {"prompt_attention_mask": torch.ones(4)}])
def test_foreign_records_are_refused(record):
    with pytest.raises(ValueError, match="expected prompt_attention_mask"):
        read_caption_record(record)


def test_a_cached_record_gives_the_same_context(encoder):
    processor = our_processor(V2_HEADER, gemma=(64, 4), seed=1)
    features = encoder.precompute(CAPTIONS, processor)
    restored = read_caption_record(caption_record(features, 0, dtype=torch.float32))
    close(processor.create_embeddings(*restored).video, encoder(CAPTIONS[0], processor).video)


def test_a_processor_without_extractor_reads_caches_only():
    full = our_processor(V2_HEADER, seed=1)
    processor = EmbeddingsProcessor(None, full.video_connector, full.audio_connector)
    features = TextFeatures(torch.randn(1, ROWS, 48), None, last_rows(ROWS, 5))
    assert processor.create_embeddings(*features).audio is None
    with pytest.raises(ValueError, match="no feature extractor"):
        processor.extract(random_states(1, ROWS, *GEMMA), last_rows(ROWS, 5))


# ---- the tiny Gemma folder


def digest(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_same_seed_writes_the_same_bytes(tmp_path, gemma_folder):
    again, other = make_tiny_gemma(tmp_path / "a", seed=0), make_tiny_gemma(tmp_path / "b", seed=1)
    assert digest(again) == digest(gemma_folder)
    changed = {name for name, value in digest(other).items() if value != digest(again)[name]}
    assert changed == {"model.safetensors"}


def test_tiny_tokenizer_spells_what_it_does_not_know(encoder):
    tokenizer = encoder.tokenizer
    for text in ("a red circle", "zyzzyva 猫 ♪", 'it\'s 3.5% — "ok"'):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    words = "red blue green circle square triangle rabbit bird left right up down low high tone".split()
    assert len({tuple(tokenizer(word)["input_ids"]) for word in words}) == len(words)
    assert all(len(tokenizer(word)["input_ids"]) == 2 for word in words)


def test_captions_that_ship_are_mostly_words(encoder):
    for file in (Path(ltx_nb.__file__).parent / "assets" / "clips").glob("*.txt"):
        caption = file.read_text(encoding="utf-8")
        ids = encoder.tokenizer(caption)["input_ids"]
        assert len(ids) < min(ROWS, 2 * len(caption.split()))


def test_importing_the_module_does_not_import_transformers():
    code = "import sys, ltx_nb.model.text, ltx_nb.tiny.text; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
