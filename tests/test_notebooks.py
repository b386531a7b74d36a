"""Every notebook is a test, one item each, by the rules of `nbdev_test`: cells flagged `eval: false`, `notest`, `slow`
or `gpu` are skipped, `skip_exec` notebooks too."""

import logging
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("nbs", "nbs/*", "tutorials")  # nbs/tutorials is a link to tutorials/, for the site


def notebooks() -> list[str]:
    found = [p.relative_to(ROOT) for folder in FOLDERS for p in ROOT.glob(f"{folder}/*.ipynb")]
    return sorted(str(p) for p in found if p.parts[:2] != ("nbs", "tutorials"))


@pytest.fixture
def quiet_for_itself():
    "A chapter may silence a logger for its reader; the tests after it in this process must hear it again."
    loggers = {name: logger for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)}
    levels = {name: logger.level for name, logger in loggers.items()}
    yield
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.startswith("ltx_nb"):
            logger.setLevel(levels.get(name, logging.NOTSET))


@pytest.mark.usefixtures("quiet_for_itself")
@pytest.mark.parametrize("notebook", notebooks())
def test_notebook(notebook, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    flags = get_config(path=ROOT).tst_flags.split()
    passed, _ = run_notebook((ROOT / notebook).absolute(), skip_flags=flags, basepath=ROOT)
    assert passed, capfd.readouterr().err[-4000:]
