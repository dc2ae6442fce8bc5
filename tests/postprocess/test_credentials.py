import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from services.postprocess import development
from services.postprocess.credentials import CredentialsRefused, load_credentials
from services.postprocess.development import development_files
from tests.postprocess.certificates import KEYS, NOW, Files, certificate, issue, key_pem, pem

Spoil = Callable[[Path], Files]


def right(folder: Path) -> Files:
    return issue(folder)


def with_another_key(folder: Path) -> Files:
    files = issue(folder)
    files.key.write_bytes(issue(folder / "other").key.read_bytes())
    return files


def with_a_locked_key(folder: Path) -> Files:
    files = issue(folder)
    files.key.write_bytes(key_pem(KEYS["es256"](), b"secret"))
    return files


def without(*names: str) -> Spoil:
    def spoil(folder: Path) -> Files:
        files = issue(folder)
        for one in names:
            getattr(files, one).unlink()
        return files

    return spoil


def with_content(which: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> Files:
        files = issue(folder)
        getattr(files, which).write_bytes(content)
        return files

    return spoil


def with_the_authority_first(folder: Path) -> Files:
    files = issue(folder)
    files.certificate.write_bytes(files.anchor.read_bytes())
    return files


def self_signed(folder: Path) -> Files:
    files, key = issue(folder), KEYS["es256"]()
    files.certificate.write_bytes(pem(certificate("Studio", "Studio", key, key)))
    files.key.write_bytes(key_pem(key))
    return files


def with_a_foreign_issuer(folder: Path) -> Files:
    files = issue(folder)
    leaf = files.certificate.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    files.certificate.write_bytes(leaf.encode() + issue(folder / "other").anchor.read_bytes())
    return files


@pytest.mark.parametrize(
    ("spoil", "variable", "rule"),
    [
        (without("certificate"), "RUSHES_C2PA_CERTIFICATE", "the file cannot be read: No such file"),
        (without("key"), "RUSHES_C2PA_KEY", "the file cannot be read: No such file"),
        (with_content("certificate", b"nothing"), "RUSHES_C2PA_CERTIFICATE", "must be PEM certificates"),
        (with_content("key", b"nothing"), "RUSHES_C2PA_KEY", "must be a PEM private key"),
        (with_another_key, "RUSHES_C2PA_KEY", "does not belong to the certificate of RUSHES_C2PA_CERTIFICATE"),
        (with_a_locked_key, "RUSHES_C2PA_KEY", "is encrypted"),
        (with_the_authority_first, "RUSHES_C2PA_CERTIFICATE", "is self-signed"),
        (self_signed, "RUSHES_C2PA_CERTIFICATE", "is self-signed"),
        (with_a_foreign_issuer, "RUSHES_C2PA_CERTIFICATE", "certificate 2 of the chain did not issue the one before"),
        (
            lambda folder: issue(folder, begins=NOW - timedelta(days=9), ends=NOW - timedelta(days=2)),
            "RUSHES_C2PA_CERTIFICATE",
            f"the certificate expired on {NOW - timedelta(days=2):%Y-%m-%d}",
        ),
        (
            lambda folder: issue(folder, begins=NOW + timedelta(days=2)),
            "RUSHES_C2PA_CERTIFICATE",
            f"the certificate is not valid before {NOW + timedelta(days=2):%Y-%m-%d}",
        ),
        (
            lambda folder: issue(folder, purpose=ExtendedKeyUsageOID.SERVER_AUTH),
            "RUSHES_C2PA_CERTIFICATE",
            "extended key usage",
        ),
        (lambda folder: issue(folder, authority=True), "RUSHES_C2PA_CERTIFICATE", "begins with an authority"),
    ],
)
def test_wrong_credentials_are_refused_by_variable_and_rule(
    tmp_path: Path, spoil: Spoil, variable: str, rule: str
) -> None:
    files = spoil(tmp_path)

    with pytest.raises(CredentialsRefused) as refused:
        load_credentials(files.certificate, files.key, None, now=datetime.now(UTC))

    assert refused.value.variable == variable
    assert rule in refused.value.rule
    assert str(tmp_path) not in refused.value.message


@pytest.mark.parametrize("algorithm", KEYS)
def test_the_algorithm_is_the_keys_own(tmp_path: Path, algorithm: str) -> None:
    files = issue(tmp_path, algorithm=algorithm)

    credentials = load_credentials(files.certificate, files.key, None, now=datetime.now(UTC))

    assert credentials.algorithm == algorithm
    assert credentials.subject == "CN=Studio Signer,O=Studio"
    assert not credentials.development


def test_an_algorithm_that_the_key_has_not_is_refused(tmp_path: Path) -> None:
    files = issue(tmp_path)

    with pytest.raises(CredentialsRefused, match="RUSHES_C2PA_ALGORITHM: must be es256 for this key"):
        load_credentials(files.certificate, files.key, "ps256", now=datetime.now(UTC))


def test_a_certificate_for_c2pa_claims_is_taken(tmp_path: Path) -> None:
    files = issue(tmp_path, purpose=ObjectIdentifier("1.3.6.1.4.1.62558.2.1"))

    assert load_credentials(files.certificate, files.key, None, now=datetime.now(UTC)).algorithm == "es256"


def test_a_process_with_an_expired_certificate_does_not_start(tmp_path: Path) -> None:
    files = issue(tmp_path, begins=NOW - timedelta(days=9), ends=NOW - timedelta(days=2))
    environment = {"RUSHES_C2PA_CERTIFICATE": str(files.certificate), "RUSHES_C2PA_KEY": str(files.key)}

    ended = subprocess.run(
        [sys.executable, "-m", "services.postprocess", "--model", str(tmp_path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert "RUSHES_C2PA_CERTIFICATE: the certificate expired on" in ended.stderr


def test_a_certificate_without_a_key_is_refused_by_both_names(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "services.postprocess", "--model", str(tmp_path), "--c2pa-certificate", "x.pem"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2
    assert "RUSHES_C2PA_KEY" in ended.stderr


def test_the_development_certificate_says_what_it_is_and_is_kept(tmp_path: Path) -> None:
    first = development_files(tmp_path / "c2pa")
    content = first.certificate.read_bytes()
    again = development_files(tmp_path / "c2pa")

    credentials = load_credentials(again.certificate, again.key, None, now=datetime.now(UTC))
    assert credentials.development
    assert "development" in credentials.subject
    assert again.certificate.read_bytes() == content
    assert [stat.S_IMODE(path.stat().st_mode) for path in (first.key, first.key.parent)] == [0o600, 0o700]
    assert sorted(path.name for path in first.key.parent.iterdir()) == ["anchor.pem", "certificate.pem", "key.pem"]


def test_a_development_certificate_that_ends_soon_or_is_broken_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(development, "_LIFE", timedelta(days=3))
        files = development_files(tmp_path)
    soon = files.certificate.read_bytes()

    renewed = development_files(tmp_path).certificate.read_bytes()
    files.key.write_bytes(b"")
    mended = development_files(tmp_path)

    assert soon != renewed != mended.certificate.read_bytes()
    assert load_credentials(mended.certificate, mended.key, None, now=datetime.now(UTC)).development
