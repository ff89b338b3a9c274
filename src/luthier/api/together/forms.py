"""A multipart form with one file in it, read as it comes: fields are kept, the file's bytes are passed on."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from luthier.errors import InvalidRequest, Unprocessable

FILE_FIELD = "file"
FIELDS_MAX_BYTES = 16 * 1024  # of all text fields together: they hold names and a checksum
PARTS_MAX = 20


class FileForm:
    """Feed it the body; it hands back what belongs to the file."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise _malformed(f"its content type is not multipart/form-data with a boundary: {content_type[:80]!r}")
        self.fields: dict[str, str] = {}
        self.has_file = False
        self._file_data: list[bytes] = []
        self._parts = 0
        self._fields_bytes = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._field_name = ""
        self._field_value = bytearray()
        self._in_file = False
        self._ended = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the body; return those among them that are the file's. Raises InvalidRequest."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)) from None
        file_data, self._file_data = self._file_data, []
        return file_data

    def require_end(self) -> None:
        """Raise unless the form came to its end and had a file."""
        if not self._ended:
            raise _malformed("it ends before its last boundary")
        if not self.has_file:
            raise Unprocessable(
                "missing_file", "file is missing", hint="send the file's bytes in the form's field file", param="file"
            )

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise _malformed(f"it has more than {PARTS_MAX} parts")
        self._disposition = b""
        self._field_value = bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field_name = options.get(b"name", b"").decode(errors="replace")
        self._in_file = self._field_name == FILE_FIELD
        if not self._in_file:
            return
        if self.has_file:
            raise _malformed("it has more than one file")
        self.has_file = True
        if b"filename" in options:
            self.fields.setdefault("file_name", options[b"filename"].decode(errors="replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._file_data.append(data[start:end])
            return
        self._fields_bytes += end - start
        if self._fields_bytes > FIELDS_MAX_BYTES:
            raise _malformed(f"its fields are larger than {FIELDS_MAX_BYTES} bytes")
        self._field_value += data[start:end]

    def _on_part_end(self) -> None:
        if not self._in_file:
            self.fields[self._field_name] = self._field_value.decode(errors="replace")

    def _on_end(self) -> None:
        self._ended = True


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(
        "malformed_form",
        f"the form cannot be read: {reason}",
        hint="send multipart/form-data with the fields file, file_name, purpose and file_type",
    )
