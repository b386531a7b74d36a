"A run alone in its folder, and what it leaves when it dies."

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ltx_nb.config.files import save_config
from ltx_nb.model.files import atomic_path, remove_leftovers
from ltx_nb.model.latents import ConfigError
from ltx_nb.tools import cli
from ltx_nb.training import checkpoints, run, trainer, validation
from ltx_nb.training.output import earlier_run, sole_writer
from ltx_nb.training.progress import Progress, View
from ltx_nb.training.trainer import LtxvTrainer
from tiny_runs import configure, make_place, make_trainer, names, one_thread, same, told, trained

STEPS = 4
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    "A run that nobody disturbed: what its last checkpoint holds."
    with one_thread():
        done = make_trainer(place, tmp_path_factory.mktemp("whole"), optimization__steps=STEPS, lora__dropout=0.1)
        done.train()
    return trained(done)


def disturbed(place, output, **changes):
    return make_trainer(place, output, **{"optimization__steps": STEPS, "lora__dropout": 0.1} | changes)


# the same folder twice


def test_a_run_is_not_begun_over_another(place, tmp_path):
    make_trainer(place, tmp_path, checkpoints__interval=1).train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=rf"2 checkpoints \(the newest of step 2\).*--resume {tmp_path}.*--overwrite"):
        make_trainer(place, tmp_path, optimization__learning_rate=1.0).train()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_replaces_another_on_purpose(place, tmp_path):
    make_trainer(place, tmp_path, checkpoints__interval=1).train()
    (tmp_path / "notes.txt").write_text("mine")
    make_trainer(place, tmp_path, True, optimization__steps=1).train()
    assert earlier_run(tmp_path).steps == (1,) and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_resume_from_an_earlier_step_is_asked_what_to_do_with_the_later(place, tmp_path):
    make_trainer(place, tmp_path, checkpoints__interval=1).train()
    first = checkpoints.checkpoint_path(tmp_path / "checkpoints", 1)
    with pytest.raises(ConfigError, match="holds checkpoints after step 1"):
        make_trainer(place, tmp_path, model__load_checkpoint=first).train()
    make_trainer(place, tmp_path, True, model__load_checkpoint=first, optimization__steps=2).train()
    assert earlier_run(tmp_path).steps == (1, 2)


def test_weights_alone_are_no_reason_to_begin_again_beside_them(place, tmp_path):
    make_trainer(place, tmp_path).train()
    with pytest.raises(ConfigError, match="holds a run already"):
        make_trainer(place, tmp_path, model__load_checkpoint=tmp_path, checkpoints__no_resume=True).train()


def test_a_trainer_that_has_begun_goes_on(place, tmp_path):
    trainer = make_trainer(place, tmp_path, checkpoints__interval=1)
    next(trainer.steps())
    assert [report.step for report in trainer.steps()] == [2]


