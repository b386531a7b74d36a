"What holds for every test: nothing is downloaded, what takes a minute is made once a run, and the longest begin first."

import gc
import os
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # helpers of tests, and benchmarks
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing downloads in a test
os.environ.setdefault("MPLBACKEND", "agg")

# Items of more than ten seconds, the longest first, by a part of their name. Two processes end at the same time only if
# nothing long is left for the end, when one of them has nothing else to do.
LONGEST = (
    "test_every_mode_trains_and_samples", "tutorials/02_", "tutorials/01_", "tutorials/08_", "test_all_processes_say_the_same",
    "test_w41_losses_and_lengths_of_gradients", "test_what_real_models_take", "tutorials/04_", "test_a_mode_learns",
    "tutorials/07_", "test_every_form_of_training", "test_the_whole_of_it_runs_dry", "tutorials/06_", "test_the_first_tutorial",
    "test_the_whole_site_is_sound", "7_tiny/04_codecs", "7_tiny/07_lesson", "7_tiny/06_measure", "test_from_a_film_to_a_lora",
    "6_training/14_memory", "test_the_script_trains", "8_tools/01_demo", "6_training/10_sharding",
    "tutorials/03_", "tutorials/05_", "test_a_preparation_and_generations", "7_tiny/02_world", "test_processes_draw",
    "6_training/15_fit", "2_loading/03_quantization", "test_the_whole_recipe_in_small", "test_every_command_of_the_guide",
    "test_the_command_speaks_once", "4_data/17_cuts", "test_no_second_copy_of_four", "test_kill_in_the_middle_of_a_save",
)  # fmt: skip


def pytest_configure(config):
    "Lessons and encoded clips are kept beside pytest's own cache, under a hash of all that they depend on."
    if cache := getattr(config, "cache", None):
        os.environ.setdefault("LTX_NB_KEPT", str(cache.mkdir("kept")))


def longest_first(items: list, processes: int) -> list:
    "The longest dealt out to the fronts of as many stretches as there are processes, each of which begins with one."
    rank = {id(item): next((i for i, part in enumerate(LONGEST) if part in item.nodeid), None) for item in items}
    long = sorted((item for item in items if rank[id(item)] is not None), key=lambda item: rank[id(item)])
    short = [item for item in items if rank[id(item)] is None]
    ordered, taken = [], 0
    for process in range(processes):
        mine = long[process::processes]
        left = processes - process
        until = taken + max(0, (len(items) - len(ordered)) // left - len(mine))
        ordered += mine + short[taken:until]
        taken = until
    return ordered


def pytest_collection_modifyitems(items):
    "Tests marked `gpu` need a CUDA device; without one they are skipped, not failed."
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword: the folder of a clone may have that name
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if processes > 1:
        items[:] = longest_first(items, processes)


def pytest_collection_finish():
    "What is there now stays to the end: `gc.collect`, which a run calls when it lets go of a model, need not look at it."
    gc.collect()
    gc.freeze()
