"""Whole studies whose steps have parts, in this process: the bytes are those without."""

import dataclasses
import json
import re
from functools import cache, partial

import pytest

from imatrix_lab.core.files import DIGEST
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadText
from imatrix_lab.imatrix import collect, collector
from imatrix_lab.report import results
from imatrix_lab.study import run
from imatrix_lab.study.cluster import split
from imatrix_lab.study.steps import steps
from tests.study.scored import EXAM
from tests.study.whole import EXAM_TASK, ITEMS, SMALL, furnish


class Studies:
    """One recipe's studies, each with a store of its own, in steps as for so many machines."""

    def __init__(self, folder, store_of):
        self.folder, self._store_of = folder, cache(store_of)
        furnish(folder, ("qaa",))
        text = (SMALL + EXAM_TASK).replace('"Q2_K"', '"Q2_K", "size:Q3_K_S"')
        text = text.replace("resamples", 'baseline = "qaa"\nresamples')
        (folder / "recipe.toml").write_text(text.format(keep="scores"))
        (folder / "exam.toml").write_text(EXAM)
        (folder / "exam.json").write_text(json.dumps(ITEMS))
        self.kinds = set()

    def study(self, name, n_machines, patch, changed=lambda step: step):
        """Run or continue one; `changed` is what becomes of each step."""

        def planned(shared):
            every = split.split(steps(shared), {}, n_machines)
            self.kinds = {step.kind for step in every if step.part_of}
            return [changed(step) for step in every]

        for module in (split, collect, collector):
            patch.setattr(module, "SHARD", 1)  # window
        patch.setattr(run, "steps", planned)
        patch.setenv("IMATRIX_LAB_DATA", str(self.folder / "data"))
        patch.chdir(self.folder)
        out = self.folder / name
        session = Session(self._store_of(self.folder / f"store-{name}"), Silent())
        run.begin(self.folder / "recipe.toml", out, 1, session)
        text = (out / results.FILE).read_text()
        made = json.loads(text)
        del made["times"], made[DIGEST]
        files = {p.relative_to(out): p for kind in ("imatrix", "scores", "items", "sensitivity")
                 for p in (out / kind).rglob("*") if p.is_file()}  # fmt: skip
        return made, {name: path.read_bytes() for name, path in files.items()}


@pytest.fixture(scope="module")
def studies(tmp_path_factory, score_store):
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        ours = Studies(folder, score_store)
        ours.whole = ours.study("whole", 1, patch)
        yield ours


def test_parts_change_no_byte(studies, monkeypatch):
    assert not studies.whole[0]["missing"] and len(studies.whole[1]) > 6
    assert studies.study("parts", 3, monkeypatch) == studies.whole
    assert studies.kinds == {"imatrix", "sensitivity", "score", "task"}


def test_parts_that_fail_and_a_study_that_is_stopped_between_them(studies, monkeypatch):
    """Steps do what parts did not; a study that goes on for other machines has other parts."""

    def fails(turn, part):
        raise BadText(f"not here, {part}")

    def stops(turn):
        raise KeyboardInterrupt

    def worse(step):
        if step.kind == "task" and step.part_of and step.run.keywords["part"][0] == 0:
            return dataclasses.replace(step, run=partial(fails, part=step.id))
        if step.kind == "task" and not step.part_of:
            return dataclasses.replace(step, run=stops)
        return step

    with pytest.raises(KeyboardInterrupt):
        studies.study("worse", 3, monkeypatch, worse)
    journals = [p.name for p in (studies.folder / "worse" / "items" / ".unfinished").iterdir()]
    assert journals and all(re.search(r"\.1-of-\d\.jsonl$", name) for name in journals)
    assert studies.study("worse", 5, monkeypatch) == studies.whole
