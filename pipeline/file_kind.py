"""What a file is, told from its first bytes: a name and a declared type may lie, and messages should not repeat it."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.errors import MediaError

# Enough for two 188-byte MPEG-TS packets and for recognising text; a file may be shorter.
HEAD_BYTES = 512


class Medium(StrEnum):
    """What a person would call the content of a file."""

    PICTURE = "picture"
    VIDEO = "video"
    SOUND = "sound"
    PLAYLIST = "playlist"
    TEXT = "text"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class FileKind:
    """A medium, and a name with its article for use in a sentence: "a JPEG picture"."""

    medium: Medium
    name: str


UNKNOWN_KIND = FileKind(Medium.UNKNOWN, "a file of an unknown kind")

MP4_KIND = FileKind(Medium.VIDEO, "an MP4 or MOV video")

_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"\xff\xd8\xff", FileKind(Medium.PICTURE, "a JPEG picture")),
    (0, b"\x89PNG\r\n\x1a\n", FileKind(Medium.PICTURE, "a PNG picture")),
    (8, b"WEBP", FileKind(Medium.PICTURE, "a WebP picture")),
    (0, b"II*\x00", FileKind(Medium.PICTURE, "a TIFF picture")),
    (0, b"MM\x00*", FileKind(Medium.PICTURE, "a TIFF picture")),
    (0, b"BM", FileKind(Medium.PICTURE, "a BMP picture")),
    # HEIC and AVIF share the MP4 container: FFmpeg would open them as a video of one frame or of tiles.
    (4, b"ftypheic", FileKind(Medium.PICTURE, "a HEIC picture")),
    (4, b"ftypheix", FileKind(Medium.PICTURE, "a HEIC picture")),
    (4, b"ftypmif1", FileKind(Medium.PICTURE, "a HEIC picture")),
    (4, b"ftypavif", FileKind(Medium.PICTURE, "an AVIF picture")),
    (4, b"ftypavis", FileKind(Medium.PICTURE, "an animated AVIF picture")),
    (4, b"ftyp", MP4_KIND),
    (4, b"moov", MP4_KIND),
    (4, b"mdat", MP4_KIND),
    (4, b"wide", MP4_KIND),
    (0, b"\x1aE\xdf\xa3", FileKind(Medium.VIDEO, "a Matroska or WebM video")),
    (8, b"AVI ", FileKind(Medium.VIDEO, "an AVI video")),
    (0, b"GIF8", FileKind(Medium.VIDEO, "a GIF animation")),
    (0, b"FLV\x01", FileKind(Medium.VIDEO, "an FLV video")),
    (188, b"G", FileKind(Medium.VIDEO, "an MPEG-TS video")),
    (8, b"WAVE", FileKind(Medium.SOUND, "a WAV sound file")),
    (0, b"ID3", FileKind(Medium.SOUND, "an MP3 sound file")),
    (0, b"fLaC", FileKind(Medium.SOUND, "a FLAC sound file")),
    (0, b"OggS", FileKind(Medium.SOUND, "an Ogg file")),
)

# Playlists name other files: FFmpeg would follow them to any file this process may read.
_PLAYLIST_STARTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"file:", b"file ", b"<?xml", b"<mpd", b"<smil")


def file_kind(head: bytes) -> FileKind:
    """Tell the kind of a file from its first HEAD_BYTES bytes; UNKNOWN_KIND when nothing matches."""
    if head[8:12] == b"WEBP" and head[12:16] == b"VP8X" and head[20:21] and head[20] & 0b10:
        return FileKind(Medium.PICTURE, "an animated WebP")
    if _is_text(head):
        is_playlist = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PLAYLIST_STARTS)
        return FileKind(Medium.PLAYLIST, "a playlist") if is_playlist else FileKind(Medium.TEXT, "a text")
    for offset, signature, kind in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature and (offset != 188 or head[:1] == b"G"):
            return kind
    return UNKNOWN_KIND


def kind_of_file(path: Path, field: str) -> FileKind:
    """Tell the kind of the file at path.

    Raises MediaError for the field when there is no such regular file, when it cannot be read, or when it is empty.
    """
    # A pipe or a device would block or never end, so it counts as absent.
    if not path.is_file():
        raise MediaError(field, f"There is no file {path.name!r}; choose it again.")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise MediaError(field, f"{path.name!r} cannot be read ({error.strerror}); choose it again.") from error
    if not head:
        raise MediaError(field, f"{path.name!r} is empty (0 bytes); export or upload it again.")
    return file_kind(head)


def _is_text(head: bytes) -> bool:
    """Say whether these bytes are text: UTF-8, maybe cut within a character, and free of control characters."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return bool(text) and all(character.isprintable() or character in "\t\r\n\f\ufeff" for character in text)
