from typing import Literal

import pytest
from pydantic import BaseModel, Field, SecretStr, ValidationError

from services.chassis.config import ServiceConfig, load


class Pool(BaseModel):
    """A nested part."""

    size: int = Field(default=4, ge=1, description="how many")
    mode: Literal["fair", "fast"] = Field(default="fair", description="which way")


class StageConfig(ServiceConfig):
    """A service's own configuration."""

    model: str = Field(description="folder of the model")
    warm: bool = Field(True, description="whether to warm up")
    tiers: list[str] = Field(["free"], description="tiers, as JSON")
    key: SecretStr | None = Field(None, min_length=8, description="key of the store")
    pool: Pool = Pool()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("RUSHES_MODEL", "tiny")
    return monkeypatch


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        load(StageConfig, argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_flag_wins_over_its_variable_and_the_variable_over_the_default(environment: pytest.MonkeyPatch) -> None:
    assert load(StageConfig, []).grace_seconds == 30
    environment.setenv("RUSHES_GRACE_SECONDS", "20")
    assert load(StageConfig, []).grace_seconds == 20
    assert load(StageConfig, ["--grace-seconds", "10"]).grace_seconds == 10


def test_the_same_order_holds_for_a_nested_field_alone(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RUSHES_POOL__SIZE", "8")
    environment.setenv("RUSHES_POOL__MODE", "fast")
    assert load(StageConfig, ["--pool.size", "2"]).pool == Pool(size=2, mode="fast")


def test_a_switch_is_a_flag_and_its_opposite(environment: pytest.MonkeyPatch) -> None:
    assert load(StageConfig, ["--no-warm"]).warm is False
    environment.setenv("RUSHES_WARM", "false")
    assert load(StageConfig, []).warm is False
    assert load(StageConfig, ["--warm"]).warm is True


def test_a_list_is_json_in_the_variable_and_in_the_flag(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RUSHES_TIERS", '["pro"]')
    assert load(StageConfig, []).tiers == ["pro"]
    assert load(StageConfig, ["--tiers", '["free", "pro"]']).tiers == ["free", "pro"]


def test_a_wrong_variable_is_named_with_the_rule(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("RUSHES_GRACE_SECONDS", "-1")
    said = refusal(capsys)
    assert "RUSHES_GRACE_SECONDS: " in said
    assert "greater than or equal to 0" in said


def test_a_wrong_flag_is_named_with_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--pool.mode: Input should be 'fair' or 'fast'" in refusal(capsys, "--pool.mode", "slow")


def test_every_wrong_value_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--pool.size", "0", "--log-level", "loud")
    assert "--pool.size" in said
    assert "--log-level" in said


def test_a_variable_that_is_no_json_is_named(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("RUSHES_TIERS", "hunter2")
    said = refusal(capsys)
    assert "RUSHES_TIERS" in said
    assert "hunter2" not in said


def test_a_flag_that_is_no_json_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--tiers" in refusal(capsys, "--tiers", "hunter2")


def test_a_missing_value_names_the_flag_and_the_variable(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("RUSHES_MODEL")
    assert "--model or RUSHES_MODEL: a value is required" in refusal(capsys)


@pytest.mark.parametrize("name", ["--pool.seize", "--modle"])
def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert name in refusal(capsys, name, "1")


def test_a_secret_is_never_repeated(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    environment.setenv("RUSHES_KEY", "hunter2")
    said = refusal(capsys)
    assert "RUSHES_KEY" in said
    assert "hunter2" not in said

    config = load(StageConfig, ["--key", "correct horse"])
    assert "correct horse" not in f"{config!r}{config}{config.model_dump_json()}"
    assert config.key is not None
    assert config.key.get_secret_value() == "correct horse"


@pytest.mark.parametrize(
    "address", ["8080", "localhost", "localhost:", ":8080", "localhost:99999", "localhost:a", "unix:", "a:1,,b:2"]
)
def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert "--listen: each address is" in refusal(capsys, "--listen", address).replace(
        "a unix socket is", "each address is"
    )


@pytest.mark.parametrize("address", ["localhost:0", "[::1]:8080", "unix:/run/a.sock", "0.0.0.0:1,unix:/run/a.sock"])
def test_an_address_that_is_one_is_taken(address: str) -> None:
    assert load(StageConfig, ["--listen", address]).listen == address


def test_a_certificate_without_its_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tls_certificate and tls_key go together" in refusal(capsys, "--tls-certificate", "a.pem")


def test_help_lists_every_flag_with_its_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(StageConfig, ["--help"])
    said = " ".join(capsys.readouterr().out.split())

    assert caught.value.code == 0
    for words in (
        "--grace-seconds GRACE_SECONDS how long calls in flight may go on after SIGTERM",
        "[RUSHES_GRACE_SECONDS; default 30.0]",
        "[RUSHES_POOL__SIZE; default 4]",
        "--warm, --no-warm",
        "[RUSHES_MODEL; required]",
        "[RUSHES_METRICS_PORT; unset by default]",
        "[RUSHES_KEY; a secret]",
    ):
        assert words in said


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError):
        load(StageConfig, []).log_level = "debug"
