"""The denoiser over a socket: what a call answers, and in which order."""

import asyncio
from pathlib import Path

import grpc
import pytest
import torch
from PIL import Image

from rushes.v1 import denoiser_pb2, sampling_pb2
from services.chassis.bundles import unpack
from services.chassis.errors import Exhausted, from_rpc_error
from services.denoiser.schedule import SigmaRule, Solver, make_schedule
from tests.denoiser.caller import STEPS, Caller, collect, conditioning, requests, start
from tests.denoiser.conftest import Serve

SLOW = {"shape": {"width": 256, "height": 256, "num_frames": 33}, "sampling": {"steps": 100}}


async def test_a_call_answers_accepted_then_every_step_then_latents_then_the_result(caller: Caller) -> None:
    outcome = await caller.denoise()
    assert outcome.order == ["accepted", *["step"] * STEPS, "bundle", "chunk", "result"]
    assert [step.index for step in outcome.steps] == list(range(STEPS))
    assert outcome.latents.shape == (16, 3, 8, 8)
    assert outcome.latents.dtype == torch.float32
    assert torch.isfinite(outcome.latents).all()
    assert outcome.result is not None
    assert outcome.result.reason == denoiser_pb2.BUNDLE_REASON_COMPLETED
    assert outcome.result.next_step == STEPS
    assert outcome.result.steps_run == STEPS


async def test_accepted_repeats_the_settings_in_force(caller: Caller) -> None:
    accepted = (await caller.denoise()).accepted
    assert accepted is not None
    schedule = make_schedule(Solver.UNIPC, SigmaRule.WAN, STEPS, 3.0)
    assert accepted.sampling.solver == sampling_pb2.SOLVER_UNIPC
    assert accepted.sampling.sigma_rule == sampling_pb2.SIGMA_RULE_WAN
    assert accepted.sampling.guidance_scale_high == 4.0
    assert accepted.sampling.guidance_scale_low == 3.0
    assert tuple(accepted.sigmas) == schedule.sigmas
    assert tuple(accepted.timesteps) == schedule.timesteps
    assert (accepted.first_step, accepted.end_step, accepted.boundary_step) == (0, STEPS, 3)


async def test_each_step_names_its_expert_noise_level_and_time(caller: Caller) -> None:
    outcome = await caller.denoise()
    assert outcome.accepted is not None
    high, low = sampling_pb2.EXPERT_HIGH_NOISE, sampling_pb2.EXPERT_LOW_NOISE
    assert [step.expert for step in outcome.steps] == [high] * 3 + [low] * 5
    assert [step.sigma for step in outcome.steps] == list(outcome.accepted.sigmas[:-1])
    assert all(step.total == STEPS and step.seconds > 0 for step in outcome.steps)
    assert all(step.eta_seconds > 0 for step in outcome.steps[:-1])
    assert outcome.steps[-1].eta_seconds == 0
    assert outcome.result is not None
    assert outcome.result.device_seconds == pytest.approx(sum(step.seconds for step in outcome.steps))


async def test_the_result_carries_the_measured_intervals(caller: Caller) -> None:
    outcome = await caller.denoise()
    assert outcome.result is not None
    names = [span.name for span in outcome.result.spans]
    assert names == ["denoise.receive", *["denoise.step"] * STEPS, "denoise.pack"]
    steps = outcome.result.spans[1:-1]
    assert [span.attributes["index"] for span in steps] == [str(index) for index in range(STEPS)]
    assert all(span.stage == "denoiser" for span in steps)
    starts = [span.start_seconds for span in outcome.result.spans]
    assert starts == sorted(starts)


async def test_the_same_request_gives_the_same_bits_and_another_seed_does_not(caller: Caller) -> None:
    first, again, other = await caller.denoise(), await caller.denoise(), await caller.denoise(seed=8)
    assert first.bundles[-1].payload == again.bundles[-1].payload
    assert not torch.equal(first.latents, other.latents)


async def test_the_prompt_and_the_negative_prompt_matter(caller: Caller) -> None:
    plain = (await caller.denoise()).latents
    prompted = (await caller.denoise(text=conditioning(prompt=torch.ones(5, 32)))).latents
    negated = (await caller.denoise(text=conditioning(negative_prompt=torch.ones(5, 32)))).latents
    assert not torch.allclose(plain, prompted)
    assert not torch.allclose(plain, negated)


