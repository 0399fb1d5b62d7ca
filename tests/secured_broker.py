"""A real Kafka that lets in by TLS and a password only, and lets each user do only what it was given the right to.

Beside the listeners of every test's broker, which are the test's own and may do everything, it has one that speaks
SASL_SSL (`secured`) and one that speaks SSL and asks the client for a certificate (`mutual`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from tests.broker import Broker, free_ports

WAIT_S = 60
_LIFE = timedelta(days=1)
_LOGIN = "org.apache.kafka.common.security"

type Client = dict[str, str]
"""Settings of the client, as BRIDGE_KAFKA_CLIENT has them."""


class Authority:
    """Whoever signs certificates: its own is in `certificate`, and others trust those who show one that it signed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        signed = _begun(self._name, self._key, self._name).add_extension(x509.BasicConstraints(True, None), True)
        self.certificate = folder / f"{name}.pem"
        self.certificate.write_bytes(signed.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def sign(self, name: str, password: str | None = None) -> tuple[Path, Path]:
        """Make a key, with a password if any, and a certificate for a name on loopback; return where they are."""
        key = ec.generate_private_key(ec.SECP256R1())
        here = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
        signed = _begun(_named(name), key, self._name).add_extension(here, False).sign(self._key, hashes.SHA256())
        private, certificate = self._folder / f"{name}.key", self._folder / f"{name}.crt"
        locked = NoEncryption() if password is None else BestAvailableEncryption(password.encode())
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
        certificate.write_bytes(signed.public_bytes(Encoding.PEM))
        return private, certificate


class SecuredBroker(Broker):
    """A broker with users. Who comes by `bootstrap_servers` may do everything."""

    def __init__(self, folder: Path, users: Iterable[str]) -> None:
        super().__init__(folder)
        self.passwords = {user: secrets.token_urlsafe(24) for user in users}
        ports = free_ports()
        self.secured = f"127.0.0.1:{next(ports)}"
        """Where clients go that come with a password."""
        self.mutual = f"127.0.0.1:{next(ports)}"
        """Where clients go that come with a certificate."""
        self.authority = Authority(folder, "authority")

    def by_password(self, user: str, mechanism: str = "PLAIN") -> Client:
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": self.passwords[user],
            "ssl.ca.location": str(self.authority.certificate),
        }

    def by_certificate(self, user: str) -> Client:
        key, certificate = self.authority.sign(user, self.passwords[user])
        return {
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.authority.certificate),
            "ssl.certificate.location": str(certificate),
            "ssl.key.location": str(key),
            "ssl.key.password": self.passwords[user],
        }

    def allow(
        self,
        user: str,
        name: str,
        *operations: AclOperation,
        kind: ResourceType = ResourceType.TOPIC,
        pattern: ResourcePatternType = ResourcePatternType.LITERAL,
    ) -> None:
        """Give a user rights on a topic or a group."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        given = [
            AclBinding(kind, name, pattern, f"User:{user}", "*", operation, AclPermissionType.ALLOW)
            for operation in operations
        ]
        for made in admin.create_acls(given).values():
            made.result(WAIT_S)

    def _settings(self) -> dict[str, object]:
        settings = super()._settings()
        key, certificate = self.authority.sign("broker")
        keystore = self.folder / "keystore.pem"
        keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
        known = " ".join(f'user_{user}="{password}"' for user, password in self.passwords.items())
        listeners = {"listeners": f",SECURED://{self.secured},MUTUAL://{self.mutual}"}
        listeners["advertised.listeners"] = listeners["listeners"]
        listeners["listener.security.protocol.map"] = ",SECURED:SASL_SSL,MUTUAL:SSL"
        return {
            **settings,
            **{name: f"{settings[name]}{more}" for name, more in listeners.items()},
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": keystore,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority.certificate,
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.mutual.ssl.principal.mapping.rules": "RULE:^CN=(.*)$/$1/",
            "listener.name.secured.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.secured.plain.sasl.jaas.config": f"{_LOGIN}.plain.PlainLoginModule required {known};",
            "listener.name.secured.scram-sha-512.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # Who comes without a name: the tests, and the node itself.
            "super.users": "User:ANONYMOUS",
        }

    def _formatting(self) -> list[str]:
        users = (f"SCRAM-SHA-512=[name={user},password={password}]" for user, password in self.passwords.items())
        return [part for user in users for part in ("--add-scram", user)]


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _begun(name: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LIFE)
        .not_valid_after(now + _LIFE)
    )
