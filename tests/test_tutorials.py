"""The second half of a tutorial: with the name of a real model it fetches it, trains with samples and held-out loss, and
goes on where it was when it is run again. The hub is a folder, the model the tiny one under the real one's file names,
and sizes are small; the cells are the tutorial's own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltx_nb.loading.download import FOLDER, PUBLISHED
from ltx_nb.tiny.checkpoint import tiny_checkpoint
from ltx_nb.tiny.lesson import write_lesson

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
SMALL = {  # what a person says, and sizes that a CPU can do
    r'^MODEL = "tiny"': 'MODEL = "ltx-2.3"',
    r"^CLIPS = None": "CLIPS = 'clips'",
    r"960x544x89;544x960x89": "64x64x17",
    r", 24\)$": ", 12)",
    r"width=960, height=544, frames=89": "width=64, height=64, frames=17, fps=12, steps=2",
    r"^config = load_config\(": """changes |= {"optimization.steps": STEPS, "checkpoints.interval": 1, "validation.interval": 1}
changes |= {"validation.inference_steps": 2, "validation.video_dims": [64, 64, 17], "validation.frame_rate": 12}
changes |= {"validation.stg_blocks": [0], "acceleration.mixed_precision_mode": "no"}
config = load_config(""",
}


def cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem[:2])
def test_a_tutorial_opens_on_colab_and_names_the_real_model(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert f"colab.research.google.com/github/ltx-nb/ltx_nb/blob/main/tutorials/{notebook.name}" in text
    assert 'MODEL = \\"tiny\\"' in text and "get_models(MODEL" in text and "lasting_folder(" in text


def script(notebook: Path, steps: int) -> str:
    "The code of a tutorial as somebody runs it who wants the real model."
    code = []
    for cell in cells(notebook):
        if "eval: false" in cell or "plt.subplots" in cell:
            continue
        for pattern, change in SMALL.items():
            cell = re.sub(pattern, lambda _, text=change: text, cell, flags=re.M)
        code.append(cell)
    return f"STEPS = {steps}\n" + "\n".join(code)


def test_the_first_tutorial_trains_the_real_model_and_goes_on(tmp_path):
    tiny, models = tiny_checkpoint(), tmp_path / "models"
    (models / "ltx-2.3").mkdir(parents=True)
    shutil.copy(tiny.model, models / "ltx-2.3" / PUBLISHED["ltx-2.3"].files[0])
    shutil.copytree(tiny.text_encoder, models / "gemma-3")
    write_lesson(tmp_path / "clips", "orange", new=3, reminders=1)
    place = os.environ | {FOLDER: str(models), "MPLBACKEND": "agg"}

    def run_all(steps):
        code = script(TUTORIALS[0], steps)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    saved = tmp_path / "outputs" / "first_lora" / "first_lora"
    said = run_all(1)
    assert "ltx-2.3: Lightricks/LTX-2.3" in said and "Gemma Terms of Use" in said and "tiny" not in said.split("\n")[0]
    assert list((saved / "samples").iterdir()), "samples are made on the way"
    run_all(2)
    assert "nothing to train" in run_all(2), "and what is done is taken as it is"
    steps = {int(path.stem[-5:]) for path in (saved / "checkpoints").glob("*.safetensors")}
    assert steps == {1, 2}, "the second run went on from the first"
