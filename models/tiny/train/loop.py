"""The training loop that every part shares: progress, log, plot, and checkpoints that resume to the bit.

All randomness of step ``n`` comes from ``(seed, n)``, so a checkpoint needs no generator state.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


class Task(Protocol):
    """What is trained: trainable modules by name, one optimizer over them, and a loss for each step."""

    modules: dict[str, torch.nn.Module]
    optimizer: torch.optim.Optimizer

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of ``step`` on data drawn from (seed, step), and figures for the log."""
        ...

    def learning_rate(self, step: int) -> float:
        """The learning rate of ``step``."""
        ...


def generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random generators of one step: for the world (numpy) and for noise (torch, CPU)."""
    numbers = np.random.default_rng([seed, step])
    return numbers, torch.Generator().manual_seed(int(numbers.integers(2**62)))


def multiplies_in_bfloat16(device: str) -> bool:
    """Whether bfloat16 pays on ``device``: CPUs without its instructions are several times slower than in float32."""
    if not device.startswith("cpu"):
        return True
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))


def warm_up_and_decay(step: int, *, peak: float, warm_up: int, total: int, decay: float) -> float:
    """Linear warm-up, constant, then a linear fall to 2 % of the peak over the last ``decay`` share of the steps."""
    rise = min(1.0, (step + 1) / max(warm_up, 1))
    fall_steps = max(1.0, decay * total)
    fall = min(1.0, max(0.02, (total - step) / fall_steps)) if decay > 0 else 1.0
    return peak * rise * fall


class Trainer:
    """Runs a task to ``total`` steps in ``folder``; keeps a moving average (EMA) of the weights."""

    def __init__(self, task: Task, folder: Path, *, total: int, ema_decay: float = 0.999) -> None:
        self.task = task
        self.folder = folder
        self.total = total
        self.ema_decay = ema_decay
        self.step = 0
        self._parameters = {
            f"{part}.{name}": parameter
            for part, module in task.modules.items()
            for name, parameter in module.named_parameters()
        }
        self.average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def resume(self) -> bool:
        """Loads the last checkpoint of ``folder``; False when there is none."""
        if not self._checkpoint.exists():
            return False
        state = load_file(self._checkpoint)
        self.step = int(state.pop("step").item())
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[f"weights/{name}"])
                self.average[name].copy_(state[f"average/{name}"])
                prefix = f"optimizer/{name}/"
                self.task.optimizer.state[parameter] = {
                    key.removeprefix(prefix): value.clone() if value.dim() == 0 else value.clone().to(parameter.device)
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
        return True

    def save(self) -> None:
        """Writes the checkpoint; a kill at any moment leaves the old or the new one whole."""
        state: Tensors = {"step": torch.tensor(self.step)}
        for name, parameter in self._parameters.items():
            state[f"weights/{name}"] = parameter.detach()
            state[f"average/{name}"] = self.average[name]
            for key, value in self.task.optimizer.state[parameter].items():
                state[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
        partial = self._checkpoint.with_suffix(".partial")
        save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, partial)
        partial.replace(self._checkpoint)

    def run(self, *, steps: int | None = None, checkpoint_seconds: float = 60.0) -> None:
        """Trains to the end, or for ``steps`` more; checkpoints as it goes and at the end."""
        last = self.total if steps is None else min(self.total, self.step + steps)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        saved = time.monotonic()
        with Progress(*columns) as progress, (self.folder / "log.jsonl").open("a") as log:
            bar = progress.add_task("training", total=last, completed=self.step)
            for figures in self._steps(last):
                if self.step % 20 == 0 or self.step == last:
                    log.write(json.dumps({"step": self.step, "time": time.time(), **figures}) + "\n")
                    log.flush()
                    progress.update(bar, completed=self.step, description=f"loss {figures['loss']:.4f}")
                if time.monotonic() - saved > checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
        self.save()
        plot(self.folder)

    def _steps(self, last: int) -> Iterator[dict[str, float]]:
        optimizer, averaged, live = self.task.optimizer, list(self.average.values()), list(self._parameters.values())
        while self.step < last:
            for group in optimizer.param_groups:
                group["lr"] = self.task.learning_rate(self.step)
            loss, figures = self.task.loss(self.step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(live, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.step += 1
            keep = min(self.ema_decay, self.step / (self.step + 20))
            with torch.no_grad():
                torch._foreach_lerp_(averaged, [parameter.detach() for parameter in live], 1.0 - keep)
            yield {"loss": float(loss.detach()), **figures}


def averaged_weights(folder: Path, part: str) -> Tensors:
    """The moving average of one module's weights, from the checkpoint in ``folder``."""
    state = load_file(folder / "checkpoint.safetensors")
    prefix = f"average/{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def plot(folder: Path) -> None:
    """Draws ``log.jsonl`` as ``loss.png``."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    losses = np.array([row["loss"] for row in rows])
    width = max(1, len(losses) // 60)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot([row["step"] for row in rows], losses, alpha=0.25)
    axes.plot([row["step"] for row in rows][width - 1 :], smooth)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=folder.name)
    figure.savefig(folder / "loss.png", dpi=100)


def arguments(description: str, *, steps: int, batch: int, learning_rate: float) -> argparse.ArgumentParser:
    """The command line options that every part shares."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, log and result")
    parser.add_argument("--steps", type=int, default=steps, help="length of the whole run")
    parser.add_argument("--stop-after", type=int, default=None, help="stop after this many further steps; resume later")
    parser.add_argument("--batch", type=int, default=batch, help="clips (or captions) a step")
    parser.add_argument("--lr", type=float, default=learning_rate, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the steps over which the rate falls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser
