"""Somebody else's files, damaged at random: every reader of the library answers with a sentence, soon.

    python tools/fuzz.py                          # 200 inputs for each reader, seed 0: a few minutes
    python tools/fuzz.py --count 2000 --seed 7    # more of them, others
    python tools/fuzz.py --reader manifest        # one reader; tests/test_fuzz.py runs a few of each

An input is a good file with one to three changes: a value of its JSON replaced or removed, a byte flipped, a piece cut out
or doubled. An answer is a result or one of the errors that the command line prints as a sentence. Anything else, and
anything that takes longer than ten seconds, is a fault; its seed makes the same input again."""

import argparse
import copy
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from ltx_nb.config.files import load_config, make_config, read_yaml, save_config
from ltx_nb.data.batches import DummyDataset, PrecomputedDataset
from ltx_nb.data.clips import read_dataset
from ltx_nb.data.store import Manifest, Recipe, check_checkpoint, read_record, write_record
from ltx_nb.flow.samplers import get_timestep_sampler
from ltx_nb.loading import checkpoint
from ltx_nb.loading.lora import add_lora, fuse_lora, save_lora
from ltx_nb.model.text import find_gemma
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.tools.cli import USER_ERRORS
from ltx_nb.training.dataset import rehearse
from ltx_nb.training.held_out import HeldOut
from ltx_nb.training.memory import memory_plan
from ltx_nb.training.progress import Progress, View
from ltx_nb.training.trainer import LtxvTrainer

LONGEST = 10  # seconds
NASTY = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**9, 10**400, -(10**20), 0.5, 1e308, float("nan"), float("inf"), "", "x", "../victim",
    "/etc", "a\0b", "\ud800", "é" * 300, [], {}, [[]], [1, 2, 3], {"a": 1}, ["../x"], {"tensor": "nobody"}, "F32", "nan", "1e12",
)  # fmt: skip


# damage


def places(node, path=()) -> Iterator[tuple]:
    "Every place of a tree of plain values."
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def hurt_tree(tree, dice: random.Random):
    "A copy of plain values with one of them replaced, removed, doubled or buried."
    tree = copy.deepcopy(tree)
    if dice.random() < 0.03 or not (found := list(places(tree))):
        return dice.choice(NASTY)
    *way, last = dice.choice(found)
    holder = tree
    for key in way:
        holder = holder[key]
    match dice.randrange(6):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, dict):
            holder[dice.choice(["x", "../victim", "/etc", "", str(last) + "x"])] = holder.pop(last)
        case 2:
            for _ in range(dice.choice([70, 3000])):
                holder[last] = [holder[last]]
        case 3 if (
            isinstance(holder[last], (int, float)) and not isinstance(holder[last], bool) and abs(holder[last]) < 1e300
        ):
            holder[last] = dice.choice([-1, 2, 1000, 1e6, 0]) * holder[last]
        case _:
            holder[last] = dice.choice(NASTY)
    return tree


def to_json(tree) -> bytes:
    try:
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 50_000 + b"]" * 50_000


def hurt_json(data: bytes, dice: random.Random) -> bytes:
    return to_json(hurt_tree(json.loads(data), dice)) if dice.random() < 0.85 else hurt_bytes(data, dice)


def hurt_bytes(data: bytes, dice: random.Random) -> bytes:
    "A byte flipped, a piece cut out, doubled, zeroed, or the end missing."
    data, at = bytearray(data), dice.randrange(max(1, len(data)))
    length = dice.choice([1, 4, 64, 1000])
    match dice.randrange(6):
        case 0:
            del data[at : at + length]
        case 1:
            data[at:at] = data[at : at + length]
        case 2:
            data[at : at + length] = bytes(len(data[at : at + length]))
        case 3:
            del data[at:]
        case _:
            data[at : at + 1] = bytes([dice.randrange(256)])
    return bytes(data)


def hurt_safetensors(data: bytes, dice: random.Random) -> bytes:
    "Half of the damage in the metadata, where programs put JSON into text; the rest in the header or in the numbers."
    size = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8 : 8 + size]), data[8 + size :]
    said = header.get("__metadata__", {})
    kind = dice.randrange(4)
    if kind < 2 and said:
        key = dice.choice(sorted(said))
        try:
            said[key] = to_json(hurt_tree(json.loads(said[key]), dice)).decode("utf-8", "replace")
        except ValueError:
            said[key] = str(dice.choice(NASTY))
        raw = to_json(header)
    elif kind == 2:
        raw = to_json(hurt_tree(header, dice))
    else:
        return hurt_bytes(data, dice)
    return len(raw).to_bytes(8, "little") + raw + numbers


# readers


@dataclass
class Reader:
    "A good file, how it is damaged, and who reads it."

    file: Path
    hurt: Callable[[bytes, random.Random], bytes]
    read: Callable[[], object]
    share: float = 1.0  # of the inputs, where reading takes long


class Bench:
    "A tiny checkpoint, a dataset and a run, with a reader for each kind of file among them."

    def __init__(self, folder: Path):
        self.folder = folder
        self.tiny = make_tiny_checkpoint(folder / "tiny")
        sizes = {"width": 32, "height": 32, "num_frames": 9, "dataset_length": 2}
        self.data = DummyDataset(**sizes, context_width=128, audio_context_width=64, context_length=8).save(
            folder / "data"
        )
        self.config = load_config("tiny_t2v_lora", {
            "model.model_path": str(self.tiny.model), "model.text_encoder_path": str(self.tiny.text_encoder),
            "output_dir": str(folder / "run"), "data.preprocessed_data_root": str(self.data), "optimization.steps": 2,
            "lora.target_modules": ["attn1.to_q"], "validation.interval": None, "data.held_out": 1, "lora.rank": 2,
        })  # fmt: skip
        trainer = self.trainer()
        for report in trainer.steps():
            self.saved = report.checkpoint
        self.strategy = trainer.strategy
        self.readers = dict(self._weights()) | dict(self._run()) | dict(self._data()) | dict(self._texts())

    def trainer(self, **changes) -> LtxvTrainer:
        given = self.config.model_dump(mode="json")
        given["model"] |= changes
        given["optimization"]["steps"] += len(changes)
        return LtxvTrainer(make_config(given), Progress(View()), "cpu")

    def _weights(self):
        tiny, model = self.tiny.model, checkpoint.load_transformer(self.tiny.model, dtype=torch.float32)
        loaders = [getattr(checkpoint, name) for name in checkpoint.__all__ if name.startswith("load_") and name not in (
            "load_component", "load_text_encoder", "load_model")]  # fmt: skip

        def load():
            problems = []
            for loader in loaders:
                try:
                    loader(tiny)
                except USER_ERRORS as error:
                    problems.append(error)
            try:
                memory_plan(self.config, step=False)
            except USER_ERRORS as error:
                problems.append(error)

        yield "checkpoint", Reader(tiny, hurt_safetensors, load, 0.5)
        yield (
            "config check",
            Reader(tiny, hurt_safetensors, lambda: make_config(self.config.model_dump(mode="json"), True)),
        )
        add_lora(adapted := checkpoint.load_transformer(tiny), 2, target_modules=["attn1.to_q"])
        lora = save_lora(adapted, self.folder / "lora.safetensors")
        tensors = load_file(lora)
        save_file(tensors, lora, {"lora_adapter_metadata": json.dumps({"lora_alpha": 4, "alpha_pattern": {"x": 2}})})
        yield "lora", Reader(lora, hurt_safetensors, lambda: fuse_lora(model, lora))
        config = self.tiny.text_encoder / "config.json"
        yield "gemma", Reader(config, hurt_json, lambda: find_gemma(self.tiny.text_encoder))

    def _run(self):
        state = next(self.saved.parent.glob("training_state*"))
        resume = lambda: self.trainer(load_checkpoint=str(self.saved)).load()
        yield "training state", Reader(state, hurt_safetensors, resume, 0.3)
        yield "weights of a run", Reader(self.saved, hurt_safetensors, resume, 0.15)
        held_out = self.folder / "run/held_out.json"
        facts = {key: value for key, value in json.loads(held_out.read_text()).items() if key != "measurements"}
        entry = {"loss": torch.ones(1, 4)}
        yield "held-out losses", Reader(held_out, hurt_json, lambda: HeldOut(facts, held_out, 2).add(3, entry))

    def _data(self):
        store, maker = self.folder / "store", {"video_vae": {"name": "a.safetensors", "fingerprint": "0" * 16}}
        manifest = Manifest(store)
        for name in "a", "b/c":
            write_record(store, "latents", name, {"latents": torch.ones(128, 1, 1, 1)}, {"fps": 24.0, "num_frames": 1})
            manifest.add("latents", name, Recipe(options={"bucket": [32, 32, 1]}, made_by=maker))
        journal = next(store.glob("manifest.*.jsonl"))

        def books():
            check_checkpoint(store, maker, ["latents"])
            for role, samples in list(Manifest(store).records.items()):
                for sample in list(samples):
                    manifest.why_redo(role, sample, Recipe())

        lines = lambda data, dice: b"\n".join(
            hurt_json(line, dice) if dice.random() < 0.5 else line for line in data.splitlines()
        )
        yield "journal", Reader(journal, lines, books)
        listed = store / "manifest.json"
        shutil.copytree(store, kept := self.folder / "kept")
        Manifest(kept).save()
        shutil.copy(kept / "manifest.json", listed)
        yield "manifest", Reader(listed, hurt_json, books)

        def sample():
            dataset = PrecomputedDataset(self.data, self.strategy.get_data_sources())
            rehearse(self.strategy, dataset, get_timestep_sampler("uniform", {}))

        record = next((self.data / "latents").rglob("*.safetensors"))
        yield "record", Reader(record, hurt_safetensors, sample)
        old = self.folder / "old.pt"
        torch.save({"latents": torch.ones(2, 3), "num_frames": 1, "fps": 24.0}, old)
        yield "old record", Reader(old, hurt_bytes, lambda: (read_record(old), read_record(old, shapes_only=True)))

    def _texts(self):
        rows = [{"video": f"{n}.mp4", "caption": f'"{n}", a bird', "start": 0.5, "audio_mask": [[0, 1]]} for n in "abc"]
        for kind in "json", "jsonl", "csv":
            table = self.folder / f"rows.{kind}"
            lines = [json.dumps(row) for row in rows]
            text = {"json": json.dumps(rows), "jsonl": "\n".join(lines)}.get(kind)
            table.write_text(text or "video,caption,start\n" + "".join(f'{n}.mp4,"{n}, a bird",0.5\n' for n in "abc"))
            hurt = {"json": hurt_json, "csv": hurt_bytes}.get(kind) or (
                lambda data, dice: b"\n".join(hurt_json(line, dice) for line in data.splitlines())
            )
            yield kind, Reader(table, hurt, lambda table=table: read_dataset(table))
        written = save_config(self.config, self.folder / "run.yaml")

        def hurt_yaml(data: bytes, dice: random.Random) -> bytes:
            if dice.random() < 0.2:
                return hurt_bytes(data, dice)
            return yaml.safe_dump(hurt_tree(yaml.safe_load(data), dice), allow_unicode=True).encode(
                "utf-8", "surrogatepass"
            )

        yield "configuration", Reader(written, hurt_yaml, lambda: load_config(written))
        yield "yaml", Reader(written, hurt_bytes, lambda: read_yaml(written.read_text("utf-8", errors="replace"), "it"))


