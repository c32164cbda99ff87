"""A whole study on the small model, through the command line: its recipe, folder and commands."""

import json
import subprocess
import sys
from pathlib import Path

from imatrix_lab.core.files import DIGEST
from imatrix_lab.report import results

COMMAND = str(Path(sys.executable).parent / "imatrix-lab")
RECIPE = """
schema = 1
name = "small"
types = ["Q4_K_M", "Q2_K"]
models = ["tiny-f16.gguf"]
keep = "{keep}"
[calibration]
texts = ["none", "qaa", "qab", "qaa=0.5,qab=0.5"]
tokens = 1536
samples = 2
[evaluation]
texts = ["qaa", "qab=short.jsonl"]
documents = 2
ctx = 128
[comparison]
baseline = "none"
resamples = 100
"""
SMALL = """
schema = 1
name = "small"
types = ["Q2_K"]
models = ["tiny-f16.gguf"]
keep = "{keep}"
[calibration]
texts = ["none", "qaa"]
tokens = 1024
[evaluation]
texts = ["short=short.jsonl"]
documents = 4
ctx = 128
[comparison]
resamples = 100
"""
TASKS = """
[[tasks]]
name = "exam.toml"
languages = ["en"]
data = "exam.json"
[[tasks]]
name = "belebele"
languages = ["en"]
data = "empty"
"""
ITEMS = [
    {"id": str(i), "ask": f"Number {i}?", "choices": ["one", "two"], "right": i % 2, "text": str(i)}
    for i in range(6)
]


class Bench:
    """A folder with a model, a recipe, texts in two languages, a cache, and one study."""

    def __init__(self, folder, env, text=RECIPE, keep="scores"):
        self.folder, self.env = folder, env
        self.recipe, self.out = folder / "recipe.toml", folder / "study"
        self.recipe.write_text(text.format(keep=keep))

    def start(self, *words):
        return subprocess.Popen(
            [COMMAND, "study", *map(str, words)], env=self.env, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words, status=0):
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, err
        return out, err

    def study(self, *words, status=0):
        return self.run("run", self.recipe, "--out", self.out, *words, status=status)

    def load(self):
        return results.read(self.out)

    def same(self):
        """What must not depend on the clock, on jobs, or on being stopped."""
        study = json.loads((self.out / results.FILE).read_text())
        del study["times"], study[DIGEST]  # which is of the times too
        return study

    def quants(self):
        """Every quant that is left, in the study or in the cache."""
        cache = Path(self.env["IMATRIX_LAB_CACHE"])
        return [*self.out.rglob("*Q?_K*.gguf"), *cache.glob("quant/*/*.gguf")]
