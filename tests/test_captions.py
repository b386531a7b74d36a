"Captions from a server that answers, stalls, fails and lies, from a model on this machine, from a package and a function."

import http.server
import json
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace as Bag

import pytest
import shutil
import torch
from test_cli import call

from ltx_nb.data.captioners import Answer, CaptionError, ChatServer, Gemini, Question, Told, look, read_chat
from ltx_nb.data.captions import JOURNAL, caption_clips, clean_caption, judge_answer
from ltx_nb.data.clips import DatasetError, example_clips, read_dataset
from ltx_nb.data.media import write_image
from ltx_nb.data.omni import QwenOmni, find_omni, make_tiny_omni, read_clip

NAMES = ("bird_sings", "boulder_drops", "bow_snaps", "bunny_smiles")
GOOD = "A bird sits on a branch and sings two notes. The wind rustles."


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(example_clips() / f"{name}.mp4", folder)
    return folder


def texts(folder):
    return {path.stem: path.read_text("utf-8").strip() for path in sorted(folder.glob("*.txt"))}


# a server


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words): ...

    def do_GET(self):
        self.server.seen.append(("GET", self.path, dict(self.headers), None))
        self.answer(200, {"data": [{"id": "a-model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(("POST", self.path, dict(self.headers), body))
        self.server.script(self, body)

    def answer(self, code, value, headers=()):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def say(self, text, finish="stop"):
        self.answer(200, {"choices": [{"message": {"content": text}, "finish_reason": finish}]})


@contextmanager
def serving(script):
    "A chat server on this machine; yields its address and what it was sent."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.script = [], script
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server.seen
    finally:
        server.shutdown()
        server.server_close()


def posts(seen):
    return [body for kind, _, _, body in seen if kind == "POST"]


def run(folder, url, **options):
    server = {name: options.pop(name) for name in ("timeout", "key", "model", "form") if name in options}
    return caption_clips(folder, ChatServer(url, **server), **{"pause": 0.0, **options})


def test_a_server_gets_picture_sound_and_prompt_and_the_answer_is_written(clips):
    with serving(lambda self, body: self.say(f"**Caption:** {GOOD} {len(self.server.seen)}.")) as (url, seen):
        report = run(clips, url, key="secret-key")
    assert report.exit_code == 0 and set(texts(clips)) == set(NAMES) and texts(clips)["bird_sings"].startswith(GOOD)
    first = posts(seen)[0]
    parts = {part["type"]: part for part in first["messages"][0]["content"]}
    assert list(parts) == ["video_url", "input_audio", "text"] and first["model"] == "a-model"
    assert parts["video_url"]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert "heard" in parts["text"]["text"] and first["temperature"] == 0 and first["max_tokens"] == 1024
    assert all(headers["Authorization"] == "Bearer secret-key" for kind, _, headers, _ in seen)
    told = str(report) + (clips / JOURNAL).read_text("utf-8") + repr(ChatServer(url, key="secret-key"))
    assert "secret-key" not in told and "127.0.0.1" in str(report)  # where clips go is said, the key is not


def test_a_second_run_asks_only_for_what_is_missing(clips):
    (clips / "bow_snaps.txt").write_text("Mine.", encoding="utf-8")
    with serving(lambda self, body: self.say(f"{GOOD} {len(self.server.seen)}.")) as (url, seen):
        run(clips, url, limit=2)
        assert len(posts(seen)) == 2 and set(texts(clips)) == {"bird_sings", "boulder_drops", "bow_snaps"}
        report = run(clips, url)
        assert len(posts(seen)) == 3 and report.named("kept") == (
            "bird_sings.mp4",
            "boulder_drops.mp4",
            "bow_snaps.mp4",
        )
        run(clips, url)
        assert len(posts(seen)) == 3
        run(clips, url, override=True)  # not the one that somebody wrote
        assert len(posts(seen)) == 6 and texts(clips)["bow_snaps"] == "Mine."


def by_turns(*turns):
    "A script whose n-th request is answered by the n-th turn; the last goes on."

    def script(self, body):
        number = len(posts(self.server.seen)) - 1
        turns[min(number, len(turns) - 1)](self)

    return script


WELL = lambda self: self.say(GOOD)
FAILS = {
    "busy": lambda self: self.answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
    "broken": lambda self: self.answer(500, b"oops"),
    "starting": lambda self: self.answer(503, {}),
    "html": lambda self: self.answer(200, b"<html>login</html>"),
    "no choices": lambda self: self.answer(200, {"choices": []}),
    "a number": lambda self: self.answer(200, {"choices": [{"message": {"content": 3}}]}),
    "half": lambda self: self.answer(200, b'{"choices": [{"mess'),
    "hangs up": lambda self: self.connection.close(),
    "promises more": lambda self: self.answer(200, b"{}", {"Content-Length": "9000"}),
    "stalls": lambda self: time.sleep(1.5),
}


@pytest.mark.parametrize("failure", FAILS)
def test_what_goes_wrong_once_is_asked_again(clips, failure):
    only = clips / "bird_sings.mp4"
    with serving(by_turns(FAILS[failure], WELL)) as (url, seen):
        report = run(only, url, timeout=0.5, model="m")
    assert report.exit_code == 0 and texts(clips) == {"bird_sings": GOOD} and len(posts(seen)) == 2


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("broken", "answers 500"),
        ("html", "no JSON: '<html>login</html>'"),
        ("stalls", "does not answer within 0.3 s"),
        ("no choices", "holds no answer"),
    ],
)
def test_what_always_goes_wrong_is_one_sentence_and_the_rest_goes_on(clips, failure, words):
    "The first clip fails in all attempts; the others are asked and written."

    def script(self, body):
        (FAILS[failure] if len(posts(self.server.seen)) <= 2 else WELL)(self)

    with serving(script) as (url, seen):
        report = run(clips, url, timeout=0.3, model="m", attempts=2)
    assert report.exit_code == 3 and report.named("failed") == ("bird_sings.mp4",) and len(texts(clips)) == 3
    assert (
        words in report.clips[0].error and "2 attempts" in report.clips[0].error and "\n" not in report.clips[0].error
    )


def test_a_server_that_is_not_there_or_refuses_is_said_before_anything_is_asked(clips):
    with pytest.raises(CaptionError, match="cannot be reached"):
        run(clips, "http://127.0.0.1:9/v1")
    with serving(lambda self, body: self.answer(401, {"error": "no"})) as (url, seen):
        report = run(clips, url, model="m")
        assert "refuses the key" in report.clips[0].error and len(posts(seen)) == 4  # not tried again
    with pytest.raises(ValueError, match="no address"):
        ChatServer("127.0.0.1:8001")


def test_a_night_of_failures_ends_early(clips, tmp_path):
    for number in range(8):
        shutil.copy(clips / "bird_sings.mp4", clips / f"more{number}.mp4")
    with serving(lambda self, body: self.answer(500, b"")) as (url, seen):
        report = run(clips, url, model="m", attempts=1)
    assert len(posts(seen)) == 5 and len(report.named("not asked")) == 7
    assert "given up after 5 failures" in str(report) and report.exit_code == 3


def test_a_redirection_is_not_followed(clips):
    with serving(WELL) as (other, seen):
        away = lambda self, body: self.answer(307, b"", {"Location": other})
        with serving(away) as (url, _):
            report = run(clips / "bird_sings.mp4", url, model="m", key="k")
        assert "is not followed" in report.clips[0].error and not seen


@pytest.mark.parametrize("taken", ["image_url", "input_audio"])
def test_a_server_that_takes_less_gets_less_and_is_not_asked_twice(clips, taken):
    "One that knows pictures only, and one that knows sound too."
    known = {"image_url", "text", taken}

    def script(self, body):
        kinds = {part["type"] for part in body["messages"][0]["content"]}
        fine = kinds <= known and "mm_processor_kwargs" not in body
        self.say(f"{GOOD} {len(self.server.seen)}.") if fine else self.answer(400, {"error": {"message": "unknown"}})

    with serving(script) as (url, seen):
        captioner = ChatServer(url, "m")
        report = caption_clips(clips, captioner, pause=0.0)
    assert report.exit_code == 0 and captioner.form == ("pictures" if taken == "image_url" else "pictures and sound")
    tried = 6 if taken == "image_url" else 4  # with what vLLM knows and without, form by form
    assert len(posts(seen)) == tried + len(NAMES) - 1


def test_what_is_wrong_with_the_request_is_said(clips):
    with serving(lambda self, body: self.answer(400, {"error": {"message": "context length exceeded"}})) as (url, _):
        report = run(clips / "bird_sings.mp4", url, model="m")
    assert "context length exceeded" in report.clips[0].error


ANSWERS = [
    ("", "empty"),
    (None, "empty"),
    ("<think>Let me see", "empty"),
    ("I'm sorry, but I can't assist with that.", "refused"),
    ("As an AI, I cannot watch videos.", "refused"),
    ("The bird sings and then " * 50, "runs in circles"),
]


@pytest.mark.parametrize(("answer", "why"), ANSWERS)
def test_answers_that_are_no_captions_are_named_and_not_written(clips, answer, why):
    with serving(by_turns(lambda self: self.say(answer), WELL)) as (url, seen):
        report = run(clips, url, model="m")
        assert report.named("failed") == ("bird_sings.mp4",) and why in report.clips[0].error
        assert len(texts(clips)) == 3 and "bird_sings" not in texts(clips)
        assert run(clips, url, model="m").exit_code == 0  # the next run asks again for that one
        assert len(posts(seen)) == 5


def test_cut_off_too_long_and_repeated_are_written_and_named(clips):
    long = " ".join(f"Leaf {number} falls from tree {number * 7}." for number in range(400))
    turns = [lambda self: self.say(f"{GOOD} Then the", "length"), lambda self: self.say(long), WELL, WELL]
    with serving(by_turns(*turns)) as (url, _):
        report = run(clips, url, model="m")
    assert report.named("cut off") == ("bird_sings.mp4",) and texts(clips)["bird_sings"] == GOOD
    assert report.named("too long") == ("boulder_drops.mp4",) and report.exit_code == 0
    assert set(report.named("repeated")) == {"bird_sings.mp4", "bow_snaps.mp4", "bunny_smiles.mp4"}
    assert all(word in str(report) for word in ("cut off: bird_sings.mp4", "too long: boulder_drops.mp4", "repeated:"))


def test_several_at_a_time_keep_the_order_of_the_clips(clips):
    def script(self, body):
        time.sleep(0.05 * (len(posts(self.server.seen)) % 3))
        self.say(f"{GOOD} {len(self.server.seen)}.")

    with serving(script) as (url, _):
        report = run(clips, url, model="m", workers=4, output=clips / "all.jsonl")
    rows = [json.loads(line) for line in (clips / "all.jsonl").read_text("utf-8").splitlines()]
    assert [row["media_path"] for row in rows] == [f"{name}.mp4" for name in NAMES] and report.exit_code == 0
    assert [clip.id for clip in report.clips] == [f"{name}.mp4" for name in NAMES]


# where captions live


TABLES = {
    "csv": 'id,media_path,Note,caption\n7,bird_sings.mp4,"a, ""b""",\n8,bow_snaps.mp4,,NA\n',
    "json": '{"version": 2, "samples": [{"media_path": "bird_sings.mp4", "n": 1}, {"media_path": "bow_snaps.mp4", "caption": "Mine."}]}',
    "jsonl": '{"video": "bird_sings.mp4", "deep": [1, 2]}\n\n{"video": "bow_snaps.mp4", "caption": "Mine."}\n',
}


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_table_keeps_all_that_is_not_a_caption(clips, form):
    path = clips / f"clips.{form}"
    path.write_text(TABLES[form], encoding="utf-8")
    report = caption_clips(path, Told(lambda path: f"A clip of {path.stem}."))
    assert report.exit_code == 0 and report.named("kept") == ("bow_snaps.mp4",)
    dataset = read_dataset(path)
    assert [sample.caption for sample in dataset][0] == "A clip of bird_sings."
    assert path.with_name(f"{path.name}.bak").read_text("utf-8") == TABLES[form]
    text = path.read_text("utf-8")
    assert {"csv": '"a, ""b"""', "json": '"version": 2'}[form] in text and not texts(clips)


def test_a_table_of_a_spreadsheet_keeps_its_semicolons(clips):
    (clips / "clips.csv").write_bytes("media_path;Note;caption\nbird_sings.mp4;Vögel, früh;\n".encode("cp1252"))
    caption_clips(clips / "clips.csv", Told(lambda path: "A bird sings; it is early."))
    lines = (clips / "clips.csv").read_text("utf-8").splitlines()
    assert lines == ["media_path;Note;caption", 'bird_sings.mp4;Vögel, früh;"A bird sings; it is early."']
    assert "früh".encode("cp1252") in (clips / "clips.csv.bak").read_bytes()


def test_a_table_of_lines_with_lists_in_it_is_said_to_be_none(clips):
    (clips / "clips.jsonl").write_text(TABLES["jsonl"], encoding="utf-8")
    with pytest.raises(DatasetError, match="'deep' holds a list"):
        caption_clips(clips / "clips.jsonl", Told(str))
    assert (clips / "clips.jsonl").read_text("utf-8") == TABLES["jsonl"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "name\nx\n", "no column"),
        ("a.json", "{", "not valid JSON"),
        ("a.txt", "x", "is no"),
        ("a.jsonl", '{"media_path": ', "not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_never_overwritten(clips, name, text, words):
    path = clips / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    asked = []
    with pytest.raises(DatasetError, match=words):
        caption_clips(clips, Told(asked.append), output=path)
    assert path.read_bytes() == (text if isinstance(text, bytes) else text.encode()) and not asked


def test_a_new_table_of_clips_elsewhere_is_read_by_prepare(clips, tmp_path):
    table = tmp_path / "lists" / "train.csv"
    caption_clips(clips, Told(lambda path: f'It says "{path.stem}", \nand more.'), output=table)
    dataset = read_dataset(table)
    assert [sample.main.resolve() for sample in dataset] == [(clips / f"{name}.mp4").resolve() for name in NAMES]
    assert dataset.samples[0].caption == 'It says "bird_sings", and more.'


def test_answers_that_were_not_written_are_not_asked_for_again(clips):
    "The power goes when three of four answers are in the journal and none in the table."
    asked = []

    class Dies:
        name = "dies"

        def announce(self):
            return "It dies."

        def ask(self, question):
            asked.append(question.path.stem)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return Answer(f"A clip of {question.path.stem}.")

    table = clips / "all.json"
    with pytest.raises(KeyboardInterrupt):
        caption_clips(clips, Dies(), output=table)
    table.unlink()
    with (clips / JOURNAL).open("a") as journal:
        journal.write('{"file": "bunny_smi')  # a line that was being written
    report = caption_clips(clips, Dies(), output=table)
    assert len(asked) == 5 and len(report.named("recalled")) == 3 and report.exit_code == 0


def test_one_broken_clip_and_one_still_among_clips(clips):
    (clips / "torn.mp4").write_bytes(b"no film")
    write_image(clips / "still.png", torch.full((3, 32, 32), 90, dtype=torch.uint8))
    with serving(lambda self, body: self.say(f"{GOOD} {len(self.server.seen)}.")) as (url, seen):
        report = run(clips, url, model="m")
    assert report.named("failed") == ("torn.mp4",) and "cannot be decoded" in str(report) and len(texts(clips)) == 5
    still = next(body for body in posts(seen) if "text-to-image" in body["messages"][0]["content"][-1]["text"])
    assert [part["type"] for part in still["messages"][0]["content"]] == ["image_url", "text"]


def test_a_function_that_breaks_never_stops_the_rest(clips):
    def mine(path):
        return {"bird_sings": GOOD}[path.stem]

    report = caption_clips(clips, Told(mine))
    assert texts(clips) == {"bird_sings": GOOD} and "KeyError" in report.clips[1].error and report.exit_code == 3


def test_a_dry_run_asks_nobody(clips):
    report = caption_clips(clips, Told(lambda path: 1 / 0), dry_run=True)
    assert len(report.named("to be asked")) == 4 and not texts(clips) and not (clips / JOURNAL).exists()


# what models write


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("Caption:\n\nA bird.", "A bird."),
        ('Sure! Here\'s a caption for the video:\n\n"A bird sings."', "A bird sings."),
        ("This short clip depicts a red fox.", "A red fox."),
        ("In this video, there is a red fox.", "A red fox."),
        ("# Scene\nA fox.", "Scene A fox."),
        ("1. A fox.\n2. It runs.", "A fox. It runs."),
        ('{"caption": "A \\"red\\" fox."}', 'A "red" fox.'),
        ('{"caption": "A fox that', "A fox that"),
        ("<think>a\nb</think>\nA fox.", "A fox."),
        ("A fox.\n\nIt  runs.", "A fox. It runs."),
        ('"Go!" shouts a man. "No."', '"Go!" shouts a man. "No."'),
        ("The shower runs.", "The shower runs."),
        ("", ""),
    ],
)
def test_cleaning(answer, caption):
    assert clean_caption(answer) == caption


def test_speech_in_a_caption_is_no_refusal():
    assert judge_answer('A man in a suit shakes his head and says: "We close at six." Traffic hums.') == ()
    assert judge_answer("Rain, rain, rain, rain, rain, rain, rain falls.") == ("runs in circles",)


# a model on this machine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_omni(tmp_path_factory.mktemp("omni") / "tiny-omni")


def test_a_model_on_this_machine_sees_hears_and_writes(tiny, clips):
    captioner = QwenOmni(str(tiny), device="cpu")
    said = captioner.announce()
    assert "Nothing leaves this machine" in said and "tiny-omni" in said
    question = Question(clips / "bird_sings.mp4", max_tokens=8, pixels=6000)
    assert (
        captioner.ask(question)
        == captioner.ask(question)
        != captioner.ask(Question(question.path, "Why?", max_tokens=8))
    )
    given = read_clip(question, captioner.model, captioner.tokenizer, captioner.ears, captioner.eyes)
    silent = read_clip(
        Question(question.path, pixels=6000, sound=False),
        captioner.model,
        captioner.tokenizer,
        captioner.ears,
        captioner.eyes,
    )
    assert "input_features" in given and "input_features" not in silent
    assert given["input_ids"].shape[1] == silent["input_ids"].shape[1] + 51 + 2


def test_the_whole_model_is_loaded_by_its_thinking_half(tiny, tmp_path, clips):
    transformers = pytest.importorskip("transformers")
    half = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tiny)
    kind = transformers.Qwen2_5OmniForConditionalGeneration
    whole = kind(kind.config_class(thinker_config=half.config.to_dict(), enable_audio_output=False))
    whole.thinker.load_state_dict(half.state_dict())
    folder = shutil.copytree(tiny, tmp_path / "whole")
    whole.save_pretrained(folder)
    question = Question(clips / "bow_snaps.mp4", max_tokens=6, pixels=6000)
    assert QwenOmni(str(folder), device="cpu").ask(question) == QwenOmni(str(tiny), device="cpu").ask(question)


