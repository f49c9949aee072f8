"""What a page of the editor has sent: one document, from the form or from the YAML. Pure.

Form and YAML are two views of one document, and both are sent with what they were shown with. So it
is seen here which of them was changed, also where no script runs.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from dashboard.editor import layout, yaml_text
from dashboard.editor.documents import same
from dashboard.editor.fields import Unreadable
from dashboard.editor.form import apply_fields, typed_in
from dashboard.editor.yaml_text import Reading
from experiments.json_data import clean, kind_of
from experiments.problems import FieldProblem, ProblemError

_DIGEST: Final = 16
SAVES: Final = frozenset({"save", "start"})
"""The buttons that save; any other that is named changes the form."""


class Drafted(msgspec.Struct, frozen=True):
    """What is being written.

    Arguments:
        document: the definition as far as it could be read.
        yaml: the text of it: as it was typed, or written out of the form.
        digest: of the text that the document was last read from, or written as.
        reading: of `yaml`: which line has what, and why it cannot be read.
        unreadable: texts of the form that stand for nothing.
        problems: of a YAML that holds what JSON cannot.
        both: whether form and YAML were both changed, and nobody said which counts; then `typed`
            are the texts of the form, which is not read.
    """

    document: dict[str, Any]
    yaml: str
    digest: str
    reading: Reading
    unreadable: Mapping[str, Unreadable] = {}
    problems: tuple[FieldProblem, ...] = ()
    both: bool = False
    typed: Mapping[str, str] = {}

    @property
    def base(self) -> str:
        """The document, as the page carries it."""
        return msgspec.json.encode(self.document).decode()

    @property
    def is_readable(self) -> bool:
        """Whether form and YAML say the same."""
        return not (self.reading.wrong or self.problems or self.both)


def drafted(document: dict[str, Any]) -> Drafted:
    """A document as a page is first shown with it."""
    text = yaml_text.write(document)
    return Drafted(document, text, digest_of(text), yaml_text.read(text))


def read_draft(sent: Mapping[str, str]) -> Drafted:
    """What a page has sent.

    Raises:
        ProblemError: `malformed` where it is none of our pages.
    """
    base = _base(sent.get("base", ""))
    text = _plain(sent.get("yaml", ""))
    form = apply_fields(base, sent)
    document = layout.act(form.document, sent.get("do", ""))
    in_form = bool(form.unreadable) or not same(document, base)
    in_yaml = digest_of(text) != sent.get("digest", "")
    source = sent.get("source", "")
    if in_yaml and in_form and source not in {"form", "yaml"}:
        digest, typed = sent.get("digest", ""), typed_in(sent)
        return Drafted(base, text, digest, yaml_text.read(text), both=True, typed=typed)
    if in_yaml and (not in_form or source == "yaml"):
        return _of_yaml(base, text, sent.get("digest", ""))
    if same(document, base) and not in_yaml:
        return Drafted(base, text, digest_of(text), yaml_text.read(text), form.unreadable)
    fresh = drafted(document)
    return msgspec.structs.replace(fresh, unreadable=form.unreadable)


def _of_yaml(base: dict[str, Any], text: str, digest: str) -> Drafted:
    """The document of a text; the one of before, and the old digest, where it cannot be read, so
    that it is read again."""
    reading = yaml_text.read(text)
    if reading.wrong:
        return Drafted(base, text, digest, reading)
    if not isinstance(reading.data, dict):
        detail = f"must be an object; this is {kind_of(reading.data)}"
        return Drafted(base, text, digest, reading, problems=(FieldProblem("$", "type", detail),))
    cleaned = clean(reading.data)
    if cleaned.problems:
        return Drafted(base, text, digest, reading, problems=tuple(cleaned.problems))
    return Drafted(cleaned.data, text, digest_of(text), reading)


def digest_of(text: str) -> str:
    """What tells one text from another."""
    return hashlib.sha256(_plain(text).encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]


def _plain(text: str) -> str:
    # Browsers send lines of a text area with both signs, and drop a line that is empty at its top.
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n") + "\n"


def _base(text: str) -> dict[str, Any]:
    try:
        base = msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("malformed", f"This is no form of the editor: {error}") from error
    cleaned = clean(base)
    if cleaned.problems or not isinstance(cleaned.data, dict):
        raise ProblemError("malformed", "This is no form of the editor")
    data: dict[str, Any] = cleaned.data
    return data
