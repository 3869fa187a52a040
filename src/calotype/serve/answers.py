"""Answers: errors as JSON for programs and as a page for people, JSON, and pages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from calotype.escaping import plain
from calotype.report.html import MARK, STYLE, Content, Html, masthead, tag

KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""Of what never changes under its address."""
TITLES = {
    400: "This cannot be done", 401: "The token is missing", 403: "Not allowed", 404: "Nothing is here",
    408: "Too slow", 409: "Not now", 413: "Too large", 414: "Too long", 421: "Another name", 429: "Too many at once",
    500: "An error of the server", 503: "Not now", 507: "The disk is full",
}  # fmt: skip


@cache
def static_files() -> dict[str, tuple[str, bytes]]:
    """Address and content of each file that pages need; the sheet of the report is in ours, so that there is one."""
    folder = files("calotype.serve") / "static"
    contents = {name: (folder / name).read_bytes() for name in ("serve.css", "serve.js", "icon.svg")}
    contents["serve.css"] = STYLE.encode() + contents["serve.css"]
    return {name: (f"/static/{sha256(content).hexdigest()[:12]}.{name}", content) for name, content in contents.items()}


class RefusedRequest(Exception):  # noqa: N818
    """A request that cannot be answered: its status, why, the field or header that is wrong, and whether to retry."""

    def __init__(
        self, status: int, reason: str, field: str | None = None, retry_after: int | None = None, retry: bool = True
    ) -> None:
        super().__init__(reason)
        self.status, self.reason, self.field, self.retry_after, self.retry = status, reason, field, retry_after, retry


ROOT = r"(?:~\w*|[A-Za-z]:)?[/\\]"
FOLDERS = re.compile(rf"(?<![\w./\\~-])(?:{ROOT}|(?<!:)[/\\]{{2}})(?:[^/\\\s]+[/\\])*(?=[^/\\\s])")
"""Of an absolute path, all that stands before its last part."""
QUOTED = re.compile(rf"(?<=([\"'])){ROOT}(?:(?!\1).)*[/\\](?=(?!\1).)")
"""The same of one in quotes, which may have spaces in it."""


def without_folders(text: str, *known: Path) -> str:
    """A reason for people elsewhere: paths below `known` become relative, of others the name of the file is left."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (Path.home raises where there is none)
    for folder in (*known, home):
        if len(folder.parts) > 1:  # not the root
            text = re.sub(rf"(?<![\w.-]){re.escape(f'{folder}{os.sep}')}", "", text)
    return FOLDERS.sub("", QUOTED.sub("", text))


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(value, ensure_ascii=False, default=str)
    if re.search("NaN|Infinity", text):  # of a damaged file; JSON has no such numbers, and browsers do not read them
        text = json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)
    content = text.encode("utf-8", "backslashreplace")
    return Response(content, status, dict(headers or {}), "application/json")


def refusal(
    scope: Scope, status: int, reason: str, field: str | None = None, retry_after: int | None = None,
    retry: bool = True,
) -> Response:  # fmt: skip
    """As the clients of OpenAI read errors; as a page where a browser asks for one.

    Their clients repeat what got 409 or 500 and above, unless there is no sense in it.
    """
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if not retry:
        headers["x-should-retry"] = "false"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", ""):
        return HTMLResponse(error_page(status, reason), status, headers)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": plain(reason), "type": kind, "param": field, "code": str(status)}
    return json_response({"error": error}, status, headers)


def error_page(status: int, reason: str) -> str:
    title = TITLES.get(status, "An error")
    return document(title, masthead([str(status)], title, sentence_of(reason)))


def document(title: str, *parts: Content, about: Mapping[str, str] | None = None) -> str:
    """A whole page: style and script are files, so that its policy needs nothing inline. `about` is for the script."""
    place = static_files()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}{MARK}"),
        Html(f'<link rel="stylesheet" href="{place["serve.css"][0]}">'),
        Html(f'<link rel="icon" href="{place["icon.svg"][0]}" type="image/svg+xml">'),
        tag("script", type="module", src=place["serve.js"][0]),
    )
    body = tag(
        "body",
        navigation((about or {}).get("page")),
        tag("main", *parts),
        **{f"data_{key}": value for key, value in (about or {}).items()},
    )
    return f"<!doctype html>\n{live(tag('html', head, body, lang='en')).code}\n"


def sentence_of(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def navigation(page: str | None) -> Html:
    """Links to the pages, of which this is one."""
    links = [
        tag("a", words, href=place, aria_current="page" if page == name else None)
        for name, place, words in (("index", "/", "Runs"), ("new", "/new", "New run"), ("words", "/words", "Words"))
    ]
    skip = tag("a", "To the content", class_="skip", href="#main")
    parts = skip, tag("nav", *links, aria_label="Calotype"), tag("span", id="main")
    return Html("".join(part.code for part in parts))


def live(markup: Html) -> Html:
    """Markup of the report for a page whose policy allows no styles in attributes: the script puts them in place.

    Text is escaped, so that a quotation mark stands in tags alone.
    """
    return Html(markup.code.replace(' style="', ' data-style="'))
