"""Documents as JSON text: ASCII only, keys in the order of the model, a newline at the end.

ASCII only, so that a hostile name can neither act on the terminal of whoever looks nor break a reader that guesses the encoding.
"""

from pydantic import BaseModel


def json_text(document: BaseModel) -> str:
    """`document` as indented JSON."""
    return _harmless(document.model_dump_json(indent=2, ensure_ascii=True)) + "\n"


def json_line(document: BaseModel) -> str:
    """`document` as JSON on one line, without its end."""
    return _harmless(document.model_dump_json(ensure_ascii=True))


def _harmless(text: str) -> str:
    """RFC 8259 section 7 lets DEL stand bare in a string; it is the one ASCII control character that could get here."""
    return text.replace("\x7f", "\\u007f")
