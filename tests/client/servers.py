"""Small servers for tests of the client: a scripted one for raw HTTP, TLS material, a proxy."""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes import client

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EMPTY = OK + b"Content-Length: 2\r\n\r\n{}"
Respond = Callable[["Request", asyncio.StreamWriter], None]


@dataclass(frozen=True)
class Request:
    """One request as it was received."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """What a scripted server has received."""

    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def configuration(self, host: str = "127.0.0.1", scheme: str = "http") -> client.Configuration:
        configuration = client.Configuration(host=f"{scheme}://{host}:{self.port}")
        configuration.proxy = None  # whatever the environment of the tests says
        return configuration

    async def close(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)  # Transports close in the next iterations of the loop.


def respond_empty(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(EMPTY)


@asynccontextmanager
async def serve(
    respond: Respond = respond_empty, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    """A server that calls `respond` for each complete request."""
    server = Server()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        server.writers.append(writer)
        try:
            while True:
                server.requests.append(await read_request(reader))
                respond(server.requests[-1], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, address, 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await server.close()


async def read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(head[0], headers, body)


@asynccontextmanager
async def proxy(*, refuse: bool = False) -> AsyncIterator[Server]:
    """An HTTP proxy that tunnels CONNECT, unless it refuses, and records its requests."""
    server, tasks = Server(), set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        server.writers.append(writer)
        server.requests.append(await read_request(reader))
        method, target, _ = server.requests[-1].line.split(" ")
        if refuse:
            head = b"HTTP/1.1 407 s3cr3t\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(head)
            return
        if method != "CONNECT":
            writer.write(EMPTY)
            return
        far_reader, far_writer = await asyncio.open_connection(
            "127.0.0.1", int(target.rpartition(":")[2])
        )
        server.writers.append(far_writer)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            tasks.add(asyncio.create_task(pump(source, sink)))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make_certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for a DNS name or an address, and the file to verify it with."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(name, key, name, key)
    return _server(folder, name, certificate, key), folder / f"{name}.crt"


def make_old_certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """The same, signed by an authority that lacks what old ones leave out: key usage, key ids."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("authority", authority_key, "authority", authority_key)
    certificate = _certificate(name, key, "authority", authority_key)
    file = folder / "authority.crt"
    file.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    return _server(folder, name, certificate, key), file


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now = datetime.now(UTC)
    authority = x509.BasicConstraints(ca=name == issuer, path_length=None)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([_general_name(name)]), critical=False)
        .add_extension(authority, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def _server(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> ssl.SSLContext:
    file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
