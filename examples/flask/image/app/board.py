"""A notice board: short notes in an SQLite file, as pages and as JSON.

Everything that differs between places comes from the environment:
TITLE and COLOUR of the page, MAX_NOTES that are kept, DATA_DIR where the file lies.
"""

import os
import socket
import sqlite3
from pathlib import Path

from flask import Flask, abort, g, jsonify, redirect, render_template, request, url_for

MAX_LENGTH = 280
SCHEMA = """
create table if not exists notes (
    id integer primary key autoincrement,
    written text not null default (strftime('%Y-%m-%d %H:%M', 'now')),
    text text not null
)
"""

app = Flask(__name__)
app.config.update(
    TITLE=os.environ.get("TITLE", "Notice board"),
    COLOUR=os.environ.get("COLOUR", "#2b5d8c"),
    MAX_NOTES=int(os.environ.get("MAX_NOTES", "50")),
    DATABASE=Path(os.environ.get("DATA_DIR", "/tmp")) / "notes.db",
    MAX_CONTENT_LENGTH=16 * 1024,
)
app.json.sort_keys = False


def database():
    """The request's connection; the first one makes the table."""
    if "database" not in g:
        g.database = sqlite3.connect(app.config["DATABASE"], timeout=5)
        g.database.row_factory = sqlite3.Row
        g.database.execute(SCHEMA)
    return g.database


@app.teardown_appcontext
def close_database(_error):
    connection = g.pop("database", None)
    if connection is not None:
        connection.close()


def notes():
    """The notes, the latest first."""
    return [dict(row) for row in database().execute("select id, written, text from notes order by id desc")]


def add(text):
    """Puts up a note and takes down the ones that are too many. Returns the note's number."""
    text = " ".join(text.split())
    if not text or len(text) > MAX_LENGTH:
        abort(400, f"a note has 1 to {MAX_LENGTH} characters")
    with database() as connection:
        number = connection.execute("insert into notes (text) values (?)", [text]).lastrowid
        connection.execute("delete from notes where id <= ?", [number - app.config["MAX_NOTES"]])
    return number


@app.get("/")
def page():
    return render_template("board.html", notes=notes(), host=socket.gethostname(), max_length=MAX_LENGTH)


@app.post("/")
def add_by_form():
    add(request.form.get("text", ""))
    return redirect(url_for("page"), 303)


@app.get("/api/notes")
def list_as_json():
    return jsonify(notes())


@app.post("/api/notes")
def add_by_json():
    body = request.get_json()
    if not isinstance(body, dict) or not isinstance(body.get("text"), str):
        abort(400, 'send {"text": "..."}')
    return jsonify(id=add(body["text"])), 201


@app.get("/healthz")
def health():
    """Healthy means that the notes can be read; anything else is an error 500."""
    database().execute("select count(*) from notes").fetchone()
    return jsonify(status="ok")
