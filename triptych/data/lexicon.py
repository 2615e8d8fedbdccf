"""The words of the sticker world: nouns and numbers, patterns to parse prompts with, and SKETCH's tokenizer.

`article` and `plural` are the benchmarks' own; synonyms, proper plurals and the patterns are for people's sentences,
which `language.parse_prompt` reads. The tokenizer's vocabulary is closed: a token carries its leading space (" clock"),
a class or a cell is one token even where it is two words (" hot dog", " top left"), and a plural is the class followed
by "s" or "es". Ids never move: specials first, then punctuation, plurals and `VOCABULARY` in the order written here; a
new word goes to the end of `GRAMMAR`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from triptych.data.layout import CELLS, SIZES
from triptych.data.stickers import CLASSES, COLORS

YES, NO, EXTRA = "yes", "no", "extra"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aeroplane", "aircraft", "jet"),
    "backpack": ("rucksack", "knapsack"),
    "baseball bat": ("bat",),
    "baseball glove": ("glove", "baseball mitt"),
    "bicycle": ("bike",),
    "boat": ("ship", "sailboat"),
    "car": ("automobile",),
    "cell phone": ("phone", "cellphone", "mobile phone", "smartphone"),
    "computer keyboard": ("keyboard",),
    "computer mouse": ("mouse",),
    "couch": ("sofa", "settee"),
    "dining table": ("table",),
    "donut": ("doughnut",),
    "fire hydrant": ("hydrant",),
    "hair drier": ("hair dryer", "hairdryer", "hairdrier"),
    "handbag": ("purse",),
    "hot dog": ("hotdog",),
    "laptop": ("laptop computer",),
    "microwave": ("microwave oven",),
    "motorcycle": ("motorbike",),
    "person": ("human",),
    "potted plant": ("plant", "houseplant"),
    "refrigerator": ("fridge",),
    "scissors": ("scissor",),
    "skis": ("ski",),
    "sports ball": ("ball", "soccer ball", "football"),
    "stop sign": ("stopsign",),
    "teddy bear": ("teddy",),
    "tennis racket": ("racket", "racquet", "tennis racquet"),
    "tie": ("necktie",),
    "traffic light": ("stoplight",),
    "truck": ("lorry",),
    "tv": ("television", "tv set"),
    "tv remote": ("remote", "remote control"),
    "wine glass": ("wineglass",),
}
IRREGULAR_PLURALS = {
    "aircraft": "aircraft",
    "broccoli": "broccoli",
    "knife": "knives",
    "lorry": "lorries",
    "mouse": "mice",
    "person": "people",
    "scissors": "scissors",
    "sheep": "sheep",
    "skis": "skis",
}
# Amounts above nine are read, so that the error can say that they are too many.
NUMBER_WORDS = {"a pair of": 2, "a couple of": 2, "a dozen": 12} | {word: number for number, word in enumerate(NUMBERS)}
NUMBER_WORDS |= {"ten": 10, "eleven": 11, "twelve": 12, "twenty": 20, "thirty": 30, "fifty": 50, "hundred": 100}
PAIR_NOUNS = ("scissors", "skis")  # "a pair of" these is one
SIZE_WORDS = {
    **dict.fromkeys(("larger", "large", "bigger", "big", "huge"), "larger"),
    **dict.fromkeys(("smaller", "small", "little", "tiny"), "smaller"),
}
REGION_WORDS = {side: side for side in ("left", "right", "above", "below")}
REGION_WORDS |= {"top": "above", "upper": "above", "bottom": "below", "lower": "below"}
HORIZONTAL_WORDS = {"left": "left of", "right": "right of"}
VERTICAL_WORDS = dict.fromkeys(("above", "over", "on top of", "at the top of"), "above")
VERTICAL_WORDS |= dict.fromkeys(("below", "under", "underneath", "beneath"), "below")
RELATION_WORDS = HORIZONTAL_WORDS | VERTICAL_WORDS


def number_word(number: int) -> str:
    """Such as "three"; a number that the benchmarks have no word for is "more"."""
    return NUMBERS[number] if number < len(NUMBERS) else "more"


def article(word: str) -> str:
    """GenEval's article: "an" before a vowel letter, else "a", by spelling and not by sound."""
    return "an" if word.lower().startswith(tuple("aeiou")) else "a"


def plural(word: str) -> str:
    """GenEval's plural: "buses" and "skises", but also "couchs", "knifes" and "persons"."""
    return word + ("es" if word.endswith("s") else "s")


def proper_plural(name: str) -> str:
    """The plural in proper English: "couches", "knives", "people"."""
    first, last = name[: name.rfind(" ") + 1], name[name.rfind(" ") + 1 :]
    return first + IRREGULAR_PLURALS.get(last, last + "es" if last.endswith(("ch", "sh", "x")) else plural(last))


def any_of(words: Iterable[str]) -> str:
    """A regular expression for one of these words, the longest that fits."""
    return f"(?:{'|'.join(sorted(words, key=len, reverse=True))})"


# Both plurals are read: the benchmarks write "knifes", people "knives".
SINGULARS = {noun: name for name in CLASSES for noun in (name, *SYNONYMS.get(name, ()))}  # noun to class
PLURALS = {form(noun): name for noun, name in SINGULARS.items() for form in (plural, proper_plural)}
NOUNS = SINGULARS | PLURALS

