"""Adapter files in every layout that is read, and the experts that equal them with the changes merged in."""

import torch

from services.denoiser.transformer import Transformer

RANK, ALPHA = 4, 2.0
WIDTH, WIDE = 48, 96
LAYERS = {
    **{f"attn{number}.{name}": (WIDTH, WIDTH) for number in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")},
    "ffn.net.0.proj": (WIDE, WIDTH),
    "ffn.net.2": (WIDTH, WIDE),
}
ORIGINAL = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


def low_rank(seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Down and up of every layer of both blocks, by diffusers name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"blocks.{block}.{layer}": (
            torch.randn(RANK, fan_in, generator=generator) * 0.2,
            torch.randn(fan_out, RANK, generator=generator) * 0.2,
        )
        for block in (0, 1)
        for layer, (fan_out, fan_in) in LAYERS.items()
    }


def diffusers_layout(seed: int = 0) -> dict[str, torch.Tensor]:
    state = {}
    for layer, (down, up) in low_rank(seed).items():
        state[f"transformer.{layer}.lora_A.weight"] = down
        state[f"transformer.{layer}.lora_B.weight"] = up
        state[f"transformer.{layer}.alpha"] = torch.tensor(ALPHA)
    return state


def original_layout(seed: int = 0) -> dict[str, torch.Tensor]:
    state = {}
    for layer, (down, up) in low_rank(seed).items():
        block, number, rest = layer.split(".", 2)
        name = f"diffusion_model.{block}.{number}.{ORIGINAL[rest]}"
        state[f"{name}.lora_down.weight"] = down
        state[f"{name}.lora_up.weight"] = up
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
    return state


def peft_layout(seed: int = 0) -> dict[str, torch.Tensor]:
    """As PEFT saves its modules: no alpha, which is scaled into `up` here."""
    state = {}
    for layer, (down, up) in low_rank(seed).items():
        state[f"base_model.model.{layer}.lora_A.default.weight"] = down
        state[f"base_model.model.{layer}.lora_B.default.weight"] = up * (ALPHA / RANK)
    return state


def original_peft_layout(seed: int = 0) -> dict[str, torch.Tensor]:
    """The original names with PEFT's `lora_A` and `lora_B`, and without a prefix."""
    roles = {"lora_down": "lora_A", "lora_up": "lora_B", "alpha": "alpha"}
    state = {}
    for key, tensor in original_layout(seed).items():
        for role, name in roles.items():
            if f".{role}" in key:
                state[key.removeprefix("diffusion_model.").replace(f".{role}", f".{name}")] = tensor
    return state


def kohya_layout(seed: int = 0) -> dict[str, torch.Tensor]:
    state = {}
    for key, tensor in original_layout(seed).items():
        layer, dot, role = key.removeprefix("diffusion_model.").partition(".lora")
        if not dot:
            layer, dot, role = layer.removesuffix(".alpha"), ".alpha", ""
        state[f"lora_unet_{layer.replace('.', '_')}{dot}{role}"] = tensor
    return state


def changed(transformer: Transformer, deltas: dict[str, torch.Tensor]) -> Transformer:
    """A copy of the expert with `deltas` added to its parameters of these names."""
    module = type(transformer.module).from_config(transformer.module.config).eval()
    module.load_state_dict(transformer.module.state_dict())
    with torch.no_grad():
        for name, delta in deltas.items():
            module.get_parameter(name).add_(delta)
    return Transformer(module)


def merged(transformer: Transformer, *adapters: tuple[int, float]) -> Transformer:
    """A copy of the expert with the adapters of (seed, weight) added into its weights."""
    deltas: dict[str, torch.Tensor] = {}
    for seed, weight in adapters:
        for layer, (down, up) in low_rank(seed).items():
            name = f"{layer}.weight"
            deltas[name] = deltas.get(name, 0) + weight * (ALPHA / RANK) * (up @ down)
    return changed(transformer, deltas)


# What LightX2V's extractor writes beside the blocks' matrices, by original name: which parameter it is for.
EVERYTHING = {
    **{
        f"blocks.{block}.{ORIGINAL[layer]}.diff_b": f"blocks.{block}.{layer}.bias"
        for block in (0, 1)
        for layer in LAYERS
    },
    **{
        f"blocks.{block}.{theirs}.norm_{x}.diff": f"blocks.{block}.{ours}.norm_{x}.weight"
        for block in (0, 1)
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for x in "qk"
    },
    **{f"blocks.{block}.norm3.diff": f"blocks.{block}.norm2.weight" for block in (0, 1)},
    **{f"blocks.{block}.norm3.diff_b": f"blocks.{block}.norm2.bias" for block in (0, 1)},
    **{f"blocks.{block}.diff_m": f"blocks.{block}.scale_shift_table" for block in (0, 1)},
    **{
        f"{kind}_embedding.{place}.{role}": f"condition_embedder.{kind}_embedder.linear_{number}.{name}"
        for kind in ("text", "time")
        for place, number in ((0, 1), (2, 2))
        for role, name in (("lora", "weight"), ("diff_b", "bias"))
    },
    "time_projection.1.lora": "condition_embedder.time_proj.weight",
    "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
    "patch_embedding.diff": "patch_embedding.weight",
    "patch_embedding.diff_b": "patch_embedding.bias",
    "head.head.diff": "proj_out.weight",
    "head.head.diff_b": "proj_out.bias",
    "head.diff_m": "scale_shift_table",
}


def everything(transformer: Transformer) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A file that changes every parameter of the expert, and what it adds to each."""
    generator = torch.Generator().manual_seed(6)
    state, deltas = original_layout(), {}
    for layer, (down, up) in low_rank().items():
        deltas[f"{layer}.weight"] = (ALPHA / RANK) * (up @ down)
    for name, parameter in EVERYTHING.items():
        shape = transformer.module.get_parameter(parameter).shape
        if name.endswith(".lora"):
            down = torch.randn(RANK, shape[1], generator=generator) * 0.2
            up = torch.randn(shape[0], RANK, generator=generator) * 0.2
            layer = f"diffusion_model.{name.removesuffix('.lora')}"
            state |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
            deltas[parameter] = up @ down
        else:
            deltas[parameter] = torch.randn(shape, generator=generator) * 0.2
            state[f"diffusion_model.{name}"] = deltas[parameter]
    return state, deltas
