"""`generate`, `create`, `regenerate` and `watch`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import asyncio
from typing import Annotated, Any

import typer

from rushes.cli import finish_options as f
from rushes.cli import gate_options as g
from rushes.cli import options as o

app = typer.Typer()


@app.command()
def generate(
    prompt: o.OptionalPrompt = None,
    *,
    negative: o.Negative = None,
    width: o.Width = None,
    height: o.Height = None,
    frames: o.Frames = None,
    source_fps: o.SourceFps = None,
    seed: o.Seed = None,
    preset: o.PresetName = None,
    steps: o.Steps = None,
    solver: o.SolverName = None,
    sigma_rule: o.SigmaRuleName = None,
    shift: o.Shift = None,
    boundary: o.Boundary = None,
    guidance_high: o.GuidanceHigh = None,
    guidance_low: o.GuidanceLow = None,
    guidance_from: o.GuidanceFrom = None,
    guidance_until: o.GuidanceUntil = None,
    step_cache: o.StepCacheName = None,
    step_cache_threshold: o.StepCacheThreshold = None,
    reuse_prefix: o.ReusePrefix = False,
    upscale: f.Upscale = None,
    upscaler: f.Upscaler = None,
    fps: f.TargetFps = None,
    size: f.Size = None,
    fit: f.FitName = None,
    aspect: f.AspectName = None,
    brightness: f.Brightness = None,
    contrast: f.Contrast = None,
    saturation: f.Saturation = None,
    gamma: f.Gamma = None,
    sharpness: f.Sharpness = None,
    loop: f.Loop = None,
    fade_in: f.FadeIn = None,
    fade_out: f.FadeOut = None,
    label: f.LabelText = None,
    label_corner: f.LabelCorner = None,
    label_opacity: f.LabelOpacity = None,
    logo: f.LogoFile = None,
    logo_corner: f.LogoCorner = None,
    logo_opacity: f.LogoOpacity = None,
    logo_width: f.LogoWidth = None,
    subtitles: f.SubtitleFile = None,
    subtitles_as: f.SubtitleUse = None,
    subtitles_language: f.SubtitleLanguage = None,
    watermark: f.Watermark = False,
    watermark_id: f.WatermarkId = None,
    formats: f.Formats = None,
    codec: f.CodecName = None,
    quality: f.Quality = None,
    bitrate: f.Bitrate = None,
    crf: f.Crf = None,
    effort: f.Effort = None,
    declare_prompt: o.DeclarePrompt = False,
    gate: g.Rules = None,
    retakes: g.Retakes = None,
    retake_within: g.RetakeWithin = None,
    output: o.Output = None,
    previews: o.Previews = None,
    preview_every: o.PreviewEvery = 2,
    batch: o.BatchFile = None,
    cache: o.UseCache = False,
    model: o.Model = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Make a clip: the MP4 and a contact sheet in the current folder.

    Without a gateway the whole suite is started in this process, on the embedded model. Ctrl-C cancels.
    """
    from rushes.cli.endpoint import Endpoint
    from rushes.cli.finishing import DeliveryOptions, FinishOptions, finish_settings, flags_named
    from rushes.cli.making import Asked, Outputs, generate_clip, generate_clips
    from rushes.cli.refusal import CommandRefused
    from rushes.client import generation_spec

    if (prompt is None) == (batch is None):
        raise CommandRefused("PROMPT", "give either a prompt or --batch")
    settings: dict[str, Any] = {
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "num_frames": frames,
        "fps": source_fps,
        "seed": seed,
        "preset": preset,
        "steps": steps,
        "solver": solver,
        "sigma_rule": sigma_rule,
        "flow_shift": shift,
        "boundary_ratio": boundary,
        "guidance_scale_high": guidance_high,
        "guidance_scale_low": guidance_low,
        "guidance_timestep_max": guidance_from,
        "guidance_timestep_min": guidance_until,
        "step_cache": step_cache,
        "step_cache_threshold": step_cache_threshold,
        "reuse_prefix": reuse_prefix,
        "declare_prompt": declare_prompt,
        "preview_every_steps": preview_every if previews else 0,
        "crf": crf,
    }
    delivery = DeliveryOptions(formats=formats or (), codec=codec, quality=quality, bitrate=bitrate, effort=effort)
    finish = FinishOptions(
        upscale=upscale,
        upscaler=upscaler,
        fps=fps,
        size=size,
        fit=fit,
        aspect=aspect,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        gamma=gamma,
        sharpness=sharpness,
        loop=loop,
        fade_in=fade_in,
        fade_out=fade_out,
        label=label,
        label_corner=label_corner,
        label_opacity=label_opacity,
        logo=logo,
        logo_corner=logo_corner,
        logo_opacity=logo_opacity,
        logo_width=logo_width,
        subtitles=subtitles,
        subtitles_as=subtitles_as,
        subtitles_language=subtitles_language,
        watermark=watermark,
        watermark_id=watermark_id,
    )
    gating = g.GateOptions(rules=gate or (), retakes=retakes, retake_within=retake_within)
    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asked = Asked(model=model, device=device, dtype=dtype)
    with flags_named():
        settings |= finish_settings(finish, delivery) | gating.settings()
        if batch is not None:
            asyncio.run(
                generate_clips(endpoint, batch, settings, output, asked, formats=delivery.wanted, as_json=as_json)
            )
            return
        spec = generation_spec(prompt or "", **settings)
        outputs = Outputs(video=output, previews=previews, formats=delivery.wanted)
        asyncio.run(generate_clip(endpoint, spec, outputs, asked, prefer_cache=cache, as_json=as_json))


