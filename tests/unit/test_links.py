"""Every link in the documents leads somewhere: to a file that is there, and to a heading in it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "deploy/README.md")),
    *(ROOT / name for name in ("migrations/README.md", "turnout/demo/DATA.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"')


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
        again = (f"{slug}-{count}" for count in range(1, 100))
        found.add(next(each for each in (slug, *again) if each not in found))
    return found


def broken(document: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    wrong = []
    for link in (a or b for a, b in LINK.findall(CODE.sub("", document.read_text("utf-8")))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    assert broken(document) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `two`, three\n\n```sh\n# no heading\n```\n")
    document = tmp_path / "document.md"
    document.write_text(
        "# Here\n# Here\n[a](#here-1) [b](other.md#one-two-three) [c](https://nowhere.test/#x)"
        " [d](#there) [e](other.md#no-heading) [f](missing.md) `[g](code.md)`\n"
    )
    assert broken(document) == ["#there", "other.md#no-heading", "missing.md"]
