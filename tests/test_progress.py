"Progress: the books it keeps, and what each view shows of them."

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx_nb.training.progress import (
    NotebookView,
    PlainView,
    Progress,
    RichView,
    View,
    curve_svg,
    curves,
    live_html,
    make_progress,
    progress_kind,
    running_table,
    smooth,
    summary_html,
    summary_text,
)

HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
TERMINAL_PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # behind a script or under nohup it is ignored
from ltx_nb.training.progress import make_progress
with make_progress() as progress, progress.phase("Training", 1000):
    progress.file(sys.argv[0])
    for step in range(1000):
        time.sleep(0.01)
        progress.advance(loss=1.0)
        if step == 10:
            print("a print of the work", flush=True)
            if sys.argv[1] == "fails":
                raise RuntimeError("broken")
            if sys.argv[1] == "ends":
                break
"""


class Clock:
    "Time that a test moves by hand."

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Recorder(View):
    "What a view is told."

    def __init__(self):
        self.events = []

    def opened(self, progress):
        self.events.append("opened")

    def changed(self, progress, phase, event):
        self.events.append((event, phase.name))

    def closed(self, progress):
        self.events.append("closed")


def training(progress, clock, steps, start=0, seconds=1.0, sample_at=None):
    "A phase of training, perhaps with sampling inside."
    with progress.phase("Training", steps, start=start) as phase:
        for step in range(start, steps):
            clock.now += seconds
            progress.advance(loss=1 / (step + 1))
            if step == sample_at:
                for _ in progress.track(range(3), "Sampling"):
                    clock.now += 10
    return phase


def console(width=100):
    from rich.console import Console

    return Console(width=width, file=io.StringIO(), record=True, color_system=None)


def test_counts_are_absolute_and_speed_is_of_this_process():
    clock = Clock()
    progress = Progress(clock=clock)
    phase = progress.start("Training", 2000, start=1400)
    clock.now = 50
    progress.advance(100)
    assert phase.count_text() == "1,500/2,000"
    assert phase.rate(clock()) == 2 and phase.remaining(clock()) == 250


def test_time_inside_another_phase_is_not_counted_twice():
    clock = Clock()
    progress = Progress(clock=clock)
    outer = progress.start("Training", 10)
    clock.now = 4
    progress.advance(2)
    inner = progress.start("Sampling", 5)
    clock.now = 34
    assert outer.seconds(clock()) == 4 and outer.rate(clock()) == 0.5  # while sampling runs
    progress.end()
    clock.now = 35
    assert (outer.seconds(clock()), inner.seconds(clock())) == (5, 30)
    progress.end()
    assert summary_text(progress).splitlines()[-1].split() == ["total", "0:35"]


@pytest.mark.parametrize(
    "error, state", [(KeyboardInterrupt, "stopped"), (SystemExit, "stopped"), (ValueError, "failed"), (None, "done")]
)
def test_every_phase_ends_and_the_view_closes_whatever_happens(error, state):
    view = Recorder()
    progress = Progress(view)
    try:
        with progress:
            progress.start("Started without with")
            with progress.phase("Training", 5):
                progress.advance()
                if error:
                    raise error
    except BaseException as caught:
        assert type(caught) is error
    assert {phase.state for phase in progress.phases} == {state} and not progress.running
    assert view.events[0] == "opened" and view.events[-1] == "closed"
    assert view.events[-3:-1] == [("end", "Training"), ("end", "Started without with")]


def test_leaving_a_tracked_loop_early_ends_its_phase():
    progress = Progress()
    for item in progress.track("abc", "Letters", unit="letter"):
        if item == "b":
            break
    assert progress.phases[0].state == "stopped" and progress.phases[0].count_text() == "1/3"
    assert list(progress.track(iter("abc"), "Unknown length")) == list("abc")
    assert progress.phases[1].count_text() == "3"


def test_work_outside_a_phase_is_refused():
    for call in Progress().advance, Progress().log, Progress().end, lambda: Progress().file("a"):
        with pytest.raises(RuntimeError, match="no phase is running"):
            call()


def test_history_keeps_only_steps_with_metrics():
    progress = Progress()
    with progress.phase("Training", 4) as phase:
        progress.advance()
        progress.advance(loss=0.5)
        progress.advance(2, lr=1e-4)
    assert phase.history == [(2, {"loss": 0.5}), (4, {"lr": 1e-4})] and phase.metrics == {"loss": 0.5, "lr": 1e-4}


# --- plain lines


@pytest.mark.parametrize("steps, seconds", [(1, 1.0), (7, 1.0), (2000, 0.01), (2000, 30.0), (20_000, 1.0)])
def test_a_log_gets_few_lines_and_the_last_state(steps, seconds):
    clock, lines = Clock(), []
    with Progress(PlainView(lines.append), clock) as progress:
        training(progress, clock, steps, seconds=seconds)
    body = [line for line in lines if line.startswith("Training")]
    assert len(body) <= 23
    assert any(f"done: {steps:,}/{steps:,} steps" in line and "loss" in line for line in body)


def test_a_log_of_fast_work_has_at_most_a_line_a_second():
    clock, lines = Clock(), []
    with Progress(PlainView(lines.append), clock) as progress:
        training(progress, clock, 1000, seconds=0.003)
    assert 2 <= sum("steps/s" in line for line in lines) <= 3


def test_a_log_shows_absolute_steps_after_a_resume():
    clock, lines = Clock(), []
    with Progress(PlainView(lines.append), clock) as progress:
        training(progress, clock, 100, start=60)
    assert lines[0] == "Training: 100 steps, from 60" and lines[1].startswith("Training 65/100 steps")
    assert "35" in lines[1].split("0:")[1]  # 35 steps left at one a second


def test_work_of_unknown_length_is_shown_too():
    clock, lines = Clock(), []
    with Progress(PlainView(lines.append), clock) as progress, progress.phase("Scanning", unit="clip"):
        for _ in range(50):
            clock.now += 1
            progress.advance()
        assert "50 clips" in rendered(progress) and "value=" not in live_html(progress)
    assert [line.split(" clips")[0] for line in lines[1:4]] == ["Scanning 20", "Scanning 40", "Scanning done: 50"]


# --- the terminal


def rendered(progress, width=100):
    paper = console(width)
    paper.print(running_table(progress))
    return paper.export_text()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_block_fits_the_terminal_and_names_every_running_phase(width):
    clock = Clock()
    progress = Progress(clock=clock)
    progress.start("Training", 2000, start=1400)
    clock.now = 60
    progress.advance(60, loss=0.25, lr=1e-4)
    progress.start("Sampling", 30)
    progress.advance(3)
    text = rendered(progress, width)
    assert all(len(line) <= width for line in text.splitlines()) and len(text.splitlines()) == 3
    assert all(word in text for word in ("Training", "1,460/2,000", "73%", "Sampling", "3/30", "loss 0.25"))


def test_names_and_notes_are_not_markup():
    paper = console()
    with Progress(RichView(paper)) as progress, progress.phase("[red]clips[/red] [0]", 1, unit="clip"):
        progress.note("[bold]skipped[/bold] a[1].mp4")
        progress.advance(detail="[x]")
        assert "[x]" in rendered(progress)
    text = paper.export_text()
    assert "[red]clips[/red] [0]" in text and "[bold]skipped[/bold] a[1].mp4" in text


def in_terminal(how, send=None):
    "Run the program in a pseudo-terminal; what it wrote, and how it ended."
    main, side = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"TERM": "xterm", "COLUMNS": "90", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL_PROGRAM, how], stdin=side, stdout=side, stderr=side, env=environment
    )
    os.close(side)
    written = b""
    while True:
        try:
            data = os.read(main, 4096)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        written += data
        if send and b"a print of the work" in written:
            process.send_signal(send)
            send = None
    os.close(main)
    return written, process.wait()


@pytest.mark.parametrize("how, send", [("ends", None), ("fails", None), ("goes on", signal.SIGINT)])
def test_the_terminal_gets_its_cursor_back(how, send):
    written, code = in_terminal(how, send)
    assert (code == 0) == (how == "ends")
    assert HIDE_CURSOR in written and written.rfind(SHOW_CURSOR) > written.rfind(HIDE_CURSOR)
    end = written[written.rfind(SHOW_CURSOR) :].decode()
    assert "Training" in end and "total" in end  # the summary, also of a run that did not end well


# --- the notebook


def test_html_is_escaped_and_has_bars_and_a_curve():
    clock = Clock()
    progress = Progress(clock=clock)
    progress.start("<Training>", 10)
    for _ in range(5):
        clock.now += 1
        progress.advance(loss=1.0, detail="<b>clip</b>")
    html = live_html(progress)
    assert 'value="5" max="10"' in html and "<polyline" in html
    assert "<Training>" not in html and "<b>clip" not in html and "&lt;Training&gt;" in html
    progress.end()
    assert "<Training>" not in summary_html(progress)


def test_a_notebook_is_updated_in_place_and_not_too_often():
    shown, updates = [], []

    class Handle:
        def update(self, html):
            updates.append(html.data)

    def show(thing, display_id=None):
        shown.append(thing)
        return Handle()

    clock = Clock()
    with Progress(NotebookView(pause=1.0, show=show), clock) as progress:
        training(progress, clock, 1000, seconds=0.01)
    assert len(shown) == 2 and shown[1].data[:4] == b"\x89PNG"
    assert 5 <= len(updates) <= 15 and "<table>" in updates[-1] and "1000/1000" not in updates[0]


def test_a_saved_notebook_keeps_the_summary_and_the_picture(tmp_path):
    cell = """
