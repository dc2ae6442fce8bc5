"""The text encoder: umT5 taught to make every attribute of a caption readable from the mean of its embeddings.

Cross-attention starts out close to that mean, so the experts can use the text from their first step.
``python -m models.tiny.train.text_encoder --tokenizer DIR --out DIR``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from models.tiny.train.loop import Trainer, arguments, averaged_weights, generators, warm_up_and_decay
from models.tiny.train.tokenizer import MAX_LENGTH
from models.tiny.world.caption import Caption, draw_caption
from models.tiny.world.clip import Clip, Mixture, draw_clip
from models.tiny.world.vocabulary import ACTIONS, CAMERAS, LANGUAGES, MOODS, SHAPES, vocabulary

WIDTH: Final = 128
_UNSAID: Final = "unsaid"


def attribute_names() -> dict[str, tuple[str, ...]]:
    """The attributes that must be readable, each with its values; the first value means not said."""
    colours = (_UNSAID, *vocabulary().colours)
    shapes, actions = (_UNSAID, *SHAPES), (_UNSAID, *ACTIONS)
    return {
        "colour_0": colours,
        "shape_0": shapes,
        "action_0": actions,
        "colour_1": colours,
        "shape_1": shapes,
        "action_1": actions,
        "scene": (_UNSAID, *vocabulary().scenes),
        "camera": (_UNSAID, *CAMERAS),
        "mood": (_UNSAID, *MOODS),
    }


def attributes(clip: Clip, caption: Caption) -> dict[str, str]:
    """What ``caption`` says of ``clip``."""
    said = {"scene": clip.scene, "camera": clip.camera, "mood": clip.mood}
    values = {slot: value if slot in caption.said else _UNSAID for slot, value in said.items()}
    for index in range(2):
        actor = clip.actors[index] if index < len(clip.actors) else None
        values[f"colour_{index}"] = actor.colour if actor else _UNSAID
        values[f"shape_{index}"] = actor.shape if actor else _UNSAID
        values[f"action_{index}"] = actor.action if actor and "action" in caption.said else _UNSAID
    return values


def build_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """The untrained encoder."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary_size,
            d_model=WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=False,
        )
    )


def encode(
    encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], device: torch.device | str
) -> torch.Tensor:
    """Embeddings ``[len(texts), 48, 128]``, zero beyond each text's tokens as Wan's pipeline pads them."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").to(
        device
    )
    mask = tokens.attention_mask
    states = encoder(tokens.input_ids, attention_mask=mask).last_hidden_state * mask[..., None]
    return nn.functional.pad(states, (0, 0, 0, MAX_LENGTH - states.shape[1]))


class TextTask:
    """Classifies every attribute from the sum of the embeddings, and again from one attention query each.

    The sum serves untrained cross-attention, the queries ask for what two objects need: which word belongs to which.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        steps: int,
        batch: int,
        lr: float,
        decay: float,
        seed: int,
        device: str,
    ) -> None:
        torch.manual_seed(seed)
        self.tokenizer, self.steps, self.batch, self.lr = tokenizer, steps, batch, lr
        self.decay, self.seed, self.device = decay, seed, device
        self.encoder = build_text_encoder(len(tokenizer)).to(device)
        self.names = attribute_names()
        self.sizes = [len(values) for values in self.names.values()]
        self.heads = nn.Linear(WIDTH, sum(self.sizes)).to(device)
        self.queries = nn.Linear(WIDTH, len(self.sizes), bias=False).to(device)
        self.readouts = nn.Linear(WIDTH, sum(self.sizes)).to(device)
        self.modules: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "heads": self.heads,
            "queries": self.queries,
            "readouts": self.readouts,
        }
        parameters = [parameter for module in self.modules.values() for parameter in module.parameters()]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01
        )

    def start_from(self, folder: Path) -> None:
        """Takes over the averaged weights of an earlier run; pieces of the vocabulary are matched by their text."""
        earlier = AutoTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
        shared = [(row, earlier[piece]) for piece, row in self.tokenizer.get_vocab().items() if piece in earlier]
        rows, sources = (torch.tensor(side) for side in zip(*shared, strict=True))
        for part, module in self.modules.items():
            weights = averaged_weights(folder, part)
            for name in [name for name, weight in weights.items() if weight.shape[0] == len(earlier)]:
                weights[name] = module.state_dict()[name].index_copy(0, rows, weights[name][sources])
            module.load_state_dict(weights, strict=False)

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, decay."""
        return warm_up_and_decay(step, peak=self.lr, warm_up=30, total=self.steps, decay=self.decay)

    def ask(self, states: torch.Tensor) -> list[torch.Tensor]:
        """Scores of every attribute, each read through its own attention over the words."""
        attention = self.queries(states).masked_fill(states.abs().sum(-1, keepdim=True) == 0, -1e4).softmax(dim=1)
        read = torch.einsum("bls,bld->bsd", attention, states)
        weights = self.readouts.weight.split(self.sizes)
        biases = self.readouts.bias.split(self.sizes)
        return [read[:, index] @ weights[index].T + biases[index] for index in range(len(self.sizes))]

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy of all attributes over fresh captions."""
        numbers, _ = generators(self.seed, step)
        texts, targets = [], []
        for index in range(self.batch):
            clip = draw_clip(numbers, Mixture(two_objects=0.4, moving_camera=0.5))
            caption = draw_caption(numbers, clip, LANGUAGES[index % 3], partial=0.3)
            texts.append(caption.text)
            values = attributes(clip, caption)
            targets.append([names.index(values[slot]) for slot, names in self.names.items()])
        states = encode(self.encoder, self.tokenizer, texts, self.device)
        wanted = torch.tensor(targets, device=self.device)
        summed = self.heads(states.sum(1) / 8.0).split(self.sizes, dim=1)
        asked = self.ask(states)
        loss = torch.stack(
            [
                nn.functional.cross_entropy(scores, wanted[:, index])
                for answers in (summed, asked)
                for index, scores in enumerate(answers)
            ]
        ).mean()
        right = torch.stack([scores.argmax(1) == wanted[:, index] for index, scores in enumerate(asked)]).float().mean()
        return loss, {"accuracy": float(right)}


def main() -> None:
    """Trains the encoder and writes it as a ``transformers`` folder."""
    parser = arguments(__doc__ or "", steps=500, batch=96, learning_rate=2e-3)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--init", type=Path, default=None, help="folder of an earlier run to start from")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    task = TextTask(
        tokenizer,
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        decay=options.decay,
        seed=options.seed,
        device=options.device,
    )
    if options.init is not None:
        task.start_from(options.init)
    trainer = Trainer(task, options.out, total=options.steps, ema_decay=0.98)
    trainer.resume()
    trainer.run(steps=options.stop_after)
    task.encoder.load_state_dict(averaged_weights(options.out, "encoder"), strict=False)
    task.encoder.save_pretrained(options.out / "text_encoder")


if __name__ == "__main__":
    main()
