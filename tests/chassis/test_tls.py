from pathlib import Path

import grpc
import pytest
import trustme

from services.chassis.channels import open_channel
from services.chassis.tls import TlsFiles
from tests.chassis.probe import Caller, Probe, Probing, echo, probing, text


def issue(authority: trustme.CA, folder: Path, name: str) -> TlsFiles:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    files = TlsFiles(
        certificate=folder / f"{name}.pem", key=folder / f"{name}.key", authority=folder / f"{name}-authority.pem"
    )
    assert files.certificate is not None
    assert files.key is not None
    assert files.authority is not None
    issued.cert_chain_pems[0].write_to_path(files.certificate)
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.authority)
    return files


async def answer(probe: Probing, tls: TlsFiles | None) -> str | grpc.StatusCode:
    async with open_channel(probe.running.address, tls=tls) as channel:
        call = Caller(channel).unary(text("x"), timeout=20)
        try:
            value: str = (await call).value
        except grpc.aio.AioRpcError as error:
            return error.code()
        return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def ours(folder: Path) -> TlsFiles:
    return issue(trustme.CA(), folder, "ours")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> TlsFiles:
    return issue(trustme.CA(), folder, "theirs")


async def test_with_an_authority_only_its_clients_are_served(ours: TlsFiles, theirs: TlsFiles) -> None:
    served = probing(
        Probe(unary=echo), tls_certificate=ours.certificate, tls_key=ours.key, tls_authority=ours.authority
    )
    async with served as probe:
        stranger = TlsFiles(certificate=theirs.certificate, key=theirs.key, authority=ours.authority)
        nobody = TlsFiles(authority=ours.authority)
        answers = [await answer(probe, tls) for tls in (ours, stranger, nobody, None)]

    assert answers == ["x", *[grpc.StatusCode.UNAVAILABLE] * 3]


async def test_without_an_authority_the_server_shows_who_it_is_and_takes_anyone(
    ours: TlsFiles, theirs: TlsFiles
) -> None:
    async with probing(Probe(unary=echo), tls_certificate=ours.certificate, tls_key=ours.key) as probe:
        assert await answer(probe, TlsFiles(authority=ours.authority)) == "x"
        assert await answer(probe, TlsFiles(authority=theirs.authority)) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_that_cannot_be_read_stops_the_service(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.key"):
        async with probing(Probe(unary=echo), tls_certificate=tmp_path / "none.pem", tls_key=tmp_path / "none.key"):
            pytest.fail("served")


def test_a_server_needs_certificate_and_key() -> None:
    with pytest.raises(ValueError, match="both a certificate and a key"):
        TlsFiles().server_credentials()