# Sentences are plain: lower case, a space after every word and every comma. So each pattern ends with a space.
_PICTURE = "(?:photo|photograph|picture|image|drawing|painting|illustration|scene|canvas|frame)"
_ASK = "(?:please|can you|could you|i want|i would like|to see|show|give|draw|paint|sketch|make|create|generate|me|us)"
_HOLDS = "(?:of|with|showing|containing|that shows|depicting|featuring|where|in which)"
_LINK = "(?:(?:that|which) )?(?:(?:is|are|stands|stand|sits|sit) )?(?:(?:placed|located|standing|sitting) )?"
_BIG = f"{any_of(SIZE_WORDS)} "

OPENING = re.compile(f"(?:{_ASK} )*(?:(?:(?:a|an|the|one) )?{_PICTURE} (?:{_HOLDS} )?)?(?:there (?:is|are) )?")
CLOSING = re.compile(f"(?:in (?:the|a|this) {_PICTURE} )?(?:please )?(?:, )*$")
SEPARATOR = re.compile("(?:, |and |with |plus |also )+")
AMOUNT = re.compile(rf"({any_of(NUMBER_WORDS)}|\d+) ")
ARTICLE = re.compile("(?:an?|(the)) ")
SIZE = re.compile(f"({any_of(SIZE_WORDS)}) ")
COLOR = re.compile(f"({any_of(COLORS)}) (?:colou?red )?(?=(?:{_BIG})?{any_of(NOUNS)} )")  # "orange" alone is a thing
NOUN = re.compile(f"({any_of(NOUNS)}) ")
_BESIDE = rf"(?:(?:on|to|at) )?(?:the )?({any_of(HORIZONTAL_WORDS)}) (?:hand )?(?:side )?of (?!(?:the|a) {_PICTURE} )"
_OVER = f"({any_of(VERTICAL_WORDS)}) (?!,|and |with |(?:the|a) {_PICTURE} |$)"
_RELATION = f"{_LINK}(?:{_BESIDE}|{_OVER})"
RELATION = re.compile(_RELATION)
REGION = re.compile(
    f"(?!{_RELATION}){_LINK}(?:(?:on|at|in|to) )?(?:the )?(?P<side>{any_of(REGION_WORDS)}) (?:hand )?"
    f"(?:(?:side|half|part) )?(?:of (?:the|a) {_PICTURE} )?"
)

_PATTERNS = (OPENING, CLOSING, SEPARATOR, AMOUNT, ARTICLE, SIZE, COLOR, NOUN, RELATION, REGION)
READABLE_WORDS = frozenset(word for each in _PATTERNS for word in re.findall("[a-z]+", each.pattern))
READABLE_WORDS |= {"colored", "coloured"}  # "colou?red" in a pattern is no word
SUGGESTIONS = (*SINGULARS, *COLORS, *NUMBERS[1:], *SIZE_WORDS, *REGION_WORDS)

PAD, UNKNOWN = "<|endoftext|>", "<unk>"
SPECIALS = (PAD, UNKNOWN, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")  # left out by a decoder
THINK = ("<think>", "</think>")  # kept by a decoder: a parser looks for them
PUNCTUATION = ",.?:;!"  # tokens without a leading space
PLURAL_TOKENS = ("s", "es")  # GenEval's two endings (`plural`)

GRAMMAR = """
a an the and of on in at to with than as by or not no none nothing
photo picture left right above below side
add remove paint move replace make swap sticker
is are does do it show there how many what which where color size cell yes
all asked found but should be extra missing more other wrong same anything else only
plan think reflect draw edit look answer further needed
"""
VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys((*NUMBERS, *COLORS, *CELLS, *SIZES, *CLASSES, *GRAMMAR.split())))


def build_tokenizer() -> Tokenizer:
    """The tokenizer of SKETCH: lower-cases, folds white space, and loses nothing else of the sticker world's texts.

    Any other word becomes `<unk>`. Saved as tokenizer.json it loads with `transformers.AutoTokenizer`.
    """
    tokens = (*SPECIALS, *THINK, *PUNCTUATION, *PLURAL_TOKENS, *(f" {word}" for word in VOCABULARY))
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(rf"(?<=[{PUNCTUATION}])(?=[^\s{PUNCTUATION}])"), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            # The first word, too, is written with the leading space of its token.
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(rf" (?=[{PUNCTUATION}])"), ""),
        ]
    )
    # "top left" before "top", "hot dog" before "dog".
    longest_first = "|".join(re.escape(word) for word in sorted(VOCABULARY, key=len, reverse=True))
    word = rf" (?:{longest_first})(?=(?:es|s)?(?![^\s{PUNCTUATION}]))"
    ending = rf"(?<=[a-z])(?:es|s)(?![^\s{PUNCTUATION}])"
    token = Regex(rf"{word}|{ending}|[{PUNCTUATION}]| [^\s{PUNCTUATION}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(token, "isolated")
    # A segment after a special token gets its leading space back, so the text after one is written without it.
    after_special = Regex(r"(?<=\|>|<think>|</think>) ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Fuse(), decoders.Replace(after_special, ""), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in THINK])
    return tokenizer
