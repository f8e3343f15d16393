"""Writes `ca.pem` and `site.pem` (key and certificate of `*.bench.localhost`) to a folder."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

SITE = "*.bench.localhost"


def main(folder: Path) -> None:
    """Make an authority, and a certificate that it signs."""
    authority_key, site_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority, site = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("urlhealth benchmark", SITE)
    )
    now = datetime.now(UTC)

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=30))
        )

    root = builder(authority, authority_key).add_extension(x509.BasicConstraints(True, None), critical=True)
    leaf = builder(site, site_key).add_extension(x509.SubjectAlternativeName([x509.DNSName(SITE)]), critical=False)
    (folder / "ca.pem").write_bytes(root.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (folder / "site.pem").write_bytes(
        site_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + leaf.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
