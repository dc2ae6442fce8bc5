"""The tokenizer: a Unigram lexicon of the captions' words, single characters behind it.

``python -m models.tiny.train.tokenizer --out DIR`` writes a folder that ``AutoTokenizer`` loads.
"""

import argparse
import io
import re
import string
from pathlib import Path
from typing import Final

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import T5Tokenizer

from models.tiny.world.vocabulary import vocabulary

MAX_LENGTH: Final = 48

_SPECIAL: Final = ("<pad>", "</s>", "<unk>")
_ENGLISH: Final = "a an one and the of in on over to from it is with this that moving going red"
_CHINESE: Final = (
    "一个 两个 的 向左 向右 向上 向下 从左 从右 移动 滑动 缓缓 上升 下落 静止 不动 停在 原地 逐渐 变大 "
    "变小 星空 夜晚 夜空 灰色 房间 格子 墙前 蓝色 大海 海浪 之上 绿色 草地 草原 沙漠 黄沙 雪地 雪原 固定 "
    "镜头 平移 左摇 右摇 推近 放大 拉远 缩小 氛围 自然 明亮 欢快 光线 昏暗 阴沉 红色 黄色 紫色 橙色 青色 "
    "白色 圆形 圆球 圆 方块 正方形 三角形 星星 五角星 在 中 上 里 背景 黑色 沙色"
)
_JAPANESE: Final = (
    "赤い 緑の 青い 黄色い 紫の オレンジ色の 水色の 白い 円 丸 ボール 四角 正方形 三角形 三角 星 星形 が "
    "左へ 右へ 上へ 下へ 動く 右から 左から 移動する 上昇する 落ちる 動かない 止まっている 大きくなる "
    "小さくなる だんだん 夜空 の 中で 灰色の 部屋で 格子 壁の 前で 海 波の 上で 草原で 草地 砂漠で 砂丘 "
    "雪の 雪原で 固定 カメラ は 左に 右に パン 振る ズームイン ズームアウト する 自然な 雰囲気 明るく "
    "楽しい 明るい 光 暗く 重い 薄暗い 背景 黒い 砂色の"
)


def lexicon() -> list[tuple[str, float]]:
    """Pieces with their scores; fewer and longer pieces win. A leading ``▁`` marks the start of a word."""
    words = vocabulary().phrases
    english = set(_ENGLISH.split())
    characters = set(string.ascii_lowercase + string.digits + string.punctuation + "。、")
    for language, slots in words.items():
        for phrase in (phrase for names in slots.values() for phrases in names.values() for phrase in phrases):
            if language == "en":
                english.update(re.findall(r"[a-z]+", phrase))
            else:
                characters.update(phrase)
    asian = sorted(set(_CHINESE.split()) | set(_JAPANESE.split()))
    characters.update("".join(asian))
    pieces = [(f"▁{word}", -8.0) for word in sorted(english)]
    pieces += [(word, -8.0) for word in asian if len(word) > 1]
    pieces += [(character, -12.0) for character in sorted(characters)]
    return [(name, 0.0) for name in _SPECIAL] + [("▁", -6.0)] + pieces


def _folding() -> bytes:
    """SentencePiece's table for NFKC and case folding, so that full-width and capital letters read alike."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 10),
        model_writer=model,
        vocab_size=8,
        model_type="char",
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    # protobuf builds its classes at run time.
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def build_tokenizer() -> T5Tokenizer:
    """The tokenizer; padding is 0, the end of a text is 1, an unknown character is 2."""
    return T5Tokenizer(vocab=lexicon(), extra_ids=0, _spm_precompiled_charsmap=_folding(), model_max_length=MAX_LENGTH)


def main() -> None:
    """Writes the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    build_tokenizer().save_pretrained(parser.parse_args().out)


if __name__ == "__main__":
    main()
