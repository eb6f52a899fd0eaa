"""README and docs/ are written in short sentences.

A sentence has at most 25 words. A word is a run of characters between spaces that holds a letter or a digit; a code span counts as one
word, a link as its text. Code blocks, quotations, comments, headings and image addresses are no prose.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_WORDS = 25  # of a sentence, as docs/style.md says
MOST_SENTENCES = 3  # of a table's cell: more belong below the table
_LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
_AS_THEY_ARE = {
    "CHANGELOG.md",  # a list of changes, each worded when it was made
    "docs/dispatch.md",  # to be rewritten with the code that it describes
}
PAGES = [name for name in _LISTED if name not in _AS_THEY_ARE]

_UNREAD = re.compile(r"^(```|~~~).*?^\1|<!--.*?-->", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*\)")
_ITEM = re.compile(r"^\s*([-*+]|\d+\.)\s+(?:\[[ x]\] )?")
_END = re.compile(r"(?<!\bet al\.)(?<!\bvs\.)(?<=[.!?])[)\"*]*\s+(?=[\"(*\[]*[A-Z0-9θλγ])")
_BOLD = re.compile(r"\*\*|__")


def sentences(text: str) -> Iterator[str]:
    """Every sentence of `text`; a paragraph, an item or a table's cell ends one too."""
    for block in blocks(text):
        yield from (part for part in _END.split(block) if part.strip())


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, items and cells of `text`, each on one line, code as the one word `Code`."""
    text = _UNREAD.sub("\n", text)
    text = _BOLD.sub("", _LINK.sub(r"\1", _SPAN.sub("Code", text)))
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        starts = not line.strip() or line.startswith(("#", ">", "|")) or _ITEM.match(line)
        if starts and block:
            yield " ".join(block)
            block = []
        if line.strip().startswith("|"):
            yield from (cell.strip() for cell in line.strip().strip("|").split("|"))
        elif line.strip() and not line.startswith(("#", ">")):
            block.append(_ITEM.sub("", line).strip())


def words(sentence: str) -> int:
    """How many there are."""
    return sum(any(character.isalnum() for character in word) for word in sentence.split())


@pytest.mark.parametrize("page", PAGES)
def test_every_sentence_is_short(page: str) -> None:
    found = [f"{words(one)} words: {one}" for one in sentences((ROOT / page).read_text(encoding="utf-8")) if words(one) > MOST_WORDS]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("page", PAGES)
def test_no_cell_of_a_table_is_a_page(page: str) -> None:
    cells = re.findall(r"(?<=\|)[^|\n]+(?=\|)", _UNREAD.sub("", (ROOT / page).read_text(encoding="utf-8")))
    found = [cell for cell in cells if sum(1 for _ in sentences(cell)) > MOST_SENTENCES]
    assert not found, "\n".join(found)


def test_sentences_end_where_they_do() -> None:
    text = "One `a. B` two, [three. four](x.md) of Li et al. 2021 at 0.5. Five (six).\n- seven\n\n| eight. Nine | ten |\n\n```\nno. Prose\n```\n"
    assert list(sentences(text)) == [
        "One Code two, three. four of Li et al. 2021 at 0.5.", "Five (six).", "seven", "eight.", "Nine", "ten"]


def test_a_code_span_is_one_word() -> None:
    assert [words(one) for one in sentences("Type `make test now` - or *not*.")] == [4]
