"""Build the documentation site, and check it.

    python -m tools.docs [--out build/site] [--external] [--serve]

Sphinx builds strictly; then every link, anchor and image of the built pages is looked for. Links to other sites are
counted, and asked with --external alone. Exit status 1: something is broken, and was named.
"""

from __future__ import annotations

import argparse
import http.server
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tools.docs import links, site

_PORT = 8000


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.docs", description="Build the documentation site, and check it."
    )
    parser.add_argument("--out", type=Path, default=site.ROOT / "build" / "site", help="where to  [build/site]")
    parser.add_argument("--external", action="store_true", help="ask other sites whether links to them hold")
    parser.add_argument("--serve", action="store_true", help=f"then serve it at http://127.0.0.1:{_PORT}")
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        site.clear(options.out)
    except FileExistsError as error:
        print(error, file=sys.stderr)
        return 1
    site.generate()
    with tempfile.TemporaryDirectory() as doctrees:
        status = site.build(options.out, Path(doctrees))
    pages = links.read_pages(options.out)
    faults = [str(fault) for fault in links.check(options.out, pages)]
    elsewhere = links.external(pages)
    if options.external:
        for url, why in links.unreachable(list(elsewhere)).items():
            faults.append(f"{', '.join(elsewhere[url])}: {url}: {why}")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(
        f"{len(pages)} pages in {options.out}, {len(faults)} broken links, {len(elsewhere)} links to other sites "
        f"({'asked' if options.external else 'not asked'}), {time.monotonic() - begun:.0f} s"
    )
    if status or faults:
        return 1
    if options.serve:
        _serve(options.out)
    return 0


def _serve(folder: Path) -> None:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", _PORT), handler) as server:
        print(f"http://127.0.0.1:{_PORT}, until Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    sys.exit(main())