from ltx_nb.training.progress import make_progress
with make_progress() as progress, progress.phase("Training", 30):
    for step in range(30):
        progress.advance(loss=1 / (1 + step))
"""
    runner = """
import sys, nbclient, nbformat
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(sys.argv[1])])
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""
    path = tmp_path / "run.ipynb"
    subprocess.run(
        [sys.executable, "-c", runner, cell, path], check=True
    )  # a kernel starts faster without torch around
    outputs = json.loads(path.read_text())["cells"][0]["outputs"]
    data = [output["data"] for output in outputs if "data" in output]
    assert [next(kind for kind in ("text/html", "image/png") if kind in d) for d in data] == ["text/html", "image/png"]
    html = "".join(data[0]["text/html"])
    assert "30/30 steps" in html and "<progress" not in html


def test_a_loss_that_is_not_a_number_does_not_stop_the_drawing():
    progress = Progress()
    progress.start("Training", 6)
    for value in 1.0, float("nan"), float("inf"), 0.5:
        progress.advance(loss=value)
    assert curves(progress.current())["loss"] == ([1, 4], [1.0, 0.5])
    assert "nan" not in curve_svg(progress.current())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.floats(0, 0.99))
def test_the_running_mean_stays_among_the_values(values, beta):
    means = smooth(values, beta)
    assert means[0] == pytest.approx(values[0])  # Python's floats: some roundings of 1e-16
    assert min(values) - 1e-6 <= min(means) and max(means) <= max(values) + 1e-6


