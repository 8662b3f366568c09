"""Prompts, letter for letter: those of lmms-eval 0.7.3's task files, and the paper's harness."""

import pytest
from support.mini_benchmarks import write_mini

from openqwen2vl.evaluation.benchmarks.demos import with_demos
from openqwen2vl.evaluation.benchmarks.known import BENCHMARKS
from openqwen2vl.evaluation.pictures import BytesImage
from openqwen2vl.evaluation.protocols import PROTOCOLS, protocol
from openqwen2vl.evaluation.questions import CHUNK_END, Prompt, Question
from openqwen2vl.formats.documents import IMAGE
from openqwen2vl.formats.errors import ConfigError, ShardError

ONE, TWO = BytesImage(b"1"), BytesImage(b"2")
OPTIONS = {"A": "red", "B": "blue"}
LETTER = "Answer with the option's letter from the given choices directly."
WORD = "Answer the question using a single word or phrase."
UNSURE = "When the provided information is insufficient, respond with 'Unanswerable'."
CHOICE = {"question": "What colour?", "options": OPTIONS}
ART = {**CHOICE, "question": "Of <image 2> and <image 1>?", "pictures": [1, 2], "subfield": "Art"}
MATH = {"question": "How much?", "choices": [], "unit": "$", "precision": 2}
FORMS = {"A": "(A) red", "B": "(B) blue"}
MANTIS = {"question": "<image> or <image>?", "shown": list(FORMS.values())}

# benchmark, fields, standard, oqvl-paper
PROMPTS = [
    (
        "mmbench",
        {**CHOICE, "hint": "Look."},
        f"<image>\nLook. What colour? There are several options:\nA. red\nB. blue\n\n{LETTER}",
        f"<image>\nWhat colour?\nA. red\nB. blue\nC. nan\nD. nan\n{LETTER}\nAnswer:",
    ),
    (
        "mmbench",
        {**CHOICE, "hint": None},
        f"<image>\nWhat colour? There are several options:\nA. red\nB. blue\n\n{LETTER}",
        f"<image>\nWhat colour?\nA. red\nB. blue\nC. nan\nD. nan\n{LETTER}\nAnswer:",
    ),
    (
        "seedbench",
        CHOICE,
        f"<image>\nWhat colour?\nA. red\nB. blue\n{LETTER}",
        f"<image>\nWhat colour?\nA. red\nB. blue\n{LETTER}\nAnswer:",
    ),
    (
        "mmstar",
        {"question": " Is it red? Please answer yes or no.\nOptions: A: yes, B: no"},
        f"<image>\nIs it red?\nOptions: A: yes, B: no\n{LETTER[:-1]}",
        "<image>\nQuestion:  Is it red? Please answer yes or no.\nOptions: A: yes, B: no\n"
        f"{LETTER}\nAnswer:",
    ),
    (
        "ai2d",
        CHOICE,
        f"<image>\nWhat colour?\nA. red\nB. blue\n{LETTER}",
        f"<image>\nWhat colour?\nA. red\nB. blue\n{LETTER}\nAnswer:",
    ),
    (
        "textvqa",
        {"question": "what is the Brand?", "ocr_tokens": ["Nokia", "TM"]},
        f"<image>\nWhat is the brand?\n{WORD}",
        f"<image>\nQuestion: what is the Brand?\n{WORD}\nAnswer:",
    ),
    (
        "textvqa_ocr",
        {"question": "what is the Brand?", "ocr_tokens": ["Nokia", "TM"]},
        f"<image>\nWhat is the brand?\nReference OCR token: Nokia, TM\n{WORD}",
        f"<image>\nQuestion: what is the Brand?\nReference OCR token: Nokia, TM\n{WORD}\nAnswer:",
    ),
    (
        "pope",
        {"question": "Is there a cat?"},
        f"<image>\nIs there a cat?\n{WORD}",
        f"<image>\nQuestion: Is there a cat?\n{WORD}\nAnswer:",
    ),
    ("realworldqa", {"question": "Which way? Be brief."}, "<image>\nWhich way? Be brief.", None),
    (
        "mathvista",
        {**MATH, "question_type": "free_form", "answer_type": "float"},
        "<image>\nHow much? (Unit: $)\n"
        "Answer the question using a single floating-point number with two decimal places.",
        f"<image>\nHow much?\n{WORD}\nAnswer:",
    ),
    (
        "mathvista",
        {**MATH, "question_type": "free_form", "answer_type": "list", "unit": None},
        "<image>\nHow much?\nAnswer the question using a Python list.",
        f"<image>\nHow much?\n{WORD}\nAnswer:",
    ),
    (
        "mathvista",
        {**MATH, "question_type": "multi_choice", "answer_type": "text", "choices": ["1", "2"]},
        f"<image>\nHow much? (Unit: $)\nA. 1\nB. 2\n{LETTER}",
        f"<image>\nHow much?\nA. 1\nB. 2\n{LETTER}\nAnswer:",
    ),
    ("gqa", {"question": "Is it?"}, f"<image>\nIs it?\n{WORD}", None),
    ("vqav2", {"question": "is IT?"}, f"<image>\nis IT?\n{WORD}", None),
    ("okvqa", {"question": "is IT?"}, f"<image>\nis IT?\n{UNSURE}\n{WORD}", None),
    ("vizwiz", {"question": "is IT?"}, f"<image>\nIs it?\n{UNSURE}\n{WORD}", None),
    ("coco_captions", {}, "<image>\nProvide a one-sentence caption for the provided image.", None),
]


