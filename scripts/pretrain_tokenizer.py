"""Builds the small CLIP vocabulary of assets/tiny-sd3: whole words of the grammar, characters for everything else.

A byte-pair chain for a word starts with one pair of letters, and that pair then merges in every other word too. Each
chain therefore starts where it disturbs the sign words least, so that signs are spelled letter by letter.
"""

from __future__ import annotations

from typing import Any

from imgrl.world.prompts import all_prompts
from imgrl.world.vocabulary import SHAPES, TASKS, WORDS, plural

MAX_LENGTH = 16


def grammar_words() -> list[str]:
    """Every word of the seven prompt templates, without the words on signs."""
    words = {word for task in TASKS for text, _ in all_prompts(task) for word in text.split()}
    return sorted(words | {"sign", "that", "says"})


def symbols(word: str) -> list[str]:
    """Letters of a word, the last one marked as CLIP does."""
    return [*word[:-1], word[-1] + "</w>"]


def merge_chain(word: str, avoid: list[list[str]], taken: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Merges that build ``word`` out of its letters, starting at the pair that is rarest in ``avoid``.

    The start lies before a noun's last letter, so that its plural grows out of the same merges.
    """
    parts = symbols(word)
    if len(parts) == 1:
        return []
    stem = next((noun for noun in SHAPES if word in (noun, plural(noun))), None)
    candidates = parts[: len(stem) - 1] if stem else parts
    pairs = list(zip(candidates, candidates[1:], strict=False))

    def harm(i: int) -> tuple[bool, int]:
        hits = sum(pairs[i] == pair for other in avoid for pair in zip(other, other[1:], strict=False))
        return pairs[i] in taken and stem is None, hits

    start = min(range(len(pairs)), key=harm)
    chain, token = [pairs[start]], parts[start] + parts[start + 1]
    for right in parts[start + 2 :]:
        chain.append((token, right))
        token += right
    for left in reversed(parts[:start]):
        chain.append((left, token))
        token = left + token
    return chain


def build_tokenizer() -> Any:
    """A stock CLIPTokenizer over the small vocabulary.

    Raises:
        RuntimeError: if a word of the grammar is not one token.
    """
    import transformers

    kind: Any = transformers.CLIPTokenizer

    words = grammar_words()
    signs = [symbols(word.lower()) for word in WORDS if word.isalpha()]
    order = list(words)
    for _ in range(50):
        merges: list[tuple[str, str]] = []
        for word in order:
            others = signs + [symbols(other) for other in words if other != word] * 3
            merges += [pair for pair in merge_chain(word, others, set(merges)) if pair not in merges]
        vocabulary = {token: i for i, token in enumerate(_alphabet() + [a + b for a, b in merges])}
        vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
        tokenizer = kind(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
        broken = [word for word in words if len(tokenizer(word).input_ids) != 3]
        if not broken:
            return tokenizer
        order = broken + [word for word in order if word not in broken]  # earlier merges win
    raise RuntimeError(f"These words are not single tokens: {', '.join(broken)}.")


def _alphabet() -> list[str]:
    """CLIP's 256 byte symbols, plain and word-final."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]
    return letters + [letter + "</w>" for letter in letters]


if __name__ == "__main__":
    import imgrl  # noqa: F401

    tokenizer = build_tokenizer()
    print(len(tokenizer), tokenizer.tokenize('a sign that says "CAT42"'))
    print([w for w in WORDS if w.isalpha() and len(tokenizer(w).input_ids) != len(w) + 2])
