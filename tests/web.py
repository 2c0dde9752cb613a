"""A real HTTP server of a folder, in this process: it lists folders, as servers of files do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


@dataclass
class Site:
    """url: of the folder; broken: names that are answered with a status."""

    url: str = ""
    broken: dict[str, int] = field(default_factory=dict)


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object, site: Site, directory: str):
        self.site = site
        super().__init__(*arguments, directory=directory)  # pyright: ignore[reportArgumentType]

    def do_GET(self) -> None:
        status = self.site.broken.get(self.path.rpartition("/")[2])
        if status:
            self.send_error(status)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, site=site, directory=str(folder))) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()
