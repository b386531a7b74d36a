"Checkpoints: whole or not there, thinned out, found again, resumed to the last bit."

import os
import random
import signal
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx_nb.training.checkpoints import (
    CheckpointError,
    TrainingState,
    capture_random_state,
    checkpoint_path,
    find_checkpoint,
    fingerprint_differences,
    load_training_state,
    read_training_state,
    restore_random_state,
    resume_fingerprint,
    save_checkpoint,
    stop_on_signals,
    thin_out,
)
from ltx_nb.data.batches import BucketedSampler

PRECISIONS = [("bfloat16", torch.bfloat16), ("float32", torch.float32), (torch.float32, torch.float32)]
WEIGHTS = {"diffusion_model.x.lora_A.weight": torch.arange(6.0).reshape(2, 3) / 7}


def save(folder, step, value=None, state=True, **more):
    weights = WEIGHTS if value is None else {"w": torch.full((2,), float(value))}
    return save_checkpoint(folder, step, weights, state=TrainingState(step) if state else None, **more)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def steps_of(folder):
    return sorted({int(name.split("_step_")[1][:5]) for name in names(folder)})


# what is written


@pytest.mark.parametrize(("precision", "dtype"), PRECISIONS)
@pytest.mark.parametrize(("kind", "name"), [("lora", "lora_weights"), ("full", "model_weights")])
def test_weights_file(tmp_path, precision, dtype, kind, name):
    weights = {**WEIGHTS, "ids": torch.tensor([2**40])}
    saved = save_checkpoint(tmp_path / "new", 42, weights, {"rank": 8, "base": "x"}, precision=precision, kind=kind)
    assert saved.weights.name == f"{name}_step_00042.safetensors" and saved.state is None
    loaded = load_file(saved.weights)
    assert torch.equal(loaded["diffusion_model.x.lora_A.weight"], WEIGHTS["diffusion_model.x.lora_A.weight"].to(dtype))
    assert loaded["ids"].dtype == torch.int64
    with safe_open(saved.weights, "pt") as file:
        assert file.metadata() == {"format": "pt", "step": "42", "rank": "8", "base": "x"}


@pytest.mark.parametrize("wrong", [{"precision": "float16"}, {"kind": "adapter"}, {"keep_last_n": -2}])
def test_wrong_arguments(tmp_path, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        save(tmp_path, 1, **wrong)


def test_step_of_state_must_agree(tmp_path):
    with pytest.raises(ValueError, match="of step 3, the checkpoint of step 4"):
        save_checkpoint(tmp_path, 4, WEIGHTS, state=TrainingState(3))
    assert not names(tmp_path)


def test_unstorable_state_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"state.extra.run is a object"):
        save_checkpoint(tmp_path, 1, WEIGHTS, state=TrainingState(1, extra={"run": object()}))
    assert not names(tmp_path)


def train(parameters, optimizer, steps, generator):
    for _ in range(steps):
        x = torch.randn(5, 4, generator=generator) + random.random() + np.random.rand() + torch.rand(1)
        loss = (x @ parameters[0] + parameters[1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def fresh(make_optimizer):
    torch.manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.zeros(6))]
    return parameters, make_optimizer(parameters), torch.Generator().manual_seed(8)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "two groups": lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_resume_is_bit_exact(tmp_path, make_optimizer):
    parameters, optimizer, generator = fresh(make_optimizer)
    train(parameters, optimizer, 4, generator)
    masters = {str(i): p for i, p in enumerate(parameters)}
    state = TrainingState(4, optimizer.state_dict(), masters, random=[capture_random_state({"noise": generator})])
    saved = save_checkpoint(tmp_path, 4, {"w": parameters[0]}, state=state)
    train(parameters, optimizer, 6, generator)

    loaded = load_training_state(tmp_path)
    again, new, other = fresh(make_optimizer)
    with torch.no_grad():
        for i, parameter in enumerate(again):
            parameter.copy_(loaded.master_weights[str(i)])
    new.load_state_dict(loaded.optimizer)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert restore_random_state(loaded.random[0], {"noise": other}) == []
    saved.state.unlink()  # what was read does not hang on the file
    train(again, new, 6, other)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again))
    for key, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(new.state_dict()["state"][0][key])), key