@app.command()
def create(
    prompt: o.Prompt,
    *,
    negative: o.Negative = None,
    width: o.Width = None,
    height: o.Height = None,
    frames: o.Frames = None,
    source_fps: o.SourceFps = None,
    seed: o.Seed = None,
    preset: o.PresetName = None,
    steps: o.Steps = None,
    solver: o.SolverName = None,
    sigma_rule: o.SigmaRuleName = None,
    shift: o.Shift = None,
    boundary: o.Boundary = None,
    guidance_high: o.GuidanceHigh = None,
    guidance_low: o.GuidanceLow = None,
    guidance_from: o.GuidanceFrom = None,
    guidance_until: o.GuidanceUntil = None,
    step_cache: o.StepCacheName = None,
    step_cache_threshold: o.StepCacheThreshold = None,
    reuse_prefix: o.ReusePrefix = False,
    upscale: f.Upscale = None,
    upscaler: f.Upscaler = None,
    fps: f.TargetFps = None,
    size: f.Size = None,
    fit: f.FitName = None,
    aspect: f.AspectName = None,
    brightness: f.Brightness = None,
    contrast: f.Contrast = None,
    saturation: f.Saturation = None,
    gamma: f.Gamma = None,
    sharpness: f.Sharpness = None,
    loop: f.Loop = None,
    fade_in: f.FadeIn = None,
    fade_out: f.FadeOut = None,
    label: f.LabelText = None,
    label_corner: f.LabelCorner = None,
    label_opacity: f.LabelOpacity = None,
    logo: f.LogoFile = None,
    logo_corner: f.LogoCorner = None,
    logo_opacity: f.LogoOpacity = None,
    logo_width: f.LogoWidth = None,
    subtitles: f.SubtitleFile = None,
    subtitles_as: f.SubtitleUse = None,
    subtitles_language: f.SubtitleLanguage = None,
    watermark: f.Watermark = False,
    watermark_id: f.WatermarkId = None,
    formats: f.Formats = None,
    codec: f.CodecName = None,
    quality: f.Quality = None,
    bitrate: f.Bitrate = None,
    crf: f.Crf = None,
    effort: f.Effort = None,
    declare_prompt: o.DeclarePrompt = False,
    gate: g.Rules = None,
    retakes: g.Retakes = None,
    retake_within: g.RetakeWithin = None,
    model: Annotated[str | None, typer.Option(help="Id of the model.", rich_help_panel=o.CLIP)] = None,
    request_id: Annotated[
        str | None, typer.Option(help="UUID: the same one twice is one generation.", rich_help_panel=o.GATEWAY)
    ] = None,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Hand in a generation at a running gateway and print its id."""
    from rushes.cli.endpoint import Endpoint
    from rushes.cli.finishing import DeliveryOptions, FinishOptions, finish_settings, flags_named
    from rushes.cli.making import hand_in
    from rushes.client import generation_spec

    delivery = DeliveryOptions(formats=formats or (), codec=codec, quality=quality, bitrate=bitrate, effort=effort)
    finish = FinishOptions(
        upscale=upscale,
        upscaler=upscaler,
        fps=fps,
        size=size,
        fit=fit,
        aspect=aspect,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        gamma=gamma,
        sharpness=sharpness,
        loop=loop,
        fade_in=fade_in,
        fade_out=fade_out,
        label=label,
        label_corner=label_corner,
        label_opacity=label_opacity,
        logo=logo,
        logo_corner=logo_corner,
        logo_opacity=logo_opacity,
        logo_width=logo_width,
        subtitles=subtitles,
        subtitles_as=subtitles_as,
        subtitles_language=subtitles_language,
        watermark=watermark,
        watermark_id=watermark_id,
    )
    gating = g.GateOptions(rules=gate or (), retakes=retakes, retake_within=retake_within)
    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    with flags_named():
        spec = generation_spec(
            prompt,
            negative_prompt=negative,
            model=model,
            width=width,
            height=height,
            num_frames=frames,
            fps=source_fps,
            seed=seed,
            preset=preset,
            steps=steps,
            solver=solver,
            sigma_rule=sigma_rule,
            flow_shift=shift,
            boundary_ratio=boundary,
            guidance_scale_high=guidance_high,
            guidance_scale_low=guidance_low,
            guidance_timestep_max=guidance_from,
            guidance_timestep_min=guidance_until,
            step_cache=step_cache,
            step_cache_threshold=step_cache_threshold,
            reuse_prefix=reuse_prefix,
            declare_prompt=declare_prompt,
            crf=crf,
            **(finish_settings(finish, delivery) | gating.settings()),
        )
        asyncio.run(hand_in(endpoint, spec, request_id, as_json=as_json))


@app.command()
def regenerate(
    generation_id: o.GenerationId,
    *,
    seed: o.Seed = None,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Hand in the same settings again with another seed, and print the new id."""
    from rushes.cli.endpoint import Endpoint
    from rushes.cli.making import hand_in_again

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(hand_in_again(endpoint, generation_id, seed, as_json=as_json))


@app.command()
def watch(
    generation_id: o.GenerationId,
    *,
    after: Annotated[int, typer.Option(min=0, help="Only events after this sequence.")] = 0,
    output: o.Output = None,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Follow a generation to its end; lost connections are mended. Ctrl-C leaves it running."""
    from rushes.cli.endpoint import Endpoint
    from rushes.cli.making import Outputs
    from rushes.cli.making import watch as follow

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(follow(endpoint, generation_id, after, Outputs(video=output), as_json=as_json))
