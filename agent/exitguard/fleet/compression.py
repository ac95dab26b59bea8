"""What is pushed, packed by Zstandard (RFC 8878); unpacked within bounds, however small it came."""

#: What a decoder may hold beside its output (RFC 8878 section 3.1.1.1.2 asks for 8 MiB at least).
_MOST_WINDOW_BYTES = 8 << 20
_LEVEL = 3


class Unpackable(ValueError):  # noqa: N818 - the sender's error
    """The bytes are not Zstandard, or make more than they may."""

    def __init__(self, sentence: str, *, too_large: bool = False) -> None:
        super().__init__(sentence)
        self.too_large = too_large


def pack(content: bytes) -> bytes:
    """`content` as one frame."""
    import zstandard

    return zstandard.ZstdCompressor(level=_LEVEL).compress(content)


def unpack(packed: bytes, limit_bytes: int) -> bytes:
    """What `packed` holds, which is never more than `limit_bytes`. Raises Unpackable, having made no more than that either."""
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES).stream_reader(packed, read_across_frames=True) as reader:
            content = reader.read(limit_bytes + 1)
            complete = len(content) > limit_bytes or not reader.read(1)
    except zstandard.ZstdError as error:
        raise Unpackable(f"is no Zstandard that can be unpacked here: {error}") from error
    if len(content) > limit_bytes or not complete:
        raise Unpackable(f"unpacks to more than {limit_bytes} bytes", too_large=True)
    return content