@pytest.mark.parametrize("solver", ["SOLVER_UNIPC", "SOLVER_EULER", "SOLVER_DPMPP_2M"])
@pytest.mark.parametrize("rule", ["SIGMA_RULE_WAN", "SIGMA_RULE_DIFFUSERS"])
async def test_every_solver_runs_under_either_rule(caller: Caller, solver: str, rule: str) -> None:
    outcome = await caller.denoise(sampling={"solver": solver, "sigma_rule": rule})
    assert torch.isfinite(outcome.latents).all()


async def test_without_guidance_no_negative_prompt_is_needed(caller: Caller) -> None:
    whole = conditioning()
    prompt = unpack(whole).tensors["prompt"]
    alone = conditioning(prompt=torch.frombuffer(bytearray(prompt.data), dtype=torch.float32).view(prompt.shape))
    sampling = {"guidance_scale_high": 1.0, "guidance_scale_low": 1.0}
    assert torch.isfinite((await caller.denoise(text=alone, sampling=sampling)).latents).all()


async def test_batched_and_sequential_guidance_agree(serve: Serve) -> None:
    latents = []
    for setting in ("on", "off"):
        async with serve(guidance_batch=setting) as caller:
            latents.append((await caller.denoise()).latents)
    assert torch.linalg.norm(latents[0] - latents[1]) <= 1e-4 * torch.linalg.norm(latents[1])


async def test_a_full_house_refuses_at_once_and_says_when_to_come_back(serve: Serve) -> None:
    async with serve(slots=1, retry_after_seconds=3) as caller:
        text = conditioning()
        call = caller.stub.Denoise(requests(start(text, **SLOW), text))
        await anext(aiter(call))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.denoise()
        call.cancel()
        error = from_rpc_error(refused.value)
        assert isinstance(error, Exhausted)
        assert error.reason == "SLOTS_BUSY"
        assert error.retry_after_seconds == 3


async def test_a_call_of_a_higher_class_takes_the_slot_and_the_lower_one_gets_its_state_back(serve: Serve) -> None:
    async with serve(slots=1) as caller:
        text, slow = conditioning(), {**SLOW, "sampling": {"steps": 20}}
        whole = await caller.denoise()
        call = caller.stub.Denoise(requests(start(text, **slow), text))
        async for response in call:
            if response.WhichOneof("message") == "step":
                break
        urgent = await caller.denoise(priority=3)
        assert urgent.bundles[-1].payload == whole.bundles[-1].payload
        handed = await collect(call)
        assert handed.result is not None
        assert handed.result.reason == denoiser_pb2.BUNDLE_REASON_PREEMPTED
        step = handed.result.next_step
        assert step < 20
        rest = await caller.denoise(state=handed.state, first_step=step, end_step=step + 1, **slow)
        assert rest.result is not None
        assert rest.result.next_step == step + 1


async def test_two_runs_on_one_device_do_not_disturb_each_other(caller: Caller) -> None:
    alone = [await caller.denoise(seed=seed) for seed in (1, 2)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller.denoise(seed=seed)) for seed in (1, 2)]
    for before, task in zip(alone, tasks, strict=True):
        assert before.bundles[-1].payload == task.result().bundles[-1].payload


async def test_previews_come_between_the_steps_in_the_asked_form(caller: Caller) -> None:
    previews = sampling_pb2.PreviewSettings(every_steps=2, max_edge=48, format="IMAGE_FORMAT_JPEG")
    outcome = await caller.denoise(previews=previews, shape={"width": 128, "height": 64})
    assert outcome.result is not None
    # Steps 2, 4 and 6; the eighth is the result itself.
    assert len(outcome.previews) + outcome.result.previews_dropped == 3
    assert outcome.previews
    for preview in outcome.previews:
        assert preview.step_index in (1, 3, 5)
        assert (preview.width, preview.height, preview.frames) == (48, 24, 1)
        assert preview.data.startswith(b"\xff\xd8")
    assert outcome.order[-1] == "result"


async def test_a_moving_preview_is_an_animated_webp(caller: Caller, tmp_path: Path) -> None:
    previews = sampling_pb2.PreviewSettings(every_steps=3, frames=3)
    outcome = await caller.denoise(previews=previews)
    path = tmp_path / "preview.webp"
    path.write_bytes(outcome.previews[0].data)
    with Image.open(path) as image:
        assert image.format == "WEBP"
        assert image.n_frames == 3
        assert image.size == (64, 64)


async def test_previews_do_not_change_the_latents(caller: Caller) -> None:
    previewed = await caller.denoise(previews=sampling_pb2.PreviewSettings(every_steps=1))
    assert previewed.bundles[-1].payload == (await caller.denoise()).bundles[-1].payload