@pytest.mark.parametrize(("name", "fields", "standard", "paper"), PROMPTS)
def test_the_words_of_a_prompt(name, fields, standard, paper):
    question = Question(name, "1", "1", (ONE,), fields)
    told = BENCHMARKS[name].prompt(question, protocol("standard"))
    assert (told.text, told.raw, told.stop) == (standard, False, ())
    if paper is not None:
        told = BENCHMARKS[name].prompt(question, protocol("oqvl-paper"))
        assert (told.text, told.raw) == (paper, True)
        assert (told.stop, told.max_new_tokens) == ((".", ",", "\n"), 16)


def test_mmmu_puts_each_picture_where_it_is_named():
    question = Question("mmmu", "1", "1", (ONE, TWO), ART)
    told = BENCHMARKS["mmmu"].prompt(question, protocol("standard"))
    assert told.parts == (
        "Of", IMAGE, "\nand", IMAGE, f"\n?\nA. red\nB. blue\n\n{LETTER}"
    )  # fmt: skip
    assert told.images == (TWO, ONE)
    paper = BENCHMARKS["mmmu"].prompt(question, protocol("oqvl-paper"))
    assert paper.text == (
        "The following are multiple choice questions about Art.\n\nOf <image>\n and <image>\n?\n"
        f"A. red\nB. blue\n{LETTER}\nAnswer:"
    )
    assert paper.images == (ONE, TWO)  # in the order of their numbers, whatever is named first
    plain = {**ART, "question": "Who?", "options": {}, "pictures": [1]}
    told = BENCHMARKS["mmmu"].prompt(
        Question("mmmu", "1", "1", (ONE,), plain), protocol("standard")
    )
    assert told.parts == (IMAGE, f"\nWho?\n\n{WORD}")


def test_mantis_shows_its_pictures_inside_the_question():
    asked = Question("mantis", "1", "1", (ONE, TWO), {**MANTIS, "question_type": "multi-choice"})
    told = BENCHMARKS["mantis"].prompt(asked, protocol("standard"))
    assert told.text == f"<image> or <image>?\n{LETTER}['(A) red', '(B) blue']"
    assert told.parts[:2] == (IMAGE, " or ")
    paper = BENCHMARKS["mantis"].prompt(asked, protocol("oqvl-paper"))
    assert paper.text == f"<image> or <image>?\nA. red\nB. blue\n{LETTER}\nAnswer:"
    three = Question(
        "mantis", "1", "1", (ONE, TWO, ONE), {**MANTIS, "question_type": "short-answer"}
    )
    told = BENCHMARKS["mantis"].prompt(three, protocol("standard"))
    assert told.parts[:3] == (IMAGE,) * 3
    assert told.parts[3].endswith('give your final answer as "Final Answer:"')


def test_ai2d_is_judged_by_likelihood_where_that_is_asked_for():
    question = Question("ai2d", "1", "1", (ONE,), CHOICE)
    letter = BENCHMARKS["ai2d"].prompt(question, protocol("standard"))
    likely = BENCHMARKS["ai2d_likelihood"].prompt(question, protocol("standard"))
    paper = BENCHMARKS["ai2d"].prompt(question, protocol("oqvl-paper"))
    assert (letter.mode, likely.mode, paper.mode) == ("generate", "likelihood", "likelihood")
    assert letter.text == likely.text
    assert likely.options == paper.options == ("A", "B")
    assert (likely.first_token, paper.first_token) == (False, True)


@pytest.mark.parametrize("name", ["gqa_8shot", "vqav2_8shot", "textvqa_8shot"])
def test_demonstrations_come_from_another_split(tmp_path, name):
    data = name.removesuffix("_8shot")
    write_mini(tmp_path, data)
    with pytest.raises(ShardError, match=r"expected files that begin with train"):
        BENCHMARKS[name].read(tmp_path)
    write_mini(tmp_path, data, split="train")
    questions = BENCHMARKS[name].read(tmp_path).questions
    assert [q.demos for q in questions] == [
        q.demos for q in BENCHMARKS[name].read(tmp_path).questions
    ]
    for question in questions:
        assert len({demo.id for demo in question.demos}) == 8
        assert all(demo.id.startswith("t") for demo in question.demos)
        standard, paper = (BENCHMARKS[name].prompt(question, one) for one in PROTOCOLS.values())
        assert standard.raw
        assert len(standard.images) == len(paper.images) == 9
        assert paper.parts.count(CHUNK_END) == 8
        assert standard.text.count("\nAnswer: ") == 8
        assert standard.text.endswith("\nAnswer:")
        assert standard.stop == ("\n", "<|im_end|>")


def test_a_question_is_not_its_own_demonstration():
    questions = [Question("gqa", str(n), str(n), (), {}) for n in range(4)]
    with pytest.raises(ShardError, match=r"2 questions are in the evaluated split .* first is 2"):
        with_demos(questions, [*questions[2:], Question("gqa", "9", "9", (), {})], 2)
    with pytest.raises(ShardError, match=r"1 questions to demonstrate with; 2 are needed"):
        with_demos(questions, [Question("gqa", "9", "9", (), {})], 2)


def test_a_protocol_that_a_benchmark_does_not_know_is_refused():
    question = Question("realworldqa", "1", "1", (ONE,), {"question": "?"})
    with pytest.raises(ConfigError, match=r"realworldqa is not defined under protocol=oqvl-paper"):
        BENCHMARKS["realworldqa"].prompt(question, protocol("oqvl-paper"))
    with pytest.raises(ConfigError, match=r"protocol is 'paper'; there are standard, oqvl-paper"):
        protocol("paper")


def test_a_prompt_has_a_picture_for_each_mark():
    with pytest.raises(ValueError, match=r"1 image marks and 0 images"):
        Prompt((IMAGE, "?"), ())
