"""Protocols: how questions are put and answers read, as data with a version."""

from dataclasses import dataclass

from openqwen2vl.formats.errors import ConfigError


@dataclass(frozen=True)
class EvaluationProtocol:
    """A way to ask and to read that scores are only comparable within.

    Attributes:
        name: what configs and scores call it.
        version: goes up whenever a score under it could change.
        chat: ask in the chat template's turns; else in plain text after ``<s>``.
        substring: an answer counts when the right letter occurs anywhere in the output.
        stop: texts of single tokens that end an answer in place of the template's end of turn.
        most_tokens: cap on an answer, whatever the benchmark allows; None leaves it to that.
        remarks: what it does that a reader of its scores should know, one thing each.
    """

    name: str
    version: int
    chat: bool
    substring: bool
    stop: tuple[str, ...]
    most_tokens: int | None
    remarks: tuple[str, ...]

    def tokens(self, wanted: int) -> int:
        """Cap the tokens that a benchmark wants for an answer."""
        return wanted if self.most_tokens is None else min(wanted, self.most_tokens)


PROTOCOLS = {
    # Prompts and readers are those of lmms-eval 0.7.3's default task files.
    "standard": EvaluationProtocol(
        name="standard",
        version=1,
        chat=True,
        substring=False,
        stop=(),
        most_tokens=None,
        remarks=(
            "An answer that cannot be read is wrong; none is ever drawn at random "
            "(MMMU's and MMBench's own scripts draw one).",
            "No other model is asked to read an answer: MMBench is read by the rules of "
            "mmbench_en_dev_static, MathVista by rules that stand in for its judge.",
            "A capital inside a word is not a letter: 'Cat' is not C, 'Answer: cat' not A.",
            "MMBench's absent options, 'nan' in its files, are no options when an answer is read.",
            "MMMU's pictures stand where the question names them, each under its own number, and "
            "Mantis-Eval's at the marks in it; lmms-eval shows Mantis-Eval's first and leaves the "
            "marks as words.",
            "POPE counts what is neither yes nor no as a missed yes or a wrong no.",
            "Where several answers to a question of MMMU are known, any of them is right; "
            "lmms-eval looks for the text of their list.",
            "MathVista's floating-point answers are rounded as asked for; lmms-eval counts all of "
            "them wrong, since its file writes the number of decimals as 2.0.",
            "Answers end after 128 tokens where the task file allows more or says nothing, after "
            "16 for the letters of SEED-Bench and MMStar, and are drawn greedily, Mantis-Eval's "
            "too.",
            "An empty answer is wrong, also where the nearest option would be taken (MathVista) or "
            "people's answer was an article alone (TextVQA, VQAv2, OK-VQA, VizWiz).",
        ),
    ),
    # What the released vlm-evaluation scripts do, kept to explain the paper's figures.
    "oqvl-paper": EvaluationProtocol(
        name="oqvl-paper",
        version=1,
        chat=False,
        substring=True,
        stop=(".", ",", "\n"),
        most_tokens=16,
        remarks=(
            "The chat prompt is built and thrown away: plain text that ends in 'Answer:'.",
            "The token '.', ',' or a newline ends an answer and <|im_end|> does not: no decimal "
            "number can be answered.",
            "At most 16 tokens.",
            "A letter counts when it occurs anywhere in the output: 'Answer' holds an A.",
            "MMBench and SEED-Bench ignore case in that, MMStar and Mantis-Eval do not.",
            "MMBench shows four options always, absent ones as 'nan', and drops the hint.",
            "MMBench's headline is the accuracy of rows: every circular copy counts by itself.",
            "AI2D takes the likeliest of the letters A to D as the first token.",
            "MathVista's choices are asked for but never read: every answer is compared as text.",
            "POPE's headline is F1, averaged over its three parts.",
            "MMMU's unreadable answers were drawn at random without a seed; here they are wrong.",
        ),
    ),
}


def protocol(name: str) -> EvaluationProtocol:
    """Give the protocol of a name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol is '{name}'; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
