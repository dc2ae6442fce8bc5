"""The few-step adapter: low-rank updates (arXiv:2106.09685) of both experts that walk the teacher's path in four steps.

Each expert takes two Euler steps without guidance, and learns from its own first one where the teacher's second ends:
``python -m models.tiny.train.distill --part high --trajectories DIR --out DIR``, then
``python -m models.tiny.train.distill --part low --trajectories DIR --high DIR --out DIR``.
"""

import re
from functools import partial
from pathlib import Path
from typing import Final

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import nn

from models.tiny.evaluate import WEIGHTS
from models.tiny.few_steps import FIRST_LOW_STEP, Pairs, few_step, few_step_levels, merge
from models.tiny.train.loop import Trainer, arguments, generators, warm_up_and_decay
from models.tiny.train.trajectories import load_trajectories

RANK: Final = 16
FOLDERS: Final = {"high": "transformer", "low": "transformer_2"}
_FIRST_STEP: Final = {"high": 0, "low": FIRST_LOW_STEP}
_ADAPTED: Final = re.compile(r"^blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))$")
_AVERAGED_DOWN: Final = re.compile(r"^average/.+\.down$")
_CHUNK: Final = 10
_WARM_UP: Final = 20


class LowRankPair(nn.Module):
    """What is added to a linear layer's output: up (down x), zero at first."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, layer.in_features) * layer.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The addition for ``features`` ``[..., in]``."""
        return nn.functional.linear(nn.functional.linear(features, self.down), self.up)


def attach(expert: WanTransformer3DModel) -> dict[str, LowRankPair]:
    """Freezes ``expert`` and adds a pair to every adapted layer; the pairs by layer name."""
    expert.requires_grad_(requires_grad=False)
    pairs = {}
    for name, layer in expert.named_modules():
        if isinstance(layer, nn.Linear) and _ADAPTED.match(name):
            pairs[name] = LowRankPair(layer).to(layer.weight.device)
            layer.register_forward_hook(partial(_add, pairs[name]))
    return pairs


def _add(pair: LowRankPair, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output + pair(inputs[0])


class DistillTask:
    """Learns one expert's two steps; starts are noise, or for the low expert what the high student made of it."""

    def __init__(
        self,
        *,
        part: str,
        expert: WanTransformer3DModel,
        starts: torch.Tensor,
        states: torch.Tensor,
        text: torch.Tensor,
        steps: int,
        batch: int,
        lr: float,
        decay: float,
        seed: int,
        device: str,
    ) -> None:
        torch.manual_seed(seed)
        self.first = _FIRST_STEP[part]
        self.expert = expert.to(device)
        self.starts, self.states, self.text = starts, states, text
        self.steps, self.batch, self.lr, self.decay = steps, batch, lr, decay
        self.seed, self.device = seed, device
        self.modules: dict[str, nn.Module] = {**attach(self.expert)}
        parameters = [parameter for pair in self.modules.values() for parameter in pair.parameters()]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, decay."""
        return warm_up_and_decay(step, peak=self.lr, warm_up=_WARM_UP, total=self.steps, decay=self.decay)

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean squared error of the velocity that would end on the teacher's path, half a batch for either step."""
        numbers, _ = generators(self.seed, step)
        chosen = torch.from_numpy(numbers.choice(len(self.starts), self.batch, replace=False))
        begun, (levels, half) = self.starts[chosen].to(self.device), (few_step_levels(), self.batch // 2)
        text, goals = self.text[chosen].to(self.device), self.states[chosen].to(self.device)
        with torch.no_grad():
            moved = few_step(self.expert, begun[half:], self.first, text[half:])
        terms = []
        first, second = self.first, self.first + 1
        for start, taken, rows in ((begun[:half], first, slice(half)), (moved, second, slice(half, None))):
            reached = few_step(self.expert, start, taken, text[rows])
            error = (reached - goals[rows, taken + 1]) / (levels[taken + 1] - levels[taken])
            terms.append(error.square().mean())
        return (terms[0] + terms[1]) / 2.0, {"first": float(terms[0].detach()), "second": float(terms[1].detach())}


def averaged_adapter(folder: Path) -> Pairs:
    """The moving average of a run's pairs."""
    state = load_file(folder / "checkpoint.safetensors")
    layers = [key.removeprefix("average/").removesuffix(".down") for key in state if _AVERAGED_DOWN.match(key)]
    return {layer: (state[f"average/{layer}.down"], state[f"average/{layer}.up"]) for layer in layers}


@torch.no_grad()
def starts_of_low(high: WanTransformer3DModel, noise: torch.Tensor, text: torch.Tensor, device: str) -> torch.Tensor:
    """What the high student's two steps make of ``noise``."""
    high = high.to(device)
    done = []
    for sample, words in zip(noise.split(_CHUNK), text.split(_CHUNK), strict=True):
        moved = sample.to(device)
        for step in range(FIRST_LOW_STEP):
            moved = few_step(high, moved, step, words.to(device))
        done.append(moved.cpu())
    return torch.cat(done)


def main() -> None:
    """Trains one expert's adapter and leaves its averaged matrices in the checkpoint."""
    parser = arguments(__doc__ or "", steps=600, batch=8, learning_rate=2e-3)
    parser.add_argument("--part", choices=sorted(FOLDERS), required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the teacher, in diffusers layout")
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("--high", type=Path, default=None, help="the high expert's finished run, for --part low")
    parser.add_argument("--ema", type=float, default=0.98)
    options = parser.parse_args()
    if (options.part == "low") != (options.high is not None):
        parser.error("--high belongs to --part low")
    experts = {
        part: WanTransformer3DModel.from_pretrained(options.weights / folder, dtype=torch.float32)
        for part, folder in FOLDERS.items()
    }
    states, text = load_trajectories(options.trajectories)
    starts = states[:, 0]
    if options.high is not None:
        merge(experts["high"], averaged_adapter(options.high))
        starts = starts_of_low(experts["high"], starts, text, options.device)
    task = DistillTask(
        part=options.part,
        expert=experts[options.part],
        starts=starts,
        states=states,
        text=text,
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        decay=options.decay,
        seed=options.seed,
        device=options.device,
    )
    trainer = Trainer(task, options.out, total=options.steps, ema_decay=options.ema)
    trainer.resume()
    trainer.run(steps=options.stop_after)


if __name__ == "__main__":
    main()
