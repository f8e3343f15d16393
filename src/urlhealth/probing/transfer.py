"""One probe on one libcurl handle: what is asked of libcurl, and what is read off it afterwards."""

import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any, Final

import ada_url
import pycurl

from urlhealth.errors import ConfigurationError
from urlhealth.probing.conditions import BODY_BYTES, reads_body, unmet
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.verdict import judge_status
from urlhealth.vocabulary import Outcome, ProbeOptions, ProbeRequest, ProbeResult

#: CURLE_TOO_LARGE, for which pycurl has no name.
E_TOO_LARGE: Final = 100
#: For libcurl's codes: the outcome, and what it means in words; what libcurl says follows. Others are `protocol`.
CODES: Final = {
    pycurl.E_COULDNT_RESOLVE_HOST: (Outcome.DNS, "the name is not known"),
    pycurl.E_COULDNT_CONNECT: (Outcome.CONNECT, "no connection"),
    pycurl.E_SEND_ERROR: (Outcome.CONNECT, "the connection broke"),
    pycurl.E_RECV_ERROR: (Outcome.CONNECT, "the connection broke"),
    pycurl.E_GOT_NOTHING: (Outcome.CONNECT, "the connection was closed without an answer"),
    pycurl.E_SSL_CONNECT_ERROR: (Outcome.TLS, "the TLS handshake failed"),
    pycurl.E_SSL_CIPHER: (Outcome.TLS, "the TLS handshake failed"),
    pycurl.E_PEER_FAILED_VERIFICATION: (Outcome.TLS, "the certificate is not trusted"),
    pycurl.E_SSL_ISSUER_ERROR: (Outcome.TLS, "the certificate is not trusted"),
    pycurl.E_SSL_INVALIDCERTSTATUS: (Outcome.TLS, "the certificate is not trusted"),
    pycurl.E_TOO_MANY_REDIRECTS: (Outcome.TOO_MANY_REDIRECTS, "too many redirects"),
    pycurl.E_URL_MALFORMAT: (Outcome.PROTOCOL, "the URL cannot be requested"),
    pycurl.E_UNSUPPORTED_PROTOCOL: (Outcome.PROTOCOL, "not an HTTP answer"),
    pycurl.E_BAD_CONTENT_ENCODING: (Outcome.PROTOCOL, "the body cannot be decoded"),
    pycurl.E_PARTIAL_FILE: (Outcome.PROTOCOL, "the answer broke off"),
    E_TOO_LARGE: (Outcome.PROTOCOL, "the headers are too long"),
    # What this machine lacks, not the target.
    pycurl.E_SSL_CACERT_BADFILE: (Outcome.SELF, "the trusted certificates cannot be read here"),
    pycurl.E_OUT_OF_MEMORY: (Outcome.SELF, "out of memory here"),
    pycurl.E_FAILED_INIT: (Outcome.SELF, "libcurl could not start here"),
    pycurl.E_COULDNT_RESOLVE_PROXY: (Outcome.SELF, "the name of the proxy is not known"),
}
#: What libcurl says when sending or receiving itself has failed, over TCP and over TLS.
_BROKEN_CONNECTION: Final = ("Send failure", "Recv failure", "OpenSSL SSL_read", "OpenSSL SSL_write")
_HTTP_VERSIONS: Final = {
    pycurl.CURL_HTTP_VERSION_1_0: "1.0",
    pycurl.CURL_HTTP_VERSION_1_1: "1.1",
    pycurl.CURL_HTTP_VERSION_2_0: "2",
    pycurl.CURL_HTTP_VERSION_3: "3",
}
#: OpenSSL's own list costs a fifth of the CPU: it makes keys for several. Ours makes one, for X25519, and another only
#: for a server that does not have it.
_CURVES: Final = "X25519:P-256:P-384:P-521"
_ASKED_VERSIONS: Final = {
    "auto": pycurl.CURL_HTTP_VERSION_NONE,
    "1.1": pycurl.CURL_HTTP_VERSION_1_1,
    "2": pycurl.CURL_HTTP_VERSION_2_0,
    "3": pycurl.CURL_HTTP_VERSION_3ONLY,
}
_FAMILIES: Final = {
    "any": pycurl.IPRESOLVE_WHATEVER,
    "ipv4": pycurl.IPRESOLVE_V4,
    "ipv6": pycurl.IPRESOLVE_V6,
}
_USERINFO: Final = re.compile(r"//[^/?#]*@")
#: CURLAUTH_BEARER, for which pycurl has no name.
_HTTPAUTH_BEARER: Final = 1 << 6


