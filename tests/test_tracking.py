"The numbers of a run: in its own file always, in trackers where asked, and never a reason for it to stop."

import json
import os
import struct
import sys
from pathlib import Path

import pytest
from tiny_runs import configure, make_place, make_trainer, names, told, train

from ltx_nb.tools.cli import main
from ltx_nb.training.tracking import MetricsFile, Tracker, Tracking, curve, read_metrics, read_state

SAMPLES = {
    "validation.interval": 2, "validation.skip_initial_validation": True, "validation.samples": [{"prompt": "a red ball"}],
    "validation.video_cfg_scale": 1.0, "validation.audio_cfg_scale": 1.0, "validation.video_stg_scale": 0.0,
    "validation.audio_stg_scale": 0.0, "validation.video_modality_guidance_scale": 1.0, "validation.audio_modality_guidance_scale": 1.0,
}  # fmt: skip
EVERYWHERE = {"wandb.enabled": True, "tracking.tensorboard": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    monkeypatch.setenv("WANDB_SILENT", "true")


def wandb_records(run: Path):
    "What offline files hold: a log in LevelDB's format, of protobuf records."
    from wandb.proto import wandb_internal_pb2

    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, place, parts = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            _, size, kind = struct.unpack("<IHB", data[place : place + 7])
            if not kind:
                break
            parts += data[place + 7 : place + 7 + size]
            place += 7 + size
            if kind in (1, 4):  # whole, or the last part
                yield wandb_internal_pb2.Record.FromString(parts)
                parts = b""


def wandb_history(run: Path) -> list[dict]:
    rows = [record.history for record in wandb_records(run) if record.HasField("history")]
    key = lambda item: item.key or ".".join(item.nested_key)
    return [{key(item): json.loads(item.value_json) for item in row.item} for row in rows]


def wandb_curve(run: Path, name: str) -> dict[int, float]:
    return {row["train/global_step"]: row[name] for row in wandb_history(run) if name in row}


def board(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    return found.Reload()


def test_the_same_numbers_in_all_three_and_a_resumed_run_is_one_curve(place, tmp_path):
    run = tmp_path / "run"
    options = EVERYWHERE | SAMPLES | {"data.held_out": 1, "optimization.batch_size": 1, "checkpoints.interval": 2}
    first = make_trainer(place, run, **options, **{"optimization.steps": 6})
    for report in first.steps():
        if report.step == 3:  # killed: step 3 is written down, and made again by the run that goes on from step 2
            break
    ids = {record.run.run_id for record in wandb_records(run) if record.HasField("run")}
    again = make_trainer(place, run, **options, **{"optimization.steps": 6, "model.load_checkpoint": run})
    reports = list(again.steps())
    assert [report.step for report in reports] == [3, 4, 5, 6]
    assert {record.run.run_id for record in wandb_records(run) if record.HasField("run")} == ids and len(ids) == 1

    metrics, scalars = read_metrics(run), board(run).Scalars
    for name in ("train/loss", "train/loss_video", "train/learning_rate", "train/grad_norm", "train/step_time"):
        steps, values = curve(metrics, name)
        assert steps == [1, 2, 3, 4, 5, 6]
        assert [event.step for event in scalars(name)] == steps
        assert [event.value for event in scalars(name)] == pytest.approx(values)  # TensorBoard keeps float32
        assert wandb_curve(run, name) == dict(zip(steps, values, strict=True))
    assert curve(metrics, "train/loss")[1][2:] == [report.numbers()["loss"] for report in reports]
    assert curve(metrics, "held_out/loss") == (
        [0, 2, 4, 6], list(wandb_curve(run, "held_out/loss").values()))  # fmt: skip
    assert [row["samples"] for row in metrics if "samples" in row] == [
        [f"samples/step_00000{n}_1.mp4"] for n in (2, 4, 6)
    ]
    films = [row for row in wandb_history(run) if "samples/1._type" in row]
    assert [film["samples/1._type"] for film in films] == ["video-file"] * 3
    assert films[0]["samples/1.caption"] == "a red ball"
    assert len(board(run).Images("samples/1")) == 3 and len(board(run).Audio("samples/1/sound")) == 3
    assert "wandb sync" in told(first) and read_state(run)["state"] == "finished"


def test_numbers_and_state_are_written_without_any_tracker(place, tmp_path):
    trainer, reports = train(place, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [row["train/loss"] for row in rows] == [report.numbers()["loss"] for report in reports]
    assert all(row["train/memory_gb"] > 0 and row["train/step_time"] > 0 for row in rows)
    levels = {name for row in rows for name in row if "sigma" in name}
    assert levels and levels <= {
        f"train/loss_{stream}_sigma_{edges}"
        for stream in ("video", "audio")
        for edges in ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")
    }
    state = read_state(tmp_path / "run")
    assert (state["state"], state["step"], state["steps"]) == ("finished", 2, 2)
    assert state["checkpoint"] == str(trainer.state.checkpoint) and not {"wandb", "tensorboard"} & {
        *names(tmp_path / "run")
    }


class Broken(Tracker):
    title = "Broken"

    def __init__(self, where: str):
        self.where, self.called = where, []

    def _do(self, what):
        self.called.append(what)
        if what == self.where:
            raise ConnectionError("the network is gone")

    def open(self, config, folder, step, ids):
        self._do("open")

    def log(self, step, values):
        self._do("log")

    def sample(self, step, name, path, caption):
        self._do("sample")

    def close(self):
        self._do("close")


@pytest.mark.parametrize("where", ["open", "log", "sample", "close"])
def test_a_tracker_that_fails_stops_nothing_and_is_named_once(place, tmp_path, where):
    said, broken = [], Broken(where)
    tracking = Tracking(configure(place, tmp_path / "run"), said.append, trackers=[broken])
    state = type("State", (), {"step": 0, "checkpoint": None, "stopped": None, "tracked": {}})()
    with tracking.during(state):
        for step in (1, 2):
            tracking.step(step, 0.1, lambda: {"train/loss": 1.0})
            tracking.samples(step, [tmp_path / "a.mp4"], ["a prompt"])
    assert len(said) == 1 and "Broken" in said[0] and "the network is gone" in said[0]
    assert len(read_metrics(tmp_path / "run")) == 2 and read_state(tmp_path / "run")["state"] == "finished"
    assert broken.called.count(where) == 1 and (where == "open" or broken.called[0] == "open")


def test_a_tracker_that_cannot_be_opened_in_a_real_run(place, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no such project")))
    trainer, reports = train(place, tmp_path / "run", wandb__enabled=True)
    assert len(reports) == 2 and "no such project" in told(trainer) and len(read_metrics(tmp_path / "run")) == 2


def test_trackio_gets_them_too(place, tmp_path, monkeypatch):
    "A stand-in for the package, which is not among those that the tests install."
    (tmp_path / "trackio.py").write_text(
        "calls = []\n"
        "class Run:\n"
        "    def __init__(self, **o): self.name = o['name']; calls.append(('init', o['project'], o['name'], o['resume']))\n"
        "    def log(self, values, step=None): calls.append((step, values))\n"
        "    def finish(self): calls.append('finish')\n"
        "init = lambda **o: Run(**o)\n"
    )
    (tmp_path / "trackio-1.dist-info").mkdir()
    (tmp_path / "trackio-1.dist-info" / "METADATA").write_text("Name: trackio\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    train(place, tmp_path / "run", tracking__trackio=True, wandb__project="mine", checkpoints__interval=1)
    train(
        place, tmp_path / "run", tracking__trackio=True, wandb__project="mine", optimization__steps=3,
        model__load_checkpoint=tmp_path / "run",
    )  # fmt: skip
    import trackio

    opened = [call for call in trackio.calls if call[0] == "init"]
    assert opened == [("init", "mine", "run", "never"), ("init", "mine", "run", "allow")]
    assert [call[0] for call in trackio.calls if isinstance(call[0], int)] == [1, 2, 3]


def test_a_failed_run_says_so_and_keeps_the_numbers_up_to_there(place, tmp_path):
    trainer = make_trainer(place, tmp_path / "run", optimization__steps=5)
    with pytest.raises(MemoryError):
        for report in trainer.steps():
            if report.step == 2:
                trainer.run.data.sampler.advance = lambda: (_ for _ in ()).throw(MemoryError("no room"))
    state = read_state(tmp_path / "run")
    assert (state["state"], state["step"]) == ("failed", 2) and "no room" in state["error"]
    assert len(read_metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "line", ['{"step": 3, "train/lo', "[1, 2]", '{"step": "x"}', "\x00\x00", '{"loss": 1}', '{"step": null}']
)
def test_a_torn_or_strange_line_is_passed_over(tmp_path, line):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(1, {"train/loss": float("inf")})
    with open(file.path, "a") as torn:
        torn.write(line + "\n")
    file.write(2, {"train/loss": 0.5})
    assert curve(read_metrics(tmp_path), "train/loss") == ([2], [0.5])
    MetricsFile(file.path, resumed_at=2)
    assert [json.loads(text)["step"] for text in file.path.read_text().splitlines()] == [1, 2]


# the commands


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


def test_runs_are_listed_and_drawn(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    outputs = tmp_path / "outputs"
    for name, seed in (("one", 1), ("two", 2)):
        train(place, outputs / name, seed=seed)
    (outputs / "two" / "run.json").write_text(
        (outputs / "two" / "run.json")
        .read_text()
        .replace('"finished"', '"running"')
        .replace(f'"pid": {os.getpid()}', '"pid": 4194304')
    )
    code, out, _ = call(capsys, "runs", outputs)
    assert code == 0 and "finished" in out and "broken off" in out and out.count("2/2") == 2
    code, out, _ = call(capsys, "runs", outputs, "--json")
    assert code == 0 and [row["state"] for row in json.loads(out)] == ["finished", "broken off"]
    code, out, _ = call(capsys, "plot", outputs / "one", outputs / "two", "-o", tmp_path / "curves.png")
    assert code == 0 and (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs", "nowhere"], "no folder nowhere"),
        (["plot", "nowhere"], "no numbers"),
        (["plot", "nowhere", "-o", "curves.doc"], ".png"),
    ],
)
def test_what_is_not_there_is_said(capsys, arguments, words):
    code, _, err = call(capsys, *arguments)
    assert code == 1 and words in err and "Traceback" not in err


def test_only_the_first_process_writes(place, tmp_path):
    tracking = Tracking(configure(place, tmp_path / "run"), print, active=False)
    state = type("State", (), {"step": 0, "checkpoint": None, "stopped": None, "tracked": {}})()
    with tracking.during(state):
        tracking.step(1, 0.1, lambda: {"train/loss": 1.0})
    assert not (tmp_path / "run").exists()
