"""The Prefect server that a run is given, or that it starts."""

import http.server
import threading
from contextlib import contextmanager

import pytest

from pipeline.workers import prefect_flow
from rfpp_core.errors import UserError


@contextmanager
def server(code):
    """A web server that answers everything with a code; with None it hangs."""
    going = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if code is None:
                going.wait(20)
                return
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/api"
    finally:
        going.set()
        made.shutdown()
        made.server_close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(prefect_flow, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(prefect_flow.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("code", [500, 503, None])
def test_a_given_server_that_does_not_serve_is_one_line(code):
    with server(code) as url:
        with pytest.raises(UserError, match="where no Prefect server answers") as error:
            prefect_flow._check_server(url)
    assert f"PREFECT_API_URL is '{url}'" in str(error.value)
    assert "unset PREFECT_API_URL" in str(error.value)


@pytest.mark.parametrize("url", ["garbage", "file:///etc/passwd", "http://[", "http://127.0.0.1:9",
                                 "http://x:y/z", "a\x1b[31m\nb"])  # fmt: skip
def test_what_is_no_server_is_one_line(url):
    with pytest.raises(UserError, match="where no Prefect server answers") as error:
        prefect_flow._check_server(url)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("code", [200, 404, 401])
def test_what_answers_is_left_to_prefect(code):
    """Prefect's Cloud answers 404 to a workspace's /health."""
    with server(code) as url:
        prefect_flow._check_server(url + "/")


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
def test_a_damaged_database_is_set_aside(tmp_path, content, capsys):
    import sqlite3

    assert not prefect_flow._set_aside(tmp_path)  # there is none
    file = tmp_path / "prefect.db"
    with sqlite3.connect(file) as made:
        made.execute("create table t (x)")
        made.executemany("insert into t values (?)", [("x" * 100,)] * 1000)
    made.close()
    assert not prefect_flow._set_aside(tmp_path)  # it is intact
    good = file.read_bytes()
    file.write_bytes(content + good[len(content) :] if content else good[: len(good) // 2])
    assert prefect_flow._set_aside(tmp_path)
    assert not file.exists()
    assert (tmp_path / "prefect.db.damaged").exists()
    assert "it is renamed and a new one is made" in capsys.readouterr().out
