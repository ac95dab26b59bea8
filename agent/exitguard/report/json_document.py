"""Documents as JSON text: ASCII only, keys in the order of the model, a newline at the end.

ASCII only, so that a hostile name can neither act on the terminal of whoever looks nor break a reader that guesses the encoding.
"""

from pydantic import BaseModel


def json_text(document: BaseModel) -> str:
    """`document` as indented JSON."""
    text = document.model_dump_json(indent=2, ensure_ascii=True)
    # RFC 8259 section 7 lets DEL stand bare in a string; it is the one ASCII control character that could get here.
    return text.replace("\x7f", "\\u007f") + "\n"
