"""What there is of a study some of whose steps failed."""

import dataclasses

import pytest

from imatrix_lab.core import config
from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadText
from imatrix_lab.report import results
from imatrix_lab.report.results import Missing
from imatrix_lab.study import actions
from imatrix_lab.study.analyse import gather
from imatrix_lab.study.analyse.assemble import assemble
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import FILES, Step
from imatrix_lab.study.recipe import CalibrationSettings, Evaluation
from imatrix_lab.study.scheduler import Scheduler
from tests.study import scored
from tests.study.test_graph import CAPACITY, Seen


class Study:
    """A quant, its predicted loss and its score, which fail when they are told to."""

    def __init__(self, folder):
        self.folder, self.failing, self.records, self.ran = folder, set(), {}, []
        self.file = folder / "quant.gguf"
        self.quant = scored.quants()[0]
        recipe = scored.recipe(calibration=CalibrationSettings(("none",)))
        recipe = dataclasses.replace(recipe, types=(self.quant.type,))
        tools = type("Tools", (), {"signature": lambda self: {}})()
        models = (scored.model(),)
        (folder / "recipe.toml").touch()
        self.shared = Shared(recipe, Folder(folder), None, tools, models, {})

    def _made(self, turn):
        self.file.touch()
        return {actions.QUANT: config.plain(self.quant), FILES: [str(self.file)]}

    def _step(self, kind, does, **rest):
        def run(turn):
            self.ran.append(kind)
            if kind in self.failing:
                raise BadText(f"{kind} fails")
            return does(turn)

        return Step(f"demo.{kind}.none.{self.quant.type}", kind, kind, run, **rest)

    def go(self):
        self.ran.clear()
        quant = self._step("quant", self._made)
        loss = self._step("loss", lambda turn: {actions.LOSSES: {"nb": 0.5}}, needs=(quant.id,),
                          is_target=True)  # fmt: skip
        score = self._step("score", lambda turn: {FILES: []}, uses=(quant.id,), is_target=True)
        tidy = self._step("tidy", lambda turn: self.file.unlink(missing_ok=True) or {},
                          after=(quant.id, loss.id, score.id), is_cleanup=True)  # fmt: skip
        steps = (quant, loss, score, tidy)
        keep = self.records.__setitem__
        outcome = Scheduler(steps, self.records, CAPACITY, Seen(), keep, self.folder / "logs").run()
        return gather.products(self.shared, steps, outcome, 1.0)


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def test_a_quant_that_cannot_be_made_again_leaves_what_was_found_with_it(study, tmp_path):
    study.failing = {"score"}
    first = study.go()
    assert first.missing == (Missing("score", "score fails", "", ()),) and not study.file.exists()
    study.failing = {"quant"}
    made = study.go()
    assert study.ran == ["quant", "tidy"]
    assert (
        made.quants == first.quants == (study.quant,)
        and made.predictions == first.predictions != ()
    )
    assert made.missing == (Missing("quant", "quant fails", "", ("score",)),)
    results.write(tmp_path / results.FILE, assemble(made, Silent()))
    assert results.read(tmp_path / results.FILE).missing == made.missing
    study.failing = set()
    assert study.go().missing == () and study.ran == ["quant", "score", "tidy"]


def test_results_name_files_without_their_folders(study):
    text = Evaluation(("mine=some/where/a.jsonl",))
    recipe = dataclasses.replace(study.shared.recipe, evaluation=text)
    study_results = assemble(dataclasses.replace(study.go(), recipe=recipe), Silent())
    assert study_results.recipe["evaluation"]["texts"] == ["mine=a.jsonl"]
