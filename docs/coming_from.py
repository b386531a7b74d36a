"""The page "Coming from the LTX Trainer": what of it works unchanged, what is called otherwise, and a table of its names.

    python docs/coming_from.py     # print the page

`ltx_trainer_names.csv` holds the names: theirs, what kind of thing it is, its place here. A test looks each place up."""

import csv
from itertools import groupby
from pathlib import Path

NAMES = Path(__file__).with_name("ltx_trainer_names.csv")
TITLE = "Coming from the LTX Trainer"
HEAD = """Files come along unchanged: a YAML of the LTX Trainer, with old strategies and retired fields too, a `.precomputed` folder, a LoRA. What a YAML asks for that is not here is said before anything is loaded.

```sh
ltx-nb config check my.yaml          # what would be done, and what is not understood
ltx-nb train my.yaml                 # scripts/train.py
ltx-nb prepare dataset.csv --model-path ltx-2.3.safetensors --text-encoder-path gemma    # scripts/process_dataset.py
ltx-nb generate "a dog barks" --model-path ltx-2.3.safetensors --text-encoder-path gemma --lora-path my_lora.safetensors
```

## What differs

| there | here |
|---|---|
| `prepare_training_inputs(batch, timestep_sampler)` of a strategy of one's own | takes a third argument, `generator`: every draw can be repeated |
| `sample(batch_size, seq_length, device)` of a sampler of one's own | takes `generator=` too |
| `trainer.train()` gives a path and statistics | gives a `TrainingResult` with `checkpoint`, `steps`, `seconds` |
| noise levels of a sample follow its own length in training only | the same, and the plan of a run says which levels training draws and which a sample walks |
| the vocoder is loaded in bfloat16 | in float32, as its output is heard as it is |
| `(time, width, height)` of `SpatioTemporalScaleFactors` by position in ltx-core 1.0.0 | `(time, height, width)`; use keywords |
| `scripts/process_captions.py` and `process_videos.py` | one command, `ltx-nb prepare`; what is right already is kept |
| `scripts/split_scenes.py film.mp4 clips` | `ltx-nb scenes film.mp4 clips`: a folder of films too; a film without a cut gives a clip, a second run goes on, no ffmpeg program is needed |
| `scripts/caption_videos.py clips -o dataset.json` | `ltx-nb caption clips -o dataset.json`: other columns of the file stay, captions that somebody corrected are kept; without `-o` it writes a `.txt` beside each clip. `--captioner-type local` runs Qwen-Omni without a server |
| `scripts/compute_reference.py clips -o dataset.json` | `ltx-nb reference dataset.json`: the same edges by default, and other filters; one clip that fails does not lose the rest |
| `scripts/decode_latents.py .precomputed/latents seen`, with sound in a folder beside it | `ltx-nb decode .precomputed seen`: films with their sound, references and masks, and sheets |
| the folder of `scripts/process_dataset.py` | read as it is; the other way round, `ltx-nb prepare --for ltx-trainer` writes one |
| one image for `--condition-image`, one video for `--reference-video` | `--given "first_frame image_or_video=dog.png"`, `--given "reference video=roof.mp4"`, as often as needed |

## Names

An empty place means that it is not here. Where the two have the same name, it means the same; where they have not, the place is what does the work here. `ltx-nb COMMAND --help` and the [configuration reference](configuration.md) say more.
"""


def rows() -> list[dict[str, str]]:
    "Theirs, kind, ours."
    with open(NAMES, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def group_of(row: dict[str, str]) -> str:
    "The module or the script of a name."
    theirs = row["theirs"]
    return theirs.split()[0] if theirs.startswith("scripts/") else ".".join(theirs.split(".")[:2])


def markdown() -> str:
    "The page."
    parts = [f"---\ntitle: {TITLE}\n---\n\n{HEAD}"]
    for group, found in groupby(rows(), group_of):
        lines = [f"### {group}\n", "| there | | here |", "|---|---|---|"]
        for row in found:
            name = row["theirs"].removeprefix(group).lstrip(". ") or group
            lines.append(f"| `{name}` | {row['kind']} | {'`' + row['ours'] + '`' if row['ours'] else ''} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(markdown())