def test_state_round_trip(tmp_path):
    shared = torch.rand(3)
    whole = torch.arange(10, dtype=torch.uint8)
    moments = {0: {"map": shared}, 1: {"map": shared, "views": (whole[:5], whole[5:])}}
    state = TrainingState(
        7,
        optimizer={"state": moments, "empty": torch.zeros(0)},
        sampler={"epoch": 2, "offset": 5},
        config={"lora": {"rank": 4, "targets": ["a", "b"]}, "scale": None, "lr": 1e-4, "inf": float("inf")},
        fingerprint={"lora.rank": 4},
        extra={"run id": "x y", "pairs": [(1, 2.5), (True, None)]},
    )
    loaded = read_training_state(save_checkpoint(tmp_path, 7, WEIGHTS, state=state).state)
    moments = loaded.optimizer["state"]
    assert torch.equal(moments[0]["map"], shared) and moments[0]["map"] is moments[1]["map"]
    assert isinstance(moments[1]["views"], tuple) and torch.equal(moments[1]["views"][1], whole[5:])
    assert loaded.optimizer["empty"].shape == (0,)
    for name in "step", "sampler", "config", "fingerprint", "extra", "master_weights":
        assert getattr(loaded, name) == getattr(state, name), name


def test_no_pickle_in_any_file(tmp_path):
    save_checkpoint(tmp_path, 1, WEIGHTS, state=TrainingState(1, random=[capture_random_state()]))
    for path in tmp_path.iterdir():
        with safe_open(path, "pt") as file:
            assert list(file.keys())


def test_random_state_notes():
    state = capture_random_state({"noise": torch.Generator()})
    assert restore_random_state(state, {"dropout": torch.Generator()}) == [
        "random generator 'dropout' was not saved",
        "random generator 'noise' is no longer used",
    ]
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    assert "GPU" in restore_random_state(state, {"noise": torch.Generator()})[0]


def test_sampler_place_goes_through_a_checkpoint(tmp_path):
    shapes = ["wide"] * 7 + ["tall"] * 4
    sampler = BucketedSampler(shapes, 2)
    expected = list(islice(sampler, 20))
    for _ in range(9):
        sampler.advance()
    save_checkpoint(tmp_path, 9, WEIGHTS, state=TrainingState(9, sampler=sampler.state_dict()))
    resumed = BucketedSampler(shapes, 2)
    resumed.load_state_dict(load_training_state(tmp_path).sampler)
    assert list(islice(resumed, 11)) == expected[9:]


# retention


ALL = [100, 200, 300, 400]


@pytest.mark.parametrize(("keep", "left"), [(1, [400]), (2, [300, 400]), (9, ALL), (-1, ALL), (0, ALL)])
def test_retention(tmp_path, keep, left):
    for step in ALL:
        saved = save(tmp_path, step, keep_last_n=keep)
    assert steps_of(tmp_path) == left and len(names(tmp_path)) == 2 * len(left)
    assert all(not path.exists() for path in saved.removed) and saved.weights.exists()


def test_final_checkpoint_survives_retention(tmp_path):
    for step in 100, 200, 200:  # the final save falls on an interval save
        save(tmp_path, step, value=step, keep_last_n=1)
    assert names(tmp_path) == ["lora_weights_step_00200.safetensors", "training_state_step_00200.safetensors"]
    assert find_checkpoint(tmp_path).state is not None


def test_final_save_does_not_shorten_the_history(tmp_path):
    for step in 100, 200, 300, 300:
        save(tmp_path, step, keep_last_n=2)
    assert steps_of(tmp_path) == [200, 300]


def test_retention_counts_earlier_runs_and_leaves_strangers(tmp_path):
    for step in 100, 200:
        save(tmp_path, step, keep_last_n=-1)
    torch.save({}, tmp_path / "training_state_step_00100.pt")
    strangers = ["notes.txt", "my_lora_weights_step_00050.safetensors", "lora_weights_step_00050.safetensors.bak"]
    for name in strangers:
        (tmp_path / name).touch()
    save(tmp_path, 300, keep_last_n=1)  # a run resumed at 200
    assert set(strangers) < set(names(tmp_path)) and len(names(tmp_path)) == len(strangers) + 2