# --- the summary, and which view


def test_the_summary_joins_repeated_phases_and_names_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora.safetensors").write_bytes(bytes(1500))
    clock = Clock()
    progress = Progress(clock=clock)
    with progress.phase("Training", 4):
        for _ in range(4):
            with progress.phase("Sampling", 2):
                clock.now += 5
                progress.advance(2)
            progress.advance()
        progress.file(tmp_path / "lora.safetensors")
        progress.file(tmp_path / "lora.safetensors")
        progress.file("/elsewhere/gone.mp4")
    lines = summary_text(progress).splitlines()
    assert lines[0].split()[:4] == ["Training", "4/4", "steps", "0:00"]
    assert lines[0].endswith("lora.safetensors (1.5 kB)") and lines[1].strip() == "/elsewhere/gone.mp4"
    assert lines[2].split() == ["Sampling", "x4", "8", "steps", "0:20"]


@pytest.mark.parametrize(
    "terminal, environment, kind",
    [
        (True, {"TERM": "xterm"}, "rich"),
        (True, {"TERM": "dumb"}, "plain"),
        (True, {"CI": "true"}, "plain"),
        (False, {}, "plain"),
    ],
)
def test_the_view_fits_the_output(monkeypatch, terminal, environment, kind):
    class Output(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.delenv("CI", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Output())
    assert progress_kind() == kind
    assert type(make_progress().view) is {"rich": RichView, "plain": PlainView}[kind]


def test_other_processes_show_nothing(capsys):
    with make_progress("plain", enabled=False) as progress, progress.phase("Training", 3):
        progress.advance(loss=1.0)
        progress.note("hello")
    assert capsys.readouterr().out == "" and progress.phases[0].done == 1


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'fancy'; should be auto, rich, notebook, plain, none"):
        make_progress("fancy")


def test_a_step_costs_little():
    with Progress(RichView(console())) as progress, progress.phase("Training", 2000):
        start = time.perf_counter()
        for _ in range(2000):
            progress.advance(loss=1.0)
        assert (time.perf_counter() - start) / 2000 < 1e-3  # about 1e-5 s; drawing each time would take 1e-2 s


def test_importing_it_loads_neither_torch_nor_a_drawing_library():
    code = "import sys, ltx_nb.training.progress; assert not {'torch', 'matplotlib', 'IPython', 'rich'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


IN_THE_BACKGROUND = """
import time
from ltx_nb.training.progress import make_progress

with make_progress() as shown, shown.phase("Training", 1000, "step"):
    time.sleep(600)
"""


def test_a_log_can_be_followed_while_a_run_goes():
    "What is written to a file or a pipe is there at once, not when a buffer is full."
    run = subprocess.Popen([sys.executable, "-c", IN_THE_BACKGROUND], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "Training: 1,000 steps\n"
        assert run.poll() is None
    finally:
        run.kill()
        run.communicate()
