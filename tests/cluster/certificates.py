"""A certificate authority of our own for one test cluster: serving certificates, client certificates, a service-account key."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Pair:
    """Paths of a PEM certificate and its PEM key."""

    certificate: Path
    key: Path


class Authority:
    """A CA in `folder`, made there when it is new; every pair that it issues lies beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.pair = Pair(folder / "ca.crt", folder / "ca.key")
        if not self.pair.certificate.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            _write_key(self.pair.key, key)
            name = _name("fedhelp test cluster", ())
            builder = _builder(name, name, key.public_key()).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            _write_certificate(self.pair.certificate, builder.sign(key, hashes.SHA256()))

    def server(self, name: str, hosts: Sequence[str]) -> Pair:
        """A serving certificate for `hosts`: DNS names and addresses."""
        return self._issue(name, name, (), [_general_name(host) for host in hosts])

    def client(self, user: str, groups: Sequence[str] = ()) -> Pair:
        """A client certificate: `user` is its common name, `groups` its organisations, as Kubernetes reads them."""
        return self._issue("client-" + "".join(letter if letter.isalnum() else "-" for letter in user), user, groups, [])

    def signing_key(self, name: str) -> Path:
        """A key without certificate, for service-account tokens."""
        path = self.folder / f"{name}.key"
        if not path.exists():
            _write_key(path, ec.generate_private_key(ec.SECP256R1()))
        return path

    def _issue(self, file: str, user: str, groups: Sequence[str], hosts: list[x509.GeneralName]) -> Pair:
        pair = Pair(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        key = ec.generate_private_key(ec.SECP256R1())
        ca = x509.load_pem_x509_certificate(self.pair.certificate.read_bytes())
        ca_key = serialization.load_pem_private_key(self.pair.key.read_bytes(), None)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        builder = _builder(_name(user, groups), ca.subject, key.public_key()).add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        _write_key(pair.key, key)
        _write_certificate(pair.certificate, builder.sign(ca_key, hashes.SHA256()))
        return pair


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key).serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(now + _LIFETIME))


def _name(user: str, groups: Sequence[str]) -> x509.Name:
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()))


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