class TrustedCertificates:
    """The certificates to trust: this machine's, or certifi's where it has none, and those of a file."""

    def __init__(self, ca_file: Path | None = None) -> None:
        """
        Raises:
            ConfigurationError: `ca_file` cannot be read, or holds no certificates.
        """
        trusted = ssl.get_default_verify_paths().cafile
        if trusted is None:
            import certifi

            trusted = certifi.where()
        #: File that libcurl reads them from.
        self.path = trusted
        self._descriptor: int | None = None
        if ca_file is None:
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"no certificates can be read from {ca_file}: {error.strerror}; see URLHEALTH_CA_FILE"
            ) from error
        # One file, because libcurl keeps parsed certificates from one connection to the next only if they come from
        # one; in memory, so that nothing is left behind, however the process ends.
        self._descriptor = os.memfd_create("urlhealth-ca")
        with open(self._descriptor, "wb", closefd=False) as bundle:
            bundle.write(Path(trusted).read_bytes() + b"\n" + ca_file.read_bytes())
        self.path = f"/proc/self/fd/{self._descriptor}"

    def close(self) -> None:
        """Give the memory back; `path` may no longer be used."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Transfer:
    """A libcurl handle, used for one probe after another, and the probe that is on it now."""

    def __init__(self, *, user_agent: str, guard: AddressGuard, trusted: TrustedCertificates) -> None:
        self._user_agent = user_agent.encode()
        self._guard = guard
        self._trusted = trusted
        self._options: ProbeOptions | None = None
        self.curl = pycurl.Curl()

    def begin(self, request: ProbeRequest, *, ts_ms: int, keep_bytes: int = 0) -> None:
        """Make the handle ready for a request, of whose body so much is kept in `body`.

        Raises:
            Exception: libcurl will not have it, or a condition of the options cannot be read.
        """
        self.request = request
        #: What was kept of the body.
        self.body = bytearray()
        self._ts_ms = ts_ms
        self._size_bytes = 0
        self._too_large = False
        self._refusal: str | None = None
        self._host_refusal: str | None = None
        self._no_socket: str | None = None
        self._https = request.target.url.startswith("https:")
        options = request.options
        if options is not self._options and options != self._options:
            self._set_options(options)
        self._keep_bytes = keep_bytes or self._condition_bytes
        self._url = request.target.url
        if self._judges_hosts:
            self._host_refusal = self._guard.host_refusal(self._url)
        self.curl.setopt(pycurl.URL, self._url)

    def _set_options(self, options: ProbeOptions) -> None:
        self._options = None  # until all is set
        # Whatever an earlier probe had set, credentials above all, is gone.
        self.curl.reset()
        setopt = self.curl.setopt
        setopt(pycurl.USERAGENT, self._user_agent)
        setopt(pycurl.NOSIGNAL, 1)
        setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        setopt(pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        # A redirect that is expected is the answer.
        setopt(pycurl.FOLLOWLOCATION, not any(300 <= status < 400 for status in options.expected_statuses))
        setopt(pycurl.ACCEPT_ENCODING, "")
        # Empty is none; unset would be the environment's.
        setopt(pycurl.PROXY, options.proxy or "")
        setopt(pycurl.NOPROXY, "")
        # A connection and a full handshake of its own, so that the phases are this probe's. (A resumed TLS session
        # would not show the certificate either.)
        setopt(pycurl.FRESH_CONNECT, 1)
        setopt(pycurl.FORBID_REUSE, 1)
        setopt(pycurl.SSL_SESSIONID_CACHE, 0)
        # libcurl walks its whole DNS cache at each transfer, which is most of the CPU when hosts are many.
        setopt(pycurl.DNS_CACHE_TIMEOUT, 0)
        setopt(pycurl.CAINFO, self._trusted.path)
        setopt(pycurl.OPT_CERTINFO, 1)
        setopt(pycurl.SSL_EC_CURVES, _CURVES)
        setopt(pycurl.SSL_VERIFYPEER, options.verify_tls)
        setopt(pycurl.SSL_VERIFYHOST, 2 if options.verify_tls else 0)
        setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        setopt(pycurl.WRITEFUNCTION, self._write)
        # Behind a proxy the address that we connect to is the proxy's.
        self._judges_hosts = self._guard.judges_hosts or options.proxy is not None
        if self._judges_hosts:
            setopt(pycurl.HEADERFUNCTION, self._header)
        setopt(pycurl.CONNECTTIMEOUT_MS, max(1, round(options.connect_timeout_s * 1000)))
        setopt(pycurl.TIMEOUT_MS, max(1, round(options.timeout_s * 1000)))
        setopt(pycurl.MAXREDIRS, options.max_redirects)
        setopt(pycurl.IPRESOLVE, _FAMILIES[options.ip_family])
        setopt(pycurl.HTTP_VERSION, _ASKED_VERSIONS[options.http_version])
        if options.method == "HEAD":
            setopt(pycurl.NOBODY, 1)
        else:
            setopt(pycurl.MAXFILESIZE_LARGE, options.max_bytes)
        if options.headers:
            # "name;" is how libcurl is told of a header without a value.
            lines = [f"{name}: {value}" if value.strip() else f"{name};" for name, value in options.headers]
            setopt(pycurl.HTTPHEADER, [line.encode() for line in lines])
        if options.basic_auth is not None:
            setopt(pycurl.HTTPAUTH, pycurl.HTTPAUTH_BASIC)
            setopt(pycurl.USERPWD, options.basic_auth.encode())
        if options.bearer_token is not None:
            setopt(pycurl.HTTPAUTH, _HTTPAUTH_BEARER)
            setopt(pycurl.XOAUTH2_BEARER, options.bearer_token.encode())
        self._condition_bytes = BODY_BYTES if reads_body(options) else 0
        self._options = options

    def _open_socket(self, _purpose: int, address: Any) -> Any:
        """Called by libcurl before each connect, also of redirects."""
        family, kind, protocol, peer = address
        # Of several addresses the last one tried decides: that another one is down is not to be called "refused".
        self._refusal = self._host_refusal or self._guard.refusal(peer[0], peer[1])
        if self._refusal is not None:
            return pycurl.SOCKET_BAD
        try:
            # The bare descriptor, which libcurl closes: pycurl would copy that of a socket object.
            return socket.SocketType(family, kind, protocol).detach()
        except OSError as error:
            self._no_socket = os.strerror(error.errno or 0)
            return pycurl.SOCKET_BAD

    def _header(self, line: bytes) -> int | None:
        """Called by libcurl for each line of a head, where names count: a redirect is judged before it is followed."""
        name, _, value = line.partition(b":")
        if name.strip().lower() != b"location":
            return None
        try:
            self._url = ada_url.join_url(self._url, value.strip().decode("latin-1"))
        except ValueError:
            return None  # libcurl cannot read it either, or asks the host that it asked before
        self._refusal = self._host_refusal = self._guard.host_refusal(self._url)
        return None if self._refusal is None else -1

    def _write(self, chunk: bytes) -> int | None:
        self._size_bytes += len(chunk)
        if self._size_bytes > self.request.options.max_bytes:
            self._too_large = True
            return 0
        if len(self.body) < self._keep_bytes:
            self.body += chunk
        return None

    def retry_after_s(self) -> float:
        """For how long the last answer asks to be left alone; 0 where it does not say."""
        return float(self.curl.getinfo(pycurl.RETRY_AFTER))

    def result(self, code: int, message: str) -> ProbeResult:
        """What the probe found: libcurl's code (0 for none) and message, and what the handle holds.

        Where redirects were followed, each phase is the sum over all requests of the chain, and `total_ms` covers it.
        """
        info = self.curl.getinfo
        status = info(pycurl.RESPONSE_CODE) or None
        redirects = info(pycurl.REDIRECT_COUNT)
        final_url = (
            self.curl.getinfo_raw(pycurl.EFFECTIVE_URL).decode(errors="replace")
            if redirects
            else self.request.target.url
        )
        # A redirect may have a password in it.
        final_url = _USERINFO.sub("//", final_url, count=1)
        dns = info(pycurl.NAMELOOKUP_TIME_T)
        connect = info(pycurl.CONNECT_TIME_T)
        https = final_url.startswith("https:")
        tls = info(pycurl.APPCONNECT_TIME_T) if https else 0
        sent = info(pycurl.PRETRANSFER_TIME_T)
        first_byte = info(pycurl.STARTTRANSFER_TIME_T)
        # libcurl sums its times over redirects. Those of the handshakes cannot be told from the rest if only some of
        # the requests had one.
        tls_told = https and self._https
        outcome, error = self._verdict(code, message, status)
        return ProbeResult(
            target=self.request.target.key,
            ts_ms=self._ts_ms,
            outcome=outcome,
            status_code=status,
            dns_ms=dns / 1000 if dns else None,
            connect_ms=max(connect - dns, 0) / 1000 if connect else None,
            tls_ms=max(tls - connect, 0) / 1000 if tls and tls_told else None,
            first_byte_ms=max(first_byte - sent, 0) / 1000 if status else None,
            total_ms=info(pycurl.TOTAL_TIME_T) / 1000,
            size_bytes=self._size_bytes,
            redirects=redirects,
            final_url=final_url if final_url != self.request.target.url else None,
            address=(info(pycurl.PRIMARY_IP) or None) if connect else None,
            http_version=_HTTP_VERSIONS.get(info(pycurl.INFO_HTTP_VERSION)) if status else None,
            cert_expires_ms=self._cert_expires_ms() if tls and https else None,
            error=error,
        )

    def unrequestable(self, error: Exception) -> ProbeResult:
        """The result of a request that libcurl would not take."""
        return self._failed(f"the URL cannot be requested: {error}")

    def unreadable(self, error: Exception) -> ProbeResult:
        """The result of a probe whose `result` could not be made."""
        return self._failed(f"the answer cannot be read: {printable(str(error))}")

    def _failed(self, words: str) -> ProbeResult:
        key = self.request.target.key
        return ProbeResult(target=key, ts_ms=self._ts_ms, outcome=Outcome.PROTOCOL, error=words)

    def _verdict(self, code: int, message: str, status: int | None) -> tuple[Outcome, str | None]:
        """The outcome, and what went wrong in words."""
        if code == pycurl.E_OK:
            return self._answered(status)
        if self._refusal is not None and code in (pycurl.E_COULDNT_CONNECT, pycurl.E_WRITE_ERROR):
            return Outcome.REFUSED, f"address refused: {self._refusal}"
        if self._no_socket is not None:
            return Outcome.SELF, f"this machine could not open a socket: {self._no_socket}"
        if self._too_large or code == pycurl.E_FILESIZE_EXCEEDED:
            return Outcome.TOO_LARGE, f"the body is larger than {self.request.options.max_bytes} bytes"
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return Outcome.TIMEOUT, self._what_timed_out(status)
        outcome, words = CODES.get(code, (Outcome.PROTOCOL, "the answer cannot be read"))
        if self.request.options.proxy is not None:
            if message.startswith("CONNECT tunnel failed"):
                return Outcome.CONNECT, f"the proxy gave no connection: {printable(message)}"
            if code == pycurl.E_COULDNT_CONNECT:
                outcome, words = Outcome.SELF, "no connection to the proxy"
        if code in (pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR) and not message.startswith(_BROKEN_CONNECTION):
            # libcurl's parser gave up, not the network.
            outcome, words = Outcome.PROTOCOL, "the answer cannot be read"
        if code == pycurl.E_COULDNT_CONNECT and (errno := self.curl.getinfo(pycurl.OS_ERRNO)):
            message = os.strerror(errno)
        return outcome, f"{words}: {printable(message)}" if message else words

    def _answered(self, status: int | None) -> tuple[Outcome, str | None]:
        """The outcome of a complete answer, and how it falls short."""
        options = self.request.options
        outcome, error = judge_status(status, options.expected_statuses)
        if outcome is not Outcome.OK:
            return outcome, error
        if options.http_version in ("2", "3"):
            version = _HTTP_VERSIONS.get(self.curl.getinfo(pycurl.INFO_HTTP_VERSION))
            if version != options.http_version:
                return Outcome.CONDITION, f"answered by HTTP/{version}, not HTTP/{options.http_version}"
        if self._condition_bytes and (shortfall := unmet(options, bytes(self.body[:BODY_BYTES]))):
            return Outcome.CONDITION, shortfall
        return outcome, None

    def _what_timed_out(self, status: int | None) -> str:
        info = self.curl.getinfo
        after = f"after {info(pycurl.TOTAL_TIME_T) / 1_000_000:.1f} s"
        if not info(pycurl.NAMELOOKUP_TIME_T):
            return f"the name was not resolved {after}"
        if not info(pycurl.CONNECT_TIME_T):
            return f"no TCP connection {after}"
        if self._https and not info(pycurl.APPCONNECT_TIME_T):
            return f"the TLS handshake was not finished {after}"
        if status is None:
            return f"no answer {after}"
        return f"the answer was not complete {after} ({self._size_bytes} bytes came)"

    def _cert_expires_ms(self) -> int | None:
        for name, value in next(iter(self.curl.getinfo_raw(pycurl.INFO_CERTINFO)), ()):
            if name == b"Expire date":
                try:
                    return ssl.cert_time_to_seconds(value.decode()) * 1000
                except ValueError:
                    return None  # "Bad time value": whoever made the certificate can write anything there
        return None

    def close(self) -> None:
        self.curl.close()


def printable(message: str) -> str:
    """A message of libcurl without the undecodable bytes that a server may have put into it."""
    return message.encode(errors="surrogateescape").decode(errors="replace")