def test_the_command_asks_too(place, tmp_path, capsys):
    config = save_config(configure(place, tmp_path / "run", optimization__steps=1), tmp_path / "run.yaml")
    for arguments, code, said in (
        ([], 0, "1 steps done"), ([], 1, "holds a run already"), (["--overwrite"], 0, "1 steps done"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            cli.main(["train", str(config), "--progress", "none", *arguments])
        output = capsys.readouterr()
        assert end.value.code == code and said in output.out + output.err


def test_two_runs_at_once_are_one_too_many(place, tmp_path):
    with sole_writer(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        make_trainer(place, tmp_path).train()
    make_trainer(place, tmp_path).train()
    assert ".writing" not in names(tmp_path)


def test_a_lock_does_not_outlive_its_process(tmp_path):
    code = "import sys, os; from ltx_nb.training.output import sole_writer\nwith sole_writer(sys.argv[1]): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / ".writing").exists()
    with sole_writer(tmp_path):
        pass


# whole or not there


def test_a_pair_is_published_weights_last(place, tmp_path, monkeypatch):
    seen, usual = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (usual(a, b), seen.append(Path(b).name)))
    make_trainer(place, tmp_path, optimization__steps=1).train()
    ours = [name for name in seen if "step" in name]
    assert ours == ["training_state_step_00001.safetensors", "lora_weights_step_00001.safetensors"]


def test_a_state_without_weights_is_no_checkpoint_and_pushes_none_out(place, tmp_path):
    make_trainer(place, tmp_path, checkpoints__interval=1, checkpoints__keep_last_n=1).train()
    lonely = checkpoints.checkpoint_path(tmp_path / "checkpoints", 2, "state")
    (tmp_path / "checkpoints/lora_weights_step_00002.safetensors").unlink()
    assert lonely.exists() and not earlier_run(tmp_path)
    make_trainer(place, tmp_path, checkpoints__keep_last_n=1, optimization__steps=3).train()
    assert names(tmp_path / "checkpoints") == [
        "lora_weights_step_00003.safetensors",
        "training_state_step_00003.safetensors",
    ]


def test_leftovers_of_the_dead_are_gone_at_the_next_start(place, tmp_path):
    code = """
import os, sys
from ltx_nb.model.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"half"); path.with_name(".tmpAbCdEf").write_bytes(b"of the library that writes tensors")
    os.kill(os.getpid(), 9)
"""
    target = tmp_path / "checkpoints/lora_weights_step_00001.safetensors"
    subprocess.run([sys.executable, "-c", code, str(target)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    hidden = lambda: [path for path in tmp_path.rglob(".*")]
    assert len(hidden()) == 3 and not target.exists()
    make_trainer(place, tmp_path, optimization__steps=1).train()
    assert not hidden()


def test_what_lives_is_left_alone(tmp_path):
    with atomic_path(tmp_path / "a") as path:
        path.write_bytes(b"x")
        assert remove_leftovers(tmp_path) == 0
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_that_the_umask_says(place, tmp_path, mask):
    former = os.umask(mask)
    try:
        make_trainer(place, tmp_path, optimization__steps=1, validation__interval=1).train()
    finally:
        os.umask(former)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


# errors


def failing(times=1, error=RuntimeError("out of luck")):
    "A function that fails a few times, wherever it is put."
    left = [times]

    def fails(usual):
        def call(*arguments, **named):
            if left[0]:
                left[0] -= 1
                raise error
            return usual(*arguments, **named)

        return call

    return fails


def test_a_sample_that_fails_is_said_and_the_run_goes_on(place, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "walk", failing(1)(validation.walk))
    made = make_trainer(place, tmp_path, validation__interval=1, optimization__steps=2)
    result = made.train()
    assert result.steps == 2 and names(tmp_path / "samples") == ["step_000001_1.mp4", "step_000002_1.mp4"]
    assert "Sample 1 of step 0 was not made (RuntimeError: out of luck)" in told(made)


def test_one_sample_that_cannot_be_decoded_does_not_stop_the_other(place, tmp_path, monkeypatch):
    usual = validation.decode_latents

    def picky(walked, **where):
        if any(media.request.prompt == "bad" for media, _ in walked):
            raise ValueError("it cannot be decoded")
        return usual(walked, **where)

    monkeypatch.setattr(validation, "decode_latents", picky)
    samples = [{"prompt": "bad"}, {"prompt": "good"}]
    made = make_trainer(place, tmp_path, validation__interval=1, optimization__steps=1, validation__samples=samples)
    made.train()
    assert names(tmp_path / "samples") == ["step_000000_2.mp4", "step_000001_2.mp4"]
    assert "Sample 1" in told(made)


def test_a_view_that_fails_is_given_up(place, tmp_path, caplog):
    class Closed(View):
        def changed(self, *what):
            raise BrokenPipeError("the terminal was closed")

    result = LtxvTrainer(configure(place, tmp_path), Progress(Closed()), "cpu").train()
    assert result.steps == 2 and "no longer shown" in caplog.text


@pytest.mark.parametrize("where", ["gather_gradients", "measure_run", "save_config", "callback"])
def test_a_run_that_dies_saves_what_it_has_and_resumes_to_the_same_bits(place, tmp_path, monkeypatch, whole, where):
    count, error = [0], RuntimeError("out of luck")

    def late(usual):
        def call(*arguments, **named):
            count[0] += 1
            if count[0] == 3:
                if where == "gather_gradients":
                    usual(*arguments, **named)  # it dies with the gradient in its hands, and random numbers drawn
                raise error
            return usual(*arguments, **named)

        return call

    with one_thread():
        dying = disturbed(place, tmp_path, **({"validation__interval": 1} if where == "measure_run" else {}))
        callback = late(lambda report: None) if where == "callback" else None
        if where in ("gather_gradients", "measure_run"):
            monkeypatch.setattr(trainer, where, late(getattr(trainer, where)))
        if where == "save_config":
            monkeypatch.setattr(trainer, "look_after_step", late(trainer.look_after_step))
        with pytest.raises(RuntimeError, match="out of luck"):
            dying.train(on_step=callback)
        monkeypatch.undo()
        (step,) = earlier_run(tmp_path).steps
        assert "is saved: resume with" in told(dying) and step in (1, 2, 3)
        again = disturbed(place, tmp_path, model__load_checkpoint=tmp_path)
        again.train()
    assert same(trained(again), whole)


def test_lost_weights_are_not_saved(place, tmp_path, monkeypatch):
    dying = disturbed(place, tmp_path)
    next(dying.steps())
    monkeypatch.setattr(type(dying.run.weights), "update", failing(9)(None))
    with pytest.raises(RuntimeError):
        list(dying.steps())
    assert not earlier_run(tmp_path)  # who knows which of them had moved


def test_a_full_disk_is_no_reason_to_end_while_there_is_a_later_chance(place, tmp_path, monkeypatch):
    full = OSError(28, "No space for the checkpoint: 1 GB are needed")
    monkeypatch.setattr(trainer, "save_run", failing(1, full)(run.save_run))
    made = make_trainer(place, tmp_path, checkpoints__interval=1)
    made.train()
    assert earlier_run(tmp_path).steps == (2,) and "Step 1 was not saved" in told(made)


def test_a_disk_that_is_too_small_says_so_before_the_first_step(place, tmp_path, monkeypatch):
    import shutil

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    steps = []
    with pytest.raises(OSError, match=rf"No space for 2 checkpoints of this run: .* GB are needed in {tmp_path}"):
        make_trainer(place, tmp_path, checkpoints__interval=1).train(on_step=steps.append)
    assert not steps


# signals


SCRIPT = """
import sys
from ltx_nb.config.files import load_config
from ltx_nb.training.progress import Progress, View
from ltx_nb.training.trainer import LtxvTrainer

def tell(report):
    print(report.step, flush=True)

result = LtxvTrainer(load_config(sys.argv[1]), Progress(View()), "cpu").train(on_step=tell)
print("stopped by", result.stopped, "after", result.steps, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_signal_saves_and_stops(place, tmp_path, name):
    config = save_config(configure(place, tmp_path / "run", optimization__steps=100_000), tmp_path / "run.yaml")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    usual = partial(signal.signal, getattr(signal, name), signal.SIG_DFL)  # the suite may have been started under nohup
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(config)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=usual,
    )
    assert process.stdout.readline().strip() == "1"
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=60)
    assert f"stopped by {name}" in output and process.returncode == 0
    step = int(output.split()[-1])
    assert earlier_run(tmp_path / "run").steps == (step,)


def test_nohup_does_not_listen(place, tmp_path):
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with checkpoints.stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, former)


# what a resume finishes


def test_the_whole_state_of_a_lora_is_kept_unless_it_is_said(place, tmp_path):
    made = make_trainer(place, tmp_path, checkpoints__save_training_state=None)
    made.train()
    state = checkpoints.read_training_state(next((tmp_path / "checkpoints").glob("training_state*")))
    assert state.optimizer["state"] and state.master_weights


def test_a_full_run_says_what_it_keeps(place, tmp_path):
    more = {"model__training_mode": "full", "lora": None, "checkpoints__save_training_state": None}
    made = make_trainer(place, tmp_path, **more)
    made.train()
    assert "Each checkpoint has" in told(made) and "minimal, so a resume begins with a new optimizer" in told(made)


def test_a_resume_makes_the_samples_that_were_due(place, tmp_path, monkeypatch):
    made = make_trainer(place, tmp_path, validation__interval=2, validation__skip_initial_validation=True)
    monkeypatch.setattr(trainer, "sample_and_show", failing(1, KeyboardInterrupt())(trainer.sample_and_show))
    with pytest.raises(KeyboardInterrupt):
        made.train()  # killed between its last save and its last samples
    assert earlier_run(tmp_path).steps == (2,) and not names(tmp_path / "samples")
    more = {"validation__interval": 2, "validation__skip_initial_validation": True, "model__load_checkpoint": tmp_path}
    result = make_trainer(place, tmp_path, **more).train()
    assert result.steps == 2 and names(tmp_path / "samples") == ["step_000002_1.mp4"]
    with pytest.raises(ConfigError, match="has done all of its steps"):
        make_trainer(place, tmp_path, **more).train()


# kills


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_killed_run_resumes_to_the_same_bits(place, tmp_path, whole, number):
    "Killed at a moment of its own each time, inside saves too. `python tools/kills.py` does it sixty times."
    config = save_config(
        configure(place, tmp_path / "run", optimization__steps=STEPS, lora__dropout=0.1, checkpoints__interval=1), tmp_path / "run.yaml"
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = f"""
import os, sys
calls, usual = [0], os.replace
def deadly(a, b):
    calls[0] += 1
    if calls[0] == {number} + 2:
        os.kill(os.getpid(), 9)
    usual(a, b)
os.replace = deadly
{SCRIPT}"""
    died = subprocess.run([sys.executable, "-c", code, str(config)], env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr[-500:]
    there = earlier_run(tmp_path / "run")
    resume = {"model__load_checkpoint": tmp_path / "run"} if there else {}
    with one_thread():
        again = disturbed(place, tmp_path / "run", checkpoints__interval=1, **resume)
        again.train()
    assert same(trained(again), whole)
    assert not [path for path in (tmp_path / "run").rglob(".*")]
    for path in (tmp_path / "run/checkpoints").iterdir():
        load_file(path)


# generated clips


def test_a_clip_is_not_written_over_another(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = [
        "--model",
        str(place.model),
        "--text-encoder",
        str(place.text_encoder),
        "--progress",
        "none",
        "--steps",
        "1",
    ]
    size = ["--width", "32", "--height", "32", "--frames", "9", "--no-guidance", "--no-audio"]

    def generate(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["generate", "a cat", *models, *size, *arguments])
        return end.value.code, capsys.readouterr()

    (tmp_path / "a.mp4").write_text("mine")
    code, said = generate("-o", "a.mp4")
    assert code == 0 and said.out.strip() == "a_2.mp4" and "a.mp4 is there already" in said.err
    assert (tmp_path / "a.mp4").read_text() == "mine"
    code, said = generate("-o", "a.gif")
    assert code == 0 and names(tmp_path) == ["a.gif", "a.mp4", "a_2.mp4"]
    code, said = generate("-o", "a.mp4", "--overwrite")
    assert code == 0 and (tmp_path / "a.mp4").stat().st_size > 100
    generate()
    generate()
    assert {"out.mp4", "out_2.mp4"} <= set(names(tmp_path))
    code, said = generate("-o", "a.mp3")
    assert code == 1 and "a.mp3 holds sound alone" in said.err and "a.mp3" not in names(tmp_path)
