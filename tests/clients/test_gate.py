"""The quality gate on the command line: its options, and what is said and kept of refused takes."""

from pathlib import Path

import pytest

from rushes.cli.gate_options import GateOptions
from rushes.cli.recording import Recording
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports import wording
from rushes.cli.reports.lines import LineReport
from rushes.client import InvalidRequest
from rushes.client.gate import GateRule, inspection_policy
from rushes.v1 import finishing_pb2 as fp
from rushes.v1 import generation_pb2 as gp
from rushes.v1.postprocess_pb2 import Fragment, RenderAccepted

FINDING = fp.Finding(
    check=fp.INSPECTION_CHECK_BLUR,
    action=fp.FINDING_ACTION_RETRY,
    start_seconds=0.5,
    end_seconds=0.75,
    score=20.25,
    threshold=13,
)


def test_the_options_say_what_the_message_says() -> None:
    options = GateOptions(rules=["black=fail", "blur=retry:20.5", "face=warn"], retakes=3, retake_within=90)

    assert options.settings() == {
        "inspection": fp.InspectionPolicy(
            rules=[
                fp.InspectionRule(check=fp.INSPECTION_CHECK_BLACK, action=fp.FINDING_ACTION_FAIL),
                fp.InspectionRule(
                    check=fp.INSPECTION_CHECK_BLUR, action=fp.FINDING_ACTION_RETRY, threshold=20.5, retakes=3
                ),
                fp.InspectionRule(check=fp.INSPECTION_CHECK_FACE, action=fp.FINDING_ACTION_WARN),
            ],
            retake_within_seconds=90,
        )
    }
    assert GateOptions().settings() == {}


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"rules": ["black"]}, "--gate"),
        ({"rules": ["black=stop"]}, "--gate"),
        ({"rules": ["grain=fail"]}, "--gate"),
        ({"rules": ["black=fail:much"]}, "--gate"),
        ({"rules": ["black=fail", "black=warn"]}, "--gate"),
        ({"rules": ["black=fail"], "retakes": 2}, "--retakes"),
        ({"retake_within": 5.0}, "--retake-within"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_its_name(options: dict[str, object], option: str) -> None:
    with pytest.raises(CommandRefused) as refused:
        GateOptions(**options).settings()

    assert option in str(refused.value)


def test_the_client_names_the_field_of_an_unknown_word() -> None:
    with pytest.raises(InvalidRequest) as refused:
        inspection_policy([GateRule(check="grain", action="fail")])

    assert [violation.field for violation in refused.value.violations] == ["inspection.rules[0].check"]


def test_a_recording_keeps_nothing_of_a_refused_take(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "clip.mp4", None, LineReport())
    events = [
        gp.GenerationEvent(rendering=RenderAccepted()),
        gp.GenerationEvent(fragment=Fragment(offset=0, data=b"first")),
        gp.GenerationEvent(fragment=Fragment(offset=5, data=b" take")),
        gp.GenerationEvent(retaken=gp.RetakenEvent(take=2)),
        gp.GenerationEvent(rendering=RenderAccepted()),
        gp.GenerationEvent(fragment=Fragment(offset=0, data=b"second take")),
    ]
    for event in events:
        recording.take(event)

    assert recording.part.read_bytes() == b"second take"


def test_findings_and_takes_are_said_with_their_times(capsys: pytest.CaptureFixture[str]) -> None:
    report = LineReport()
    report.event(gp.GenerationEvent(retaken=gp.RetakenEvent(take=2, seed=99, finding=FINDING)))
    video = gp.Video(seed=99, takes=2, findings=[FINDING])
    report.finished(gp.Generation(id="g", state=gp.GENERATION_STATE_SUCCEEDED, video=video))

    said = capsys.readouterr().out
    assert wording.finding(FINDING) == "blur, 0.50 to 0.75 s, score 20.2 above 13 (retry)"
    assert "take 2 with seed 99: blur, 0.50 to 0.75 s" in said
    assert "finding    blur, 0.50 to 0.75 s" in said
    assert "seed 99, take 2" in said
