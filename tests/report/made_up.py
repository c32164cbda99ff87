"""Results of a study that never was: every part of a report, several scripts, things missing.

Seeded; the numbers mean nothing. `hostile` puts text that means harm wherever text may stand.
"""

import dataclasses
import math
import random
from typing import Any

from imatrix_lab.report import results as r

LANGUAGES = {
    "en": {"name": "English", "direction": "ltr", "script": "Latn"},
    "nb": {"name": "Norwegian Bokmål", "direction": "ltr", "script": "Latn"},
    "ml": {"name": "Malayalam", "direction": "ltr", "script": "Mlym"},
    "ar": {"name": "Arabic", "direction": "rtl", "script": "Arab"},
    "ja": {"name": "Japanese", "direction": "ltr", "script": "Jpan"},
}
BITS = {"Q4_K_M": 5.90, "Q3_K_S": 4.81, "Q2_K": 3.94, "size:Q3_K_S": 4.81, "Q3_K_S+feedback": 4.81}
LOSS = {"Q4_K_M": 0.12, "Q3_K_S": 1.1, "Q2_K": 2.4, "size:Q3_K_S": 0.3, "Q3_K_S+feedback": 0.7}
KINDS = ("size:Q3_K_S", "Q3_K_S+feedback")
PROMPTS = {
    "en": ("Which planet is closest to the sun?", "Mercury", "Mercury.", "Venus, I think."),
    "nb": ("Hva heter Norges lengste elv?", "Glomma", "Glomma", "Det er Mjøsa."),
    "ml": ("കേരളത്തിന്റെ തലസ്ഥാനം ഏതാണ്?", "തിരുവനന്തപുരം", "തിരുവനന്തപുരം.", "കൊച്ചിയാണ് തലസ്ഥാനം."),
    "ar": ("ما هي عاصمة المغرب؟", "الرباط", "الرباط (Rabat).", "الدار البيضاء، 1912."),
    "ja": ("日本で一番高い山は何ですか。", "富士山", "富士山です。", "北岳だと思います。"),
}
EVIL = (
    '"><script>window.hacked = 1</script></style></script><img src=x onerror="window.hacked = 2">'
    "<iframe src=http://evil.example/></iframe><svg onload=window.hacked=3>{{ 7 * 7 }}"
    "' onmouseover='window.hacked=4' \u202etxet desrever\u2066\x00\x1b[31m $\\frac{1}{0}$ `|*_"
    "\r\n# x"
)


