from pathlib import Path

import grpc
import pytest
import trustme

from rushes.client import Client, RetryPolicy, Tls, Unavailable
from rushes.v1.catalog_pb2_grpc import add_CatalogServiceServicer_to_server
from tests.clients.scripted_gateway import Script, ScriptedGateway

ONCE = RetryPolicy(patience_seconds=0.0)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.fixture
async def secure_port(authority: trustme.CA):
    """A gateway that asks for a client's certificate; its own is for the name gateway.test."""
    issued = authority.issue_cert("gateway.test")
    credentials = grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())],
        root_certificates=authority.cert_pem.bytes(),
        require_client_auth=True,
    )
    server = grpc.aio.server()
    add_CatalogServiceServicer_to_server(ScriptedGateway(Script()), server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield port
    await server.stop(None)


async def test_both_ends_show_their_certificates(
    authority: trustme.CA, ca: Path, tmp_path: Path, secure_port: int
) -> None:
    issued = authority.issue_cert("client.test")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    issued.private_key_pem.write_to_path(tmp_path / "client.key")
    tls = Tls(ca=ca, certificate=tmp_path / "client.pem", key=tmp_path / "client.key", server_name="gateway.test")

    async with Client(f"127.0.0.1:{secure_port}", tls=tls, api_key="rsh_1") as client:
        assert [model.id for model in await client.models()] == ["scripted"]


async def test_a_server_of_another_name_or_a_nameless_client_gets_nowhere(ca: Path, secure_port: int) -> None:
    for tls in (Tls(ca=ca), Tls(ca=ca, server_name="gateway.test")):
        async with Client(f"127.0.0.1:{secure_port}", tls=tls, retry=ONCE) as client:
            with pytest.raises(Unavailable):
                await client.models()


def test_a_certificate_without_its_key_is_refused(ca: Path) -> None:
    with pytest.raises(ValueError, match="certificate and key"):
        Client("gateway.test:1", tls=Tls(certificate=ca))