async def test_a_caller_that_does_not_read_does_not_hold_up_the_device(serve: Serve) -> None:
    """The run ends and the answers wait; a queue that pushed back would leave the device inside the schedule."""
    loop, finished = asyncio.get_running_loop(), asyncio.Event()
    evaluations = iter(range(1, 7))

    def count(module: torch.nn.Module, _inputs: object, _output: object) -> None:
        if isinstance(module, torch.nn.Linear) and module.out_features == 64 and next(evaluations) == 6:
            loop.call_soon_threadsafe(finished.set)

    large = {"shape": {"width": 256, "height": 256, "num_frames": 33}, "sampling": {"steps": 6}}
    checkpoints = denoiser_pb2.CheckpointPolicy(every_steps=1)
    with torch.nn.modules.module.register_module_forward_hook(count):
        async with serve(warm_up=False) as caller:
            text = conditioning()
            call = caller.stub.Denoise(requests(start(text, checkpoints=checkpoints, **large), text))
            async with asyncio.timeout(60):
                await finished.wait()
            outcome = await collect(call)
    assert len(outcome.steps) == 6
    # The newest checkpoint replaced older ones that had not been sent yet, and the latents replaced that.
    assert outcome.bundles[-1].announced.reason == denoiser_pb2.BUNDLE_REASON_COMPLETED


async def test_describe_says_what_is_loaded_and_where_each_default_came_from(caller: Caller) -> None:
    described = await caller.describe()
    assert described.model == "rushes-untrained"
    assert described.demonstration
    assert "noise" in described.notice
    assert list(described.experts) == [sampling_pb2.EXPERT_HIGH_NOISE, sampling_pb2.EXPERT_LOW_NOISE]
    assert (described.dtype, described.device, described.slots) == ("float32", "cpu", 2)
    assert described.latent_channels == 16
    assert described.defaults.sampling.flow_shift == 3.0
    assert described.defaults.sources["flow_shift"] == denoiser_pb2.DEFAULT_SOURCE_MANIFEST
    assert described.limits.max_steps == 100
    shift = next(each for each in described.differences if each.field == "flow_shift")
    assert (shift.reference, shift.actual) == ("12.0", "3.0")


async def test_describe_of_a_model_without_a_manifest_names_the_reference(serve: Serve, tmp_path: Path) -> None:
    from models.untrained import write_untrained  # noqa: PLC0415  (only this test writes a model)

    async with serve(model=write_untrained(tmp_path / "bare", manifest=False)) as caller:
        described = await caller.describe()
    assert described.defaults.sampling.flow_shift == 12.0
    assert described.defaults.sampling.steps == 40
    assert described.defaults.sources["flow_shift"] == denoiser_pb2.DEFAULT_SOURCE_WAN_REFERENCE
    assert {each.field for each in described.differences} >= {"scheduler.flow_shift", "rope_split", "vae.latents_mean"}


async def test_bfloat16_weights_are_served_on_the_cpu_too(serve: Serve) -> None:
    async with serve(dtype="bfloat16") as caller:
        outcome = await caller.denoise()
        assert (await caller.describe()).dtype == "bfloat16"
    assert outcome.latents.dtype == torch.float32
    assert torch.isfinite(outcome.latents).all()


async def test_each_expert_has_run_once_before_the_first_caller_comes(serve: Serve) -> None:
    evaluated: list[torch.nn.Module] = []

    def note(module: torch.nn.Module, _inputs: object, _output: object) -> None:
        if isinstance(module, torch.nn.Linear) and module.out_features == 64:
            evaluated.append(module)

    with torch.nn.modules.module.register_module_forward_hook(note):
        async with serve():
            assert len(evaluated) == len(set(evaluated)) == 2
        async with serve(warm_up=False):
            assert len(evaluated) == 2


@pytest.mark.parametrize(("grouping", "evaluations"), [("on", 1), ("off", 2)])
async def test_every_expert_is_warmed_up_on_every_size_that_is_named_as_it_will_be_used(
    serve: Serve, grouping: str, evaluations: int
) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        if isinstance(module, torch.nn.Linear) and module.out_features == 64:
            seen.append((id(module), tuple(inputs[0].shape[:2])))

    with torch.nn.modules.module.register_module_forward_hook(note):
        async with serve(shapes="64x64x9,96x64x5", guidance_batch=grouping):
            pass
    experts = {expert for expert, _ in seen}
    assert len(experts) == 2
    texts = 2 // evaluations
    for expert in experts:
        sizes = [size for each, size in seen if each == expert]
        assert sizes == [*[(texts, 3 * 4 * 4)] * evaluations, *[(texts, 2 * 6 * 4)] * evaluations]
