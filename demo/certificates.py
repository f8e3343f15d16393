"""Certificates of the sample web: a certification authority of its own, and what its https sites show."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext, SSLObject
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from demo.sites import Certificate, Site

_VALID_BEFORE: Final = timedelta(days=40)


@dataclass(frozen=True, kw_only=True)
class _Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_certificates(sites: Sequence[Site], folder: Path) -> tuple[Path, SSLContext]:
    """Write certificates for the sites to `folder`; returns the authority's file (to be trusted) and a server context,
    which shows each host its own.
    """
    anchor = datetime.fromtimestamp(sites[0].anchor_ms // 1000, UTC)
    authority = _issue("urlhealth sample web", until=anchor + timedelta(days=365), since=anchor - _VALID_BEFORE)
    ca_file = folder / "ca.pem"
    ca_file.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    contexts: dict[Certificate, SSLContext] = {}
    for kind in Certificate:
        # Redirects lead from http to https, so hosts without a certificate of their own get the trusted one.
        shown = [site for site in sites if (site.certificate or Certificate.TRUSTED) is kind]
        ends_ms = next(site.cert_expires_ms for site in shown if site.certificate is kind)
        issued = _issue(
            f"{kind} sites",
            hosts=[site.host for site in shown],
            since=anchor - _VALID_BEFORE,
            until=datetime.fromtimestamp((ends_ms or 0) // 1000, UTC),
            issuer=None if kind is Certificate.SELF_SIGNED else authority,
        )
        contexts[kind] = _context(issued, folder / f"{kind}.pem")
    by_host = {site.host: contexts[site.certificate or Certificate.TRUSTED] for site in sites}

    def show(connection: SSLObject, name: str | None, _default: SSLContext) -> None:
        connection.context = by_host.get(name or "", contexts[Certificate.TRUSTED])

    server = contexts[Certificate.TRUSTED]
    server.sni_callback = show
    return ca_file, server


def _issue(
    name: str,
    *,
    since: datetime,
    until: datetime,
    hosts: Sequence[str] = (),
    issuer: _Issued | None = None,
) -> _Issued:
    """A certificate for `hosts`, signed by `issuer` or by itself; without hosts, of an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None), critical=True)
    )
    if hosts:
        names = [*map(x509.DNSName, hosts), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signer = issuer.key if issuer else key
    return _Issued(certificate=builder.sign(signer, hashes.SHA256()), key=key)


def _context(issued: _Issued, file: Path) -> SSLContext:
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.touch(mode=0o600)
    file.write_bytes(key + issued.certificate.public_bytes(Encoding.PEM))
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
