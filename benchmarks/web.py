"""A real nginx on loopback: one short page for every host, on a port for http and one for https."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: What every URL answers: about 2 KB of HTML.
PAGE: Final = "<!doctype html><title>bench</title><p>" + "A short page, read to its end. " * 64

_CONFIGURATION: Final = """\
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_timeout 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    ssl_certificate {folder}/site.pem;
    ssl_certificate_key {folder}/site.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache off;
    ssl_session_tickets off;
    default_type text/html;
    server {{
        {listen}
        location / {{ return 200 "{page}"; }}
    }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Web:
    """Where the server listens: on every address of 127.0.0.0/8, and on ::1 where the machine has it."""

    port_by_scheme: dict[str, int]
    #: The authority that signed the certificate of `*.bench.localhost`.
    ca_file: Path

    def named_urls(self, scheme: str, count: int) -> list[str]:
        """A distinct host a URL, by name. libcurl takes `*.localhost` to loopback without asking a resolver."""
        port = self.port_by_scheme[scheme]
        return [f"{scheme}://h{i}.bench.localhost:{port}/" for i in range(count)]

    def numbered_urls(self, scheme: str, count: int) -> list[str]:
        """A distinct host a URL, by address: nothing is left to resolve."""
        port = self.port_by_scheme[scheme]
        return [f"{scheme}://127.{1 + i // 62_500}.{i // 250 % 250}.{1 + i % 250}:{port}/" for i in range(count)]


@contextmanager
def nginx(folder: Path) -> Iterator[Web]:
    """The server, until the `with` block ends; its files are in `folder`. Exits with advice if nginx is missing."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        sys.exit("nginx is missing: install it with `apt-get update && apt-get install -y nginx-light`")
    # In a process of its own, because a process starts with the peak memory of the one that started it.
    subprocess.run([sys.executable, "-m", "benchmarks.certificate", folder], check=True)
    ports = {"http": free_port(), "https": free_port()}
    configuration = folder / "nginx.conf"
    listen = "".join(
        f"listen {address}:{port}{' ssl' if scheme == 'https' else ''} backlog=4096 reuseport;\n        "
        for scheme, port in ports.items()
        for address in ("0.0.0.0", "[::1]" if _has_ipv6() else "")
        if address
    )
    configuration.write_text(_CONFIGURATION.format(folder=folder, listen=listen, page=PAGE))
    server = subprocess.Popen([program, "-p", folder, "-c", configuration, "-e", "stderr"])
    try:
        for port in ports.values():
            _wait_for(server, port)
        yield Web(port_by_scheme=ports, ca_file=folder / "ca.pem")
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("nginx did not start; what it says stands above")
            time.sleep(0.02)
