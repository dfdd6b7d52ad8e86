"""Free text as a prompt: the impression of a report, or whatever a radiologist would write, and its label vector.

findings     the sentence of a label vector (`utils.findings.to_prompt`): the paper's
impression   the impression of a row's own report, without de-identification marks; a row that has none is dropped
text         anybody's words, to a model that was trained on impressions

A label vector goes with each of them: references are chosen by it, selector and evaluation judge by it. A free text has
the codes that the rules of evaluation/labeler.py read in it, unless its codes are given.
"""

from utils.errors import InputError, say
from utils.report_text import clean_report, report_sections

PROMPTS = ("findings", "impression")  # what a vision module may be trained on
_SHOWN = 60  # characters of a text in a message


def with_prompts(table, prompt):
    """The rows of a table that a training with this PROMPT has, with a column `prompt` for "impression".

    InputError where no row has an impression, and for a PROMPT that is none. Prints what was dropped, and why.
    """
    check_prompt(prompt)
    if prompt == "findings":
        return table
    raw = table["report"].map({report: report_sections(report)[1] for report in table["report"].unique()})
    impressions = raw.map({text: clean_report(text) for text in raw.unique()})
    silent, lacking, kept = table["report"] == "", raw == "", impressions != ""
    dropped = (
        f"dropped {silent.sum()} without a report, {(lacking & ~silent).sum()} whose report has no impression and "
        f"{(~kept & ~lacking).sum()} of which de-identification left no sentence"
    )
    if not kept.any():
        raise InputError(
            f"not one of {len(table)} images has an impression for a prompt ({dropped}): set REPORTS_ROOT to where the "
            ".txt files are, or train with PROMPT findings"
        )
    say(f"impressions: {kept.sum()} of {len(table)} images have one; {dropped}")
    return table[kept].assign(prompt=impressions[kept]).reset_index(drop=True)


def impression_of(report):
    """The impression of a report, without de-identification marks; "" where it has none, or none is left."""
    return clean_report(report_sections(report)[1])


def check_prompt(prompt):
    """InputError for a PROMPT, of a script or of a checkpoint, that is none of PROMPTS."""
    if prompt not in PROMPTS:
        raise InputError(f"PROMPT {prompt!r} is none of {', '.join(PROMPTS)}")


def shorten(text):
    """A text as a message shows it."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 2] + " …"