@pytest.fixture(scope="module")
def tiny_moe(tiny, tmp_path_factory):
    "The layout of Qwen3-Omni: experts, other patches, another count of tokens a second of sound."
    transformers = pytest.importorskip("transformers")
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("moe") / "tiny-moe"))
    old = transformers.AutoConfig.from_pretrained(tiny)
    names = "audio_token_id image_token_id video_token_id audio_start_token_id audio_end_token_id vision_start_token_id"
    audio = dict(num_mel_bins=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, d_model=16)
    audio |= dict(n_window=50, n_window_infer=100, downsample_hidden_size=8, output_dim=32)
    vision = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=16, out_hidden_size=32)
    vision |= dict(num_position_embeddings=64, deepstack_visual_indexes=[0])
    text = dict(vocab_size=old.text_config.vocab_size, hidden_size=32, intermediate_size=48, moe_intermediate_size=16)
    text |= dict(
        num_experts=4, num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    text |= dict(rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0})
    kind = transformers.Qwen3OmniMoeThinkerForConditionalGeneration
    ids = {name: getattr(old, name) for name in [*names.split(), "vision_end_token_id"]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(kind.config_class(audio_config=audio, vision_config=vision, text_config=text, **ids)).save_pretrained(
            folder
        )
    return folder


def test_the_layout_with_experts_sees_hears_and_writes(tiny_moe, clips):
    captioner = QwenOmni(str(tiny_moe), device="cpu")
    assert captioner.ask(question := Question(clips / "bird_sings.mp4", max_tokens=4, pixels=6000)).tokens == 4
    given = read_clip(question, captioner.model, captioner.tokenizer, captioner.ears, captioner.eyes)
    assert captioner.eyes.patch == 16 and int((given["input_ids"] == captioner.model.config.audio_token_id).sum()) == 27
    logits = lambda **changed: captioner.model(**given | changed).logits[0, -1].detach()
    other = {name: 50 * torch.randn_like(given[name]) for name in ("input_features", "pixel_values_videos")}
    assert all((logits() - logits(**{name: value})).abs().max() > 1e-6 for name, value in other.items())
    from ltx_nb.data.omni import _precision_for

    with pytest.raises(CaptionError, match="its experts stay in 16 bits"):
        _precision_for(tiny_moe, "4bit", torch.device("cuda"), 80e9)


def test_what_is_no_such_model_is_one_sentence(tmp_path, tiny):
    with pytest.raises(CaptionError, match="hf download Nobody/Nothing"):
        find_omni("Nobody/Nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaptionError, match="holds no config.json"):
        QwenOmni(str(tmp_path / "empty"), device="cpu").announce()
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    (other / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CaptionError, match="a llama; a Qwen2.5-Omni or Qwen3-Omni is expected"):
        QwenOmni(str(other), device="cpu").announce()
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        QwenOmni(str(tiny), "4bit", device="cpu")


# Gemini


@pytest.fixture
def google(monkeypatch):
    "A stand-in of the package: what it is sent, and what it does next."
    state = Bag(sent=[], replies=[], uploads=[], deleted=[], states=["PROCESSING", "ACTIVE"])

    def generate(**request):
        state.sent.append(request)
        reply = state.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def upload(file, config):
        state.uploads.append(Path(file).name)
        return Bag(name="files/1", state=state.states.pop(0))

    files = Bag(
        upload=upload,
        get=lambda name: Bag(name=name, state=state.states.pop(0)),
        delete=lambda name: state.deleted.append(name),
    )
    package = Bag(Client=lambda api_key, http_options: Bag(models=Bag(generate_content=generate), files=files))
    monkeypatch.setitem(sys.modules, "google.genai", package)
    monkeypatch.setitem(sys.modules, "google.genai.types", Bag(Part=Bag(from_bytes=lambda data, mime_type: mime_type)))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return state


def reply(text=GOOD, reason="STOP"):
    return Bag(text=text, candidates=[Bag(finish_reason=Bag(value=reason))], usage_metadata=None)


def refusing(code):
    error = RuntimeError("quota")
    error.code = code
    return error


def test_gemini_answers_refuses_and_is_asked_again(google, clips):
    google.replies = [reply(), refusing(429), reply("A bow.", "MAX_TOKENS"), reply(None, "SAFETY"), refusing(400)]
    report = caption_clips(clips, Gemini(key="secret"), pause=0.0)
    assert [clip.state for clip in report.clips] == ["written", "written", "failed", "failed"]
    assert report.named("cut off") == ("boulder_drops.mp4",) and "SAFETY" in report.clips[2].error
    assert "Gemini answers 400" in report.clips[3].error and "secret" not in str(report) and "Google" in str(report)


def test_a_large_file_is_uploaded_and_deleted_again(google, clips, monkeypatch):
    monkeypatch.setattr("ltx_nb.data.captioners.INLINE_BYTES", 10)
    google.replies = [reply()]
    assert Gemini(key="k").ask(Question(clips / "bird_sings.mp4")).text == GOOD
    assert google.uploads == ["bird_sings.mp4"] and google.deleted == ["files/1"]
    google.states = ["FAILED"]
    with pytest.raises(CaptionError, match="failed after its upload"):
        Gemini(key="k").ask(Question(clips / "bird_sings.mp4"))


def test_without_a_key_or_the_package_gemini_says_what_to_do(monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CaptionError, match="GEMINI_API_KEY"):
        Gemini()
    monkeypatch.setitem(sys.modules, "google.genai", None)
    with pytest.raises(ImportError, match="pip install google-genai"):
        Gemini(key="k")


# small things


def test_a_long_film_is_looked_at_in_as_many_pictures_as_are_allowed():
    clip = example_clips() / "bird_sings.mp4"
    seen = look(Question(clip, fps=30, most=7, pixels=5000), multiple=28)
    assert len(seen.frames) == 7 and seen.frames.shape[2] % 28 == seen.frames.shape[3] % 28 == 0
    assert abs(7 / seen.fps - 49 / 24) < 0.01


def test_the_parts_of_an_answer_are_joined():
    parts = {"content": [{"type": "text", "text": "A "}, {"type": "text", "text": "bird."}]}
    assert read_chat({"choices": [{"message": parts}]}) == Answer("A bird.")


# the command


def test_the_command_takes_the_names_of_the_ltx_trainer(capsys, clips):
    with serving(lambda self, body: self.say(f"{GOOD} {len(self.server.seen)}.")) as (url, seen):
        ask = [
            "caption",
            clips,
            "--captioner-type",
            "qwen_omni",
            "--vllm-url",
            url,
            "--vllm-model",
            "m",
            "--progress",
            "none",
        ]
        options = "--no-thinking --max-tokens 99 -f 3 -w 2".split()
        code, out, err = call(capsys, *ask, *options, "-i", "What is it?", "-o", clips / "all.csv")
    assert code == 0 and "4 written" in out and len(read_dataset(clips / "all.csv")) == 4, err
    body = posts(seen)[0]
    assert body["max_tokens"] == 99 and body["messages"][0]["content"][-1]["text"] == "What is it?"
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_command_with_a_model_on_this_machine(capsys, clips, tiny):
    ask = ["caption", clips / "bird_sings.mp4", "-c", "local", "--model", tiny, "--max-tokens", 6, "--device", "cpu"]
    code, out, err = call(capsys, *ask, "--progress", "none")
    assert code in (0, 3) and "tiny-omni" in out and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vllm-url", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["-c", "magic"], "server, local, gemini"),
        (["-c", "gemini"], "GEMINI_API_KEY"),
        (["-c", "local", "--model", "Nobody/Nothing"], "hf download"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(capsys, clips, monkeypatch, options, words):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = call(capsys, "caption", clips, *options, "--progress", "none")
    assert code == 1 and words in err and "Traceback" not in err and err.count("\n") <= 2
