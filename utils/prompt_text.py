"""Free text as a prompt: the impression of a report or a text of the user's, each with a label vector.

docs/free-text.md says which prompts a model accepts, and where their label vectors come from.
"""

import pandas as pd

from utils.errors import InputError, say
from utils.report_cleaning import clean_report
from utils.report_text import report_sections

PROMPTS = ("findings", "impression")  # what a vision module may be trained on


def with_prompts(table: pd.DataFrame, prompt: str) -> pd.DataFrame:
    """The rows of a table that can be trained on with this PROMPT; for "impression" with a column `prompt`.

    Prints how many rows were dropped, and why. InputError if no row has an impression, or for an unknown PROMPT.
    """
    check_prompt(prompt)
    if prompt == "findings":
        return table
    raw = table["report"].map({report: report_sections(report)[1] for report in table["report"].unique()})
    impressions = raw.map({text: clean_report(text) for text in raw.unique()})
    no_report, no_impression, kept = table["report"] == "", raw == "", impressions != ""
    dropped = (
        f"dropped {no_report.sum()} without a report, {(no_impression & ~no_report).sum()} whose report has no "
        f"impression and {(~kept & ~no_impression).sum()} of which de-identification left no sentence"
    )
    if not kept.any():
        way_out = "set REPORTS_ROOT to where the .txt files are, or train with PROMPT findings"
        raise InputError(f"not one of {len(table)} images has an impression for a prompt ({dropped}): {way_out}")
    say(f"impressions: {kept.sum()} of {len(table)} images have one; {dropped}")
    return table[kept].assign(prompt=impressions[kept]).reset_index(drop=True)


def check_prompt(prompt: str) -> None:
    """InputError for an unknown PROMPT, of a script or of a checkpoint."""
    if prompt not in PROMPTS:
        raise InputError(f"PROMPT {prompt!r} is none of {', '.join(PROMPTS)}")