def study(
    languages: tuple[str, ...] = ("en", "nb", "ml"),
    types: tuple[str, ...] = ("Q4_K_M", "Q3_K_S"),
    n_samples: int = 2,
    has_tasks: bool = True,
) -> r.Results:
    """Return a study with all parts; one cell and one sample are missing, some values unknown."""
    rng = random.Random(1)
    labels = ["no imatrix", *languages, "nb75-en25", "nb50-en50", "nb-pooled"]
    signatures = _signatures(languages)
    every = (*types, *KINDS)
    scores = _scores(rng, labels, languages, types, has_tasks)
    more = _scores(random.Random(2), labels, languages, KINDS, False)
    scores += tuple(s for s in more if s.calibration)
    comparisons = _comparisons(rng, labels, languages, types, has_tasks)
    return r.Results(
        schema=r.SCHEMA, name="quick-nb", source="Borgersen and Goodwin 2025, arXiv 2503.03592",
        question="Is text in a language the better calibration for that language?",
        answer=(
            "For Norwegian Bokmål take the file calibrated on nb: at Q3_K_S its KLD from the"
            " original is 0.154 nats a token lower than with English (0.131 to 0.177).",
            "At Q4_K_M the gain is 0.012, of the size that two samples of one language differ by.",
            "On tasks these data cannot tell the calibrations apart; 2,400 items would decide it.",
        ),
        baseline="en", metric="kld_nats", languages={k: LANGUAGES[k] for k in languages},
        models={"demo": {"name": "Gemma 3 270M", "sha256": "a5fd3b62" * 8, "n_params": 268_098_176,
                         "was_quantized": True, "origin": "demo"}},
        types=every, calibrations=_calibrations(labels, n_samples), quants=_quants(labels, every),
        scores=scores, comparisons=comparisons, interactions=_interactions(types),
        controls=_controls(rng, types), predictions=_predictions(rng, labels, languages, types),
        agreements=tuple(
            r.Agreement("demo", t, x, rng.choice((1.0, 0.8, -0.2, math.nan)), 5)
            for t in ("", *types) for x in languages
        ),
        similarities=tuple(
            r.Similarity("demo", a, b, rng.uniform(0.02, 0.3), 0.021)
            for i, a in enumerate(labels[1:]) for b in labels[i + 2 :]
        ),
        flips=_flips(languages, types) if has_tasks else (),
        flip_counts=tuple(
            r.FlipCount("demo", "mixeval", x, t, "nb", "en", 400, 9, 7)
            for x in languages for t in types
        ) if has_tasks else (),
        power=(
            r.Power("nb against en on nb, Q3_K_S", "nats a token", 0.02, 0.05, "12 documents"),
            r.Power("mixeval, nb", "points", 4.7, 1.5, "one item in twenty changes"),
            r.Power("mixeval, en", "points", math.nan, math.nan, "nothing is known"),
        ),
        missing=(
            r.Missing("score-ml-Q3_K_S-nb-pooled", "the disk is full (12 MiB free)",
                      "imatrix-lab store gc --days 7", ("compare ml Q3_K_S",)),
        ),
        licences=(
            r.Licence("model demo", "Gemma terms of use", "ai.google.dev/gemma/terms"),
            r.Licence("text nb", "CC0-1.0", "written for imatrix_lab"),
        ),
        commands=("imatrix-lab study run recipes/quick-nb.toml --jobs 2",
                  "imatrix-lab report studies/quick-nb --html report.html"),
        notes=("The demo model was quantized once before: a stand-in, not a base for quants.",),
        unknown=("which 1,446 items were used",), reduced=True,
        recipe={"schema": 1, "name": "quick-nb", "types": list(types), "margins": {"score": 1.5}},
        signatures=signatures, contrasts=_contrasts(comparisons),
        type_interactions=_type_interactions(languages), tensor_types=_tensor_types(languages),
        activations=tuple(
            r.Activations("demo", x, role, *(
                tuple(k * (1 + 0.1 * n + 0.2 * i) for n in range(18)) for k in (0.1, 0.6, 2.0 + i)
            ))
            for role in ("attn_q", "ffn_down") for i, x in enumerate(languages)
        ),
        refused=("demo: nb Q4_K_M is 3.1% larger than nb size:5GiB (5.2 GiB, 5.0 GiB)",),
        times=r.Times({"imatrix nb 1": 411.2, "score nb": 93.0}, 1544.0),
    )  # fmt: skip


