"""Made-up rows in each benchmark's own schema: language, file name, rows, first gold, a prompt."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schema:
    language: str
    file: str
    rows: tuple[dict[str, Any], ...]
    golds: tuple[str, ...]
    options: tuple[str, ...]
    in_prompt: str
    part: str = ""


def mmlu(n: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "sample_id": f"astronomy/test/{i}", "id": f"astronomy/test/{i}", "subject": "astronomy",
            "question": f"Wie viele Monde hat Planet {i}?",
            "instruction": f"Wie viele Monde hat {i}?",
            "option_a": "einen", "option_b": "zwei", "option_c": "drei", "option_d": "vier",
            "answer": "ABCD"[i % 4],
        }
        for i in range(n)
    )  # fmt: skip


SCHEMAS: dict[str, Schema] = {
    "mixeval": Schema(
        "en", "free-form.json",
        (
            {"id": "0", "problem_type": "free-form", "context": None, "prompt": "Who built it?",
             "target": ["Ada", "Ada L."], "benchmark_name": "TriviaQA"},
            {"id": "1", "problem_type": "free-form", "context": "A text.", "prompt": "How many?",
             "target": ["7"], "benchmark_name": "GPQA"},
            {"id": "1", "problem_type": "multiple-choice", "context": None, "prompt": "Which?",
             "options": ["a hat", "a boat"], "target": [1], "benchmark_name": "PIQA"},
        ),
        ("Ada", "a boat"), (), "Question: Who built it?\nAnswer as briefly", "free-form",
    ),
    "mixeval-commonsense": Schema(
        "en", "multiple-choice.json",
        (
            {"id": "0", "problem_type": "multiple-choice", "context": None, "prompt": "Which law?",
             "options": ["Ohm's", "Boyle's"], "target": [0], "benchmark_name": "MMLU"},
            {"id": "1", "problem_type": "multiple-choice", "context": "It rained.",
             "prompt": "What was wet?", "options": ["a hat", "a thought"], "target": [0],
             "benchmark_name": "SIQA"},
        ),
        ("a hat",), ("a hat", "a thought"), "It rained.\nQuestion: What was wet?\nAnswer:",
    ),
    "mixeval-hard": Schema(
        "en", "free-form-hard.json",
        ({"id": "0", "problem_type": "free-form", "context": "It rained.", "prompt": "Did it?",
          "target": ["yes"], "benchmark_name": "BBH"},),
        ("yes",), (), "It rained.\nQuestion: Did it?", "free-form",
    ),
    "belebele": Schema(
        "nb", "nob_Latn.jsonl",
        tuple({"link": "https://x/1", "question_number": n, "flores_passage": "Elven er lang.",
               "question": f"Hvor lang er elven ({n})?", "mc_answer1": "kort", "mc_answer2": "lang",
               "mc_answer3": "bred", "mc_answer4": "smal", "correct_answer_num": "2",
               "dialect": "nob_Latn", "ds": "2023-05-03"} for n in (1, 2)),
        ("lang", "lang"), ("kort", "lang", "bred", "smal"),
        "Tekst: Elven er lang.\nSpørsmål: Hvor lang er elven (1)?\nA. kort\nB. lang",
    ),
    "global-mmlu": Schema("de", "de.jsonl", mmlu(4), ("einen", "zwei", "drei", "vier"),
                        ("einen", "zwei", "drei", "vier"), "Frage: Wie viele Monde hat Planet 0?"),
    "global-mmlu-lite": Schema("de", "de.jsonl", mmlu(2), ("einen", "zwei"),
                             ("einen", "zwei", "drei", "vier"), "D. vier\nAntwort:"),
    "m-mmlu": Schema("de", "de.jsonl", mmlu(2), ("einen", "zwei"),
                   ("einen", "zwei", "drei", "vier"), "Frage: Wie viele Monde hat 0?"),
    "xnli": Schema(
        "de", "de.jsonl",
        ({"premise": "Es regnet.", "hypothesis": "Die Straße ist nass.", "label": 0},
         {"premise": "Es regnet.", "hypothesis": "Es ist trocken.", "label": 2}),
        ("Ja, die Straße ist nass.", "Nein, es ist trocken."),
        ("Ja, die Straße ist nass.", "Außerdem, die Straße ist nass.",
         "Nein, die Straße ist nass."),
        "Es regnet, richtig?",
    ),
    "xstorycloze": Schema(
        "en", "spring2016.val.en.tsv.split_20_80_eval.tsv",
        ({"story_id": "7", "input_sentence_1": "Ann rose.", "input_sentence_2": "She ate.",
          "input_sentence_3": "She ran.", "input_sentence_4": "It was hot.",
          "sentence_quiz1": "She rested.", "sentence_quiz2": "She froze.",
          "answer_right_ending": "1"},),
        ("She rested.",), ("She rested.", "She froze."), "Ann rose. She ate. She ran. It was hot.",
    ),
    "xcopa": Schema(
        "it", "it.jsonl",
        ({"premise": "L'uomo aprì il rubinetto.", "choice1": "Il bagno si riempì.",
          "choice2": "L'acqua scese.", "question": "effect", "label": 1, "idx": 4,
          "changed": False},),
        ("l'acqua scese.",), ("il bagno si riempì.", "l'acqua scese."),
        "L'uomo aprì il rubinetto quindi",
    ),
    "xwinograd": Schema(
        "en", "en.jsonl",
        ({"sentence": "The cup fell because _ was wet.", "option1": "the cup",
          "option2": "the hand", "answer": "2"},),
        ("the hand was wet.",), ("the cup was wet.", "the hand was wet."),
        "The cup fell because",
    ),
    "mgsm": Schema(
        "de", "mgsm_de.tsv",
        ({"question": "Anna hat 3 Äpfel und kauft 4. Wie viele hat sie?", "answer_number": "7"},),
        ("7",), (), "Denke Schritt für Schritt",
    ),
    "include": Schema(
        "ml", "Malayalam.jsonl",
        ({"language": "Malayalam", "country": "India", "domain": "x", "subject": "y",
          "regional_feature": "z", "level": "l", "question": "ഏതാണ് ശരി?", "option_a": "ഒന്ന്",
          "option_b": "രണ്ട്", "option_c": "മൂന്ന്", "option_d": "നാല്", "answer": 2},),
        ("മൂന്ന്",), ("ഒന്ന്", "രണ്ട്", "മൂന്ന്", "നാല്"), "ചോദ്യം: ഏതാണ് ശരി?",
    ),
    "nrk-quiz-qa": Schema(
        "nn", "nn.jsonl",
        ({"id": "1", "question": "Kven skreiv boka?", "answer": "B",
          "choices": {"label": ["A", "B", "C"], "text": ["Ola", "Kari", "Per"]}},),
        ("Kari",), ("Ola", "Kari", "Per"), "Spørsmål: Kven skreiv boka?\nA. Ola",
    ),
    "norcommonsenseqa": Schema(
        "nb", "nb.jsonl",
        ({"id": "1", "question": "Hvor bor en fisk?", "answer": "A",
          "choices": {"label": ["A", "B"], "text": ["i vann", "i et tre"]}},),
        ("i vann",), ("i vann", "i et tre"), "A. i vann\nB. i et tre\nSvar:",
    ),
    "global-piqa": Schema(
        "nb", "nob_latn.tsv",
        ({"prompt": "For å vaspe ull", "solution0": "bruker du kaldt vann.",
          "solution1": "bruker du kokende vann.", "label": "0", "language": "nob_latn"},),
        ("bruker du kaldt vann.",), ("bruker du kaldt vann.", "bruker du kokende vann."),
        "For å vaspe ull",
    ),
    "flores-plus": Schema(
        "nb", "nob_Latn.jsonl",
        ({"id": 1, "iso_639_3": "nob", "text": "Hunden sover.", "url": "https://x"},),
        ("Hunden sover.",), (), "Oversett til norsk bokmål.",
    ),
    "ntrex": Schema("nb", "", (), ("Hunden sover.", "Katten går."), (), "The dog sleeps."),
    "language-confusion": Schema(
        "de", "de.csv",
        ({"prompt": 'Schreib «hi», und\n"sag" mehr.', "language": "de", "task": "okapi"},),
        (), (), 'Schreib «hi», und\n"sag" mehr.',
    ),
}  # fmt: skip