# faults


@contextmanager
def soon(seconds: int) -> Iterator[None]:
    "Ends what takes too long."

    def late(*_):
        raise TimeoutError(f"no answer in {seconds} s")  # an OSError, and not for a user

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def try_one(reader: Reader, good: bytes, seed: str) -> str | None:
    "Damage a file and have it read; a traceback where that ended in anything but a result or a sentence."
    dice, data = random.Random(seed), good
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        try:
            data = reader.hurt(data, dice)
        except (
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
            yaml.YAMLError,
        ):  # damaged beyond a second reading
            break
    reader.file.write_bytes(data)
    try:
        with soon(LONGEST), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read()
    except TimeoutError:
        return traceback.format_exc()
    except USER_ERRORS as error:
        if type(error) in (UnicodeDecodeError, UnicodeEncodeError, json.JSONDecodeError) or not str(error).strip():
            return traceback.format_exc()
    except BaseException:
        return traceback.format_exc()
    finally:
        reader.file.write_bytes(good)
    return None


def faults(bench: Bench, name: str, count: int, seed: int) -> list[tuple[str, str]]:  # (seed, traceback)
    "What a reader did not stand."
    reader = bench.readers[name]
    good, found = reader.file.read_bytes(), []
    reader.read()  # the good file is read
    for number in range(max(1, round(count * reader.share))):
        if said := try_one(reader, good, label := f"{name}/{seed}/{number}"):
            found.append((label, said))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", help="this one alone")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    folder, bad, tried = Path(tempfile.mkdtemp()), 0, 0
    bench = Bench(folder)
    for name, reader in bench.readers.items():
        if args.reader in (None, name):
            found = faults(bench, name, args.count, args.seed)
            bad, tried = bad + len(found), tried + max(1, round(args.count * reader.share))
            print(f"{name}: {len(found)} faults", flush=True)
            for label, said in found[:5]:
                print(f"--- {label}\n{said}")
    shutil.rmtree(folder)
    print(f"{tried} inputs, {bad} faults")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