def _signatures(languages: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {
        f"{i:02d}c0ffee": {
            "toolchain": {"commit": "0c1e57098", "backend": "cpu"}, "metrics_version": 3,
            "text": {"label": x, "sha256": f"{i}" * 64}, "protocol": {"n_ctx": 512, "bos": True},
        }
        for i, x in enumerate(languages)
    }  # fmt: skip


def _calibrations(labels: list[str], n_samples: int) -> tuple[r.Calibration, ...]:
    rows = []
    for label in labels:
        kind, shares = "language", {label: 1.0}
        if label == "no imatrix":
            kind, shares = "none", {}
        elif label.endswith("pooled"):
            kind, shares = "pooled", {"nb": 1.0}
        elif "-" in label:
            kind = "mixture"
            shares = {w[:2]: int(w[2:]) / 100 for w in label.split("-")}
        for sample in range(1, n_samples + 1 if kind == "language" else 2):
            sha = f"{len(rows):x}" * 64
            parts = ("ab" * 32, "cd" * 32) if kind in ("mixture", "pooled") else ()
            rows.append(
                r.Calibration("demo", label, label, kind, sample, shares, 16_384, sha[:64],
                              sha[:64], "written for imatrix_lab", "CC0-1.0", parts)
            )  # fmt: skip
    return tuple(rows)


def _quants(labels: list[str], types: tuple[str, ...]) -> tuple[r.Quant, ...]:
    return tuple(
        r.Quant("demo", label, 1, t, f"demo-{label}-{t}", "ef" * 32, int(BITS[t] * 4e7), BITS[t], 0,
                "feedback" if t.endswith("feedback") else "imatrix")
        for label in labels for t in types
    )  # fmt: skip


def _level(label: str, text: str, kind: str) -> float:
    gain = {"no imatrix": 1.5, text: 0.86, f"{text}-pooled": 0.85}.get(label, 1.0)
    share = next((int(w[2:]) for w in label.split("-") if w[:2] == text and w[2:].isdigit()), 0)
    return LOSS[kind] * (gain - 0.001 * share)


def _scores(
    rng: random.Random, labels: list[str], languages: tuple[str, ...], types: tuple[str, ...],
    has_tasks: bool,
) -> tuple[r.Score, ...]:  # fmt: skip
    rows = []
    for i, text in enumerate(languages):
        key = (f"{i:02d}c0ffee",)
        rows.append(r.Score("demo", text, "", "", 0, "", "perplexity", "perplexity", "", 44.4,
                             40.1, 49.0, 12_000, 40, key))  # fmt: skip
        for label in labels:
            for t in types:
                if (text, label, t) == ("ml", "nb-pooled", "Q3_K_S"):
                    continue
                for sample in (0, 1, 2) if label in languages else (0,):
                    level = _level(label, text, t) * rng.uniform(0.99, 1.01)
                    for metric, words, unit, scale in (
                        ("kld_nats", "KLD from the original", "nats a token", 1.0),
                        ("perplexity", "perplexity", "", 50.0),
                    ):
                        x = level * scale
                        rows.append(
                            r.Score("demo", text, "", label, sample, t, metric, words, unit, x,
                                    0.95 * x, 1.06 * x, 12_000, 40, key)
                        )  # fmt: skip
    for text in languages if has_tasks else ():
        for label in labels:
            for t in types:
                x = 45.0 - 5 * _level(label, text, t)
                rows.append(
                    r.Score("demo", text, "mixeval", label, 0, t, "score", "score", "points", x,
                            x - 4, x + 4, 400, 350, ("00c0ffee",))
                )  # fmt: skip
    return tuple(rows)


def _comparisons(
    rng: random.Random, labels: list[str], languages: tuple[str, ...], types: tuple[str, ...],
    has_tasks: bool,
) -> tuple[r.Comparison, ...]:  # fmt: skip
    rows = []
    measures = [
        ("", "nll_nats", "loss (ln perplexity)", "nats a token", True, 1.0),
        ("", "kld_nats", "KLD from the original", "nats a token", True, 1.0),
    ]
    measures += [("mixeval", "score", "score", "points", False, -9.0)] if has_tasks else []
    for task, metric, words, unit, lower, scale in measures:
        for i, text in enumerate(languages):
            for t in types:
                pairs = [(a, "en") for a in labels if a != "en"] + [("nb", "no imatrix")]
                for a, b in pairs:
                    if (text, a, t) == ("ml", "nb-pooled", "Q3_K_S"):
                        continue
                    x = scale * (_level(a, text, t) - _level(b, text, t)) * rng.uniform(0.9, 1.1)
                    half = abs(scale) * rng.uniform(0.01, 0.05) * LOSS[t]
                    margin = 0.02 if metric == "kld_nats" else 1.5 if task else math.nan
                    verdict = (
                        "equivalent" if abs(x) + half < margin
                        else "undecided" if abs(x) < half
                        else "better" if (x < 0) == lower else "worse"
                    )  # fmt: skip
                    noise = math.nan if task else 0.01
                    rows.append(
                        r.Comparison(
                            "demo", text, task, t, metric, words, unit, lower, a, b, x, x - half,
                            x + half, 0.00002 if verdict == "better" else 0.3, 0.04, "holm",
                            f"calib on {metric}", len(pairs), verdict, margin, 0.2, 0.03, noise,
                            abs(x) / noise, 12_000, 40, 24_000 if verdict == "undecided" else 0, 80,
                            f"On {text}, {a} {t} is {verdict} beside {b} {t}.",
                            f"Mean paired difference of {words}: {x:.4f} {unit}, CR3.",
                            (f"{i:02d}c0ffee",),
                        )
                    )  # fmt: skip
    return tuple(rows)


def _interactions(types: tuple[str, ...]) -> tuple[r.Interaction, ...]:
    return tuple(
        r.Interaction("demo", "", t, "kld_nats", "nats a token", "nb", "en", -0.21, -0.25, -0.17,
                      0.001, 0.004, "Each helps its own language more.", "(nb - en on nb) …")
        for t in types
    )  # fmt: skip


def _controls(rng: random.Random, types: tuple[str, ...]) -> tuple[r.Control, ...]:
    known = (
        ("reference against itself", "0: the floor of the method", 0.0),
        ("two samples of nb", "the noise to measure by", 0.01),
        ("no imatrix against nb", "worse: a positive control", 0.55),
    )
    return tuple(
        r.Control("demo", name, expected, "nb", "", t, "kld_nats", "nats a token", x, x - 0.004,
                  x + 0.004, x / 0.01 if x else math.nan)
        for t in types for name, expected, x in known
    )  # fmt: skip


def _predictions(
    rng: random.Random, labels: list[str], languages: tuple[str, ...], types: tuple[str, ...]
) -> tuple[r.Prediction, ...]:
    rows = []
    for label in labels:
        for t in types:
            for text in languages:
                level = _level(label, text, t)
                known = (text, label, t) != ("ml", "nb-pooled", "Q3_K_S")
                rows.append(
                    r.Prediction("demo", label, 1, t, text, level * 0.02 * rng.uniform(0.95, 1.05),
                                 level if known else math.nan, level * rng.uniform(0.6, 1.2))
                )  # fmt: skip
    return tuple(rows)


def _contrasts(comparisons: tuple[r.Comparison, ...]) -> tuple[r.Contrast, ...]:
    return tuple(
        r.Contrast(**{**vars(c), "a": kind, "b": "Q3_K_S", "type": kind, "calibration": c.a})
        for kind in KINDS for c in comparisons
        if (c.type, c.b, c.metric, c.a in LANGUAGES) == ("Q3_K_S", "en", "kld_nats", True)
    )  # fmt: skip


def _type_interactions(languages: tuple[str, ...]) -> tuple[r.TypeInteraction, ...]:
    rows = []
    for a, b in (("Q3_K_S", ""), ("Q3_K_S+feedback", ""), ("Q3_K_S+feedback", "Q3_K_S")):
        for text in ("", *(languages if b else ())):
            x = -0.15 * len(a) / 6
            calibration = "nb" if text else ""
            rows.append(
                r.TypeInteraction("demo", "", text, calibration, "en", a, b, "kld_nats",
                                  "nats a token", 1 if text else len(languages), x, x - 0.04,
                                  x + 0.05, 0.001, 0.004, 0.03, f"It helps {a} more than {b}.",
                                  "(own - en of A) ...")
            )  # fmt: skip
    return tuple(rows)


def _tensor_types(languages: tuple[str, ...]) -> tuple[r.TensorTypes, ...]:
    standard = {"token_embd": ("Q6_K",), "attn_q": ("Q3_K",) * 18, "ffn_down": ("Q3_K",) * 18}
    rows = [r.TensorTypes("demo", "en", "Q3_K_S", standard, {"Q6_K": 6.56, "Q3_K": 3.44})]
    for i, x in enumerate(languages):
        mixed = ("Q4_K",) * (4 + i) + ("Q3_K",) + ("Q5_K",) * (13 - i)
        roles = {"token_embd": ("Q5_K",), "attn_q": ("Q2_K",) * 18, "ffn_down": mixed}
        bits = {"Q5_K": 5.5, "Q4_K": 4.5, "Q3_K": 3.44, "Q2_K": 2.63}
        rows.append(r.TensorTypes("demo", x, "size:Q3_K_S", roles, bits))
    return tuple(rows)


def _flips(languages: tuple[str, ...], types: tuple[str, ...]) -> tuple[r.Flip, ...]:
    rows = []
    for x in languages:
        for n, t in enumerate(types):
            prompt, gold, right, wrong = PROMPTS[x]
            for k in range(2 + 6 * n):
                rows.append(r.Flip("demo", "mixeval", x, t, "nb", "en", f"{x}-{k}", prompt, gold,
                                    right, wrong, 1.0, 0.0))  # fmt: skip
    rows.append(dataclasses.replace(rows[0], item_id="long", output_b="Ab " * 350_000, score_b=0.5))
    return tuple(rows)


def hostile() -> r.Results:
    """Return a study in which every text, every name and every key means harm."""
    return spoiled(study(types=("Q3_K_S",)))


def spoiled(value: Any, at: str = "") -> Any:
    """Return a record with harm at the end of its texts; what joins records stays alike."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: spoiled(getattr(value, f.name), f.name) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **fields)
    if isinstance(value, tuple):
        return tuple(spoiled(v, at) for v in value)
    if isinstance(value, dict):
        return {spoiled(k, at): spoiled(v, at) for k, v in value.items()}
    if isinstance(value, str) and at not in ("metric", "verdict", "kind"):
        return value + EVIL
    return value


def empty() -> r.Results:
    """Return a study of which nothing came about."""
    whole = study()
    nothing: dict[str, Any] = {
        f.name: () for f in dataclasses.fields(r.Results)
        if isinstance(getattr(whole, f.name), tuple)
    }  # fmt: skip
    return dataclasses.replace(
        whole, **nothing, languages={}, models={}, recipe={}, signatures={}, question="",
        times=r.Times({}, 0.0),
    )  # fmt: skip