def test_later_steps_of_another_run_are_not_deleted(tmp_path):
    save(tmp_path, 3000)
    save(tmp_path, 100, keep_last_n=1)
    assert steps_of(tmp_path) == [100, 3000]
    assert thin_out(tmp_path, 1, newest=100) == []


def test_weights_only_save_removes_the_state_of_other_weights(tmp_path):
    save(tmp_path, 5, value=1)
    save(tmp_path, 5, value=2, state=False)
    assert names(tmp_path) == ["lora_weights_step_00005.safetensors"]


# finding


def test_find_in_a_folder_takes_the_highest_step(tmp_path):
    for step in 90, 1000, 200:
        save(tmp_path / "run/checkpoints", step, keep_last_n=-1)
    for where in tmp_path, tmp_path / "run", str(tmp_path / "run/checkpoints"):
        found = find_checkpoint(where)
        assert found.step == 1000 and found.state == checkpoint_path(found.weights.parent, 1000, "state")
    assert "step_00200.safetensors was written after" in found.notes[0]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_find_by_file(tmp_path, kind):
    saved = save(tmp_path, 12, kind=kind)
    assert find_checkpoint(saved.weights) == find_checkpoint(saved.state) == find_checkpoint(tmp_path)
    assert find_checkpoint(saved.weights).weights == saved.weights and find_checkpoint(saved.weights).notes == ()


def test_a_foreign_lora_starts_at_step_zero(tmp_path):
    save_file(WEIGHTS, tmp_path / "style.safetensors")
    found = find_checkpoint(tmp_path / "style.safetensors")
    assert (found.step, found.state) == (0, None) and "optimizer starts anew" in found.notes[0]


def test_reference_state_is_not_opened(tmp_path, caplog):
    save(tmp_path, 500, state=False)
    (tmp_path / "training_state_step_00500.pt").write_bytes(b"a pickle")
    state = load_training_state(tmp_path)
    assert state == TrainingState(500)
    assert "reference trainer's pickle" in caplog.text and "step 500 is taken from the file name" in caplog.text


@pytest.mark.parametrize(
    ("prepare", "error", "text"),
    [
        (lambda f: f / "nowhere", FileNotFoundError, "There is no checkpoint at"),
        (lambda f: f, CheckpointError, "holds no checkpoint.*null to start"),
        (lambda f: (f / "x.pt").touch() or f / "x.pt", CheckpointError, "x.pt is not a checkpoint"),
        (
            lambda f: save(f, 3).weights.unlink() or checkpoint_path(f, 3, "state"),
            CheckpointError,
            "no weights beside it",
        ),
        (lambda f: save(f, 3).weights.unlink() or f, CheckpointError, "holds no checkpoint"),
    ],
    ids=["missing", "empty folder", "wrong suffix", "state alone by name", "state alone in folder"],
)
def test_nothing_to_find(tmp_path, prepare, error, text):
    with pytest.raises(error, match=text):
        find_checkpoint(prepare(tmp_path))


@pytest.mark.parametrize("cut", [0, 4, 200, -1])
def test_damaged_state(tmp_path, cut):
    saved = save_checkpoint(tmp_path, 8, WEIGHTS, state=TrainingState(8, {"state": {0: {"m": torch.rand(50)}}}))
    saved.state.write_bytes(saved.state.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"training_state_step_00008.safetensors .*Delete it"):
        read_training_state(saved.state)
    assert find_checkpoint(tmp_path).state is None and "cannot be read" in find_checkpoint(tmp_path).notes[0]


def test_a_state_of_other_weights_is_not_used(tmp_path):
    saved = save(tmp_path, 8, value=1)
    save_checkpoint(tmp_path / "other", 8, {"w": torch.full((2,), 2.0)}).weights.replace(saved.weights)
    found = find_checkpoint(tmp_path)
    assert found.state is None and "belongs to other weights" in found.notes[0]


