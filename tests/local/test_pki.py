"""Tests the certificates of a local cluster as strict clients verify them."""

import ssl
from pathlib import Path

from finetune_local.pki import Authority


def test_a_strict_client_accepts_the_certificate_of_a_server(tmp_path: Path):
    """From 3.13 on, Python verifies strictly by default."""
    authority = Authority(tmp_path)
    identity = authority.issue("server", "server", names=("127.0.0.1", "localhost"))
    client = ssl.create_default_context(cafile=authority.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(identity.certificate, identity.key)
    _shake_hands(client, server, "127.0.0.1")


def test_a_strict_server_accepts_the_certificate_of_a_client(tmp_path: Path):
    authority = Authority(tmp_path)
    served = authority.issue("server", "server", names=("localhost",))
    user = authority.issue("user", "user", groups=("group",))
    client = ssl.create_default_context(cafile=authority.certificate)
    client.load_cert_chain(user.certificate, user.key)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    server.load_cert_chain(served.certificate, served.key)
    _shake_hands(client, server, "localhost")


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Connect both in memory; raises SSLError if one of them refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not ends:
            return
    raise AssertionError("the handshake does not end")