@pytest.mark.parametrize(("stateless", "expected"), [([300], 200), ([200, 300], 300), ([100, 200, 300], 300)])
def test_interrupted_save_falls_back_one_pair(tmp_path, stateless, expected):
    for step in 100, 200, 300:
        save(tmp_path, step, state=step not in stateless, keep_last_n=-1)
    assert find_checkpoint(tmp_path).step == expected
    assert find_checkpoint(checkpoint_path(tmp_path, 300)).step == 300  # named: taken as it is


# dying

SIZE = 100_000
MOMENTS = {
    "weights half written": 1,
    "weights written, not renamed": 1,
    "weights in place, no state": 1,
    "state half written": 1,
    "state written, not renamed": 1,
    "both in place, old ones not deleted": 2,
    "never": 2,
}
VICTIM = """
import os, resource, signal, sys, time, torch
from pathlib import Path
import ltx_nb.training.checkpoints as checkpoints, ltx_nb.data.store as store

def save(folder, step, size=100_000, keep=1):
    tensor = torch.full((100_000,), float(step))
    state = checkpoints.TrainingState(step, {"m": tensor})
    checkpoints.save_checkpoint(folder, step, {"w": tensor[:size]}, state=state, precision="float32", keep_last_n=keep)

def die_at(function, call, half=False):
    calls = []
    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and half:
            Path(args[1]).write_bytes(b"x" * 1000)
        else:
            function(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
    return dying

def killed(folder, moment):
    save(folder, 1)
    number = 2 if "state" in moment.split(",")[0] or "both" in moment else 1
    if "written" in moment:
        checkpoints.save_file = die_at(checkpoints.save_file, number, "half" in moment)
    elif "in place" in moment:
        store.os.replace = die_at(os.replace, number)
    save(folder, 2)

def full(folder, what):
    save(folder, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save(folder, 2, 100_000 if what == "weights" else 10)
    except OSError as error:
        (folder / "error.txt").write_text(str(error))

def endless(folder, _):
    for step in range(1, 100_000):
        save(folder, step, keep=2)
        (folder / "last.txt").write_text(str(step))

def child(function, folder, what, kill_after=None):
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        function(folder, what)
        os._exit(0)
    if kill_after:
        while not (folder / "last.txt").exists():
            time.sleep(0.01)
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    (folder / "signal.txt").write_text(str(os.WTERMSIG(os.waitpid(pid, 0)[1])))

torch.set_num_threads(1)
root = Path(sys.argv[1])
for moment in sys.argv[2:]:
    child(killed, root / moment, moment)
for what in "weights", "state":
    child(full, root / f"full disk, {what}", what)
for number in range(5):
    child(endless, root / f"endless {number}", None, 0.05 + 0.037 * number)
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    "One process that forks a victim for every scene, so that torch is imported once."
    folder = tmp_path_factory.mktemp("scenes")
    subprocess.run([sys.executable, "-c", VICTIM, folder, *MOMENTS], check=True, timeout=120)
    return folder


def assert_pair(folder, step):
    found = find_checkpoint(folder)
    assert found.step == step and found.state is not None
    assert torch.equal(load_file(found.weights)["w"], torch.full((SIZE,), float(step)))
    assert torch.equal(load_training_state(found).optimizer["m"], torch.full((SIZE,), float(step)))


@pytest.mark.parametrize(("moment", "expected"), MOMENTS.items())
def test_kill_in_the_middle_of_a_save(scenes, moment, expected):
    assert (scenes / moment / "signal.txt").read_text(encoding="utf-8") == (
        "0" if moment == "never" else str(int(signal.SIGKILL))
    )
    assert_pair(scenes / moment, expected)


@pytest.mark.parametrize("number", range(5))
def test_kill_at_any_moment(scenes, number):
    folder = scenes / f"endless {number}"
    assert (folder / "signal.txt").read_text(encoding="utf-8") == str(int(signal.SIGKILL))
    step = find_checkpoint(folder).step
    assert step >= int((folder / "last.txt").read_text(encoding="utf-8") or 0)
    assert_pair(folder, step)


@pytest.mark.parametrize(
    ("what", "name"), [("weights", "lora_weights_step_00002"), ("state", "training_state_step_00002")]
)
def test_full_disk_keeps_the_former_pair(scenes, what, name):
    folder = scenes / f"full disk, {what}"
    assert f"could not write {folder}/{name}" in (folder / "error.txt").read_text(encoding="utf-8")
    assert_pair(folder, 1)
    assert not [n for n in names(folder) if n.endswith(".tmp")]


# the same run?


CONFIG = {
    "model": {"training_mode": "lora", "load_checkpoint": None},
    "lora": {"rank": 16, "alpha": 16, "target_modules": ("to_k",)},
    "training_strategy": {"name": "flexible", "video": {"is_generated": True, "conditions": []}},
    "optimization": {"learning_rate": 1e-4, "steps": 100, "batch_size": 2, "optimizer_type": "adamw"},
    "seed": 42,
    "output_dir": "a",
    "validation": {"interval": 10},
}


def with_change(path, value):
    section, _, name = path.rpartition(".")
    if not section:
        return {**CONFIG, name: value}
    return {**CONFIG, section: {**CONFIG[section], name: value}}


@pytest.mark.parametrize(
    ("path", "value", "blocking"),
    [
        ("lora.rank", 32, True),
        ("lora.target_modules", ["to_k", "to_q"], True),
        ("optimization.optimizer_type", "adamw8bit", True),
        ("model.training_mode", "full", True),
        ("lora.alpha", 8, False),
        ("optimization.learning_rate", 1e-5, False),
        ("optimization.batch_size", 1, False),
        ("seed", 0, False),
    ],
)
def test_mismatch_reported_field_by_field(tmp_path, path, value, blocking):
    saved = TrainingState(1, fingerprint=resume_fingerprint(CONFIG, world_size=1))
    before = read_training_state(save_checkpoint(tmp_path, 1, WEIGHTS, state=saved).state).fingerprint
    (difference,) = fingerprint_differences(before, resume_fingerprint(with_change(path, value), world_size=1))
    assert difference.field == path and difference.blocking == blocking
    assert repr(value) in str(difference) and "saved" in str(difference)


@pytest.mark.parametrize(
    ("path", "value"),
    [("optimization.steps", 9), ("output_dir", "b"), ("model.load_checkpoint", "x"), ("lora.target_modules", ["to_k"])],
)
def test_what_may_change_freely(path, value):
    assert fingerprint_differences(resume_fingerprint(CONFIG), resume_fingerprint(with_change(path, value))) == []


def test_facts_outside_the_config():
    before, now = resume_fingerprint(CONFIG, world_size=1, samples=5), resume_fingerprint(CONFIG, world_size=2)
    assert [str(d) for d in fingerprint_differences(before, now)] == [
        "samples: saved 5, now None",
        "world_size: saved 1, now 2",
    ]


# interrupting


@pytest.fixture
def listening():
    "Ctrl-C as in a terminal, however the tests were started: behind a script it is ignored."
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_lets_the_step_finish_and_save(tmp_path, listening, number):
    former = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with stop_on_signals() as stop:
        for step in range(1, 10):
            if step == 4:
                os.kill(os.getpid(), number)
            finished = step
            if stop.requested:
                save(tmp_path, step)
                break
    assert finished == 4 and find_checkpoint(tmp_path).step == 4 and stop.reason == number.name
    assert {n: signal.getsignal(n) for n in former} == former


def test_second_ctrl_c_interrupts_at_once(listening):
    former, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(stop.reason)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("not here")
    assert reached == ["SIGINT"] and signal.getsignal(signal.SIGINT) is former


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_ignored_stays_ignored(number):
    "As a shell starts what runs behind a script, and as nohup does."
    former = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), number)
            assert not stop.requested
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, former)


def test_handlers_come_back_after_an_error():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), stop_on_signals():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is former


def test_works_in_a_thread_by_request():
    seen = []

    def loop():
        with stop_on_signals() as stop:
            seen.append(stop.requested)
            stop.request("the button")
            seen.append((stop.requested, stop.reason))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert seen == [False, (True, "the button")]
